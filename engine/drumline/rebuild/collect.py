"""Reading the index: label, target and collision key of every file to be placed, and whether it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from drumline.errors import IndexFormatError
from drumline.helpers import helpers_for
from drumline.index import GARBLED, garbled, parse_records, read_frames, split_lines
from drumline.rebuild.actions import Problem, Progress, Refused
from drumline.rebuild.labelling import Labeller
from drumline.rebuild.names import collision_key, flat_name, is_safe, label_directory
from drumline.rebuild.plan import Plan
from drumline.rebuild.store import Row
from drumline.rebuild.tree import Sources
from drumline.records import Record, relative_path
from drumline.tally import Tally

__all__ = ["collect"]

_INT64 = 1 << 63
_BYTES_PER_RECORD = 150
"""Of a compressed index, roughly: to guess how many there are."""

_SHOWN = 60
"""Characters of a label that are shown."""

_FRAME_SHIFT = 24
"""A record's place in the index is its frame's number, shifted by this, and its line in the frame."""

Lines: TypeAlias = tuple[int, bytes]
"""A frame's number and its lines."""


@dataclass(slots=True)
class Found:
    """What one frame of the index gives; it adds up in any order, for rows know their place in the index.

    Parameters
    ----------
    rows
        Files to be placed.
    failed
        (place, path, error's type, message) of files that have an error.
    refused
        (problem, path, message) of what cannot be in a tree.
    tally
        Counts over all records of the frame.
    used
        Content hashes that have an override.
    overridden
        Files to be placed that an override gave their label.
    """

    rows: list[Row] = field(default_factory=list)
    failed: list[tuple[int, bytes, str, str]] = field(default_factory=list)
    refused: list[tuple[Problem, bytes, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    used: set[str] = field(default_factory=set)
    overridden: int = 0


def collect(plan: Plan, labeller: Labeller, progress: Callable[[Progress], None]) -> None:
    """Read the whole index into the plan's table of records.

    Raises
    ------
    IndexFormatError
        When it cannot be read, or holds something that is no record.
    ConfigError
        When the hash of an override is in no record.
    """
    path, used = plan.run.index_path, set[str]()
    # What stands already is not looked for: all of it might be, on a slow volume.
    sources = plan.sources if plan.is_first else None
    reader = Reader(path, labeller, sources, flat=plan.settings.layout == "flat")
    with helpers_for(reader.read, _size(path) // _BYTES_PER_RECORD) as helpers:
        for lines in _frames(path):
            used |= _add_up(plan, helpers.give(lines))
            progress(Progress("reading", plan.tally.records, None))
        used |= _add_up(plan, helpers.finish())
    labeller.check_used(used, plan.settings.overrides)
    plan.store.flush()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _frames(path: Path) -> Iterator[Lines]:
    frames = enumerate(read_frames(path))
    while True:
        try:
            number, frame = next(frames)
        except StopIteration:
            return
        except OSError as error:
            raise _unreadable(path, error) from error
        yield number, frame.data


def _unreadable(path: Path, error: OSError) -> IndexFormatError:
    return IndexFormatError(
        f"cannot read {str(path)!r}: {error.strerror or error}",
        "Check its permissions and its disk, then give the same command again.",
    )


def _add_up(plan: Plan, done: list[tuple[Lines, Found]]) -> set[str]:
    used: set[str] = set()
    for _, found in done:
        plan.store.add_all("record", found.rows)
        plan.store.add_all("failed", found.failed)
        for problem, path, message in found.refused:
            plan.store.note_problem(problem, path, message)
            plan.counts[problem] += 1
        plan.tally.merge(found.tally)
        plan.counts["overridden"] += found.overridden
        used |= found.used
    return used


class Reader:
    """Turns lines of the index into rows; only reads, so that helpers can do it.

    Parameters
    ----------
    path
        The index.
    labeller
        Says what label each file gets.
    sources
        The archive, to see whether each file is as it was indexed; None: files are not looked for.
    flat
        Whether the tree has no directories but the labels'.
    """

    def __init__(self, path: Path, labeller: Labeller, sources: Sources | None, *, flat: bool) -> None:
        self._path, self._labeller, self._sources, self._flat = path, labeller, sources, flat
        self._directories: dict[str, bytes | None] = {}

    def read(self, lines: Lines) -> Found:
        """Read one frame's lines."""
        found, line, labelled = Found(), b"", list[Record]()
        first = lines[0] << _FRAME_SHIFT
        try:
            texts = split_lines(lines[1])
            for place, record in enumerate(parse_records(texts, self._path)):
                line = texts[place]
                labelled.append(self._read(first + place, record, found))
            line = b""
            found.tally.add_all(labelled)
            found.tally.report()  # whatever it cannot count must not reach the sum
        except GARBLED as error:
            where = f", in {line[:80]!r}" if line else ""
            raise IndexFormatError(
                f"{str(self._path)!r} holds a garbled record: {garbled(error)}{where}",
                "'drumline verify' tells more, 'drumline repair' mends.",
            ) from error
        if self._sources is not None:
            self._look_for(self._sources, found)
        return found

    def _read(self, place: int, record: Record, found: Found) -> Record:
        """Read one record; return it as it is labelled now."""
        record, overridden = self._labeller.label(record)
        if overridden:
            found.used.add(str(record["hash"]))
        source, failure = _source_of(record), record["errors"]
        if failure is not None:
            found.failed.append((place, source or b"", str(failure["type"]), str(failure["message"])))
        elif source is None or not is_safe(source):
            path = source or record["relative_path"].encode()
            found.refused.append(("unsafe_path", path, "could lead out of the tree"))
        elif (directory := self._directory(record["assigned_label"])) is None:
            label = record["assigned_label"]
            found.refused.append(("unsafe_label", source, f"no directory can be called {label[:_SHOWN]!r}"))
        else:
            target = directory + b"/" + (flat_name(source) if self._flat else source)
            key = collision_key(target)
            row = Row(place, key, source, directory.decode(), target, *_checked(record))
            found.rows.append(row)
            found.overridden += overridden
        return record

    def _look_for(self, sources: Sources, found: Found) -> None:
        """Note how files are found in the archive; one directory after another."""
        found.rows.sort(key=lambda row: row.source)
        found.rows = [_looked_for(row, sources) for row in found.rows]

    def _directory(self, label: str) -> bytes | None:
        if label not in self._directories:
            self._directories[label] = label_directory(label)
        return self._directories[label]


def _looked_for(row: Row, sources: Sources) -> Row:
    try:
        return Row(*row[:-3], sources.find(row)[2].st_dev)  # `_replace` takes twice as long
    except Refused as refused:
        return row._replace(problem=refused.problem, message=refused.message)


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
