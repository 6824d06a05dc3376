"""Reading the index: label, target and collision key of every file that is to be placed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from drumline.errors import IndexFormatError
from drumline.index import garbled, parse_record, read_frames, split_lines
from drumline.rebuild.actions import Problem, Progress
from drumline.rebuild.crew import crew_for
from drumline.rebuild.labelling import Labeller
from drumline.rebuild.names import collision_key, flat_name, is_safe, label_directory
from drumline.rebuild.plan import Plan
from drumline.records import Record, relative_path
from drumline.tally import Tally

__all__ = ["BAD_FIELDS", "collect"]

BAD_FIELDS = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError)
"""What using a record raises that is no record of ours."""

_INT64 = 1 << 63
_BYTES_PER_RECORD = 150
"""Of a compressed index, roughly: to guess how many there are."""


Row = tuple[bytes, bytes, str, bytes, int, int, str | None]
"""Of the plan's table of records: key, source, label's directory, target, size, mtime_ns, hash."""


class Harvest(NamedTuple):
    """What some lines of the index give; harvests add up in any order."""

    rows: list[Row]
    failed: list[tuple[bytes, str, str]]
    refused: list[tuple[Problem, bytes]]
    tally: Tally
    corrected: set[str]
    overridden: int


def collect(plan: Plan, labeller: Labeller, progress: Callable[[Progress], None]) -> None:
    """Read the whole index into the plan's table of records.

    Raises
    ------
    IndexFormatError
        When it cannot be read, or holds something that is no record.
    ConfigError
        When the hash of a correction is in no record.
    """
    path, corrected = plan.run.index_path, set[str]()
    reader = Reader(path, labeller, flat=plan.settings.layout == "flat")
    try:
        with crew_for(reader.harvest, path.stat().st_size // _BYTES_PER_RECORD) as crew:
            for frame in read_frames(path):
                corrected |= _bring_in(plan, crew.give(frame.data))
                progress(Progress("reading", plan.tally.records, None))
            corrected |= _bring_in(plan, crew.finish())
    except OSError as error:
        raise IndexFormatError(f"cannot read {str(path)!r}: {error.strerror}") from error
    labeller.check_used(corrected, plan.settings.overrides)
    plan.store.flush()


def _bring_in(plan: Plan, done: list[tuple[bytes, Harvest]]) -> set[str]:
    corrected: set[str] = set()
    for _, harvest in done:
        plan.store.add_all("record", harvest.rows)
        plan.store.add_all("failed", harvest.failed)
        for problem, path in harvest.refused:
            plan.store.problem(problem, path)
            plan.counts[problem] += 1
        plan.tally.merge(harvest.tally)
        plan.counts["failed"] += len(harvest.failed)
        plan.counts["overridden"] += harvest.overridden
        corrected |= harvest.corrected
    return corrected


class Reader:
    """Turns lines of the index into harvests; has no other effect, so that helpers can do it."""

    def __init__(self, path: Path, labeller: Labeller, *, flat: bool) -> None:
        self._path, self._labeller, self._flat = path, labeller, flat
        self._directories: dict[str, bytes | None] = {}

    def harvest(self, lines: bytes) -> Harvest:
        """Read one frame's lines."""
        harvest = Harvest([], [], [], Tally(), set(), 0)
        overridden = 0
        line = b""
        try:
            for line in split_lines(lines):
                overridden += self._read(parse_record(line, self._path), harvest)
            harvest.tally.report()
        except BAD_FIELDS as error:
            raise IndexFormatError(
                f"{str(self._path)!r} holds a garbled record: {garbled(error)}, in {line[:80]!r}"
            ) from error
        return harvest._replace(overridden=overridden)

    def _read(self, record: Record, harvest: Harvest) -> bool:
        """Read one record; return whether a correction gave a placed file its label."""
        record, corrected = self._labeller.label(record)
        if corrected:
            harvest.corrected.add(str(record["hash"]))
        harvest.tally.add(record)
        source, failure = _source_of(record), record["errors"]
        if failure is not None:
            harvest.failed.append((source or b"", str(failure["type"]), str(failure["message"])))
        elif source is None or not is_safe(source):
            harvest.refused.append(("unsafe_path", source or record["relative_path"].encode()))
        elif (directory := self._directory(record["assigned_label"])) is None:
            harvest.refused.append(("unsafe_label", source))
        else:
            target = directory + b"/" + (flat_name(source) if self._flat else source)
            key, label = collision_key(target), directory.decode()
            harvest.rows.append((key, source, label, target, *_checked(record)))
            return corrected
        return False

    def _directory(self, label: str) -> bytes | None:
        if label not in self._directories:
            self._directories[label] = label_directory(label)
        return self._directories[label]


def _source_of(record: Record) -> bytes | None:
    try:
        return relative_path(record)
    except ValueError:
        return None


def _checked(record: Record) -> tuple[int, int, str | None]:
    size, mtime_ns, digest = record["size"], record["mtime_ns"], record["hash"]
    whole = (
        type(size) is int and type(mtime_ns) is int and 0 <= size < _INT64 and -_INT64 <= mtime_ns < _INT64
    )
    if not whole or not (digest is None or isinstance(digest, str)):
        raise ValueError("size, mtime_ns or hash")
    return size, mtime_ns, digest
