"""The cache against the index: every row must say what its record says, and where it lies."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from math import isclose
from pathlib import Path
from typing import NamedTuple

from drumline.cache import Cache, FileRow, FrameRow, file_row
from drumline.cache_file import check_schema, connect
from drumline.errors import DrumlineError
from drumline.index import GARBLED, Codec, parse_record, read_frame, split_lines
from drumline.inputs import open_regular
from drumline.runs import CACHE_NAME, Run
from drumline.tally import Tally
from drumline.verify.findings import Ledger
from drumline.wording import counted

__all__ = ["CachedRun", "cache_path", "cached_run", "check_cache"]


class CachedRun(NamedTuple):
    """A run as the cache knows it.

    Parameters
    ----------
    id, scope
        Where it stands in the cache.
    archive, inference_key, decision_key
        What it is a run of, as run.json has it.
    valid
        Length up to which its index is complete, in bytes; negative while the index is written anew.
    newest
        Whether no later run of the same archive and model has begun.
    """

    id: int
    scope: int
    archive: bytes
    inference_key: str
    decision_key: str
    valid: int
    newest: bool


def cache_path(run: Run) -> Path:
    """Return where the cache of a run's runs root is."""
    return run.directory.parent / CACHE_NAME


def cached_run(run: Run) -> CachedRun | None:
    """Return what the cache knows of a run; None when it does not know it, or cannot be read."""
    with suppress(sqlite3.Error, OSError, DrumlineError, *GARBLED):
        if cache_path(run).exists():
            with closing(connect(cache_path(run), "look")) as database:
                return _find(database, run)
    return None


def _find(database: sqlite3.Connection, run: Run) -> CachedRun | None:
    sql = (
        "SELECT r.id, s.id, s.archive, s.inference_key, r.decision_key, r.valid,"
        " r.name = (SELECT max(name) FROM run WHERE scope = s.id)"
        " FROM run r JOIN scope s ON s.id = r.scope WHERE r.name = CAST(? AS TEXT)"
    )
    row = database.execute(sql, (os.fsencode(run.name),)).fetchone()
    return CachedRun._make(row) if row else None


def check_cache(run: Run, codec: Codec, tally: Tally, ledger: Ledger) -> None:
    """Compare the cache with a run's index.

    Parameters
    ----------
    run, codec
        The run, and how its index is compressed; where its `info` is empty, that is not compared.
    tally
        Counts of the index.
    ledger
        Where problems go.
    """
    path = cache_path(run)
    if not path.exists():
        ledger.note("cache", "no_cache", str(path), "there is none: the next run makes it from the indexes")
        return
    with _problems(ledger):
        found = _check_file(path, run)
        if found is None:
            ledger.checked("cache", "does not know this run: a newer one has taken its place")
        elif found.valid < 0:
            ledger.checked("cache", "waits for the next run to be made anew")
        else:
            with closing(Cache(path, "look")) as cache:
                _CacheCheck(cache, found, run, codec, ledger).check(tally)


@contextmanager
def _problems(ledger: Ledger) -> Iterator[None]:
    """Note what goes wrong while a cache is read: it may hold anything."""
    try:
        yield
    except DrumlineError as error:
        ledger.problem("cache", "cache", CACHE_NAME, error.what)
    except (sqlite3.Error, OSError, *GARBLED) as error:
        ledger.problem("cache", "cache", CACHE_NAME, f"cannot be read: {error}")


def _check_file(path: Path, run: Run) -> CachedRun | None:
    """Return the run as the cache knows it; raise `sqlite3.DatabaseError` when that is no sound cache."""
    with closing(connect(path, "look")) as database:
        check_schema(database)
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(" ".join(found.split()))
        return _find(database, run)


