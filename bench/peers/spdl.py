"""SPDL: its pipeline of threads and its WAV loader; SciPy computes, as it leaves the GIL.

python -m bench.peers.spdl ARCHIVE INDEX
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import xxhash
from numpy.typing import NDArray

from bench.peers.common import Analysed, Spectral, padded, read_mono, run
from drumline.bundle import Bundle
from drumline.machine import usable_cpus

__all__ = ["analyse"]

_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31, np.dtype(np.float32): 1.0}


def analyse(path: Path, spectral: Spectral, window: NDArray[np.float32]) -> Analysed:
    """Read and analyse one file."""
    front_end = spectral.front_end
    try:
        data = path.read_bytes()
        samples, duration = read_mono(path, front_end, *_loaded(data))
        centred = np.pad(padded(samples, front_end), front_end.n_fft // 2)
    except Exception as error:  # whatever a library raises, the file is skipped
        return Analysed({"path": str(path), "error": f"{type(error).__name__}: {error}"}, None)
    frames = np.lib.stride_tricks.sliding_window_view(centred, front_end.n_fft)[:: front_end.hop_length]
    magnitude = np.abs(scipy.fft.rfft(frames * window)).T
    record = {"path": str(path), "hash": xxhash.xxh3_64(data).hexdigest(), "duration_sec": duration}
    return Analysed(record | spectral.statistics(samples, magnitude), spectral.mfcc(magnitude))


def _loaded(data: bytes) -> tuple[Any, int]:
    """Return samples and rate of what SPDL loads, WAV of 16 and 32 bits; else None, for soundfile."""
    from spdl.io import load_wav, parse_wav

    try:
        samples, rate = np.asarray(load_wav(data)), parse_wav(data).sample_rate
        return samples.astype(np.float32) / np.float32(_FULL_SCALE[samples.dtype]), rate
    except (ValueError, RuntimeError, KeyError):
        return None, 0


def _all(paths: list[Path], bundle: Bundle) -> Iterable[Analysed]:
    from spdl.pipeline import PipelineBuilder

    window = np.hanning(bundle.front_end.n_fft + 1)[:-1].astype(np.float32)
    work = partial(analyse, spectral=Spectral(bundle.front_end), window=window)
    threads = usable_cpus()
    builder = PipelineBuilder().add_source(paths).pipe(work, concurrency=threads).add_sink(64)
    pipeline = builder.build(num_threads=threads)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


if __name__ == "__main__":
    run("SPDL", _all)
