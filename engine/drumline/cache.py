"""The cache: what is known of every file of an archive, so that it is not read again.

One SQLite file serves all runs of a runs root. A *scope* is an archive together with an inference key (what
changes probabilities: model, front end, hash algorithm …), and nothing is shared between scopes but content.

    scope ─< run ─< frame >─ file >─ directory

A file's row says where its record lies: frame and line. A frame lies in one run's index; when it is carried
over to the next run, only the frame's row changes. That is so also when some of its lines are left out, for
those that stay keep their numbers: `frame.kept` has a bit for each number whose line is there. `run.valid` is
the length up to which the index is complete; it is committed with the rows, after the frame is on disk. The
cache holds nothing that the indexes do not, so it can be deleted at any time: `drumline.recover` rebuilds it.

At the end of a run each directory gets a *seal*: a digest of all names, sizes and times that its rows hold,
and the lines that they point to. Where the digest of what walk finds is the same, all files are known and
unchanged, and no row has to be read. Triggers drop a directory's seal with any change of its rows, in the
same transaction; a checksum tells when the seal itself was changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import orjson
import xxhash

from drumline.cache_file import CACHE_SCHEMA, Mode, check_schema, connect, row_errors, wrong_row
from drumline.durable import output_errors
from drumline.failpoints import step
from drumline.index import FRAME_LINES, Written
from drumline.records import TRANSIENT_ERRORS, WORKER_ERRORS, Record, relative_path
from drumline.tally import Tally
from drumline.walk import Directory

__all__ = [
    "Cache",
    "Failure",
    "FileRow",
    "FrameRow",
    "KnownFile",
    "Seal",
    "Split",
    "Twin",
    "checked_frame",
    "digest_of",
    "file_row",
]

# Small, so that memory does not grow with the cache: the system's page cache serves as well.
_READER_CACHE_KB: Final = 500
_WRITER_CACHE_KB: Final = 2000
_DIRECTORIES_KEPT: Final = 1_000

_SECOND_NS: Final = 1_000_000_000
_ID_BYTES: Final = 8
_PLACE_BYTES: Final = _ID_BYTES + FRAME_LINES // 8


class Failure(IntEnum):
    """Whether a file failed, and whether that may be over at the next run although the file is the same."""

    NONE = 0
    LASTING = 1
    TRANSIENT = 2


class KnownFile(NamedTuple):
    """What the cache knows of a file: size in bytes, modification time, and where its record lies.

    `failed` is a `Failure`; `line` counts from 0 within the frame.
    """

    size: int
    mtime_ns: int
    failed: int
    frame: int
    line: int


class FileRow(NamedTuple):
    """A file's row as the writer stores it; `line` counts from 0 within its frame."""

    directory: bytes
    name: bytes
    size: int
    mtime_ns: int
    hash: str | None
    failed: int
    line: int


class FrameRow(NamedTuple):
    """Where a frame lies: `length` bytes from `offset` on in the index of `run`; and its line count.

    `bits` has a bit for each line that is there, by the numbers that rows count by; None: all of them.
    """

    id: int
    run: int
    offset: int
    length: int
    lines: int
    bits: bytes | None = None

    @property
    def kept(self) -> int:
        """The lines that are there, as a bit mask of the numbers that rows count by."""
        return (1 << self.lines) - 1 if self.bits is None else int.from_bytes(self.bits, "little")

    def place(self, line: int) -> int:
        """Return where in the frame the line with this number stands.

        Raises
        ------
        LookupError
            When it is no longer there.
        """
        if line < 0 or not self.kept >> line & 1:
            raise LookupError(f"frame {self.id} has no line {line}")
        return (self.kept & ((1 << line) - 1)).bit_count()


