"""The self-test behind `drumline tune`: which settings are the fastest on this machine, found by trying.

A sample of the archive is classified by the whole engine, again and again, each time with one setting
changed. The values of a setting take turns, so that whatever else the machine does meets all of them alike,
and the fastest run of each counts. A value is taken only when it wins clearly; the others stay automatic.
How far the runs with automatic settings lie apart is the machine's own scatter: what has won must beat the
automatic settings once more, by more than that.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import numpy as np

from drumline.errors import ArchiveError
from drumline.machine import usable_cpus
from drumline.pipeline.infer import infer
from drumline.records import display_path
from drumline.settings import CPU_FILES, InferSettings
from drumline.walk import Walk, WalkSettings

__all__ = ["AUTOMATIC", "Trial", "Tuned", "sampled", "synthesised", "tune"]

_TUNED: Final = ("cpu_batch_size", "model_threads", "workers", "batch_size")

_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(InferSettings)}

AUTOMATIC: Final[dict[str, int | None]] = {name: _DEFAULTS[name] for name in _TUNED}
"""Setting that is tuned → its default."""

_CLEARLY: Final = 1.03
"""How many times as fast a value must be to be taken: less is no more than chance."""

_CONSIDERED: Final = 200_000
"""Files of the archive among which the sample is drawn: a walk of a second."""

_RATE: Final = 44_100
_DEVICE_ONLY_CPU: Final = ("cpu_batch_size", "model_threads")


class Trial(NamedTuple):
    """One value of one setting, and the files/s of its fastest run; None: automatic."""

    setting: str
    value: int | None
    files_per_sec: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found.

    Parameters
    ----------
    settings
        Setting → its best value; what may stay automatic is not in it.
    auto_files_per_sec, best_files_per_sec
        With automatic settings, and with these, measured in turns.
    trials
        All that was tried, in order.
    scatter
        How many times as fast the fastest run with automatic settings was as the slowest one.
    too_noisy
        Some values won, but no more clearly than chance explains: `settings` is empty, nothing was found out.
    """

    settings: dict[str, int]
    auto_files_per_sec: float
    best_files_per_sec: float
    trials: tuple[Trial, ...]
    scatter: float = 1.0
    too_noisy: bool = False

    @property
    def auto_share(self) -> float:
        """Speed of the automatic settings as a share of the best."""
        return self.auto_files_per_sec / max(self.best_files_per_sec, self.auto_files_per_sec)


def tune(settings: InferSettings, repeats: int = 2, say: Callable[[str], None] = lambda _text: None) -> Tuned:
    """Find the fastest workers, batch sizes and threads for an archive that is a sample.

    Parameters
    ----------
    settings
        What is classified, and how otherwise; its archive is read about 17 × `repeats` times.
    repeats
        Runs of each value.
    say
        Is told what is tried.
    """
    auto = _with(settings, AUTOMATIC)
    with tempfile.TemporaryDirectory(prefix="drumline-tune-") as place:
        track = _Track(Path(place), repeats)
        device = track.run(auto)["device"]  # this first one is not counted: it fills the page cache
        best, trials = auto, list[Trial]()
        for name, values in _candidates(auto).items():
            if device != "cpu" and name in _DEVICE_ONLY_CPU:
                continue
            say(f"trying {name}: {', '.join(map(_shown, values))}")
            rates = track.race([_with(best, {name: value}) for value in values])
            trials += map(Trial, [name] * len(values), values, rates)
            fastest = max(range(len(values)), key=rates.__getitem__)
            if rates[fastest] > _CLEARLY * rates[0]:
                best = _with(best, {name: values[fastest]})
        if best == auto:
            return Tuned({}, rates[0], rates[0], tuple(trials), track.scatter(auto))
        say("comparing the best with the automatic settings")
        auto_rate, best_rate = track.race([auto, best])
        scatter = track.scatter(auto)
    if best_rate <= max(_CLEARLY, scatter) * auto_rate:
        return Tuned({}, auto_rate, best_rate, tuple(trials), scatter, too_noisy=True)
    changed = {name: getattr(best, name) for name in _TUNED if getattr(best, name) != AUTOMATIC[name]}
    return Tuned(changed, auto_rate, best_rate, tuple(trials), scatter)


