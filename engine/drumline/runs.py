"""Runs: the directory of one classification of an archive.

``run.json`` says what was asked, from the start; ``index.jsonl.zst`` holds the records;
``summary.json`` appears last, atomically, and means: complete.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from drumline.decide import DecisionSettings
from drumline.durable import draft_of, output_errors, sync_directory, way_out_of, write_json
from drumline.errors import DrumlineError, IndexFormatError
from drumline.failpoints import step
from drumline.inputs import LARGEST_JSON_BYTES, read_json_object, read_regular
from drumline.labels import MISC
from drumline.records import SCHEMA_VERSION, display_path, path_fields
from drumline.thresholds import OperatingPoints

__all__ = [
    "CACHE_NAME",
    "INDEX_NAMES",
    "INFO_NAME",
    "LOCK_NAME",
    "SUMMARY_NAME",
    "Run",
    "create_run",
    "list_runs",
    "locate_run",
    "newest_complete_run",
    "open_run",
    "remove_stillborn",
    "started_ns",
]

INDEX_NAMES: Final = ("index.jsonl.zst", "index.jsonl.gz", "index.jsonl")
"""What the index of a run may be called."""

INFO_NAME: Final = "run.json"
SUMMARY_NAME: Final = "summary.json"
CACHE_NAME: Final = "cache.sqlite"
"""The cache, in the runs root."""

LOCK_NAME: Final = ".lock"
"""The lock file, in the runs root; who writes to a run or to the cache holds it."""

_RUN_NAME = re.compile(r"run_\d{8}T\d{6}Z(-\d{4})?")


@dataclass(frozen=True)
class Run:
    """A run directory, or a lone index file.

    Parameters
    ----------
    directory
        Where run.json, the index and summary.json stand.
    index_path
        The index.
    info
        What run.json says; empty for an index without one.
    """

    directory: Path
    index_path: Path
    info: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.directory.name

    @property
    def display_name(self) -> str:
        """What people call it, as text for them: the run directory's name, or that of a lone index."""
        return display_path(self.name if self.info else self.index_path.name)

    @property
    def summary_path(self) -> Path:
        """Where the summary stands once the run is complete."""
        return self.directory / SUMMARY_NAME

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.summary_path.is_file()

    @property
    def archive_root(self) -> bytes | None:
        """Exact path of the archive; None when there is no run.json."""
        if not self.info:
            return None
        encoded = self.info.get("archive_root_b64")
        return base64.b64decode(encoded) if encoded else os.fsencode(self.info["archive_root"])

    def decision_settings(self) -> DecisionSettings | None:
        """Return the settings that the run decided with; None when there is no run.json."""
        if not self.info:
            return None
        settings = self.info["settings"]
        targets = settings["target_labels"]
        resolved = self.info.get("decision") or {"threshold": settings["misc"]["threshold"]}
        return DecisionSettings(
            canonical_of=self.info["canonical_map"],
            threshold=resolved["threshold"],
            thresholds=resolved.get("thresholds", {}),
            gate_threshold=resolved.get("gate_threshold"),
            misc=settings["misc"]["label"],
            target_labels=None if targets is None else frozenset(targets),
        )

    def operating_points(self) -> OperatingPoints:
        """Return the operating points of the run's model, as run.json holds them."""
        points: OperatingPoints = self.info.get("model", {}).get("operating_points", {})
        return points

    def gate_threshold(self) -> float | None:
        """Return what the gate of the run's model was fitted for; None when it has no gate."""
        gate = self.info.get("model", {}).get("gate")
        return None if gate is None else float(gate["threshold"])

    def check_count(self, records: int) -> None:
        """See that a complete run's index held as many records as its summary says.

        Raises
        ------
        IndexFormatError
            When it did not, for an index that was cut off reads like a shorter one; or its summary is
            garbled.
        """
        if not self.complete:
            return
        counts = self.summary().get("counts", {})
        indexed = counts.get("indexed", records) if isinstance(counts, dict) else None
        if type(indexed) is not int:
            raise IndexFormatError(
                f"the {SUMMARY_NAME} of {self.display_name} is garbled: its 'counts' are no counts",
                "It was changed after drumline wrote it: 'drumline repair' counts anew.",
            )
        if records != indexed:
            raise IndexFormatError(
                f"the index of {self.display_name} holds {records:,} records, its summary {indexed:,}",
                "It was cut or changed: 'drumline verify' tells more, 'drumline repair' mends.",
            )

    def misc_label(self) -> str:
        """Return the run's label for what is no kit drum."""
        return str(self.info["settings"]["misc"]["label"]) if self.info else MISC

    def summary(self) -> dict[str, Any]:
        """Read summary.json."""
        return read_json_object(self.summary_path, IndexFormatError)