class Seal(NamedTuple):
    """What a directory's rows say, all in one.

    Parameters
    ----------
    digest
        Of the names, sizes and modification times of its files: see `digest_of`.
    failures
        How many of them failed, lastingly; a directory with other failures has no seal.
    coarse_ns
        The latest modification time in whole seconds, where there is one.
    places
        Where the records lie: frames, each with its lines as a bit mask.
    """

    digest: bytes
    failures: int
    coarse_ns: int | None
    places: dict[int, int]

    @classmethod
    def of(cls, rows: list[tuple[bytes, int, int, int, int, int]]) -> Seal | None:
        """Build from (name, size, mtime in ns, failure, frame, line) by name; None where none can be."""
        names, sizes, times, failures, frames, lines = zip(*rows, strict=True)
        if Failure.TRANSIENT in failures:
            return None
        masks = dict.fromkeys(frames, 0)
        for frame, line in zip(frames, lines, strict=True):
            masks[frame] |= 1 << line
        coarse = max((time for time in times if time % _SECOND_NS == 0), default=None)
        digest = digest_of(Directory.of(b"", names, sizes, times))
        return cls(digest, failures.count(Failure.LASTING), coarse, masks)


def digest_of(directory: Directory) -> bytes:
    """Return the digest of the names, sizes and times of a directory's files; 16 bytes."""
    digest = xxhash.xxh3_128(directory.names)
    digest.update(directory.numbers)
    return digest.digest()


class Twin(NamedTuple):
    """Where the record of a content lies: its frame, the name of the run, and the number of its line."""

    frame: FrameRow
    run: str
    line: int


class Split(NamedTuple):
    """A frame that is carried over without some of its lines.

    Parameters
    ----------
    frame
        As it lies in the earlier run.
    kept
        The lines that still hold, as a bit mask.
    written
        Where they lie in the new run.
    tally
        What can be counted about them.
    dropped
        Paths of the files whose lines were left out.
    """

    frame: FrameRow
    kept: int
    written: Written
    tally: Tally
    dropped: list[bytes]


def checked_frame(frame: FrameRow) -> FrameRow:
    """Return a frame whose row says what can be: as many lines as it has numbers for.

    Raises
    ------
    CacheError
        When it does not.
    """
    what = f"frame {frame.id}"
    with row_errors(what):
        whole = type(frame.offset) is type(frame.length) is type(frame.lines) is int
        possible = whole and 0 < frame.lines <= FRAME_LINES and frame.offset >= 0 < frame.length
        fits = possible and frame.kept.bit_count() == frame.lines and frame.kept.bit_length() <= FRAME_LINES
    if not fits:
        raise wrong_row(what)
    return frame


def file_row(record: Record, line: int) -> FileRow:
    """Return what the cache is to know of a record."""
    path = relative_path(record)
    error = record["errors"]
    failed = Failure.NONE
    if error is not None:
        failed = Failure.TRANSIENT if error["type"] in TRANSIENT_ERRORS else Failure.LASTING
    # Nobody takes over a failure, so its hash is left out; but what cost workers is not tried under any name.
    known = error is None or error["type"] in WORKER_ERRORS
    digest = record["hash"] if known else None
    directory, _, name = path.rpartition(b"/")
    return FileRow(directory, name, record["size"], record["mtime_ns"], digest, failed, line)


