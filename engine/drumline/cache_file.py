"""The file of the cache: where it can lie, what tables it has, and what SQLite's errors about it mean."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final, Literal

from drumline.durable import way_out_of
from drumline.errors import CacheError, OutputError
from drumline.index import GARBLED
from drumline.records import display_path
from drumline.wording import counted

__all__ = [
    "CACHE_SCHEMA",
    "SIDE_FILES",
    "Mode",
    "cache_errors",
    "cache_way_out",
    "check_length",
    "check_permissions",
    "check_schema",
    "connect",
    "damage_found",
    "is_damage",
    "row_errors",
    "temporary_path",
    "wrong_row",
]

_CACHE_VERSION: Final = 6

Mode = Literal["write", "read", "look", "build"]
"""``write`` and ``read`` are for the processes of a run. ``look`` reads from outside: where nobody writes, no
file is made beside the cache; where a run is at work or was killed, SQLite may make its -shm file. ``build``
writes a new one, which nobody else has open: what cannot be written fails with its commit, rather than
unseen when a log is moved in at the end."""

SIDE_FILES: Final = ("-wal", "-shm", "-journal")
"""What SQLite adds to the name of a file for what lies beside it."""

_MADE_ANEW: Final = "Delete cache.sqlite in the runs root and give the same command again: it is made anew."

_LONGEST_PATH: Final = 511
"""SQLite's MAX_PATHNAME, but for the NUL at its end."""

_LONGEST_SUFFIX: Final = len(".") + len(".new-journal")
"""What is added to the name of a cache that is made anew, while it is written: see `drumline.recover`."""

_FILES_OF_A_CACHE: Final = 4
"""The database, its log, the log's shared memory, and the directory while it is synced."""

CACHE_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS scope (
    id INTEGER PRIMARY KEY, archive BLOB NOT NULL, inference_key TEXT NOT NULL,
    UNIQUE (archive, inference_key));
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, decision_key TEXT NOT NULL,
    valid INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS frame (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    digest BLOB NOT NULL, lines INTEGER NOT NULL, failed INTEGER NOT NULL, carried INTEGER NOT NULL,
    tally BLOB NOT NULL, kept BLOB);
CREATE TABLE IF NOT EXISTS directory (
    id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, path BLOB NOT NULL, UNIQUE (scope, path));