def open_run(path: Path) -> Run:
    """Open a run directory, an index file, or a runs root (its newest complete run).

    Raises
    ------
    IndexFormatError
        When there is no such run, it is garbled or of another version, or the runs root is of several
        archives.
    """
    run, trouble = locate_run(path)
    if trouble:
        raise IndexFormatError(
            f"run.json of {display_path(run.directory)!r} is garbled: it {trouble}",
            "It was changed after drumline wrote it: 'drumline repair' sets it aside.",
        )
    if not run.index_path.is_file():
        raise IndexFormatError(
            f"run {run.name} has no {run.index_path.name}: it was removed",
            "'drumline infer' of the archive makes a new run.",
        )
    return run


def locate_run(path: Path) -> tuple[Run, str]:
    """Find a run, whatever state it is in: its index need not be there.

    Returns
    -------
    run, trouble
        The run, and what is the matter with its run.json: `Run.info` is then empty. The trouble is empty when
        nothing is.

    Raises
    ------
    IndexFormatError
        When there is no such run, it is of another version, or the runs root is of several archives.
    """
    if path.is_dir() and not os.path.lexists(path / INFO_NAME):
        path = _newest_complete(path)
    if not path.exists():
        raise IndexFormatError(
            f"no run or index at {str(path)!r}",
            "Make one with 'drumline infer ARCHIVE', or give a run_… directory or its index.jsonl.zst.",
        )
    directory = path if path.is_dir() else path.parent
    info, trouble = _read_info(directory) if os.path.lexists(directory / INFO_NAME) else ({}, "")
    if not path.is_dir():
        return Run(directory, path, info if info.get("index") == path.name else {}), trouble
    present = (directory / name for name in INDEX_NAMES if (directory / name).is_file())
    index = directory / info["index"] if info else next(present, directory / INDEX_NAMES[0])
    return Run(directory, index, info), trouble


def _read_info(directory: Path) -> tuple[dict[str, Any], str]:
    """Return what a run.json says and an empty text, or nothing and what is the matter with it."""
    path = directory / INFO_NAME
    try:
        info = orjson.loads(read_regular(path, LARGEST_JSON_BYTES))
    except OSError as error:  # a disk or permissions in the way say nothing of what is in it
        raise IndexFormatError(
            f"cannot read {str(path)!r}: {error.strerror}",
            way_out_of(error, "Check the disk and the permissions."),
        ) from error
    except orjson.JSONDecodeError as error:
        return {}, f"is no JSON: {error}"
    if not isinstance(info, dict):
        return {}, "holds no JSON object"
    version = info.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        raise IndexFormatError(
            f"run {directory.name} is of version {version}; this drumline reads version {SCHEMA_VERSION}",
            "Use the drumline that wrote it, or classify the archive again.",
        )
    if version != SCHEMA_VERSION:
        return {}, f"has the version {version!r:.40}"
    if info.get("index") not in INDEX_NAMES:
        return {}, f"names the index {info.get('index')!r:.40}, which is none of a run's"
    key = _misfit(info)
    return ({}, f"lacks {key!r}, or that is not of its kind") if key else (info, "")


def _misfit(info: dict[str, Any]) -> str | None:
    """Return the first key of a run.json that is missing or not of its kind, of those that are used."""
    root, encoded = info.get("archive_root"), info.get("archive_root_b64")
    if not isinstance(root, str) or not _is_base64(encoded):
        return "archive_root"
    mapping, settings = info.get("canonical_map"), info.get("settings")
    if not isinstance(mapping, dict) or not all(isinstance(label, str) for label in mapping.values()):
        return "canonical_map"
    misc = settings.get("misc") if isinstance(settings, dict) else None
    if not isinstance(misc, dict) or not isinstance(misc.get("label"), str):
        return "settings"
    targets = settings.get("target_labels", "missing") if isinstance(settings, dict) else "missing"
    is_list = isinstance(targets, list) and all(isinstance(label, str) for label in targets)
    threshold = misc.get("threshold")
    if not (targets is None or is_list) or isinstance(threshold, bool):
        return "settings"
    return None if isinstance(threshold, int | float | str) else "settings"


def _is_base64(value: object) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, str) and bool(base64.b64decode(value, validate=True))
    except ValueError:
        return False


def _newest_complete(runs_root: Path) -> Path:
    complete = [path for path in list_runs(runs_root) if (path / SUMMARY_NAME).is_file()]
    if not complete:
        raise _none_complete(runs_root)
    newest = {root: path.name for path in complete if (root := _archive_of(path)) is not None}
    if len(newest) > 1:
        names = ", ".join(f"{name} ({root})" for root, name in newest.items())
        raise IndexFormatError(
            f"{str(runs_root)!r} holds runs of {len(newest)} archives",
            f"Name the run that you mean: {names}.",
        )
    return complete[-1]


