"""The end of a run: drop what was superseded while it was interrupted, count, and write the summary."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from typing import Any

from drumline.cache import Cache, FileRow, FrameRow
from drumline.durable import output_errors, sync_directory, write_json
from drumline.errors import ArchiveError, CacheError, DrumlineError
from drumline.failpoints import step
from drumline.index import IndexAppender, parse_record, read_frame, split_lines
from drumline.pipeline.job import Job
from drumline.pipeline.prepare import identity_of
from drumline.pipeline.slots import DEVICES
from drumline.pipeline.supervisor import Outcome
from drumline.records import display_path
from drumline.recover import rebuild_cache
from drumline.runs import INFO_NAME
from drumline.summary import make_summary
from drumline.tally import Tally

__all__ = ["discard_if_empty", "finish"]

_VANISHED_NOTICED = 20


def finish(job: Job, cache: Cache, outcome: Outcome) -> dict[str, Any]:
    """Complete a run whose stages have all ended well, and return its summary.

    Raises
    ------
    DrumlineError
        When the archive went away meanwhile, or the index does not hold exactly one record for each file
        that was found.
    """
    (tally, carried), rows = cache.tally(job.run_id), cache.count_run_files(job.run_id)
    _refuse_an_archive_that_went_away(job, tally)
    if tally.records != rows:
        _drop_superseded(job, cache)
        (tally, carried), rows = cache.tally(job.run_id), cache.count_run_files(job.run_id)
    _assert_one_record_per_file(tally, rows, outcome)
    summary = _summary(job, tally, carried, outcome)
    write_json(job.run.summary_path, summary)
    with cache.transaction():
        cache.drop_unused(job.scope, job.run_id)
        cache.seal_directories(job.scope)
    return summary


def _refuse_an_archive_that_went_away(job: Job, tally: Tally) -> None:
    """Leave the run unfinished when the archive was unmounted or moved while it was read."""
    vanished = tally.errors["vanished"]
    away = identity_of(job.archive) != job.archive_identity
    mostly = vanished >= _VANISHED_NOTICED and vanished > tally.records / 2
    if away or (mostly and not job.settings.accept_missing):
        raise ArchiveError(
            f"the archive {display_path(job.archive)!r} went away while it was read ({vanished:,} files)",
            "Mount it again and give the same command: it goes on where it stopped.",
        )


def discard_if_empty(job: Job) -> None:
    """Remove a run that came to nothing before its first record: a refused archive, a model that fails."""
    with suppress(OSError, sqlite3.Error, DrumlineError):
        if job.run.index_path.stat().st_size == 0:
            with closing(Cache(job.cache_path)) as cache, cache.transaction():
                cache.forget_run(job.run_id)
            for name in (job.run.index_path.name, INFO_NAME):
                (job.run.directory / name).unlink()
            job.run.directory.rmdir()
            if job.settings.fresh:  # it began by forgetting what earlier runs knew
                rebuild_cache(job.cache_path, job.settings.runs_root)


def _assert_one_record_per_file(tally: Tally, rows: int, outcome: Outcome) -> None:
    discovered = outcome.counters["discovered"]
    if not discovered == tally.records == rows:
        raise CacheError(
            f"found {discovered:,} files, but the index has {tally.records:,} and the cache {rows:,}",
            "Give the same command again: the cache is made anew from the indexes.",
        )


def _drop_superseded(job: Job, cache: Cache) -> None:
    """Write the index anew without the records of files that changed or went while the run was interrupted.

    Until the cache knows the new index, its entry says so: a kill in between is found out at the next start,
    and the cache is rebuilt from whichever index is there.
    """
    path = job.run.index_path
    temporary = path.with_name(f".{path.name}.tmp")
    with cache.transaction():
        cache.set_valid(job.run_id, -1)
    with output_errors(path):
        temporary.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with ExitStack() as opened:
        opened.callback(os.close, descriptor)
        appender = opened.enter_context(closing(IndexAppender(temporary, job.codec)))
        before = opened.enter_context(closing(Cache(job.cache_path, "read")))
        opened.enter_context(cache.transaction())
        for frame, carried, rows in before.live_frames(job.run_id):
            if len(rows) == frame.lines:
                raw = os.pread(descriptor, frame.length, frame.offset)
                cache.move_frame(frame.id, appender.append(raw).offset)
            else:
                _rewrite(job, cache, appender, descriptor, frame, carried, rows)
        cache.drop_dead_frames(job.run_id)
        cache.set_valid(job.run_id, appender.end)
        appender.sync()
        with output_errors(path):
            with step("index.replace"):
                os.replace(temporary, path)
            sync_directory(path.parent)


def _rewrite(
    job: Job,
    cache: Cache,
    appender: IndexAppender,
    descriptor: int,
    frame: FrameRow,
    carried: int,
    rows: list[FileRow],
) -> None:
    lines = split_lines(read_frame(descriptor, frame.offset, frame.length, job.codec))
    live = [lines[frame.place(row.line)] for row in rows]
    data = job.codec.compress(b"".join(live))
    tally = Tally.of(parse_record(line, job.run.index_path) for line in live)
    numbered = [row._replace(line=place) for place, row in enumerate(rows)]
    carried = min(carried, tally.records - tally.failed)
    cache.add_frame(job.scope, job.run_id, appender.append(data), carried, tally, numbered)


def _summary(job: Job, tally: Tally, carried: int, outcome: Outcome) -> dict[str, Any]:
    counters = outcome.counters
    handled = counters["written"] + counters["carried"]
    went = {
        "elapsed_sec": round(outcome.elapsed_sec, 3),
        "files_per_sec": round(handled / max(outcome.elapsed_sec, 1e-9), 1),
        "memory": outcome.memory,
        "storage": job.settings.storage,
        "device": (None, *DEVICES)[counters["device"]],
    }
    counted = {**counters, "known_content": counters["twins"]}
    return make_summary(job.run, tally, carried, counted, went)
