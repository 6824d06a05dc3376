"""Runs: the directory of one classification of an archive.

``run.json`` says what was asked, from the start; ``index.jsonl.zst`` holds the records;
``summary.json`` appears last, atomically, and means: complete.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drumline.decide import DecisionSettings
from drumline.durable import output_errors, sync_directory, write_json
from drumline.errors import IndexFormatError
from drumline.failpoints import step
from drumline.inputs import read_json_object
from drumline.labels import MISC
from drumline.records import SCHEMA_VERSION, path_fields
from drumline.thresholds import OperatingPoints

__all__ = ["Run", "create_run", "list_runs", "open_run", "remove_stillborn", "started_ns"]

_RUN_NAME = re.compile(r"run_\d{8}T\d{6}Z(-\d{4})?")
_INDEX_NAMES = ("index.jsonl.zst", "index.jsonl.gz", "index.jsonl")


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
    def summary_path(self) -> Path:
        """Where the summary stands once the run is complete."""
        return self.directory / "summary.json"

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
            When it did not: an index that was cut off reads like a shorter one.
        """
        counts = self.summary().get("counts", {}) if self.complete else {}
        indexed = counts.get("indexed", records)
        if records != indexed:
            raise IndexFormatError(
                f"the index of {self.name} holds {records:,} records, its summary {indexed:,}",
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
        When there is no such run, it is of another version, or the runs root is of several archives.
    """
    if path.is_dir() and not (path / "run.json").exists():
        return _newest_complete(path)
    directory = path if path.is_dir() else path.parent
    info = _read_info(directory) if (directory / "run.json").exists() else {}
    if not path.is_dir():
        if not path.is_file():
            raise IndexFormatError(
                f"no run or index at {str(path)!r}", "Give a run_… directory or its index.jsonl.zst."
            )
        return Run(directory, path, info if info.get("index") == path.name else {})
    index_path = directory / str(info.get("index", _INDEX_NAMES[0]))
    if not index_path.is_file():
        raise IndexFormatError(
            f"run {directory.name} has no {index_path.name}: it was removed",
            "'drumline infer' of the archive makes a new run.",
        )
    return Run(directory, index_path, info)


def _read_info(directory: Path) -> dict[str, Any]:
    info = read_json_object(directory / "run.json", IndexFormatError)
    version = info.get("schema_version")
    if version != SCHEMA_VERSION:
        raise IndexFormatError(
            f"run {directory.name} is of version {version}; this drumline reads version {SCHEMA_VERSION}",
            "Use the drumline that wrote it, or classify the archive again.",
        )
    if Path(str(info.get("index"))).name != info.get("index"):
        raise IndexFormatError(f"run {directory.name} names an index outside of its directory")
    if key := _misfit(info):
        raise IndexFormatError(
            f"run.json of {directory.name} is garbled: {key!r} is missing or not of its kind",
            "It was changed after drumline wrote it: 'drumline repair' sets it aside.",
        )
    return info


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


def _newest_complete(runs_root: Path) -> Run:
    runs = [open_run(path) for path in list_runs(runs_root) if (path / "summary.json").is_file()]
    newest = {run.archive_root: run for run in runs}
    if len(newest) > 1:
        names = ", ".join(f"{run.name} ({run.info['archive_root']})" for run in newest.values())
        raise IndexFormatError(
            f"{str(runs_root)!r} holds runs of {len(newest)} archives",
            f"Name the run that you mean: {names}.",
        )
    if newest:
        return runs[-1]
    raise IndexFormatError(
        f"{str(runs_root)!r} holds no complete run", "Make one with 'drumline infer ARCHIVE'."
    )


def list_runs(runs_root: Path) -> list[Path]:
    """Return the run directories of a runs root, oldest first."""
    return sorted(path.parent for path in runs_root.glob("run_*/run.json"))


def started_ns(name: str) -> int:
    """Return when the run of this name began, in nanoseconds since the epoch, to the second."""
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
    write_json(directory / "run.json", info)
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
        if directory.name not in known and _RUN_NAME.fullmatch(directory.name):
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
    if entry.name in _INDEX_NAMES:
        return entry.stat(follow_symlinks=False).st_size == 0
    return entry.name == "run.json" or bool(re.fullmatch(r"\.run\.json\.\d+\.tmp", entry.name))


def _make_directory(runs_root: Path) -> Path:
    stamp = time.strftime("run_%Y%m%dT%H%M%SZ", time.gmtime())
    names = (path.name for path in runs_root.glob("run_*") if _RUN_NAME.fullmatch(path.name))
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
