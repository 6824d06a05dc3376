"""Rebuild the cache from the indexes: it holds nothing that they do not."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from drumline.cache import Cache, file_row
from drumline.cache_file import (
    SIDE_FILES,
    cache_errors,
    check_length,
    check_permissions,
    is_damage,
    temporary_path,
)
from drumline.durable import output_errors, sync_directory
from drumline.errors import DrumlineError, OutputError
from drumline.failpoints import step
from drumline.index import FRAME_LINES, GARBLED, Frame, Written, parse_record, read_frames, record_errors
from drumline.inputs import open_regular
from drumline.records import display_path
from drumline.runs import Run, list_runs, open_run
from drumline.tally import Tally

__all__ = ["agrees", "open_cache", "rebuild_cache"]

_PAGE_BYTES: Final = 512
"""SQLite's smallest page: a file that is no multiple of it was cut, which SQLite notices late."""

_PRIMARY_CODE: Final = 0xFF
_NOT_ROLLED_BACK: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY)


def open_cache(path: Path, runs_root: Path, note: Callable[[str], None] = lambda _text: None) -> Cache:
    """Open the cache of a runs root; rebuild it when it is missing, damaged, or not what the indexes say.

    Parameters
    ----------
    path
        The cache.
    runs_root
        The directory of the runs.
    note
        Is told when a rebuild begins, which takes some seconds for a million records.

    Raises
    ------
    OutputError
        When it cannot be read or written, or a disk fails while an index is read; it is left as it is.
    """
    check_length(path)
    check_permissions(path)
    with cache_errors(path):
        return _open(path, runs_root, note)


def _open(path: Path, runs_root: Path, note: Callable[[str], None]) -> Cache:
    if not _is_good(path, runs_root):
        if list_runs(runs_root):
            note("making the cache anew from the indexes of earlier runs")
        rebuild_cache(path, runs_root)
    return Cache(path)


def _is_good(path: Path, runs_root: Path) -> bool:
    if not path.exists() or path.stat().st_size % _PAGE_BYTES:
        return False
    try:
        with contextlib.closing(Cache(path, "read")) as cache:
            return agrees(cache, runs_root)
    except sqlite3.OperationalError as error:
        # Killed while it was switched to its log, it would have to be rolled back, which reading cannot do.
        if is_damage(error) or error.sqlite_errorcode & _PRIMARY_CODE in _NOT_ROLLED_BACK:
            return False
        raise  # locked, or the disk fails: that says nothing of the file
    except sqlite3.DatabaseError:
        return False


def agrees(cache: Cache, runs_root: Path) -> bool:
    """Return whether the cache knows of the runs, and every index that it points into is long enough."""
    if not cache.run_count() and list_runs(runs_root):
        return False
    try:
        return all(
            end >= 0 and open_run(runs_root / name).index_path.stat().st_size >= end
            for name, end in cache.runs_in_use()
        )
    except (DrumlineError, OSError, *GARBLED):
        return False


def rebuild_cache(path: Path, runs_root: Path) -> None:
    """Make the cache anew; it takes the old one's place when all of it is on disk.

    Raises
    ------
    OutputError
        When a disk fails while an index is read, or it cannot be put in its place.
    sqlite3.DatabaseError
        When it cannot be written; the old one is as it was.
    """
    temporary = temporary_path(path)
    with output_errors(path):
        _remove(temporary)
    try:
        with contextlib.closing(Cache(temporary, "build")) as cache:
            _fill(cache, runs_root)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    with output_errors(path):
        with step("cache.remove"):
            _remove(path)
        with step("cache.replace"):
            os.replace(temporary, path)
        sync_directory(path.parent)


def _remove(path: Path) -> None:
    """Remove a cache for good, and only then its log: that of another must never stand beside a new one."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
    for suffix in SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    sync_directory(path.parent)


def _fill(cache: Cache, runs_root: Path) -> None:
    """Read, for each scope, its newest complete run and whatever was begun after it."""
    by_scope: dict[tuple[bytes, str], list[Run]] = {}
    for directory in list_runs(runs_root):
        with contextlib.suppress(DrumlineError):
            run = open_run(directory)
            key = (run.archive_root or b"", str(run.info.get("inference_key")))
            runs = by_scope.setdefault(key, [])
            if run.complete:
                runs.clear()
            runs.append(run)
    for (archive, inference_key), runs in by_scope.items():
        with cache.transaction():
            scope = cache.scope(archive, inference_key)
            for run in runs:
                _read_run(cache, scope, run)


def _read_run(cache: Cache, scope: int, run: Run) -> None:
    run_id = cache.add_run(scope, run.name, str(run.info.get("decision_key")))
    end = 0
    try:
        with open_regular(run.index_path) as index:
            for frame in read_frames(run.index_path):
                raw = os.pread(index.fileno(), frame.length, frame.offset)
                if len(raw) != frame.length:
                    break  # it is being cut by somebody
                _read_frame(cache, scope, run_id, run, frame, Written.of(raw, frame.offset))
                end = frame.offset + frame.length
    except OutputError:
        raise
    except OSError as error:  # says nothing of what is in it
        raise OutputError(
            f"cannot read the index {display_path(run.index_path)!r}: {error.strerror}",
            "Check the disk, then give the same command again; nothing was changed.",
        ) from error
    except DrumlineError:
        pass  # what is behind the damage is classified again
    cache.set_valid(run_id, end)


def _read_frame(cache: Cache, scope: int, run_id: int, run: Run, frame: Frame, written: Written) -> None:
    with record_errors(run.index_path):
        records = [parse_record(line, run.index_path) for line in frame.lines()]
        if len(records) > FRAME_LINES:
            return  # written by another tool: its lines cannot be pointed at
        rows = [file_row(record, number) for number, record in enumerate(records)]
        tally = Tally.of(records)
    cache.add_frame(scope, run_id, written, 0, tally, rows)
