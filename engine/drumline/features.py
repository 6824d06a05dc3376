"""Waveform → feature tensor (MFCC or log-mel) and spectral statistics, equal to librosa's.

One pass serves everything: the magnitude spectrogram gives the mel bands, the centroid and the
rolloff. Only the frames that the sample reaches are computed; the zero padding behind it is one constant
column. Spectrograms are kept as (bins, frames), so that every later step runs along contiguous frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.sparse import csr_array

from drumline.frontend import FrontEnd

__all__ = ["Analysis", "FeatureExtractor", "dct_matrix", "mel_filterbank"]

_AMIN = np.float32(1e-10)
_RMS_FLOOR_DB = -120.0
_ROLLOFF = np.float32(0.85)


@dataclass(frozen=True, slots=True)
class Analysis:
    """Statistics of the analysed samples, before normalisation and without the padding.

    Parameters
    ----------
    rms_db
        Root mean square in dB re full scale, not below -120.
    spectral_centroid, spectral_rolloff
        Mean over the frames, in Hz; the rolloff is the frequency below which 85 % of the magnitude lies.
    """

    rms_db: float
    spectral_centroid: float
    spectral_rolloff: float


class FeatureExtractor:
    """Computes features into a caller's array; one per process, as it reuses its buffers.

    Parameters
    ----------
    front_end
        What is computed.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end
        n_fft, hop_length = front_end.n_fft, front_end.hop_length
        self._edge = n_fft // 2
        reach = (front_end.frames - 1) * hop_length + n_fft
        self._padded = np.zeros(max(reach, self._edge + front_end.samples), np.float32)
        shape, strides = (front_end.frames, n_fft), (4 * hop_length, 4)
        self._frames = np.lib.stride_tricks.as_strided(self._padded, shape, strides)
        self._windowed = np.empty(shape, np.float32)
        self._window = hann_window(n_fft)
        self._mel = csr_array(mel_filterbank(front_end.sample_rate, n_fft, front_end.n_mels))
        self._dct = dct_matrix(front_end.n_mfcc, front_end.n_mels) if front_end.kind == "mfcc" else None
        self._rolloff = _Rolloff(1 + n_fft // 2, front_end.sample_rate / n_fft)
        self._frequencies = np.arange(1 + n_fft // 2, dtype=np.float32) * np.float32(
            front_end.sample_rate / n_fft
        )

    def extract(
        self, samples: NDArray[np.float32], out: NDArray[np.float32], *, audio_stats: bool = True
    ) -> Analysis:
        """Fill `out` with the features of `samples` and return their statistics.

        Parameters
        ----------
        samples
            Mono, finite, shape (n,), at the front end's sample rate; what is past its `samples` is ignored.
        out
            Shape `front_end.shape`, float32; overwritten.
        audio_stats
            False skips the spectral statistics, which are then 0.
        """
        samples = samples[: self.front_end.samples]
        peak = float(max(samples.max(), -samples.min())) if len(samples) else 0.0
        magnitude = self._spectrogram(samples, peak)
        self._fill(magnitude, out)
        rms_db = self._rms_db(len(samples), peak)
        if not audio_stats or peak == 0.0:
            return Analysis(rms_db, 0.0, 0.0)
        magnitude = magnitude[:, : 1 + len(samples) // self.front_end.hop_length]
        total = magnitude.sum(axis=0)
        weighted = self._frequencies @ magnitude
        centroid = np.divide(weighted, total, out=np.zeros_like(total), where=total > 0).mean()
        return Analysis(rms_db, float(centroid), self._rolloff.mean(magnitude))

    def features(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of `samples` in a new array of shape `front_end.shape`."""
        out = np.empty(self.front_end.shape, np.float32)
        self.extract(samples, out, audio_stats=False)
        return out

    def _spectrogram(self, samples: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
        """Return the magnitudes of the frames that `samples` reaches, shape (bins, frames)."""
        hop_length, n = self.front_end.hop_length, len(samples)
        end = self._edge + n
        reached = min(max(-(-end // hop_length), 1 + n // hop_length), self.front_end.frames)
        scale = peak if self.front_end.normalise == "peak" and peak > 0.0 else 1.0
        np.divide(samples, np.float32(scale), out=self._padded[self._edge : end])
        self._padded[end:] = 0.0
        windowed = np.multiply(self._frames[:reached], self._window, out=self._windowed[:reached])
        # Transforming along the first axis of the transposed view writes (bins, frames) at no extra cost.
        magnitude: NDArray[np.float32] = np.abs(scipy.fft.rfft(windowed.T, axis=0))
        return magnitude

    def _fill(self, magnitude: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write the features of the reached frames, then the constant column of the padding."""
        mel_db = self._mel @ np.square(magnitude)
        np.maximum(mel_db, _AMIN, out=mel_db)
        np.log10(mel_db, out=mel_db)
        mel_db *= np.float32(10.0)
        floor = max(-100.0, float(mel_db.max()) - self.front_end.top_db)
        np.maximum(mel_db, np.float32(floor), out=mel_db)
        reached = mel_db.shape[1]
        if self._dct is None:
            out[:, :reached] = mel_db
            out[:, reached:] = floor
        else:
            np.matmul(self._dct, mel_db, out=out[:, :reached])
            out[0, reached:] = floor * math.sqrt(self.front_end.n_mels)
            out[1:, reached:] = 0.0

    def _rms_db(self, n: int, peak: float) -> float:
        normalised = self._padded[self._edge : self._edge + n]
        power = float(np.dot(normalised, normalised)) / max(n, 1)
        if power <= 0.0:
            return _RMS_FLOOR_DB
        scale = peak if self.front_end.normalise == "peak" else 1.0
        return max(_RMS_FLOOR_DB, 10.0 * math.log10(power) + 20.0 * math.log10(scale))


class _Rolloff:
    """Finds the rolloff bin of each frame: first the block of bins it lies in, then the bin."""

    def __init__(self, bins: int, bin_hz: float) -> None:
        self._bin_hz = bin_hz
        self._width = max(1, math.isqrt(bins))
        starts = np.arange(0, bins, self._width)
        self._bins = bins
        indptr = np.append(starts, bins)
        self._blocks = csr_array(
            (np.ones(bins, np.float32), np.arange(bins), indptr), shape=(len(starts), bins)
        )
        self._inside = np.arange(self._width)[:, np.newaxis]

    def mean(self, magnitude: NDArray[np.float32]) -> float:
        """Return the mean rolloff in Hz of `magnitude`, shape (bins, frames)."""
        cumulative = np.cumsum(self._blocks @ magnitude, axis=0)
        threshold = _ROLLOFF * cumulative[-1]
        block = (cumulative < threshold).sum(axis=0)
        columns = np.arange(magnitude.shape[1])
        below = np.where(block > 0, cumulative[block - 1, columns], np.float32(0.0))
        rows = np.minimum(block * self._width + self._inside, self._bins - 1)
        inside = below + np.cumsum(magnitude[rows, columns], axis=0)
        index = block * self._width + (inside < threshold).sum(axis=0)
        return float(np.minimum(index, self._bins - 1).mean() * self._bin_hz)


def hann_window(n_fft: int) -> NDArray[np.float32]:
    """Return the periodic Hann window, shape (n_fft,), float32."""
    phase = 2.0 * np.pi / n_fft * np.arange(n_fft)
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> NDArray[np.float32]:
    """Return triangular mel filters, shape (n_mels, 1 + n_fft // 2), float32.

    Slaney's scale (linear to 1 kHz, logarithmic above) and area norm, 0 Hz to Nyquist, as in
    M. Slaney, *Auditory Toolbox*, 1998.
    """
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2.0), n_mels + 2))
    frequencies = np.linspace(0.0, sample_rate / 2.0, 1 + n_fft // 2)
    lower, centre, upper = edges[:-2, np.newaxis], edges[1:-1, np.newaxis], edges[2:, np.newaxis]
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (upper - lower))
    return filters.astype(np.float32)


def dct_matrix(n_mfcc: int, n_mels: int) -> NDArray[np.float32]:
    """Return the first rows of the orthonormal DCT-II, shape (n_mfcc, n_mels), float32."""
    row, column = np.arange(n_mfcc)[:, np.newaxis], np.arange(n_mels)
    matrix = np.sqrt(2.0 / n_mels) * np.cos(np.pi / n_mels * row * (column + 0.5))
    matrix[0] = np.sqrt(1.0 / n_mels)
    return matrix.astype(np.float32)


_MEL_PER_HZ = 3.0 / 200.0
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = _LOG_FROM_HZ * _MEL_PER_HZ
_LOG_STEP = math.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_FROM_HZ:
        return hz * _MEL_PER_HZ
    return _LOG_FROM_MEL + math.log(hz / _LOG_FROM_HZ) / _LOG_STEP


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _LOG_FROM_HZ * np.exp(_LOG_STEP * (mel - _LOG_FROM_MEL))
    return np.where(mel < _LOG_FROM_MEL, mel / _MEL_PER_HZ, above)