class _CacheCheck:
    """Compares the rows of one run with its index."""

    def __init__(self, cache: Cache, found: CachedRun, run: Run, codec: Codec, ledger: Ledger) -> None:
        self._cache, self._found, self._run, self._ledger = cache, found, run, ledger
        self._codec = codec
        self._frames = self._rows = 0

    def check(self, tally: Tally) -> None:
        """Compare keys, frames, rows and counts."""
        self._check_keys()
        if self._run.index_path.is_file():
            with open_regular(self._run.index_path) as stream:
                self._check_frames(stream.fileno())
        if self._run.complete and self._found.newest:
            self._check_counts(tally)
            self._check_seals()
        held = f"{counted(self._frames, 'frame')} and {counted(self._rows, 'file')} of this run"
        self._ledger.checked("cache", held)

    def _check_keys(self) -> None:
        info = self._run.info
        if not info:
            return
        archive, *keys = self._found[2:5]
        if archive != self._run.archive_root or keys != [info.get("inference_key"), info.get("decision_key")]:
            self._problem("run", "is of another archive, model or settings than run.json says")

    def _check_frames(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if self._found.valid > size:
            self._problem("run", f"counts on {self._found.valid:,} bytes, but the index has {size:,}")
        seen = set()
        for frame, _, rows in self._cache.live_frames(self._found.id):
            seen.add(frame.id)
            self._check_frame(descriptor, frame, rows)
        for frame in self._cache.frames(self._found.scope).values():
            if frame.run == self._found.id and frame.id not in seen:
                self._check_frame(descriptor, frame, [])

    def _check_frame(self, descriptor: int, frame: FrameRow, rows: list[FileRow]) -> None:
        self._frames += 1
        self._rows += len(rows)
        where = f"frame {frame.id}"
        end = frame.offset + frame.length
        if not 0 <= frame.offset < end <= self._found.valid:
            self._problem(where, f"lies from byte {frame.offset:,} to {end:,} of {self._found.valid:,}")
            return
        try:
            lines = split_lines(read_frame(descriptor, frame.offset, frame.length, self._codec))
        except DrumlineError as error:
            self._problem(where, error.what)
            return
        if len(lines) != frame.lines:
            self._problem(where, f"has {len(lines)} lines, not {frame.lines}")
        if frame.kept.bit_count() != frame.lines:
            self._problem(where, f"has {frame.lines} lines, but numbers for {frame.kept.bit_count()}")
        for row in rows:
            self._check_row(row, frame, lines)

    def _check_row(self, row: FileRow, frame: FrameRow, lines: list[bytes]) -> None:
        path = os.path.join(row.directory, row.name)
        try:
            line = lines[frame.place(row.line)]
        except LookupError:
            self._problem(path, f"points at line {row.line}, which is not in its frame")
            return
        try:
            expected = file_row(parse_record(line, self._run.index_path), row.line)
        except (DrumlineError, *GARBLED):
            self._problem(path, "points at a line that is no record")
            return
        if row != expected:
            names = [name for name in row._fields if getattr(row, name) != getattr(expected, name)]
            self._problem(path, f"differs from its record: {', '.join(names)}")

    def _check_counts(self, tally: Tally) -> None:
        """Of a run that is complete and the newest, the cache must know every record."""
        if self._rows != tally.records:
            self._problem("run", f"knows {self._rows:,} files, but the index has {tally.records:,} records")
        cached = self._cache.tally(self._found.id)[0]
        if not _equal(cached, tally):
            self._problem("run", "its counts of labels, errors or formats are not the index's")

    def _check_seals(self) -> None:
        for path, number in self._cache.directories(self._found.scope).items():
            seal = self._cache.seal(number)
            if seal is not None and seal != self._cache.make_seal(number):
                self._problem(path, "its seal does not say what its rows say")

    def _problem(self, where: str | bytes, message: str) -> None:
        self._ledger.problem("cache", "cache", where, message)


def _equal(cached: Tally, counted: Tally) -> bool:
    for name in Tally.__slots__:
        mine, others = getattr(cached, name), getattr(counted, name)
        if not isinstance(mine, dict):
            mine, others = {"": mine}, {"": others}
        if any(not isclose(mine.get(key, 0), others.get(key, 0), rel_tol=1e-9) for key in {*mine, *others}):
            return False
    return True
