"""The start of a run: check what was asked, and decide whether a run begins or goes on."""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any, Final

from drumline import __version__, memory
from drumline.bundle import load_bundle
from drumline.cache import Cache
from drumline.cache_file import check_length
from drumline.durable import make_directories, output_errors
from drumline.errors import ArchiveError, IndexFormatError, OutputError, StageError
from drumline.failpoints import step
from drumline.machine import address_space_limit
from drumline.pipeline.job import Job, Request, decision_key, inference_key, model_facts
from drumline.records import display_path
from drumline.runs import (
    CACHE_NAME,
    SUMMARY_NAME,
    Run,
    create_run,
    newest_complete_run,
    open_run,
    remove_stillborn,
)
from drumline.settings import InferSettings

__all__ = ["check_request", "identity_of", "make_job", "make_runs_root"]

_MB: Final = 1_000_000
_SMALLEST_ADDRESS_SPACE: Final = 300 * _MB
"""With less, libraries cannot be loaded, and some of them try again for ever rather than fail."""

_SMALLEST_GROUP: Final = 120 * _MB
"""With less, the kernel kills one stage or another: one worker and batches of four files fill 103 MB that
cannot be taken back, and libraries and page tables come on top."""

_KEPT_TO_THE_END: Final = (
    *("supported_formats", "follow_links", "one_file_system"),
    *("max_file_mb", "dedup_hash"),
)
"""Settings that change which files are found and how they are looked up: a run ends with those it began with.

Time and memory for a file may be raised meanwhile: that is how a run is got to its end. None of them is in a
key, for what they gave is carried over to a run with others."""


def check_request(settings: InferSettings) -> Request:
    """Check settings against the disk and the bundle; from here on they say what the archive lies on.

    Raises
    ------
    DrumlineError
        When the archive, the bundle or the labels are not what they should be.
    """
    archive, settings = _archive(settings), settings.settled()
    _check_address_space()
    _check_memory_group()
    _check_runtime()
    bundle = load_bundle(
        settings.model_path, label_map=settings.label_map, canonical_map=settings.canonical_map
    )
    decisions = settings.decision_settings(
        bundle.taxonomy,
        bundle.operating_points,
        f"bundle {bundle.name}",
        None if bundle.gate is None else bundle.gate.threshold,
    )
    return Request(
        settings=settings,
        bundle=bundle,
        decisions=decisions,
        archive=archive,
        archive_identity=identity_of(archive),
        inference_key=inference_key(settings, bundle),
        decision_key=decision_key(settings, decisions),
    )


def _check_runtime() -> None:
    """See early that there is a runtime; that it is whole, predict sees, which a rescan may not need."""
    if find_spec("onnxruntime") is None:
        from drumline.inference import check_runtime

        check_runtime()


def _check_address_space() -> None:
    limit = address_space_limit()
    if limit is not None and limit < _SMALLEST_ADDRESS_SPACE:
        raise StageError(
            f"the limit of memory is {limit // _MB:,} MB of addresses, and a run needs at least"
            f" {_SMALLEST_ADDRESS_SPACE // _MB:,} MB",
            "Raise it: 'ulimit -v unlimited', or what limits the account or the service.",
        )


def _check_memory_group() -> None:
    limit = memory.read_memory().limit
    if limit is not None and limit < _SMALLEST_GROUP:
        raise StageError(
            f"the limit of memory is {limit // _MB:,} MB for the control group (container, service), and a"
            f" run needs at least {_SMALLEST_GROUP // _MB:,} MB",
            "Raise it: docker's --memory, a service's MemoryMax=, or memory.max of the group.",
        )


def identity_of(archive: bytes) -> tuple[int, int]:
    """Return device and inode of the archive's root; (0, 0) when it is not there."""
    try:
        found = os.stat(archive)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _archive(settings: InferSettings) -> bytes:
    archive = os.path.realpath(os.fsencode(settings.archive))
    shown = display_path(settings.archive)
    if not os.path.exists(archive):
        raise ArchiveError(f"no archive at {shown!r}", "Check the path, and that the volume is mounted.")
    if not os.path.isdir(archive):
        raise ArchiveError(f"the archive {shown!r} is a file", "Give the directory that holds the samples.")
    if not os.access(archive, os.R_OK | os.X_OK):
        raise ArchiveError(
            f"the archive {shown!r} cannot be read: permission denied", "Check the permissions."
        )
    if archive == os.path.realpath(os.fsencode(settings.runs_root)):
        raise OutputError(
            f"archive and runs root are the same directory: {shown!r}", "Give another --runs-root."
        )
    return archive


