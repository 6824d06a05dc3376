"""Reading the index: label, target and collision key of every file to be placed, and whether it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

from drumline.errors import IndexFormatError
from drumline.helpers import helpers_for
from drumline.index import GARBLED, garbled, measured_frames, parse_records, read_frames, split_lines
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

_INT64 = 1 << 63
_BYTES_PER_RECORD = 150
"""Of a compressed index, roughly: to guess how many there are."""

_SHOWN = 60
"""Characters of a label that are shown."""

_FRAME_SHIFT = 24
"""A record's place in the index is its frame's number, shifted by this, and its line in the frame."""


class Part(NamedTuple):
    """A frame of the index: its number, where it begins, and its lines where it is unpacked already."""

    number: int
    offset: int
    lines: bytes | None = None


@dataclass(slots=True)
class Found:
    """What one frame of the index gives; it adds up in any order, for rows know their place in the index.

    Parameters
    ----------
    rows
        Files to be placed, as bare tuples: the main process gets them in a quarter of the time.
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
    reader = Reader(path, labeller, sources, flat=plan.settings.layout == "flat")
    with _reading(path):
        size = path.stat().st_size
    with helpers_for(reader.read, size // _BYTES_PER_RECORD) as helpers:
        for part in _parts(path):
            used |= _add_up(plan, helpers.give(part))
            progress(Progress("reading", plan.tally.records, None))
        used |= _add_up(plan, helpers.finish())
    labeller.check_used(used, plan.settings.overrides)
    plan.store.flush()


def _parts(path: Path) -> Iterator[Part]:
    """Iterate over the frames of the index; what can be found without unpacking is left to be unpacked."""
    number = end = 0
    with _reading(path):
        for number, (offset, length) in enumerate(measured_frames(path), 1):
            yield Part(number - 1, offset)
            end = offset + length
        for place, frame in enumerate(read_frames(path, end), number):
            yield Part(place, frame.offset, frame.data)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexFormatError(
            f"cannot read {str(path)!r}: {error.strerror or error}",
            "Check its permissions and its disk, then give the same command again.",
        ) from error


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
        self._kernel = skimming_kernel()

    def read(self, part: Part) -> Found:
        """Read the records of one frame."""
        data = self._lines(part)
        found, rows, labelled = Found(), list[Row](), list[Brief]()
        try:
            for place, record in enumerate(self._records(data), part.number << _FRAME_SHIFT):
                labelled.append(self._read(place, record, found, rows))
            found.tally.add_all(labelled)
            found.tally.report()  # whatever it cannot count must not reach the sum
        except GARBLED as error:
            where = "".join(f", in {line[:80]!r}" for line in split_lines(data)[len(labelled) :][:1])
            raise IndexFormatError(
                f"{str(self._path)!r} holds a garbled record: {garbled(error)}{where}",
                "'drumline verify' tells more, 'drumline repair' mends.",
            ) from error
        if self._sources is None:
            found.rows.extend(map(tuple, rows))
        else:
            rows.sort(key=attrgetter("source"))  # one directory after another: each is opened once
            found.rows.extend(_looked_for(row, self._sources) for row in rows)
        return found

    def _lines(self, part: Part) -> bytes:
        if part.lines is not None:
            return part.lines
        with _reading(self._path):
            frame = next(read_frames(self._path, part.offset), None)
        return frame.data if frame else b""  # cut off since it was found

    def _records(self, data: bytes) -> Sequence[Brief]:
        if self._labeller.settings is not None:
            return cast("Sequence[Brief]", parse_records(split_lines(data), self._path))
        return skim_records(data, self._path, self._kernel)

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


def _looked_for(row: Row, sources: Sources) -> tuple[Any, ...]:
    """Return a row, bare, that says how its file is found in the archive."""
    try:
        return *row[:-3], sources.find(row)[2], None, None
    except Refused as refused:
        return *row[:-3], None, refused.problem, refused.message


def _source_of(record: Brief) -> bytes | None:
    try:
        return relative_path(record)
    except ValueError:
        return None
