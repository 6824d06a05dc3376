"""Waveform augmentation: what happens to one-shots between two sample libraries.

Every variant of a recording is a pure function of the recording's content hash, the variant's number and
the settings, so the features can be computed once, in any order, and cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AugmentSettings", "variants"]

Waveform = NDArray[np.float32]

# Shorter frames than librosa's own: an attack must not smear over 46 ms.
_STRETCH_FFT = 512


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """How many variants, and how far each effect goes; 0 leaves an effect out.

    Parameters
    ----------
    variants
        Variants per recording; the first is the recording itself.
    semitones
        Largest change of pitch and length by resampling, both directions.
    stretch
        Largest change of length alone, by a phase vocoder, as a share of the length.
    gain_db
        Largest change of level, both directions; a front end that normalises the peak takes it back.
    eq_db
        Deviation of the random equaliser's points, dB.
    noise_db
        Range of the noise floor below the peak, dB.
    drive
        Largest gain into a soft clipper.
    room_seconds
        Longest decay time of a room.
    shift_seconds
        Longest silence put before the onset.
    """

    variants: int = 17
    semitones: float = 4.0
    stretch: float = 0.0
    gain_db: float = 0.0
    eq_db: float = 4.0
    noise_db: tuple[float, float] = (30.0, 75.0)
    drive: float = 6.0
    room_seconds: float = 0.35
    shift_seconds: float = 0.03


Effect = Callable[[Waveform, int, AugmentSettings, np.random.Generator], Waveform]


def variants(
    samples: Waveform, sample_rate: int, settings: AugmentSettings, content: str
) -> Iterator[Waveform]:
    """Yield ``settings.variants`` versions of a recording.

    Parameters
    ----------
    samples
        Mono waveform (n,) float32 at `sample_rate` Hz.
    content
        Content hash, hexadecimal: the seed.
    """
    yield samples
    peak = float(np.abs(samples).max(initial=0.0))
    normalised = samples / np.float32(peak) if peak > 0 else samples
    for number in range(1, settings.variants):
        yield _augmented(normalised, sample_rate, settings, np.random.default_rng([int(content, 16), number]))


def _augmented(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    for probability, effect, reach in _EFFECTS:
        # An effect that is left out draws no number, so the others stay what they were.
        if len(x) and (not reach or getattr(settings, reach)) and rng.random() < probability:
            x = effect(x, rate, settings, rng)
    return np.asarray(x, np.float32)


def _speed(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    import soxr

    factor = 2.0 ** (rng.uniform(-settings.semitones, settings.semitones) / 12)
    return np.asarray(soxr.resample(x, rate * factor, rate, quality="LQ"), np.float32)


def _stretch(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    from librosa.effects import time_stretch

    if len(x) < _STRETCH_FFT:
        return x
    factor = 1.0 + rng.uniform(-settings.stretch, settings.stretch)
    return np.asarray(time_stretch(x, rate=1 / factor, n_fft=_STRETCH_FFT), np.float32)


def _gain(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    return np.asarray(
        x * np.float32(10 ** (rng.uniform(-settings.gain_db, settings.gain_db) / 20)), np.float32
    )


def _shorter_tail(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    decay = rng.uniform(0.05, 0.6)
    envelope = np.exp(-np.arange(len(x), dtype=np.float32) / np.float32(decay * rate))
    return np.asarray(x * envelope, np.float32)


def _truncate(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    keep = max(int(len(x) * rng.uniform(0.25, 0.9)), min(len(x), rate // 25))
    fade = min(keep, int(rate * rng.choice([0.001, 0.02])))
    cut = x[:keep].copy()
    cut[keep - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return cut


def _drive(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    return np.asarray(np.tanh(x * np.float32(rng.uniform(1.0, settings.drive))), np.float32)


def _filter(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    """Equaliser, low cut, high cut and room in one pass over the spectrum."""
    from scipy import fft

    room = int(settings.room_seconds * rate) if rng.random() < 0.4 else 0
    size = fft.next_fast_len(len(x) + room, real=True)
    frequency = np.maximum(fft.rfftfreq(size, 1 / rate), 1.0).astype(np.float32)
    response = _equaliser(frequency, settings, rng).astype(np.complex64)
    if room:
        response *= fft.rfft(_room(room, rate, settings, rng), size)
    filtered = fft.irfft(fft.rfft(x, size) * response, size)[: len(x) + room]
    return np.asarray(filtered, np.float32)


def _equaliser(
    frequency: NDArray[np.float32], settings: AugmentSettings, rng: np.random.Generator
) -> NDArray[np.float32]:
    points = np.linspace(np.log(40), np.log(20_000), 7)
    gain_db = np.interp(np.log(frequency), points, rng.normal(0, settings.eq_db, len(points)))
    response = 10 ** (gain_db / 20)
    if rng.random() < 0.3:
        response /= np.sqrt(1 + (rng.uniform(30, 200) / frequency) ** 4)
    if rng.random() < 0.3:
        response /= np.sqrt(1 + (frequency / np.exp(rng.uniform(np.log(3_000), np.log(14_000)))) ** 8)
    return np.asarray(response, np.float32)


def _room(length: int, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    """Impulse response: the direct sound and a decaying noise behind it."""
    decay = rng.uniform(0.15, 1.0) * settings.room_seconds / 6.9
    tail = rng.standard_normal(length, dtype=np.float32) * np.exp(-np.arange(length) / (decay * rate))
    tail *= rng.uniform(0.05, 0.5) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    return np.asarray(tail, np.float32)


def _low_rate(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    """Every n-th sample held, as an early sampler or tracker plays it: images and aliases included."""
    held = int(rng.integers(2, 5))
    if rng.random() < 0.5:
        return np.repeat(x[::held], held)[: len(x)]
    positions = np.arange(len(x), dtype=np.float32)
    return np.asarray(np.interp(positions, positions[::held], x[::held]), np.float32)


def _low_depth(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    steps = np.float32(2 ** rng.uniform(5.5, 11))
    return np.asarray(np.round(x * steps) / steps, np.float32)


def _noise(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    noise = rng.standard_normal(len(x), dtype=np.float32)
    if rng.random() < 0.5:
        noise[1:] += np.float32(0.9) * noise[:-1]
    peak = float(np.abs(x).max(initial=0.0))
    level = peak * 10 ** (-rng.uniform(*settings.noise_db) / 20)
    return np.asarray(x + np.float32(level) * noise, np.float32)


def _shift(x: Waveform, rate: int, settings: AugmentSettings, rng: np.random.Generator) -> Waveform:
    if rng.random() < 0.3:
        return x[int(rng.uniform(0, 0.004) * rate) :]
    return np.concatenate([np.zeros(int(rng.uniform(0, settings.shift_seconds) * rate), np.float32), x])


_EFFECTS: tuple[tuple[float, Effect, str], ...] = (
    (0.8, _speed, "semitones"),
    (0.5, _stretch, "stretch"),
    (0.3, _shorter_tail, ""),
    (0.2, _truncate, ""),
    (0.2, _drive, "drive"),
    (0.6, _filter, ""),
    (0.15, _low_rate, ""),
    (0.15, _low_depth, ""),
    (0.5, _shift, "shift_seconds"),
    (0.35, _noise, ""),
    (1.0, _gain, "gain_db"),
)
"""Chance, effect, and the setting that leaves it out when it is 0; in the order in which they act."""
