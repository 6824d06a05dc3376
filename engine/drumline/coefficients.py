"""Mel bands → what a model is fed: decibels above a floor, and for MFCC their cosine transform.

There are two ways to the same coefficients, as there are to the bands (`drumline.spectra`): NumPy, and the
compiled kernel, which takes half the time.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drumline.frontend import FrontEnd
from drumline.spectra import FrameFigures

__all__ = [
    "Coefficients",
    "CompiledCoefficients",
    "PlainCoefficients",
    "Written",
    "dct_matrix",
    "decibels",
]

_AMIN, _AMIN_DB = np.float32(1e-10), -100.0
# How far a band may lie below its frame's mean power in a float32 transform: measured on 64,000 frames of
# recordings, the features are then within 0.0005 dB. A cepstral coefficient averages the errors of all bands.
_FLOAT32_RANGE_DB = {"mfcc": 52.0, "log-mel": 41.0, "waveform": 0.0}

Floats: TypeAlias = NDArray[np.float32]


class Written(NamedTuple):
    """What was written of a file.

    Parameters
    ----------
    mel_db
        Mel bands in dB, not below the floor, shape (n_mels, frames).
    floor
        `top_db` below the loudest band, not below -100 dB.
    noisy
        Whether a frame needs double precision, (frames,) bool. A float32 transform spreads its rounding error
        over all bins as white noise, so a band far below the frame's mean power, such as the treble of a loud
        kick, is off by up to 0.003 dB.
    """

    mel_db: Floats
    floor: np.float32
    noisy: NDArray[np.bool_]


class Coefficients(Protocol):
    """Writes coefficients; one per process, as it reuses its buffers."""

    def write(self, figures: FrameFigures, out: Floats) -> Written:
        """Write the coefficients of the frames that a file reaches, and those of the padding behind them.

        Parameters
        ----------
        figures
            Of the frames that it reaches; the mel bands in it may become decibels.
        out
            Shape (coefficients, frames of the front end), C-contiguous.
        """
        ...

    def write_anew(self, mel_db: Floats, floor: np.float32, out: Floats, frames: NDArray[np.intp]) -> None:
        """Write the coefficients of some frames from their mel bands in dB, (n_mels, frames)."""
        ...


class PlainCoefficients:
    """Coefficients by NumPy.

    Parameters
    ----------
    front_end
        What is written: its mel bands, or cepstral coefficients.
    mel
        Filters, shape (n_mels, 1 + n_fft // 2).
    """

    def __init__(self, front_end: FrontEnd, mel: Floats) -> None:
        self._dct = dct_matrix(front_end.n_mfcc, front_end.n_mels) if front_end.kind == "mfcc" else None
        self._top_db = front_end.top_db
        self._loudest_noise_db = _white_noise_db(mel) - np.float32(_FLOAT32_RANGE_DB[front_end.kind])
        self._rise = np.float32(math.sqrt(front_end.n_mels))

    def write(self, figures: FrameFigures, out: Floats) -> Written:
        """Write coefficients; see `Coefficients`."""
        mel_db = decibels(figures.mel)
        floor = np.float32(max(_AMIN_DB, float(mel_db.max()) - self._top_db))
        np.maximum(mel_db, floor, out=mel_db)
        reached = mel_db.shape[1]
        self.write_anew(mel_db, floor, out, np.arange(reached))
        # Above the floor, so that a silent frame is exactly what the padding is.
        out[:, reached:] = floor if self._dct is None else 0.0
        if self._dct is not None:
            out[0, reached:] = floor * self._rise
        mean_power_db = np.float32(10.0) * np.log10(figures.mean_power + _AMIN)
        noisy = (mel_db - self._loudest_noise_db).min(axis=0) < mean_power_db
        return Written(mel_db, floor, noisy)

    def write_anew(self, mel_db: Floats, floor: np.float32, out: Floats, frames: NDArray[np.intp]) -> None:
        """Write the coefficients of some frames; see `Coefficients`."""
        if self._dct is None:
            out[:, frames] = mel_db
            return
        out[:, frames] = self._dct @ (mel_db - floor)
        out[0, frames] += floor * self._rise


class CompiledCoefficients(PlainCoefficients):
    """The same in C; parameters as of `PlainCoefficients`, and the kernel.

    Parameters
    ----------
    kind
        Which of the kernel's KINDS, from the plainest on; None: the last, and fastest, that runs here.
    """

    def __init__(self, front_end: FrontEnd, mel: Floats, kernel: ModuleType, kind: int | None = None) -> None:
        super().__init__(front_end, mel)
        self._finish = kernel.finish
        kind = kernel.KINDS - 1 if kind is None else kind
        dct = np.empty((0, front_end.n_mels)) if self._dct is None else self._dct
        self._sizes = (kind, len(dct), front_end.frames)
        self._tables = (self._loudest_noise_db, dct)
        self._scratch = np.empty(max(kernel.LANES * front_end.n_mels, front_end.frames))

    def write(self, figures: FrameFigures, out: Floats) -> Written:
        """Write coefficients; see `Coefficients`."""
        mel, mean_power, *_ = figures
        reached = mel.shape[1]
        noisy = np.empty(reached, np.bool_)
        sizes = (*self._sizes, reached, self._top_db)
        floor = self._finish(*sizes, mel, mean_power, *self._tables, self._scratch, noisy, out)
        return Written(mel, np.float32(floor), noisy)


def decibels(power: Floats) -> Floats:
    """Turn power into dB in place, not below -100."""
    np.maximum(power, _AMIN, out=power)
    np.log10(power, out=power)
    power *= np.float32(10.0)
    return power


def dct_matrix(n_mfcc: int, n_mels: int) -> NDArray[np.float64]:
    """Return the first rows of the orthonormal DCT-II, shape (n_mfcc, n_mels).

    In double precision: in float32 a product with it is off by 0.0013 dB.
    """
    order, band = np.arange(n_mfcc)[:, np.newaxis], np.arange(n_mels)
    scale = np.where(order == 0, math.sqrt(1.0 / n_mels), math.sqrt(2.0 / n_mels))
    matrix: NDArray[np.float64] = scale * np.cos(np.pi * order * (band + 0.5) / n_mels)
    return matrix


def _white_noise_db(mel: Floats) -> Floats:
    """Return how strongly white noise disturbs each band of `mel`, in dB, shape (n_mels, 1)."""
    disturbance = np.square(mel).sum(axis=1) / np.maximum(mel.sum(axis=1), _AMIN)
    noise_db: Floats = np.float32(10.0) * np.log10(np.maximum(disturbance, _AMIN))
    return noise_db[:, np.newaxis]
