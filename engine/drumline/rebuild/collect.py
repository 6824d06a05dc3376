"""Reading the index: label, target and collision key of every file to be placed, and whether it is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from drumline.errors import IndexFormatError
from drumline.helpers import helpers_for
from drumline.index import (
    GARBLED,
    codec_of,
    garbled,
    measured_frames,
    parse_records,
    read_frame,
    read_frames,
    split_lines,
)
from drumline.inputs import open_regular
from drumline.rebuild.actions import Problem, Progress, Refused
from drumline.rebuild.labelling import Labeller
from drumline.rebuild.names import collision_key, flat_name, is_safe, label_directory
from drumline.rebuild.plan import Plan
from drumline.rebuild.store import Row
from drumline.rebuild.tree import Sources
from drumline.records import Brief, relative_path
from drumline.skim import skim_records, skimming_kernel
from drumline.tally import Tally

__all__ = ["collect"]

_BYTES_PER_RECORD = 150
"""Of a compressed index, roughly: to guess how many there are."""

_UNPLANNED = "what they held is not planned ('drumline verify' tells more)"

_SHOWN = 60
"""Characters of a label that are shown."""

_FRAME_SHIFT = 24
"""A record's place in the index is its frame's number, shifted by this, and its line in the frame."""


class Part(NamedTuple):
    """A frame of the index: its number, where it stands, and its lines where it is unpacked already."""

    number: int
    offset: int
    length: int
    data: bytes | None = None


@dataclass(slots=True)
class Found:
    """What one frame of the index gives; it adds up in any order, for rows know their place in the index.

    Parameters
    ----------
    rows
        Files to be placed, as bare tuples: named ones take a helper's pipe four times as long.
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

    rows: list[tuple[Any, ...]] = field(default_factory=list)
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
    with _opened(path) as index:
        size, end = os.fstat(index).st_size, 0
        reader = Reader(path, index, labeller, sources, flat=plan.settings.layout == "flat")
        with helpers_for(reader.read, size // _BYTES_PER_RECORD) as helpers:
            for part in _parts(path):
                used |= _add_up(plan, helpers.give(part))
                progress(Progress("reading", plan.tally.records, None))
                end = part.offset + part.length
            used |= _add_up(plan, helpers.finish())
    if end < size:
        plan.warnings.append(f"the last {size - end:,} bytes of the index are no whole frame: {_UNPLANNED}")
    labeller.check_used(used, plan.settings.overrides)
    plan.store.flush()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open the index; give its descriptor."""
    with _reading(path):
        stream = open_regular(path)
    with stream:
        yield stream.fileno()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexFormatError(
            f"cannot read {str(path)!r}: {error.strerror or error}",
            "Check its permissions and its disk, then give the same command again.",
        ) from error


def _parts(path: Path) -> Iterator[Part]:
    """Iterate over the frames of the index; those whose end can be told are left to helpers to unpack."""
    numbers, end = count(), 0
    with _reading(path):
        for offset, length in measured_frames(path):
            yield Part(next(numbers), offset, length)
            end = offset + length
        for frame in read_frames(path, end):
            yield Part(next(numbers), *frame)


def _add_up(plan: Plan, done: list[tuple[Part, Found]]) -> set[str]:
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
    """Turns frames of the index into rows; only reads, so that helpers can do it.

    Parameters
    ----------
    path, index
        The index, and its descriptor.
    labeller
        Says what label each file gets.
    sources
        The archive, to see whether each file is as it was indexed; None: files are not looked for.
    flat
        Whether the tree has no directories but the labels'.
    """

    def __init__(
        self, path: Path, index: int, labeller: Labeller, sources: Sources | None, *, flat: bool
    ) -> None:
        self._path, self._index, self._codec = path, index, codec_of(path)
        self._labeller, self._sources, self._flat = labeller, sources, flat
        self._directories: dict[str, bytes | None] = {}
        self._kernel = skimming_kernel()

    def read(self, part: Part) -> Found:
        """Read the records of one frame."""
        data = self._unpacked(part) if part.data is None else part.data
        found, rows, labelled = Found(), list[Row](), list[Brief]()
        try:
            for place, record in enumerate(self._records(data), part.number << _FRAME_SHIFT):
                labelled.append(self._read(place, record, found, rows))
            found.tally.add_all(labelled)
            found.tally.report()  # whatever it cannot count must not reach the sum
        except GARBLED as error:
            raise IndexFormatError(
                f"{str(self._path)!r} holds a garbled record: {garbled(error)}{_where(data, len(labelled))}",
                "'drumline verify' tells more, 'drumline repair' mends.",
            ) from error
        found.rows = self._looked_for(rows)
        return found

    def _unpacked(self, part: Part) -> bytes:
        with _reading(self._path):
            try:
                return read_frame(self._index, part.offset, part.length, self._codec)
            except IndexFormatError as error:
                raise IndexFormatError(
                    f"the index {str(self._path)!r} is damaged, or was changed just now: {error.what}",
                    "'drumline verify' tells more, 'drumline repair' keeps all that is whole.",
                ) from error

    def _records(self, data: bytes) -> Sequence[Brief]:
        if self._labeller.settings is not None:
            return parse_records(split_lines(data), self._path)
        return skim_records(data, self._path, self._kernel)

    def _looked_for(self, rows: list[Row]) -> list[tuple[Any, ...]]:
        """Return bare rows, which say how their files are found in the archive where they are looked for."""
        if self._sources is None:
            return list(map(tuple, rows))
        rows.sort(key=attrgetter("source"))  # one directory after another: each is opened once
        return [_as_found(row, self._sources) for row in rows]

    def _read(self, place: int, record: Brief, found: Found, rows: list[Row]) -> Brief:
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
            if record["size"] < 0:
                raise ValueError("size")
            target = directory + b"/" + (flat_name(source) if self._flat else source)
            known = record["size"], record["mtime_ns"], record["hash"]
            rows.append(Row(place, collision_key(target), source, directory.decode(), target, *known))
            found.overridden += overridden
        return record

    def _directory(self, label: str) -> bytes | None:
        if label not in self._directories:
            self._directories[label] = label_directory(label)
        return self._directories[label]


def _where(data: bytes, place: int) -> str:
    """Say which line is garbled; nothing where it is their sum that cannot be counted."""
    lines = split_lines(data)
    return f", in {lines[place][:80]!r}" if place < len(lines) else ""


def _as_found(row: Row, sources: Sources) -> tuple[Any, ...]:
    try:
        return *row[:-3], sources.find(row)[2], None, None
    except Refused as refused:
        return *row[:-3], None, refused.problem, refused.message


def _source_of(record: Brief) -> bytes | None:
    try:
        return relative_path(record)
    except ValueError:
        return None
