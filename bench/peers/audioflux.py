"""A fast audio library: audioFlux does the transform in C, in a pool of processes.

python -m bench.peers.audioflux ARCHIVE INDEX
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from bench.peers.common import Analysed, Spectral, padded, read_mono, run
from drumline.bundle import Bundle
from drumline.frontend import FrontEnd
from drumline.machine import usable_cpus

__all__ = ["analyse"]


@cache
def _transforms(front_end: FrontEnd) -> tuple[Any, Spectral]:
    from audioflux import STFT
    from audioflux.type import WindowType

    bits = front_end.n_fft.bit_length() - 1
    stft = STFT(radix2_exp=bits, window_type=WindowType.HANN, slide_length=front_end.hop_length)
    return stft, Spectral(front_end)


def analyse(path: Path, front_end: FrontEnd) -> Analysed:
    """Read and analyse one file."""
    stft, spectral = _transforms(front_end)
    try:
        digest = xxhash.xxh3_64(path.read_bytes()).hexdigest()
        samples, duration = read_mono(path, front_end)
        centred = np.pad(padded(samples, front_end), front_end.n_fft // 2)
    except Exception as error:  # whatever a library raises, the file is skipped
        return Analysed({"path": str(path), "error": f"{type(error).__name__}: {error}"}, None)
    magnitude = np.abs(stft.stft(centred))
    record = {"path": str(path), "hash": digest, "duration_sec": duration}
    return Analysed(record | spectral.statistics(samples, magnitude), spectral.mfcc(magnitude))


def _all(paths: list[Path], bundle: Bundle) -> Iterable[Analysed]:
    with ProcessPoolExecutor(usable_cpus()) as pool:
        yield from pool.map(partial(analyse, front_end=bundle.front_end), paths, chunksize=16)


if __name__ == "__main__":
    run("audioFlux in a pool", _all)
