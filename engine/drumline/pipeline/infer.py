"""`infer`: classify an archive. Its walk starts at once, and everything else is imported beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drumline.errors import CacheError, DrumlineError
from drumline.pipeline.walk import walking
from drumline.progress import Progress
from drumline.steps import Lap, no_lap

if TYPE_CHECKING:
    from drumline.pipeline.profile import Profile
    from drumline.settings import InferSettings

__all__ = ["infer"]

_IN_VAIN = (
    "The cache was made anew from the indexes, and that did not help. If the disk is sound, this is a fault"
    " in drumline: please report it. --fresh starts anew."
)


def infer(
    settings: InferSettings, progress: Progress | None = None, profile: Profile | None = None
) -> dict[str, Any]:
    """Classify an archive and return the summary (the content of ``summary.json``).

    Goes on with an unfinished run of the same archive, model and settings; carries over what earlier runs
    know of unchanged files. The archive is only read.

    Parameters
    ----------
    settings
        What to do.
    progress
        Is told how far it is; None for silence.
    profile
        Measures where the time goes, and is saved in the run directory; None costs nothing.

    Raises
    ------
    DrumlineError
        See `drumline.errors`; whatever was written before is whole, and the same call goes on.

    Notes
    -----
    Forks: call it from a process that runs no other threads at that moment.
    """
    settings = replace(settings, runs_root=Path(os.path.abspath(settings.runs_root)))
    try:
        return _infer(settings, progress or Progress(), profile)
    except CacheError:  # it was made anew, and the run goes on; its walk has to begin again
        try:
            return _infer(settings, progress or Progress(), profile)
        except CacheError as error:
            raise DrumlineError(error.what, _IN_VAIN) from error


def _infer(settings: InferSettings, progress: Progress, profile: Profile | None) -> dict[str, Any]:
    with _measured(profile) as lap, walking(settings, profile) as walk:
        from drumline.pipeline.run import run  # as long as it takes to walk past tens of thousands of files

        return run(settings, walk, progress, profile, lap)


@contextmanager
def _measured(profile: Profile | None) -> Iterator[Lap]:
    if profile is None:
        yield no_lap
        return
    from drumline.pipeline.profile import recorded, saved

    with saved(profile), recorded(profile, "supervisor") as lap:
        yield lap