def _none_complete(runs_root: Path) -> IndexFormatError:
    from drumline.rebuild.log import LOG_NAME

    if os.path.lexists(runs_root / os.fsdecode(LOG_NAME)):
        return IndexFormatError(
            f"{str(runs_root)!r} is no run, but a tree that 'drumline rebuild' made",
            f"Give the run that it was made from; 'drumline verify {shlex.quote(str(runs_root))}'"
            " checks the tree.",
        )
    what, unfinished = f"{str(runs_root)!r} is no run and holds no complete run", list_runs(runs_root)
    if not unfinished:
        return IndexFormatError(what, "Make one with 'drumline infer ARCHIVE'.")
    newest = unfinished[-1]
    archive = _archive_of(newest) or "an archive that its run.json does not name"
    return IndexFormatError(
        f"{what}: {newest.name} of {archive} is not finished",
        "The same 'drumline infer ARCHIVE' command that began it finishes it.\n"
        f"'drumline stats {shlex.quote(str(newest))}' shows what it holds so far.",
    )


def _archive_of(directory: Path) -> str | None:
    """Return the archive of a run, as text; None where run.json does not say: an old run hides no other."""
    with suppress(DrumlineError):
        info, _ = _read_info(directory)
        return info.get("archive_root")
    return None


def newest_complete_run(runs_root: Path, archive_root: bytes) -> Run | None:
    """Return the newest complete run of an archive, by whatever model and settings; None without one."""
    for directory in reversed(list_runs(runs_root)):
        if (directory / SUMMARY_NAME).is_file():
            with suppress(DrumlineError):
                run = open_run(directory)
                if run.archive_root == archive_root:
                    return run
    return None


def list_runs(runs_root: Path) -> list[Path]:
    """Return the run directories of a runs root, oldest first."""
    found = (path.parent for path in runs_root.glob(f"run_*/{INFO_NAME}"))
    return sorted(directory for directory in found if _is_run_name(directory.name))


def _is_run_name(name: str) -> bool:
    """Tell whether a run's directory may have this name: a copy that somebody called run_backup is no run."""
    try:
        return bool(_RUN_NAME.fullmatch(name)) and bool(started_ns(name))
    except ValueError:
        return False


def started_ns(name: str) -> int:
    """Return when the run of this name began, in nanoseconds since the epoch, to the second.

    Raises
    ------
    ValueError
        When no run has such a name.
    """
    stamp = datetime.strptime(name.split("-")[0], "run_%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return int(stamp.timestamp()) * 1_000_000_000


def create_run(runs_root: Path, info: dict[str, Any], archive_root: bytes) -> Run:
    """Make a new run directory with its run.json and an empty index."""
    text, encoded = path_fields(archive_root)
    with output_errors(runs_root), step("run.make"):
        directory = _make_directory(runs_root)
    info = {"schema_version": SCHEMA_VERSION, "archive_root": text, "archive_root_b64": encoded, **info}
    index_path = directory / info["index"]
    with output_errors(index_path):
        index_path.touch()
    write_json(directory / INFO_NAME, info)
    sync_directory(runs_root)
    return Run(directory, index_path, info)


def remove_stillborn(runs_root: Path, known: Container[str]) -> None:
    """Remove the directories of runs that were killed while they were being made.

    Parameters
    ----------
    runs_root
        The directory of the runs; the caller holds its lock.
    known
        Names of the runs that the cache knows: these are not touched.
    """
    for directory in runs_root.glob("run_*"):
        if directory.name not in known and _is_run_name(directory.name):
            with suppress(OSError):
                _remove_if_empty(directory)


def _remove_if_empty(directory: Path) -> None:
    entries = list(os.scandir(directory))
    if all(_is_of_birth(entry) for entry in entries):
        for entry in entries:
            os.unlink(entry.path)
        os.rmdir(directory)


def _is_of_birth(entry: os.DirEntry[str]) -> bool:
    """Tell whether a file stands in a run from its first moment: run.json, its draft, an empty index."""
    if entry.name in INDEX_NAMES:
        return entry.stat(follow_symlinks=False).st_size == 0
    return entry.name in (INFO_NAME, draft_of(Path(INFO_NAME)).name)


def _make_directory(runs_root: Path) -> Path:
    stamp = time.strftime("run_%Y%m%dT%H%M%SZ", time.gmtime())
    names = (path.name for path in runs_root.glob("run_*") if _is_run_name(path.name))
    # A clock that went back must not reorder runs.
    stamp = max(stamp, max(names, default="").partition("-")[0])
    for attempt in range(10_000):
        directory = runs_root / (f"{stamp}-{attempt:04d}" if attempt else stamp)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise FileExistsError(f"too many runs named {stamp}")
