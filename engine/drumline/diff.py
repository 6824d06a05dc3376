"""Two runs compared: files added and gone, labels that changed, and by how much confidences moved.

Indexes stand in the order in which files were finished, so both are put into one temporary SQLite table and
read back sorted by path: SQLite's sort spills to disk, and memory stays flat whatever their size.
"""

from __future__ import annotations

import itertools
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from drumline.errors import OutputError
from drumline.index import read_index, record_errors
from drumline.records import Record, display_path, path_fields, relative_path
from drumline.runs import Run

__all__ = ["PERCENTILES", "Diff", "describe_run", "diff_runs"]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

_STEPS = 1000
"""Confidence changes are counted in steps of 1/1000, which is how exact the percentiles are."""

_CACHE_KIB = 32_768


class _Entry(NamedTuple):
    """What one run says about one file; `label` is None for a file without a prediction."""

    path: bytes
    side: int
    hash: str | None
    label: str | None
    fine: str | None
    confidence: float | None


@dataclass(slots=True)
class Diff:
    """Differences from run A to run B.

    Parameters
    ----------
    limit
        How many files are kept by name in each of `added`, `gone` and `changed`.
    counts
        Files in each run and in both; added, gone, and those whose label, fine label or content changed.
    transitions
        (label in A, label in B) → files; None for a file without a prediction.
    steps
        Changes of confidence in thousandths → files.
    delta_sum, magnitude_sum
        Sums of the changes of confidence, and of their sizes.
    added, gone, changed
        Files by name, at most `limit` of each.
    """

    limit: int
    counts: Counter[str] = field(default_factory=Counter)
    transitions: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    steps: Counter[int] = field(default_factory=Counter)
    delta_sum: float = 0.0
    magnitude_sum: float = 0.0
    added: list[dict[str, Any]] = field(default_factory=list)
    gone: list[dict[str, Any]] = field(default_factory=list)
    changed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, before: _Entry | None, after: _Entry | None) -> None:
        """Count one file, as the two runs have it."""
        self.counts["files_a"] += before is not None
        self.counts["files_b"] += after is not None
        if before is None and after is not None:
            self._name("added", self.added, _named(after.path) | {"label": after.label})
        elif after is None and before is not None:
            self._name("gone", self.gone, _named(before.path) | {"label": before.label})
        elif before is not None and after is not None:
            self._compare(before, after)

    def _name(self, kind: str, names: list[dict[str, Any]], entry: dict[str, Any]) -> None:
        self.counts[kind] += 1
        if len(names) < self.limit:
            names.append(entry)

    def _compare(self, before: _Entry, after: _Entry) -> None:
        self.counts["common"] += 1
        self.counts["edited"] += None not in (before.hash, after.hash) and before.hash != after.hash
        self.counts["fine_changed"] += before.fine != after.fine
        if before.label != after.label:
            self.transitions[before.label, after.label] += 1
            change = {"from": before.label, "to": after.label}
            confidences = {"confidence_from": before.confidence, "confidence_to": after.confidence}
            self._name("changed", self.changed, _named(after.path) | change | confidences)
        if before.confidence is not None and after.confidence is not None:
            delta = after.confidence - before.confidence
            self.delta_sum, self.magnitude_sum = self.delta_sum + delta, self.magnitude_sum + abs(delta)
            self.steps[round(delta * _STEPS)] += 1

    def confidence(self) -> dict[str, Any]:
        """Return mean, mean magnitude and percentiles of the confidence changes (B - A)."""
        count = self.steps.total()
        if not count:
            return {"files": 0, "mean": None, "mean_magnitude": None, "percentiles": {}}
        return {
            "files": count,
            "mean": round(self.delta_sum / count, 6),
            "mean_magnitude": round(self.magnitude_sum / count, 6),
            "percentiles": self._percentiles(count),
        }

    def _percentiles(self, count: int) -> dict[str, float]:
        steps = sorted(self.steps)
        places = list(itertools.accumulate(self.steps[step] for step in steps))
        return {
            str(percent): steps[bisect_left(places, count * percent / 100)] / _STEPS
            for percent in PERCENTILES
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything in one object."""
        kinds = ("files_a", "files_b", "common", "added", "gone", "changed", "fine_changed", "edited")
        return {
            "counts": {kind: self.counts[kind] for kind in kinds},
            "transitions": [
                {"from": before, "to": after, "files": files}
                for (before, after), files in self.transitions.most_common()
            ],
            "confidence_change": self.confidence(),
            "added": self.added,
            "gone": self.gone,
            "changed": self.changed,
        }


def diff_runs(run_a: Run, run_b: Run, limit: int = 20) -> Diff:
    """Compare two runs file by file, by relative path.

    Parameters
    ----------
    run_a, run_b
        Before and after.
    limit
        How many files of each kind are listed by name.

    Raises
    ------
    IndexFormatError
        When an index cannot be understood.
    OutputError
        When there is no room for the temporary table (see ``SQLITE_TMPDIR``).
    """
    diff = Diff(limit)
    try:
        with closing(sqlite3.connect("")) as table:
            for entries in _by_path(table, run_a, run_b):
                sides = {entry.side: entry for entry in entries}
                diff.add(sides.get(0), sides.get(1))
    except sqlite3.OperationalError as error:
        raise OutputError(
            f"the temporary table of the comparison failed: {error}",
            "If the temporary directory is full, name another: SQLITE_TMPDIR=/path drumline diff …",
        ) from error
    return diff


def _by_path(table: sqlite3.Connection, run_a: Run, run_b: Run) -> Iterator[Iterable[_Entry]]:
    """Iterate over both runs' entries, grouped and sorted by path; a file's last record comes last."""
    table.execute("PRAGMA journal_mode = OFF")
    table.execute("PRAGMA temp_store = FILE")
    table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    table.execute("CREATE TABLE entry (path BLOB, side INTEGER, hash, label, fine, confidence)")
    for side, run in enumerate((run_a, run_b)):
        with record_errors(run.index_path):
            rows = (_entry(record, side) for record in read_index(run.index_path))
            table.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", rows)
    entries = map(_Entry._make, table.execute("SELECT * FROM entry ORDER BY path, side, rowid"))
    for _, group in itertools.groupby(entries, key=lambda entry: entry.path):
        yield group


def _entry(record: Record, side: int) -> _Entry:
    label = record["assigned_label"] if record["errors"] is None else None
    confidence = record["assigned_conf"]
    return _Entry(relative_path(record), side, record["hash"], label, record["label_top1"], confidence)


def _named(path: bytes) -> dict[str, Any]:
    text, encoded = path_fields(path)
    return {"path": text} if encoded is None else {"path": text, "path_b64": encoded}


def describe_run(run: Run) -> dict[str, Any]:
    """Return what tells two runs apart: name, archive and model."""
    root = run.archive_root
    return {
        "run": display_path(run.name if run.info else run.index_path),
        "archive_root": None if root is None else display_path(root),
        "model": run.info.get("model"),
        "complete": run.complete if run.info else None,
    }
