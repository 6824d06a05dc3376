"""What a run holds: counts, confidences, durations, formats and errors."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from drumline.errors import IndexFormatError
from drumline.helpers import helpers_for
from drumline.index import (
    FRAME_LINES,
    Codec,
    codec_of,
    measured_frames,
    read_frame,
    read_frames,
    read_index,
    record_errors,
)
from drumline.inputs import open_regular
from drumline.records import Record, display_path, relative_path
from drumline.runs import Run
from drumline.skim import skim_records, skimming_kernel
from drumline.tally import Tally

__all__ = ["FailedFile", "LabelledFile", "Stats", "read_failures", "read_labelled", "read_stats"]

_FRAMES_AT_ONCE = 8

_Place: TypeAlias = tuple[int, int]
"""Offset and length of a frame."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of one run.

    Parameters
    ----------
    run
        Name of the run, or of the index file.
    archive_root
        What was classified, as text for people; None for an index without a run.json.
    complete
        Whether the run came to its end; None when that is not known.
    records, failed
        Files in the index, and how many of them have no prediction.
    torn_bytes
        Bytes behind the last whole frame.
    report
        What `Tally.report` gives.
    """

    run: str
    archive_root: str | None
    complete: bool | None
    records: int
    failed: int
    torn_bytes: int
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything in one object."""
        return {
            "run": self.run,
            "archive_root": self.archive_root,
            "complete": self.complete,
            "records": self.records,
            "classified": self.records - self.failed,
            "failed": self.failed,
            "torn_bytes": self.torn_bytes,
            **self.report,
        }


class FailedFile(NamedTuple):
    """A file without a prediction: its path below the archive root as text for people, and why."""

    relative_path: str
    type: str
    message: str


class LabelledFile(NamedTuple):
    """A classified file: content hash in hexadecimal digits, label, confidence, path in the archive.

    The confidence is that of the most probable canonical label, also where the file went to misc.

    The path is text for people; where the name is no UTF-8, `relative_path_b64` keeps its exact bytes.
    """

    hash: str | None
    label: str
    confidence: float
    relative_path: str
    relative_path_b64: str | None


def read_labelled(run: Run, labels: Container[str]) -> Iterator[LabelledFile]:
    """Read which files of a run have one of the `labels`, in the order of the index.

    Raises
    ------
    IndexFormatError
        When the index cannot be understood.
    """
    for record in _records(run):
        if record["errors"] is None and record["assigned_label"] in labels:
            yield LabelledFile(
                record["hash"],
                record["assigned_label"],
                record["assigned_conf"] or 0.0,
                record["relative_path"],
                record["relative_path_b64"],
            )


def read_failures(run: Run) -> Iterator[FailedFile]:
    """Read which files of a run failed, in the order of the index.

    Raises
    ------
    IndexFormatError
        When the index cannot be understood.
    """
    for record in _records(run):
        if error := record["errors"]:
            path = display_path(relative_path(record))
            yield FailedFile(path, error["type"], error["message"])


def _records(run: Run) -> Iterator[Record]:
    with record_errors(run.index_path):
        yield from read_index(run.index_path)


def read_stats(run: Run) -> Stats:
    """Count a run: from its summary where that still belongs to the index, else from the index.

    Raises
    ------
    IndexFormatError
        When the index cannot be understood.
    """
    summary = _valid_summary(run)
    if summary is not None:
        counts = summary["counts"]
        report = {key: summary[key] for key in Tally().report()}
        return _stats(run, counts["indexed"], counts["failed"], 0, report)
    tally, torn_bytes = _count_index(run)
    return _stats(run, tally.records, tally.failed, torn_bytes, tally.report())


def _stats(run: Run, records: int, failed: int, torn_bytes: int, report: dict[str, Any]) -> Stats:
    root = run.archive_root
    return Stats(
        run=run.display_name,
        archive_root=None if root is None else display_path(root),
        complete=run.complete if run.info else None,
        records=records,
        failed=failed,
        torn_bytes=torn_bytes,
        report=report,
    )


def _valid_summary(run: Run) -> dict[str, Any] | None:
    """Return the summary, or None where there is none, or it does not fit the index and itself."""
    if not run.info or not run.complete:
        return None
    try:
        summary = run.summary()
        counts = summary["counts"]
        adds_up = counts["indexed"] == sum(summary["labels"].values()) + counts["failed"]
        has_all = all(key in summary for key in Tally().report())
        not_older = run.summary_path.stat().st_mtime_ns >= run.index_path.stat().st_mtime_ns
    except (IndexFormatError, OSError, KeyError, TypeError, AttributeError):
        return None
    return summary if adds_up and has_all and not_older else None


def _count_index(run: Run) -> tuple[Tally, int]:
    """Count every record; also return how many bytes stand behind the last whole frame."""
    path, tally, end, kernel = run.index_path, Tally(), 0, skimming_kernel()
    with record_errors(path), open_regular(path) as index:
        places = list(measured_frames(path))
        count = partial(_count_frames, path, index.fileno(), codec_of(path))
        with helpers_for(count, FRAME_LINES * len(places)) as helpers:
            for start in range(0, len(places), _FRAMES_AT_ONCE):
                _add_up(tally, helpers.give(places[start : start + _FRAMES_AT_ONCE]))
            _add_up(tally, helpers.finish())
        end = sum(places[-1]) if places else 0
        for frame in read_frames(path, end):
            tally.merge(Tally.of(skim_records(frame.data, path, kernel)))
            end = frame.offset + frame.length
        return tally, max(0, os.fstat(index.fileno()).st_size - end)


def _add_up(tally: Tally, done: list[tuple[list[_Place], Tally]]) -> None:
    for _, counted in done:
        tally.merge(counted)


def _count_frames(path: Path, index: int, codec: Codec, places: list[_Place]) -> Tally:
    """Count the records of some frames; has no other effect, so that helpers can do it."""
    tally, kernel = Tally(), skimming_kernel()
    with record_errors(path):
        for offset, length in places:
            data = read_frame(index, offset, length, codec)
            tally.merge(Tally.of(skim_records(data, path, kernel)))
    return tally
