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

__all__ = ["Analysis", "FeatureExtractor", "dct_matrix", "delta_matrix", "mel_filterbank"]

_AMIN, _AMIN_DB = np.float32(1e-10), -100.0
_RMS_FLOOR_DB = -120.0
_FAINT = 1e-20  # mean power of a frame below which float32 loses bins that count
# How far a band may lie below its frame's mean power in a float32 transform: measured on 64,000 frames of
# recordings, the features are then within 0.0005 dB. A cepstral coefficient averages the errors of all bands.
_FLOAT32_RANGE_DB = {"mfcc": 52.0, "log-mel": 41.0, "waveform": 0.0}


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
        self._spectra = _spectra(n_fft, hop_length, mel, compiled)
        self._noise_db = _white_noise_db(mel) - np.float32(_FLOAT32_RANGE_DB[front_end.kind])
        self._deltas = [
            delta_matrix(front_end.frames, front_end.delta_width, order)
            for order in range(1, 1 + front_end.deltas)
        ]
        self._dct = dct_matrix(front_end.n_mfcc, front_end.n_mels) if front_end.kind == "mfcc" else None
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
            Shape `front_end.shape`, float32; overwritten.
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
        self._write(*self._mel_spectrogram(figures), coefficients)
        for order, matrix in enumerate(self._deltas, start=1):
            out[order * len(coefficients) : (order + 1) * len(coefficients)] = coefficients @ matrix
        if self.front_end.waveform:
            parts = self._steps.reshape(len(self._steps), self.front_end.waveform, -1)
            parts.mean(axis=2, out=out[-self.front_end.waveform :].T)

    def _mel_spectrogram(self, figures: FrameFigures) -> tuple[NDArray[np.float32], np.float32]:
        """Return the mel spectrogram in dB, shape (n_mels, frames), and the floor that it was raised to."""
        mel_db = _decibels(figures.mel)
        floor = np.float32(max(_AMIN_DB, float(mel_db.max()) - self.front_end.top_db))
        np.maximum(mel_db, floor, out=mel_db)
        noisy = self._noisy_frames(figures.mean_power, mel_db)
        if len(noisy):
            mel_db[:, noisy] = np.maximum(self._precise_mel_db(noisy), floor)
        return mel_db, floor

    def _noisy_frames(self, mean_power: NDArray[np.float32], mel_db: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the frames that need double precision.

        A float32 transform spreads its rounding errors over all bins as white noise, so a band far below
        the frame's mean power, such as the treble of a loud kick, is off by up to 0.003 dB.
        """
        mean_power_db = np.float32(10.0) * np.log10(mean_power + _AMIN)
        return np.flatnonzero((mel_db - self._noise_db).min(axis=0) < mean_power_db)

    def _precise_mel_db(self, frames: NDArray[np.intp]) -> NDArray[np.float32]:
        return _decibels(self._mel @ np.square(self._precise_magnitude(frames)).astype(np.float32))

    def _precise_magnitude(self, frames: NDArray[np.intp]) -> NDArray[np.float64]:
        windowed = self._frames[frames] * self._precise_window
        magnitude: NDArray[np.float64] = np.abs(np.fft.rfft(windowed)).T
        return magnitude

    def _write(self, mel_db: NDArray[np.float32], floor: np.float32, out: NDArray[np.float32]) -> None:
        """Write the features of the reached frames, then the constant column of the padding."""
        reached = mel_db.shape[1]
        if self._dct is None:
            out[:, :reached] = mel_db
            out[:, reached:] = floor
        else:
            # Above the floor, so that a silent frame is exactly what the padding is.
            out[:, :reached] = self._dct @ (mel_db - floor)
            out[:, reached:] = 0.0
            out[0] += floor * np.float32(math.sqrt(self.front_end.n_mels))

    def _means(self, figures: FrameFigures, frames: int) -> tuple[float, float]:
        """Return centroid and rolloff in Hz, each the mean over the first `frames` frames."""
        rolloff, close = figures.rolloff[:frames], np.flatnonzero(figures.close[:frames])
        if len(close):
            exact = np.cumsum(self._precise_magnitude(close), axis=0)
            rolloff[close] = (exact < ROLLOFF * exact[-1]).sum(axis=0)
        self._mend_faint(figures, frames)
        hz_per_bin = self._bin_hz / frames
        return float(figures.centroid[:frames].sum()) * hz_per_bin, float(rolloff.sum()) * hz_per_bin

    def _mend_faint(self, figures: FrameFigures, frames: int) -> None:
        """Compute anew the frames whose float32 powers vanish or overflow, as where a file fades out."""
        power = figures.mean_power[:frames]
        faint = np.flatnonzero(~((power > _FAINT) & (power < np.inf)))
        faint = faint[self._frames[faint].any(axis=1)]
        if len(faint):
            magnitude = self._precise_magnitude(faint)
            running = np.cumsum(magnitude, axis=0)
            total = np.maximum(running[-1], np.finfo(np.float64).tiny)
            figures.centroid[faint] = np.arange(len(magnitude)) @ magnitude / total
            figures.rolloff[faint] = (running < ROLLOFF * running[-1]).sum(axis=0)

    def _rms_db(self, n: int, scale: float) -> float:
        scaled = self._loaded(n)
        power = float(np.dot(scaled, scaled)) / max(n, 1)
        if power <= 0.0:
            return _RMS_FLOOR_DB
        return max(_RMS_FLOOR_DB, 10.0 * math.log10(power) + 20.0 * math.log10(scale))


def _spectra(n_fft: int, hop_length: int, mel: NDArray[np.float32], compiled: bool) -> Spectra:
    kernel = compiled_kernel() if compiled and CompiledSpectra.fits(n_fft) else None
    if kernel is None:
        return PlainSpectra(n_fft, hop_length, mel)
    return CompiledSpectra(n_fft, hop_length, mel, kernel)


def _decibels(power: NDArray[np.float32]) -> NDArray[np.float32]:
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


def _white_noise_db(mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how strongly white noise disturbs each band of `mel`, in dB, shape (n_mels, 1)."""
    disturbance = np.square(mel).sum(axis=1) / np.maximum(mel.sum(axis=1), _AMIN)
    noise_db: NDArray[np.float32] = np.float32(10.0) * np.log10(np.maximum(disturbance, _AMIN))
    return noise_db[:, np.newaxis]


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