def make_runs_root(settings: InferSettings) -> None:
    """Make the directory for runs, and see that it can be written and a cache can be in it."""
    check_length(settings.runs_root / CACHE_NAME)
    with output_errors(settings.runs_root):
        make_directories(settings.runs_root)
        with tempfile.TemporaryFile(dir=settings.runs_root):
            pass  # permissions, a read-only file system and a full one are told apart only by trying


def make_job(request: Request, cache: Cache) -> Job:
    """Go on with an unfinished run of the same archive, model and settings, or begin a new one."""
    with cache.transaction():
        scope = cache.scope(request.archive, request.inference_key)
    run_id, run, valid = _unfinished(request, cache, scope) or _begin(request, cache, scope)
    runs = cache.runs(scope)
    return Job(
        **vars(request),
        run=run,
        run_id=run_id,
        scope=scope,
        carriable=frozenset(number for number, row in runs.items() if row[1] == request.decision_key),
        valid=valid,
        earlier_device=_earlier_device(request, [row[0] for number, row in runs.items() if number != run_id]),
        known_before=_known_before(request),
        answered_before=cache.has_prediction(request.inference_key),
    )


def _known_before(request: Request) -> int:
    """Return how many files the archive's newest complete run found; 0 where this one looks for fewer."""
    newest = newest_complete_run(request.settings.runs_root, request.archive)
    if newest is None:
        return 0
    asked, then = request.settings.to_json(), newest.info["settings"]
    if any(asked[name] != then.get(name) for name in ("follow_links", "one_file_system")):
        return 0
    if not set(asked["supported_formats"]) >= set(then.get("supported_formats") or ()):
        return 0
    with suppress(IndexFormatError):
        counts = newest.summary().get("counts")
        indexed = counts.get("indexed") if isinstance(counts, dict) else None
        return indexed if type(indexed) is int else 0
    return 0


def _earlier_device(request: Request, names: list[str]) -> int | None:
    """Return the device of the archive's root at the last of these runs, as far as that is known."""
    for name in sorted(names, reverse=True):
        with suppress(IndexFormatError):
            device = open_run(request.settings.runs_root / name).info.get("archive_device")
            return device if isinstance(device, int) else None
    return None


def _unfinished(request: Request, cache: Cache, scope: int) -> tuple[int, Run, int] | None:
    runs = sorted(cache.runs(scope).items(), key=lambda item: item[1][0], reverse=True)
    for number, (name, key, valid) in runs:
        directory = request.settings.runs_root / name
        if key == request.decision_key and not (directory / SUMMARY_NAME).exists():
            with suppress(IndexFormatError):  # a run that cannot be opened is left alone
                run = open_run(directory)
                if _goes_on(request, run):
                    return number, run, valid
    return None


def _goes_on(request: Request, run: Run) -> bool:
    """Tell whether an unfinished run is what was asked for, and would be the newest when it is complete."""
    asked, begun = request.settings.to_json(), run.info["settings"]
    if request.settings.fresh and not begun.get("fresh"):
        return False
    same = all(_unordered(asked[name]) == _unordered(begun.get(name)) for name in _KEPT_TO_THE_END)
    newest = newest_complete_run(request.settings.runs_root, request.archive)
    return same and (newest is None or newest.name < run.name)


def _unordered(value: Any) -> Any:
    return set(value) if isinstance(value, list) else value


def _begin(request: Request, cache: Cache, scope: int) -> tuple[int, Run, int]:
    remove_stillborn(request.settings.runs_root, cache.run_names())
    run = create_run(request.settings.runs_root, _run_info(request), request.archive)
    with step("run.add"), cache.transaction():
        if request.settings.fresh:
            cache.forget_scope(scope)
        run_id = cache.add_run(scope, run.name, request.decision_key)
    return run_id, run, 0


def _run_info(request: Request) -> dict[str, Any]:
    settings = request.settings.to_json()
    return {
        "drumline_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "index": f"index{request.codec.suffix}",
        "archive_device": request.archive_identity[0],
        "model": model_facts(request.bundle),
        "canonical_map": dict(request.decisions.canonical_of),
        "settings": settings,
        "decision": {
            "threshold": request.decisions.threshold,
            "thresholds": dict(request.decisions.thresholds),
            "gate_threshold": request.decisions.gate_threshold,
        },
        "inference_key": request.inference_key,
        "decision_key": request.decision_key,
        "platform": {"python": platform.python_version(), "system": _system()},
    }


def _system() -> str:
    # platform.platform() searches the interpreter's file for the C library's version, which takes 10 ms.
    return f"{platform.system()}-{platform.release()}-{platform.machine()}"