CREATE TABLE IF NOT EXISTS file (
    directory INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    hash TEXT, failed INTEGER NOT NULL, frame INTEGER NOT NULL, line INTEGER NOT NULL,
    PRIMARY KEY (directory, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS file_by_hash ON file (hash, failed) WHERE hash IS NOT NULL;
CREATE TABLE IF NOT EXISTS seal (
    directory INTEGER PRIMARY KEY, digest BLOB NOT NULL, failures INTEGER NOT NULL, coarse_ns INTEGER,
    places BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS file_added AFTER INSERT ON file
    BEGIN DELETE FROM seal WHERE directory = NEW.directory; END;
CREATE TRIGGER IF NOT EXISTS file_changed AFTER UPDATE ON file
    BEGIN DELETE FROM seal WHERE directory = OLD.directory; END;
CREATE TRIGGER IF NOT EXISTS file_removed AFTER DELETE ON file
    BEGIN DELETE FROM seal WHERE directory = OLD.directory; END;
PRAGMA user_version = {_CACHE_VERSION};
COMMIT;
"""


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the cache at `path` into an `OutputError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise OutputError(
            f"cannot use the cache {display_path(path)!r}: {error}",
            cache_way_out(error),
        ) from error


@contextmanager
def damage_found(path: Path) -> Iterator[None]:
    """Turn what SQLite says of damage in the cache at `path` into a `CacheError`: it can be made anew."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            what = f"the cache {display_path(path)!r} is damaged: {error}"
            raise CacheError(what, cache_way_out(error)) from error
        raise


def cache_way_out(error: sqlite3.DatabaseError) -> str:
    """Return what can be done about an error of SQLite; a full disk is no reason to delete anything."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_NOMEM")):
        return _more_files() or "Check the disk, its free space and quotas, then give the same command again."
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_BUSY", "SQLITE_LOCKED")):
        return "Check the permissions and that no other program uses it, then give the same command again."
    return _MADE_ANEW


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether an error of SQLite says that the file is damaged: then it can be made anew.

    An error without a name is of a text that is no UTF-8, or of `check_schema`.
    """
    name = getattr(error, "sqlite_errorname", "")
    if not name:
        return type(error) in (sqlite3.DatabaseError, sqlite3.OperationalError)
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CONSTRAINT"))


@contextmanager
def row_errors(what: str) -> Iterator[None]:
    """Turn what looking at a row with a wrong value raises into a `CacheError`; `what` names the row."""
    try:
        yield
    except GARBLED as error:
        raise wrong_row(what) from error


def wrong_row(what: str) -> CacheError:
    """Return the error for a row with a wrong value; `what` names the row."""
    return CacheError(f"the cache is damaged: the row of {what} has a value that cannot be", _MADE_ANEW)


def _more_files() -> str:
    """Return what helps when so many files cannot be open, which SQLite does not tell; empty if they can."""
    with ExitStack() as opened:
        try:
            for _ in range(_FILES_OF_A_CACHE):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return way_out_of(error)
    return ""


def check_schema(database: sqlite3.Connection) -> None:
    """See that a database is a cache of this version, with all of its tables, indexes and triggers.

    Raises
    ------
    sqlite3.DatabaseError
        When it is not.
    """
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != _CACHE_VERSION:
        raise sqlite3.DatabaseError(f"cache version {version}, not {_CACHE_VERSION}")
    if _schema_of(database) != _expected_schema():
        raise sqlite3.DatabaseError("its tables, indexes or triggers are not those of a cache")


@cache
def _expected_schema() -> tuple[tuple[str, str], ...]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.executescript(CACHE_SCHEMA)
        return _schema_of(database)


def _schema_of(database: sqlite3.Connection) -> tuple[tuple[str, str], ...]:
    sql = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY name"
    return tuple(database.execute(sql))


def check_length(path: Path) -> None:
    """Raise `OutputError` when the path of a cache is longer than SQLite can open."""
    excess = len(os.path.realpath(os.fsencode(path))) + _LONGEST_SUFFIX - _LONGEST_PATH
    if excess > 0:
        raise OutputError(
            f"the path of the cache is {counted(excess, 'byte')} too long for SQLite: {display_path(path)!r}",
            "Choose a runs root with a shorter path.",
        )


def check_permissions(path: Path) -> None:
    """Raise `OutputError` when a cache, or what lies beside it, is no file or may not be read and written.

    SQLite would make a log's shared memory with the permissions of the cache, and it would stay.
    """
    for file in (*_files_of(path), *_files_of(temporary_path(path))):
        _check_is_file(file)
        if os.path.exists(file) and not os.access(file, os.R_OK | os.W_OK):
            raise OutputError(
                f"may not read and write {display_path(file)!r}",
                "Check its permissions, then give the same command again.",
            )


def temporary_path(path: Path) -> Path:
    """Return where a cache is made anew, before it takes the place of the old one."""
    return path.with_name(f".{path.name}.new")


def _files_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", *SIDE_FILES)]


def _check_is_file(path: Path) -> None:
    with suppress(OSError):  # not there; or why else not, opening it will say
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OutputError(f"{display_path(path)!r} is in the way: it is no file", "Move it elsewhere.")


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Open the SQLite file of a cache, whatever is in it.

    Raises
    ------
    sqlite3.DatabaseError
        When it cannot be opened.
    OutputError
        When something else stands there: SQLite would wait for a named pipe.
    """
    for file in _files_of(path):
        _check_is_file(file)
    how = "rwc" if mode in ("write", "build") else "ro"
    if mode == "look" and not path.with_name(f"{path.name}-wal").exists():
        how = "ro&immutable=1"
    uri = f"file:{_quoted(path)}?mode={how}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)


def _quoted(path: Path) -> str:
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(os.fsencode(path.absolute()))
