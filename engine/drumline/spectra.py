"""What the frames of a file hold: mel bands, mean power, centroid and rolloff, from one transform.

There are two ways to the same figures. `PlainSpectra` is NumPy and SciPy, for every front end and machine.
`CompiledSpectra` does the same in C (``_spectra.c``), a vector of frames at a time and three times as fast
with AVX2 or wider, where it could be compiled when drumline was installed and frames are a power of two long.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drumline.kernels import compiled

__all__ = [
    "ROLLOFF",
    "CompiledSpectra",
    "FrameFigures",
    "PlainSpectra",
    "Spectra",
    "compiled_kernel",
    "hann_window",
]

_TINY = np.finfo(np.float32).tiny
_ROLLOFF_NOISE = 4e-6  # of a frame's sum: where float32 magnitudes may put the rolloff into the wrong bin
_KERNEL_VERSION = 2

ROLLOFF = 0.85
"""Share of a frame's magnitude that lies below its rolloff."""

Floats: TypeAlias = NDArray[np.float32]


class FrameFigures(NamedTuple):
    """Figures of each frame.

    Parameters
    ----------
    mel
        Power in each mel band, shape (n_mels, frames), float32.
    mean_power
        Mean power of a frame's bins, (frames,).
    centroid
        Mean bin, weighted by magnitude, (frames,); zeros where no statistics were asked for.
    rolloff
        Bin below which 85 % of the magnitude lies, (frames,); zeros where no statistics were asked for.
    close
        Whether float32 cannot tell that bin from the next, (frames,) bool.
    """

    mel: Floats
    mean_power: Floats
    centroid: Floats
    rolloff: NDArray[np.int32]
    close: NDArray[np.bool_]


class Spectra(Protocol):
    """Computes the figures of frames; one per process, as it reuses its buffers."""

    def figures(self, samples: Floats, frames: int, *, statistics: bool) -> FrameFigures:
        """Return the figures of the first `frames` frames.

        Parameters
        ----------
        samples
            Padded waveform, at least (frames - 1) · hop_length + n_fft: frame t begins at t · hop_length.
        statistics
            False leaves out centroid and rolloff.
        """
        ...


def hann_window(n_fft: int) -> NDArray[np.float64]:
    """Return the periodic Hann window, shape (n_fft,)."""
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2.0 * np.pi / n_fft * np.arange(n_fft))
    return window


class PlainSpectra:
    """Spectra by NumPy and SciPy, kept as (bins, frames): every step runs along contiguous frames.

    The rolloff is found in two steps, first the block of bins and then the bin: a running sum over
    all bins would cost more than the transform.

    Parameters
    ----------
    n_fft, hop_length
        Length and step of frames in samples.
    mel
        Filters, shape (n_mels, 1 + n_fft // 2).
    """

    def __init__(self, n_fft: int, hop_length: int, mel: Floats) -> None:
        # Only here, for it takes 0.1 s: where the kernel is compiled, nothing needs it.
        from scipy.fft import rfft
        from scipy.sparse import csr_array

        bins = 1 + n_fft // 2
        self._rfft = rfft
        self._n_fft, self._hop_length = n_fft, hop_length
        self._window = hann_window(n_fft).astype(np.float32)
        self._mel = csr_array(mel)
        self._average = np.full(bins, 1.0 / bins, np.float32)
        self._width = math.isqrt(bins)
        starts = np.arange(0, bins, self._width)
        ones, numbers, shape = np.ones(bins, np.float32), np.arange(bins), (len(starts), bins)
        self._block_sums = csr_array((ones, numbers, np.append(starts, bins)), shape=shape)
        self._bin_numbers = numbers.astype(np.float32)
        self._inside = np.arange(self._width)[:, np.newaxis]

    def figures(self, samples: Floats, frames: int, *, statistics: bool) -> FrameFigures:
        """Return the figures of the first `frames` frames; see `Spectra`."""
        shape, strides = (frames, self._n_fft), (4 * self._hop_length, 4)
        windowed = np.lib.stride_tricks.as_strided(samples, shape, strides) * self._window
        # The transform along the first axis of the transposed view gives (bins, frames) at no extra cost.
        magnitude: Floats = np.abs(self._rfft(windowed.T, axis=0))
        power = np.square(magnitude)
        mel, mean_power = self._mel @ power, self._average @ power
        if not statistics:
            none = np.zeros(frames, np.int32)
            return FrameFigures(mel, mean_power, none.astype(np.float32), none, none.astype(bool))
        return FrameFigures(mel, mean_power, *self._statistics(magnitude))

    def _statistics(self, magnitude: Floats) -> tuple[Floats, NDArray[np.int32], NDArray[np.bool_]]:
        running = np.zeros((self._block_sums.shape[0] + 1, magnitude.shape[1]), np.float32)
        np.cumsum(self._block_sums @ magnitude, axis=0, out=running[1:])
        centroid = (self._bin_numbers @ magnitude) / np.maximum(running[-1], _TINY)
        return centroid, *self._rolloff(magnitude, running)

    def _rolloff(self, magnitude: Floats, running: Floats) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return each frame's rolloff, and whether it is close; `running` is the sum before each block."""
        threshold = np.float32(ROLLOFF) * running[-1]
        frame = np.arange(magnitude.shape[1])
        block = (running[1:] >= threshold).argmax(axis=0)
        first = block * self._width
        # What is read past the last bin does not count: the threshold has been reached before.
        bins = np.minimum(first + self._inside, len(magnitude) - 1)
        inside = np.take_along_axis(magnitude, bins, axis=0)
        inside[0] += running[block, frame]
        missing = np.cumsum(inside, axis=0) - threshold
        rolloff = first + (missing < 0.0).sum(axis=0)
        close = np.abs(missing).min(axis=0) <= _ROLLOFF_NOISE * running[-1]
        return rolloff.astype(np.int32), close & (running[-1] > 0.0)


