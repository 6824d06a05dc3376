"""A model alone on a device: how fast, what copying costs, and how nearly it says what the CPU says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.nvml import Gpu
from drumline.bundle import Bundle, load_bundle
from drumline.cuda import CudaRunner, CudaSettings
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.inference import Session, open_session
from drumline.settings import Device

__all__ = ["Parity", "Speed", "bundles", "measure_parity", "measure_speed", "worker_costs"]

Floats = NDArray[np.float32]

_BATCH = 64


@dataclass(frozen=True)
class Speed:
    """A model at one batch size.

    Parameters
    ----------
    model, batch, graphs
        What ran, files in a batch, and whether as CUDA graphs.
    files_per_sec
        Copying and running, overlapped where the device can.
    run_alone, copy_alone
        The same of either without the other, in files/s; None where nothing is copied.
    copied_gb_per_sec
        While copying alone, in 10^9 bytes/s.
    joules
        Energy of 1,000 files; None where it is not told.
    pinned
        Whether what was copied lay in page-locked memory.
    """

    model: str
    batch: int
    graphs: bool
    files_per_sec: float
    run_alone: float | None = None
    copy_alone: float | None = None
    copied_gb_per_sec: float | None = None
    joules: float | None = None
    pinned: bool = False


@dataclass(frozen=True)
class Parity:
    """How nearly a model on the device says what the plain one says on the CPU, by canonical label."""

    model: str
    sounds: int
    labels: float
    largest_difference: float


def bundles(place: Path) -> dict[str, Path]:
    """Make the bundles that are compared, of the default one; the first is that itself."""
    from drumline_convert.in_graph import put_front_end_in_graph
    from drumline_convert.precision import reduce_precision

    plain = load_bundle()
    reduce_precision(plain.path, "fp16", place / "fp16")
    put_front_end_in_graph(plain.path, place / "in-graph")
    put_front_end_in_graph(plain.path, place / "in-graph-fp16", precision="fp16")
    return {
        "front end on the workers": plain.path,
        "front end on the workers, fp16": place / "fp16",
        "front end in the graph": place / "in-graph",
        "front end in the graph, fp16": place / "in-graph-fp16",
    }


def measure_speed(
    name: str, bundle: Bundle, device: Device, batch: int, graphs: bool, seconds: float, gpu: Gpu | None
) -> Speed:
    """Measure one model at one batch size, each figure for about so many seconds."""
    session = open_session(bundle, device, cuda=CudaSettings(batch, graphs))
    rows = np.random.default_rng(0).normal(0, 0.1, (batch, *bundle.row_shape)).astype(np.float32)
    for _ in range(2):
        session.stage(batch).copy(rows)
        session.predict(session.stage(batch).rows[:batch])
    before = gpu.joules() if gpu else None
    batches, taken = _repeated(_Overlapped(session, batch), seconds)
    after = gpu.joules() if gpu else None
    files = batches * batch
    joules = None if before is None or after is None else 1000.0 * (after - before) / files
    speed = files / taken
    if not isinstance(session.runner, CudaRunner):
        return Speed(name, batch, graphs, speed, joules=joules)
    runner = session.runner
    copied, copying = _repeated(lambda: runner.upload(batch), seconds)
    runs, running = _repeated(lambda: runner.run_again(batch), seconds)
    gigabytes = copied * rows.nbytes / 1e9 / copying
    alone = runs * batch / running, copied * batch / copying
    return Speed(name, batch, graphs, speed, *alone, gigabytes, joules, runner.is_pinned)


class _Overlapped:
    """Starts a batch and waits for the one before it, as the predict stage does."""

    def __init__(self, session: Session, batch: int) -> None:
        self._session, self._batch = session, batch
        self._pending: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        started = self._session.start(self._session.stage(self._batch).rows[: self._batch])
        self._pending()
        self._pending = started


def _repeated(action: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Do it again and again for about so many seconds; return how often, and how long that took."""
    action()
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or count < 2:
        action()
        count += 1
    return count, taken


def measure_parity(
    paths: dict[str, Path], device: Device, sounds: Callable[[], Iterable[Floats]]
) -> list[Parity]:
    """Compare each model on the device with the first one on the CPU, over sounds."""
    expected = _said(load_bundle(next(iter(paths.values()))), "cpu", sounds())
    return [
        _compared(name, _said(load_bundle(path), device, sounds()), expected) for name, path in paths.items()
    ]


def _compared(name: str, said: Floats, expected: Floats) -> Parity:
    labels = float((said.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return Parity(name, len(said), labels, float(np.abs(said - expected).max()))


def _said(bundle: Bundle, device: Device, sounds: Iterable[Floats]) -> Floats:
    """Return the confidence of each canonical label for each sound."""
    taxonomy = bundle.taxonomy
    own = np.array([taxonomy.canonical_of[label] for label in taxonomy.fine])
    collapse = np.array([own == label for label in dict.fromkeys(own)], np.float32).T
    session, extractor = open_session(bundle, device), FeatureExtractor(bundle.front_end)
    features, found = map(extractor.features, sounds), []
    while batch := list(islice(features, _BATCH)):
        found.append(session.probabilities(np.array(batch)))
    confidences: Floats = np.concatenate(found) @ collapse
    return confidences


def worker_costs(
    in_graph: FrontEnd, groups: Sequence[Sequence[Floats]], seconds: float
) -> dict[str, tuple[float, ...]]:
    """Return what a worker computes for a file after decoding it, in µs of one core, by group."""
    plain = load_bundle().front_end
    ways = {
        "front end and statistics on the worker": (plain, True),
        "front end on the worker, no statistics": (plain, False),
        "front end in the graph, statistics on the worker": (in_graph, True),
        "front end in the graph, no statistics": (in_graph, False),
    }
    return {
        name: tuple(_cost(front_end, statistics, sounds, seconds) for sounds in groups)
        for name, (front_end, statistics) in ways.items()
    }


def _cost(front_end: FrontEnd, statistics: bool, sounds: Sequence[Floats], seconds: float) -> float:
    extractor, out = FeatureExtractor(front_end), np.empty(front_end.shape, np.float32)

    def all_sounds() -> None:
        for sound in sounds:
            extractor.extract(sound, out, audio_stats=statistics)

    rounds, taken = _repeated(all_sounds, seconds)
    return 1e6 * taken / (rounds * len(sounds))
