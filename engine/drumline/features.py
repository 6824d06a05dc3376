"""Waveform → feature tensor (MFCC or log-mel, with or without deltas) and spectral statistics, as librosa's.

One transform serves everything, the mel bands, the centroid and the rolloff (`drumline.spectra`). Only the
frames that the sample reaches are computed; the zero padding behind it is one constant column. Of a model
that is fed the waveform, only the statistics need a transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drumline.coefficients import Coefficients, CompiledCoefficients, PlainCoefficients, decibels
from drumline.frontend import FrontEnd
from drumline.laps import Lap, Step, no_lap
from drumline.spectra import (
    ROLLOFF,
    CompiledSpectra,
    FrameFigures,
    PlainSpectra,
    Spectra,
    compiled_kernel,
    hann_window,
)

__all__ = ["Analysis", "FeatureExtractor", "delta_matrix", "mel_filterbank"]

_RMS_FLOOR_DB = -120.0
_FAINT = 1e-20  # mean power of a frame below which float32 loses bins that count


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
    lap
        Is told when a file's features are done, and when its statistics.
    compiled
        Whether the compiled kernel may be used, where there is one.
    """

    def __init__(self, front_end: FrontEnd, lap: Lap = no_lap, *, compiled: bool = True) -> None:
        self.front_end = front_end
        self._lap = lap
        n_fft, hop_length, sample_rate = front_end.n_fft, front_end.hop_length, front_end.sample_rate
        self._edge = n_fft // 2
        reach = (front_end.frames - 1) * hop_length + n_fft
        steps = front_end.frames * hop_length
        self._padded = np.zeros(max(reach, self._edge + max(front_end.samples, steps)), np.float32)
        self._steps = self._padded[self._edge : self._edge + steps].reshape(front_end.frames, hop_length)
        shape, strides = (front_end.frames, n_fft), (4 * hop_length, 4)
        self._frames = np.lib.stride_tricks.as_strided(self._padded, shape, strides)
        self._precise_window = hann_window(n_fft)
        mel = mel_filterbank(sample_rate, n_fft, front_end.n_mels)
        self._mel = mel
        self._spectra, self._coefficients = _ways(front_end, mel, compiled=compiled)
        self._deltas = [
            delta_matrix(front_end.frames, front_end.delta_width, order)
            for order in range(1, 1 + front_end.deltas)
        ]
        self._bin_hz = sample_rate / n_fft

    def extract(
        self,
        samples: NDArray[np.float32],
        out: NDArray[np.float32],
        *,
        audio_stats: bool = True,
        pad: bool = True,
    ) -> Analysis:
        """Fill `out` with the features of `samples` and return their statistics.

        Parameters
        ----------
        samples
            Mono, finite, shape (n,), at the front end's sample rate; what is past its `samples` is ignored.
        out
            Shape `front_end.shape`, float32, C-contiguous; overwritten.
        audio_stats
            False skips the spectral statistics, which are then 0.
        pad
            False leaves of a waveform what is behind the samples as it is.
        """
        samples = samples[: self.front_end.samples]
        peak = float(max(samples.max(), -samples.min())) if len(samples) else 0.0
        scale = peak if self.front_end.normalise == "peak" and peak > 0.0 else 1.0
        audio_stats = audio_stats and peak > 0.0
        figures: FrameFigures | None = None
        if self.front_end.kind == "waveform":
            np.divide(samples, np.float32(scale), out=out[: len(samples)])
            if pad:
                out[len(samples) :] = 0.0
            # A scale may move a frame's rolloff by a bin: it is the one that most front ends have.
            scale = peak if peak > 0.0 else 1.0
            self._load(samples, scale)
        else:
            self._load(samples, scale)
            figures = self._figures(len(samples), audio_stats)
            self._fill(figures, out)
        self._lap(Step.FEATURES)
        rms_db = self._rms_db(len(samples), scale)
        if not audio_stats:
            return Analysis(rms_db, 0.0, 0.0)
        if figures is None:
            figures = self._figures(len(samples), audio_stats)
        means = self._means(figures, 1 + len(samples) // self.front_end.hop_length)
        self._lap(Step.STATISTICS)
        return Analysis(rms_db, *means)

    def features(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of `samples` in a new array of shape `front_end.shape`."""
        out = np.empty(self.front_end.shape, np.float32)
        self.extract(samples, out, audio_stats=False)
        return out

    def _load(self, samples: NDArray[np.float32], scale: float) -> None:
        """Put ``samples / scale`` behind the padding of half a frame, and zeros behind them."""
        end = self._edge + len(samples)
        np.divide(samples, np.float32(scale), out=self._padded[self._edge : end])
        self._padded[end:] = 0.0

    def _loaded(self, n: int) -> NDArray[np.float32]:
        return self._padded[self._edge : self._edge + n]

    def _figures(self, n: int, statistics: bool) -> FrameFigures:
        """Return the figures of the frames that the `n` samples reach."""
        hop_length, end = self.front_end.hop_length, self._edge + n
        reached = min(max(-(-end // hop_length), 1 + n // hop_length), self.front_end.frames)
        return self._spectra.figures(self._padded, reached, statistics=statistics)

    def _fill(self, figures: FrameFigures, out: NDArray[np.float32]) -> None:
        """Fill `out` with coefficients, their deltas, and the waveform's own values."""
        coefficients = out[: self.front_end.coefficients]
        _, floor, noisy = self._coefficients.write(figures, coefficients)
        if noisy.any():
            frames = np.flatnonzero(noisy)
            precise = np.maximum(self._precise_mel_db(frames), floor)
            self._coefficients.write_anew(precise, floor, coefficients, frames)
        for order, matrix in enumerate(self._deltas, start=1):
            out[order * len(coefficients) : (order + 1) * len(coefficients)] = coefficients @ matrix
        if self.front_end.waveform:
            parts = self._steps.reshape(len(self._steps), self.front_end.waveform, -1)
            parts.mean(axis=2, out=out[-self.front_end.waveform :].T)

    def _precise_mel_db(self, frames: NDArray[np.intp]) -> NDArray[np.float32]:
        return decibels(self._mel @ np.square(self._precise_magnitude(frames)).astype(np.float32).T)

    def _precise_magnitude(self, frames: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the magnitudes of some frames, shape (frames, bins)."""
        magnitude: NDArray[np.float64] = np.abs(np.fft.rfft(self._frames[frames] * self._precise_window))
        return magnitude

    def _means(self, figures: FrameFigures, frames: int) -> tuple[float, float]:
        """Return centroid and rolloff in Hz, each the mean over the first `frames` frames."""
        rolloff, close = figures.rolloff[:frames], figures.close[:frames]
        if close.any():
            exact = np.cumsum(self._precise_magnitude(np.flatnonzero(close)), axis=1)
            rolloff[close] = (exact < ROLLOFF * exact[:, -1:]).sum(axis=1)
        self._mend_faint(figures, frames)
        hz_per_bin = self._bin_hz / frames
        return float(figures.centroid[:frames].sum()) * hz_per_bin, float(rolloff.sum()) * hz_per_bin

    def _mend_faint(self, figures: FrameFigures, frames: int) -> None:
        """Compute anew the frames whose float32 powers vanish or overflow, as where a file fades out."""
        power = figures.mean_power[:frames]
        if power.min() > _FAINT and power.max() < np.inf:
            return
        faint = np.flatnonzero(~((power > _FAINT) & (power < np.inf)))
        faint = faint[self._frames[faint].any(axis=1)]
        if len(faint):
            magnitude = self._precise_magnitude(faint)
            running = np.cumsum(magnitude, axis=1)
            total = np.maximum(running[:, -1], np.finfo(np.float64).tiny)
            figures.centroid[faint] = magnitude @ np.arange(magnitude.shape[1]) / total
            figures.rolloff[faint] = (running < ROLLOFF * running[:, -1:]).sum(axis=1)

    def _rms_db(self, n: int, scale: float) -> float:
        scaled = self._loaded(n)
        power = float(np.dot(scaled, scaled)) / max(n, 1)
        if power <= 0.0:
            return _RMS_FLOOR_DB
        return max(_RMS_FLOOR_DB, 10.0 * math.log10(power) + 20.0 * math.log10(scale))


def _ways(front_end: FrontEnd, mel: NDArray[np.float32], *, compiled: bool) -> tuple[Spectra, Coefficients]:
    n_fft, hop_length = front_end.n_fft, front_end.hop_length
    kernel = compiled_kernel() if compiled and CompiledSpectra.fits(n_fft) else None
    if kernel is None:
        return PlainSpectra(n_fft, hop_length, mel), PlainCoefficients(front_end, mel)
    return CompiledSpectra(n_fft, hop_length, mel, kernel), CompiledCoefficients(front_end, mel, kernel)


def delta_matrix(frames: int, width: int, order: int) -> NDArray[np.float32]:
    """Return the matrix that turns rows of coefficients into their derivative, shape (frames, frames).

    The derivative of that order (1 or 2) of the polynomial of that degree that fits `width` frames best:
    A. Savitzky, M. Golay, *Smoothing and Differentiation of Data*, 1964; as in ``librosa.feature.delta``.
    It is one constant over all the frames that the polynomial is fitted to, so the first and the last frames
    have that of the first and the last whole window.
    """
    place = np.arange(width) - width // 2
    shape = place if order == 1 else np.square(place) - np.square(place).mean()
    first = np.clip(np.arange(frames) - width // 2, 0, frames - width)
    matrix = np.zeros((frames, frames), np.float32)
    matrix[first + np.arange(width)[:, np.newaxis], np.arange(frames)] = (
        order * shape / np.square(shape).sum()
    )[:, np.newaxis]
    return matrix


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> NDArray[np.float32]:
    """Return triangular mel filters, shape (n_mels, 1 + n_fft // 2), float32.

    Slaney's scale (linear to 1 kHz, logarithmic above) and area norm, 0 Hz to Nyquist, as in
    M. Slaney, *Auditory Toolbox*, 1998.
    """
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2.0), n_mels + 2))
    frequencies = np.arange(1 + n_fft // 2) * (sample_rate / n_fft)
    lower, centre, upper = edges[:-2, np.newaxis], edges[1:-1, np.newaxis], edges[2:, np.newaxis]
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (upper - lower))
    float32: NDArray[np.float32] = filters.astype(np.float32)
    return float32


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