def _with(settings: InferSettings, values: Mapping[str, int | None]) -> InferSettings:
    changes: dict[str, Any] = dict(values)
    return replace(settings, **changes)


def _candidates(settings: InferSettings) -> dict[str, list[int | None]]:
    """Return setting → values to try, the automatic one first; the costlier settings first."""
    cpus, workers, batch = usable_cpus(), settings.worker_count, settings.batch_size
    return {
        "cpu_batch_size": [None, *(size for size in (4, 8, 32, 64) if size != CPU_FILES)],
        "model_threads": [None, *sorted({1, max(1, cpus // 2), cpus} - {settings.thread_count})],
        "workers": [None, *sorted({max(1, workers - 1), workers + 1, 2 * workers} - {workers})],
        "batch_size": [batch, *(size for size in (32, 128, 256) if size != batch)],
    }


def _shown(value: int | None) -> str:
    return "auto" if value is None else str(value)


class _Track:
    """Where settings race: each run in a runs root of its own, so that none knows anything beforehand."""

    def __init__(self, place: Path, repeats: int) -> None:
        self._place, self._repeats, self._runs = place, repeats, 0
        self._rates: list[tuple[InferSettings, float]] = []

    def race(self, contestants: list[InferSettings]) -> list[float]:
        """Run all in turns, and return the files/s of each one's fastest run."""
        rates = [0.0] * len(contestants)
        for _ in range(self._repeats):
            for number, settings in enumerate(contestants):
                summary = self.run(settings)
                rate = round(summary["counts"]["indexed"] / max(summary["elapsed_sec"], 1e-3), 1)
                self._rates.append((settings, rate))
                rates[number] = max(rates[number], rate)
        return rates

    def scatter(self, settings: InferSettings) -> float:
        """Return how many times as fast the fastest run with these settings was as the slowest one."""
        rates = [rate for raced, rate in self._rates if raced == settings]
        return max(rates) / max(min(rates), 0.1)

    def run(self, settings: InferSettings) -> dict[str, Any]:
        """Classify the sample once."""
        self._runs += 1
        return infer(replace(settings, runs_root=self._place / str(self._runs), dedup_hash=False))


@contextmanager
def sampled(settings: InferSettings, files: int) -> Iterator[InferSettings]:
    """Draw a sample of an archive: a directory of links, outside of it, that is gone afterwards.

    Raises
    ------
    ArchiveError
        When no audio file is found.
    """
    root = os.path.realpath(os.fsencode(settings.archive))
    formats = frozenset(name.encode() for name in settings.supported_formats)
    paths = _drawn(Walk(WalkSettings(root, formats, links=settings.follow_links)), files)
    if not paths:
        raise ArchiveError(
            f"no audio file found in {display_path(root)!r}", "Check the path, or tune without an archive."
        )
    with tempfile.TemporaryDirectory(prefix="drumline-tune-") as place:
        for number, path in enumerate(sorted(paths)):
            name = b"%06d%s" % (number, os.path.splitext(path)[1])
            os.symlink(os.path.join(root, path), os.path.join(os.fsencode(place), name))
        yield replace(
            settings, archive=Path(place), follow_links="all", one_file_system=False, io=settings.storage
        )


def _drawn(walk: Walk, files: int) -> list[bytes]:
    """Draw files evenly from the first that the walk meets, by reservoir sampling."""
    random, drawn, met = Random(0), list[bytes](), 0
    for directory in walk:
        for entry in directory.files:
            met += 1
            path = os.path.join(directory.path, entry.name)
            if len(drawn) < files:
                drawn.append(path)
            elif (place := random.randrange(met)) < files:
                drawn[place] = path
        if met >= _CONSIDERED:
            break
    return drawn


@contextmanager
def synthesised(settings: InferSettings, files: int) -> Iterator[InferSettings]:
    """Make an archive of decaying noise, 0.1 to 1 s long, that is gone afterwards."""
    import soundfile

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="drumline-tune-") as place:
        for number in range(files):
            count = int(_RATE * random.uniform(0.1, 1.0))
            sound = random.uniform(-0.9, 0.9, count) * np.exp(-6.0 * np.arange(count) / count)
            soundfile.write(Path(place) / f"{number:06d}.wav", sound, _RATE, subtype="PCM_16")
        yield replace(settings, archive=Path(place))
