"""One classification of an archive, from settings to summary; and its preview."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drumline.cache import Cache
from drumline.cache_file import cache_errors, check_length, check_permissions, damage_found
from drumline.errors import ArchiveError, BundleError, CacheError, OutputError, RuntimeMissingError
from drumline.laps import Lap, Step
from drumline.lock import exclusive
from drumline.pipeline.discover import NewFile, Survey
from drumline.pipeline.finish import discard_if_empty, finish
from drumline.pipeline.job import Job, Request, model_facts
from drumline.pipeline.prepare import check_request, make_job, make_runs_root
from drumline.pipeline.supervisor import Outcome, supervise
from drumline.pipeline.walk import Walking, walk_settings
from drumline.progress import Progress
from drumline.records import display_path
from drumline.recover import agrees, open_cache, rebuild_cache
from drumline.runs import CACHE_NAME, LOCK_NAME
from drumline.settings import InferSettings
from drumline.walk import Walk

if TYPE_CHECKING:
    from drumline.pipeline.profile import Profile

__all__ = ["preview", "run"]


def run(
    settings: InferSettings, walking: Walking, progress: Progress, profile: Profile | None, lap: Lap
) -> dict[str, Any]:
    """Classify an archive whose walk is under way: see `drumline.pipeline.infer.infer`.

    Raises
    ------
    CacheError
        When the cache is damaged, or does not agree with the index: it was made anew from the indexes, so the
        same call goes on.
    """
    request = check_request(settings)
    make_runs_root(request.settings)
    lock = exclusive(
        request.settings.runs_root / LOCK_NAME,
        f"the runs root {display_path(settings.runs_root)!r}",
        f"infer of {display_path(request.archive)}",
    )
    with lock, cache_errors(request.cache_path):
        try:
            with damage_found(request.cache_path):
                return _run(request, walking, progress, profile, lap)
        except CacheError as error:
            progress.note(f"{error.what}; making it anew from the indexes")
            rebuild_cache(request.cache_path, request.settings.runs_root)
            raise


def _run(
    request: Request, walking: Walking, progress: Progress, profile: Profile | None, lap: Lap
) -> dict[str, Any]:
    with closing(open_cache(request.cache_path, request.settings.runs_root, progress.note)) as cache:
        job = make_job(request, cache)
    lap(Step.PREPARE, 0)
    # No SQLite connection may live through a fork.
    outcome = _supervise(job, walking, progress, profile)
    lap(Step.SUPERVISE, 0)
    with closing(Cache(request.cache_path)) as cache:
        summary = finish(job, cache, outcome)
    lap(Step.FINISH, 0)
    return summary


def _supervise(job: Job, walking: Walking, progress: Progress, profile: Profile | None) -> Outcome:
    if profile:
        profile.directory = job.run.directory
    try:
        return supervise(job, walking, progress, profile)
    except (ArchiveError, BundleError, RuntimeMissingError):
        discard_if_empty(job)
        raise


def preview(settings: InferSettings) -> dict[str, Any]:
    """Return what `infer` would read and what it would carry over; writes nothing."""
    request = check_request(replace(settings, runs_root=Path(os.path.abspath(settings.runs_root))))
    check_length(request.cache_path)
    check_permissions(request.cache_path)
    with tempfile.TemporaryDirectory() as directory, cache_errors(request.cache_path):
        cache = None if settings.fresh else _known(request, Path(directory) / CACHE_NAME)
        try:
            survey, new = _surveyed(request, cache)
        except CacheError:
            assert cache is not None
            cache.close()
            cache = _anew(request, Path(directory) / CACHE_NAME)
            survey, new = _surveyed(request, cache)
        if cache:
            cache.close()
    return {
        "archive_root": display_path(request.archive),
        "runs_root": display_path(request.settings.runs_root),
        "model": model_facts(request.bundle),
        "counts": {
            "discovered": survey.files,
            "to_read": len(new),
            "to_read_bytes": sum(new),
            "carried_over": survey.files - len(new),
            "gone": survey.gone,
            "unreadable_directories": len(survey.walk.unreadable),
        },
    }


def _surveyed(request: Request, cache: Cache | None) -> tuple[Survey, list[int]]:
    """Return the comparison of the archive with what is known, and the sizes of the files to read."""
    scope = cache.find_scope(request.archive, request.inference_key) if cache else None
    known = cache if scope is not None else None
    found = Walk(walk_settings(request.settings))
    survey = Survey(found, known, scope or 0, run_id=0, retry_failed=request.settings.retry_failed)
    return survey, [finding.entry.size for finding in survey.present() if isinstance(finding, NewFile)]


def _anew(request: Request, temporary: Path) -> Cache:
    rebuild_cache(temporary, request.settings.runs_root)
    return Cache(temporary, "read")


def _known(request: Request, temporary: Path) -> Cache | None:
    """Open what `infer` would know; where it would make the cache anew first, so is a temporary one."""
    runs_root = request.settings.runs_root
    if not runs_root.is_dir():
        return None
    with suppress(OutputError, sqlite3.DatabaseError):
        cache = Cache(request.cache_path, "look")
        if agrees(cache, runs_root):
            return cache
        cache.close()
    return _anew(request, temporary)