class CompiledSpectra:
    """The same in C; parameters as of `PlainSpectra`, and the kernel.

    Parameters
    ----------
    kind
        Which of the kernel's KINDS, from the plainest on; None: the last, and fastest, that runs here.

    Raises
    ------
    ValueError
        Where `fits` is False for the front end.
    """

    def __init__(
        self, n_fft: int, hop_length: int, mel: Floats, kernel: ModuleType, kind: int | None = None
    ) -> None:
        if not self.fits(n_fft):
            raise ValueError(f"the compiled kernel takes no frames of {n_fft} samples")
        self._analyse, self._lanes = kernel.analyse, kernel.LANES
        self._n_fft, self._hop_length, self._n_mels = n_fft, hop_length, len(mel)
        turns = np.exp(-2j * np.pi / n_fft * np.arange(n_fft)).astype(np.complex64)
        self._tables = (hann_window(n_fft).astype(np.float32), turns, *_bands(mel))
        kind = kernel.KINDS - 1 if kind is None else kind
        self._sizes = (kind, n_fft, hop_length, math.isqrt(1 + n_fft // 2))
        self._scratch = np.empty(0, np.float32)

    @staticmethod
    def fits(n_fft: int) -> bool:
        """Whether frames of this length can be transformed: powers of two from 8 on."""
        return n_fft >= 8 and n_fft & (n_fft - 1) == 0

    def figures(self, samples: Floats, frames: int, *, statistics: bool) -> FrameFigures:
        """Return the figures of the first `frames` frames; see `Spectra`."""
        figures = FrameFigures(
            np.empty((self._n_mels, frames), np.float32),
            np.empty(frames, np.float32),
            np.zeros(frames, np.float32),
            np.zeros(frames, np.int32),
            np.zeros(frames, np.bool_),
        )
        shares = (ROLLOFF, _ROLLOFF_NOISE)
        scratch = self._scratch_for(frames)
        self._analyse(*self._sizes, frames, *shares, statistics, samples, *self._tables, scratch, *figures)
        return figures

    def _scratch_for(self, frames: int) -> Floats:
        lanes = self._lanes
        hops = frames + -(-self._n_fft // self._hop_length) + lanes
        wanted = 2 * self._n_fft * lanes + self._hop_length * hops
        if len(self._scratch) < wanted:
            memory = np.empty(wanted + lanes, np.float32)
            # Vectors that lie across two cache lines take twice as long to load.
            skipped = -memory.ctypes.data % (4 * lanes) // 4
            self._scratch = memory[skipped : skipped + wanted]
        return self._scratch


def _bands(mel: Floats) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
    """Return where the weights of each band begin, its first bin, and all weights in a row."""
    starts, bins, weights = [0], [], []
    for band in mel:
        (inside,) = np.nonzero(band)
        first, end = (inside[0], inside[-1] + 1) if len(inside) else (0, 0)
        bins.append(first)
        weights.append(band[first:end])
        starts.append(starts[-1] + end - first)
    return np.array(starts, np.int32), np.array(bins, np.int32), np.concatenate(weights)


def compiled_kernel() -> ModuleType | None:
    """Return the compiled kernel, or None."""
    return compiled("spectra", _KERNEL_VERSION)