class Cache:
    """The cache of one runs root, open in one process.

    Parameters
    ----------
    path
        The SQLite file.
    mode
        Whether it is written, and who else has it open: see `Mode`.

    Raises
    ------
    sqlite3.DatabaseError
        When it cannot be opened, is no cache, or is of another version; it is then as it was.
    """

    def __init__(self, path: Path, mode: Mode = "write") -> None:
        self.path = path
        self._directories: dict[tuple[int, bytes], int] = {}
        self._db = connect(path, mode)
        try:
            if mode in ("write", "build"):
                self._prepare(mode)
            else:
                self._db.execute(f"PRAGMA cache_size = -{_READER_CACHE_KB}")
                check_schema(self._db)
        except BaseException as error:
            self._db.close()
            if isinstance(error, UnicodeDecodeError):
                # What SQLite says of a schema that it cannot parse names a part of it, which may be no text.
                raise sqlite3.DatabaseError("its schema is no text") from error
            raise

    def _prepare(self, mode: Mode) -> None:
        self._db.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KB}")
        if self._one("SELECT count(*) FROM sqlite_master"):
            check_schema(self._db)
        self._db.execute(f"PRAGMA journal_mode = {'DELETE' if mode == 'build' else 'WAL'}")
        self._db.execute(f"PRAGMA synchronous = {'FULL' if mode == 'build' else 'NORMAL'}")
        if not self._one("PRAGMA user_version"):
            self._db.executescript(CACHE_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all of the enclosed changes, or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            with output_errors(self.path), step("cache.commit"):
                self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._directories.clear()
            raise

    def scope(self, archive: bytes, inference_key: str) -> int:
        """Return the id of a scope, made when it is new."""
        self._db.execute(
            "INSERT OR IGNORE INTO scope (archive, inference_key) VALUES (?, ?)", (archive, inference_key)
        )
        return self._one(
            "SELECT id FROM scope WHERE archive = ? AND inference_key = ?", archive, inference_key
        )

    def find_scope(self, archive: bytes, inference_key: str) -> int | None:
        """Return the id of a scope; None when nothing is known of it."""
        sql = "SELECT id FROM scope WHERE archive = ? AND inference_key = ?"
        row = self._db.execute(sql, (archive, inference_key)).fetchone()
        return row[0] if row else None

    def add_run(self, scope: int, name: str, decision_key: str) -> int:
        """Register a run with an empty index."""
        sql = "INSERT INTO run (scope, name, decision_key, valid) VALUES (?, ?, ?, 0)"
        return int(self._db.execute(sql, (scope, name, decision_key)).lastrowid or 0)

    def runs(self, scope: int) -> dict[int, tuple[str, str, int]]:
        """Return run id → (name, decision key, valid bytes) of a scope."""
        rows = self._db.execute("SELECT id, name, decision_key, valid FROM run WHERE scope = ?", (scope,))
        return {run: (name, key, valid) for run, name, key, valid in rows}

    def run_names(self) -> set[str]:
        """Return the names of all runs, of whatever scope."""
        return {name for (name,) in self._db.execute("SELECT name FROM run")}

    def run_count(self) -> int:
        """Return how many runs are known."""
        return self._one("SELECT count(*) FROM run")

    def runs_in_use(self) -> list[tuple[str, int]]:
        """Return (run name, end of its last frame) for every run that rows point to.

        The end is negative for a run whose index was being written anew: see `set_valid`.
        """
        sql = (
            "SELECT r.name, CASE WHEN r.valid < 0 THEN -1 ELSE max(f.offset + f.length) END "
            "FROM frame f JOIN run r ON r.id = f.run GROUP BY r.id"
        )
        return list(self._db.execute(sql))

    def frames(self, scope: int) -> dict[int, FrameRow]:
        """Return all frames of a scope by id."""
        sql = (
            "SELECT f.id, f.run, f.offset, f.length, f.lines, f.kept "
            "FROM frame f JOIN run r ON r.id = f.run WHERE r.scope = ?"
        )
        return {row[0]: FrameRow(*row) for row in self._db.execute(sql, (scope,))}

    def frame(self, frame: int) -> tuple[FrameRow, bytes, str] | None:
        """Return a frame, the digest of its bytes, and the name of its run."""
        sql = (
            "SELECT f.id, f.run, f.offset, f.length, f.lines, f.kept, f.digest, r.name "
            "FROM frame f JOIN run r ON r.id = f.run WHERE f.id = ?"
        )
        row = self._db.execute(sql, (frame,)).fetchone()
        return (FrameRow(*row[:6]), row[6], row[7]) if row else None

    def frame_tally(self, frame: int) -> Tally:
        """Return the tally of one frame."""
        row = self._db.execute("SELECT tally FROM frame WHERE id = ?", (frame,)).fetchone()
        return _tally_of(row[0], frame)

    def directories(self, scope: int) -> dict[bytes, int]:
        """Return directory path → id of a scope."""
        return dict(self._db.execute("SELECT path, id FROM directory WHERE scope = ?", (scope,)))

    def files(self, directory: int) -> dict[bytes, KnownFile]:
        """Return what is known of a directory's files, by name."""
        sql = "SELECT name, size, mtime_ns, failed, frame, line FROM file WHERE directory = ?"
        known = {row[0]: KnownFile._make(row[1:]) for row in self._db.execute(sql, (directory,))}
        if not all(type(name) is bytes for name in known):
            raise wrong_row("a file")
        return known

    def seal(self, directory: int) -> Seal | None:
        """Return a directory's seal, if it has one.

        Raises
        ------
        CacheError
            When the row is not as it was written.
        """
        sql = "SELECT digest, failures, coarse_ns, places, checksum FROM seal WHERE directory = ?"
        row = self._db.execute(sql, (directory,)).fetchone()
        if row is None:
            return None
        if row[4] != _checksum_of(directory, *row[:4]):
            raise wrong_row("a directory")
        return Seal(row[0], row[1], row[2], _places_of(row[3]))

    def make_seal(self, directory: int) -> Seal | None:
        """Return the seal that the rows of a directory give; None where they give none."""
        sql = "SELECT name, size, mtime_ns, failed, frame, line FROM file WHERE directory = ? ORDER BY name"
        rows = self._db.execute(sql, (directory,)).fetchall()
        with row_errors("a file"):
            return Seal.of(rows) if rows else None

    def seal_directories(self, scope: int) -> None:
        """Seal all directories of a scope that are not sealed."""
        sql = "SELECT id FROM directory WHERE scope = ? AND id NOT IN (SELECT directory FROM seal)"
        for (number,) in self._db.execute(sql, (scope,)).fetchall():
            if seal := self.make_seal(number):
                values = (number, *seal[:3], _bytes_of_places(seal.places))
                sql = "INSERT INTO seal VALUES (?, ?, ?, ?, ?, ?)"
                self._db.execute(sql, (*values, _checksum_of(*values)))

    def count_directory(self, directory: int) -> int:
        """Return how many files are known in a directory."""
        return self._one("SELECT count(*) FROM file WHERE directory = ?", directory)

    def count_files(self, scope: int) -> int:
        """Return how many files are known in a scope."""
        sql = "SELECT count(*) FROM file WHERE directory IN (SELECT id FROM directory WHERE scope = ?)"
        return self._one(sql, scope)

    def twin(self, digest: str, inference_key: str) -> Twin | None:
        """Return where a record with this content by the same inference key lies.

        One with a prediction, where there is one; else one of a file that cost workers.
        """
        # All in one statement: the writer may carry the frame over at any moment. The index is in the order
        # asked for, so that one of ten thousand equal files costs no more than one of two.
        sql = (
            "SELECT m.id, m.run, m.offset, m.length, m.lines, m.kept, r.name, f.line FROM file f "
            "JOIN directory d ON d.id = f.directory JOIN scope s ON s.id = d.scope "
            "JOIN frame m ON m.id = f.frame JOIN run r ON r.id = m.run "
            "WHERE f.hash = ? AND s.inference_key = ? ORDER BY f.failed LIMIT 1"
        )
        row = self._db.execute(sql, (digest, inference_key)).fetchone()
        return Twin(FrameRow(*row[:6]), *row[6:]) if row else None

    def has_prediction(self, inference_key: str) -> bool:
        """Tell whether any record by this inference key, of whatever archive, has a prediction."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM frame f JOIN run r ON r.id = f.run JOIN scope s ON s.id = r.scope "
            "WHERE s.inference_key = ? AND f.lines > f.failed)"
        )
        return bool(self._one(sql, inference_key))

    def _directory_id(self, scope: int, path: bytes) -> int:
        known = self._directories.get((scope, path))
        if known is None:
            self._db.execute("INSERT OR IGNORE INTO directory (scope, path) VALUES (?, ?)", (scope, path))
            known = self._one("SELECT id FROM directory WHERE scope = ? AND path = ?", scope, path)
            if len(self._directories) >= _DIRECTORIES_KEPT:
                self._directories.clear()
            self._directories[scope, path] = known
        return known

    def add_frame(
        self,
        scope: int,
        run: int,
        written: Written,
        carried: int,
        tally: Tally,
        rows: Iterable[FileRow],
    ) -> int:
        """Store a frame and the rows of its lines; rows of the same files elsewhere are replaced."""
        columns = "run, offset, length, digest, lines, failed, carried, tally"
        blob = orjson.dumps(tally.to_json())
        values = (run, *written, tally.records, tally.failed, carried, blob)
        sql = f"INSERT INTO frame ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        frame = int(self._db.execute(sql, values).lastrowid or 0)
        self._db.executemany(
            "INSERT OR REPLACE INTO file (directory, name, size, mtime_ns, hash, failed, frame, line) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((self._directory_id(scope, row.directory), *row[1:6], frame, row.line) for row in rows),
        )
        return frame

    def carry_frame(self, frame: int, run: int, offset: int) -> None:
        """Say that a frame now lies in another run's index, byte for byte."""
        self._db.execute(
            "UPDATE frame SET run = ?, offset = ?, carried = lines - failed WHERE id = ?",
            (run, offset, frame),
        )

    def split_frame(self, scope: int, run: int, split: Split) -> None:
        """Say that a frame now lies in another run's index without the lines that no longer hold.

        What those rows point to stays where it was, until they are replaced or forgotten.
        """
        number, lines, failed = split.frame.id, split.tally.records, split.tally.failed
        columns = "run, offset, length, digest, lines, failed, carried, tally, kept"
        copied = f"INSERT INTO frame ({columns}) SELECT {columns} FROM frame WHERE id = ?"
        rest = self._db.execute(copied, (number,)).lastrowid
        self._db.executemany(
            "UPDATE file SET frame = ? WHERE directory = ? AND name = ? AND frame = ?",
            (
                (rest, self._directory_id(scope, directory), name, number)
                for directory, name in map(os.path.split, split.dropped)
            ),
        )
        self._db.execute(
            "UPDATE frame SET run = ?, offset = ?, length = ?, digest = ?, lines = ?, failed = ?, "
            "carried = ?, tally = ?, kept = ? WHERE id = ?",
            (
                *(run, *split.written, lines, failed, lines - failed),
                *(orjson.dumps(split.tally.to_json()), _bytes_of(split.kept), number),
            ),
        )

    def move_frame(self, frame: int, offset: int) -> None:
        """Say that a frame now lies elsewhere in the same index."""
        self._db.execute("UPDATE frame SET offset = ? WHERE id = ?", (offset, frame))

    def forget_file(self, directory: int, name: bytes) -> None:
        """Forget one file."""
        self._db.execute("DELETE FROM file WHERE directory = ? AND name = ?", (directory, name))

    def forget_directory(self, directory: int) -> None:
        """Forget all files of a directory, and the directory."""
        self._db.execute("DELETE FROM file WHERE directory = ?", (directory,))
        self._db.execute("DELETE FROM directory WHERE id = ?", (directory,))
        self._directories.clear()

    def forget_run(self, run: int) -> None:
        """Forget a run that holds no frames."""
        self._db.execute("DELETE FROM run WHERE id = ?", (run,))

    def forget_frame(self, frame: int) -> None:
        """Forget the files whose records lie in a frame."""
        self._db.execute("DELETE FROM file WHERE frame = ?", (frame,))

    def forget_scope(self, scope: int) -> None:
        """Forget all files, frames and runs of a scope."""
        self._db.execute(
            "DELETE FROM file WHERE directory IN (SELECT id FROM directory WHERE scope = ?)", (scope,)
        )
        self._db.execute("DELETE FROM directory WHERE scope = ?", (scope,))
        self._db.execute("DELETE FROM frame WHERE run IN (SELECT id FROM run WHERE scope = ?)", (scope,))
        self._db.execute("DELETE FROM run WHERE scope = ?", (scope,))
        self._directories.clear()

    def set_valid(self, run: int, valid: int) -> None:
        """Commit up to where a run's index is complete; -1 while it is being written anew."""
        self._db.execute("UPDATE run SET valid = ? WHERE id = ?", (valid, run))

    def tally(self, run: int) -> tuple[Tally, int]:
        """Return (sum of the tallies, predictions carried over) of a run's index."""
        total, carried = Tally(), 0
        sql = "SELECT id, tally, carried FROM frame WHERE run = ?"
        for frame, blob, count in self._db.execute(sql, (run,)):
            with row_errors(f"frame {frame}"):
                total.merge(_tally_of(blob, frame))
                carried += count
        return total, carried

    def count_run_files(self, run: int) -> int:
        """Return how many files have their record in a run's index."""
        return self._one("SELECT count(*) FROM file WHERE frame IN (SELECT id FROM frame WHERE run = ?)", run)

    def live_frames(self, run: int) -> Iterator[tuple[FrameRow, int, list[FileRow]]]:
        """Iterate over a run's frames that rows point to: frame, carried count, and those rows by line."""
        sql = (
            "SELECT m.id, m.run, m.offset, m.length, m.lines, m.kept, m.carried, "
            "d.path, f.name, f.size, f.mtime_ns, f.hash, f.failed, f.line "
            "FROM file f JOIN frame m ON m.id = f.frame JOIN directory d ON d.id = f.directory "
            "WHERE m.run = ? ORDER BY m.offset, f.line"
        )
        for key, rows in groupby(self._db.execute(sql, (run,)), key=lambda row: row[:7]):
            yield FrameRow(*key[:6]), key[6], [FileRow(*row[7:]) for row in rows]

    def drop_dead_frames(self, run: int) -> None:
        """Forget the frames of a run that no row points to."""
        sql = "DELETE FROM frame WHERE run = ? AND id NOT IN (SELECT DISTINCT frame FROM file)"
        self._db.execute(sql, (run,))

    def drop_unused(self, scope: int, keep_run: int) -> None:
        """Forget the frames and runs of a scope that are not `keep_run`'s and that no file points to."""
        self._db.execute(
            "DELETE FROM frame WHERE run IN (SELECT id FROM run WHERE scope = ? AND id != ?) "
            "AND id NOT IN (SELECT DISTINCT frame FROM file)",
            (scope, keep_run),
        )
        self._db.execute(
            "DELETE FROM run WHERE scope = ? AND id != ? AND id NOT IN (SELECT DISTINCT run FROM frame)",
            (scope, keep_run),
        )

    def _one(self, sql: str, *values: object) -> int:
        return int(self._db.execute(sql, values).fetchone()[0])


def _tally_of(blob: bytes, frame: int) -> Tally:
    with row_errors(f"frame {frame}"):
        return Tally.from_json(orjson.loads(blob))


def _places_of(blob: bytes) -> dict[int, int]:
    pieces = [blob[start : start + _PLACE_BYTES] for start in range(0, len(blob), _PLACE_BYTES)]
    return {
        int.from_bytes(piece[:_ID_BYTES], "little"): int.from_bytes(piece[_ID_BYTES:], "little")
        for piece in pieces
    }


def _checksum_of(*values: object) -> bytes:
    """Return the checksum of a seal's row: directory, digest, failures, coarse_ns and places; 8 bytes."""
    return xxhash.xxh3_64_digest(repr(values).encode())


def _bytes_of_places(places: dict[int, int]) -> bytes:
    pieces = [
        frame.to_bytes(_ID_BYTES, "little") + lines.to_bytes(_PLACE_BYTES - _ID_BYTES, "little")
        for frame, lines in places.items()
    ]
    return b"".join(pieces)


def _bytes_of(mask: int) -> bytes:
    return mask.to_bytes(-(-mask.bit_length() // 8), "little")
