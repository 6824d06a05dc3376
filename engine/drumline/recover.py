"""Rebuild the cache from the indexes: it holds nothing that they do not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from drumline.cache import Cache, FileRow
from drumline.errors import DrumlineError, OutputError
from drumline.index import FRAME_LINES, Frame, parse_record, read_frames, split_lines
from drumline.pipeline.assemble import file_row
from drumline.runs import Run, list_runs, open_run
from drumline.tally import Tally

__all__ = ["open_cache"]

_SIDE_FILES: Final = ("", "-wal", "-shm")


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
        When it cannot be written.
    """
    fresh = not path.exists()
    try:
        cache = Cache(path)
        if not fresh and agrees(cache, runs_root):
            return cache
        if not fresh:
            cache.close()
    except sqlite3.DatabaseError:
        fresh = False
    if not fresh:
        _remove(path)
        cache = Cache(path)
    if list_runs(runs_root):
        note("making the cache anew from the indexes of earlier runs")
        _fill(cache, runs_root)
    return cache


def agrees(cache: Cache, runs_root: Path) -> bool:
    """Return whether every index that the cache points into is there and long enough."""
    try:
        for _scope, name, end in cache.runs_in_use():
            index = next((runs_root / name).glob("index.jsonl*"), None)
            if index is None or index.stat().st_size < end:
                return False
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    for suffix in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


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
        for frame in read_frames(run.index_path):
            _read_frame(cache, scope, run_id, run, frame)
            end = frame.offset + frame.length
    except OutputError:
        raise
    except DrumlineError:
        pass  # what is behind the damage is classified again
    cache.set_valid(run_id, end)


def _read_frame(cache: Cache, scope: int, run_id: int, run: Run, frame: Frame) -> None:
    records = [parse_record(line, run.index_path) for line in split_lines(frame.data)]
    if len(records) > FRAME_LINES:
        return  # written by another tool: its lines cannot be pointed at
    rows: list[FileRow] = [file_row(record, place) for place, record in enumerate(records)]
    cache.add_frame(scope, run_id, frame.offset, frame.length, 0, Tally.of(records), rows)
