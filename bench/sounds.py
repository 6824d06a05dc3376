"""A small drum synthesiser.

Every instrument is layers of four things: a sine whose pitch falls, decaying partials that are no
harmonics of each other, square oscillators, and noise of one band. `render` puts an instrument's layers
into a room, bends and cuts them as a sample library would. All parameters are drawn from the generator
that is passed in, so equal generators give equal sounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

__all__ = ["CANONICAL", "LABELS", "render"]

Signal = NDArray[np.float32]

LONGEST_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class _Desk:
    """What an instrument draws its layers with: a random generator, a rate in Hz and a time axis in s."""

    rng: np.random.Generator
    rate: int
    time: NDArray[np.float64]

    def between(self, low: float, high: float) -> float:
        """Draw a value between two others, evenly on a logarithmic scale."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def decay(self, tau: float, attack: float = 0.0) -> Signal:
        """Exponential decay with time constant `tau`, after a rise of `attack` seconds."""
        envelope = np.exp(-self.time / tau)
        if attack > 0:
            envelope *= -np.expm1(-self.time / attack)
        return envelope.astype(np.float32)

    def sweep(self, start: float, end: float, tau: float) -> Signal:
        """Sine that falls from `start` to `end` Hz with time constant `tau`."""
        cycles = end * self.time - (start - end) * tau * np.expm1(-self.time / tau)
        return _sine(cycles + self.rng.uniform(0, 0.1))

    def tone(self, frequency: float) -> Signal:
        return _sine(frequency * self.time + self.rng.random())

    def square(self, frequency: float) -> Signal:
        return np.sign(self.tone(frequency))

    def partials(self, frequencies: Sequence[float], tau: float, tilt: float = 0.5) -> Signal:
        """Sum of decaying sines; higher ones decay faster by the power `tilt`."""
        total = np.zeros(len(self.time), np.float32)
        lowest = min(frequencies)
        for frequency in frequencies:
            if frequency < 0.47 * self.rate:
                own_tau = tau * (lowest / frequency) ** tilt * self.between(0.6, 1.4)
                total += self.decay(own_tau) * self.tone(frequency) * self.rng.uniform(0.3, 1.0)
        return _float32(total / len(frequencies) ** 0.5)

    def noise(self, low: float, high: float, slope_db: float = 0.0) -> Signal:
        """Gaussian noise of unit level in a band with soft edges, tilted by `slope_db` per octave."""
        size = fft.next_fast_len(len(self.time), real=True)
        spectrum = self.rng.standard_normal((size // 2 + 1, 2), np.float32).view(np.complex64)[:, 0]
        spectrum *= _band(fft.rfftfreq(size, 1 / self.rate), low, high, slope_db)
        noise = _float32(fft.irfft(spectrum, size)[: len(self.time)])
        return noise / max(float(np.std(noise)), 1e-12)

    def filtered(self, signal: Signal, low: float, high: float) -> Signal:
        """`signal` with only a band left, edges as in `noise`."""
        size = fft.next_fast_len(len(signal), real=True)
        spectrum = fft.rfft(signal, size)
        spectrum *= _band(fft.rfftfreq(size, 1 / self.rate), low, high, 0.0)
        return _float32(fft.irfft(spectrum, size)[: len(signal)])


def _sine(cycles: NDArray[np.float64]) -> Signal:
    sine: Signal = np.sin((2 * np.pi) * (cycles % 1.0).astype(np.float32))
    return sine


def _float32(sound: ArrayLike) -> Signal:
    return np.asarray(sound, np.float32)


def _bent(sound: Signal, drive: float) -> Signal:
    """Saturate as tape and transistors do."""
    bent: Signal = np.tanh(sound * drive)
    return bent


def _band(frequencies: NDArray[np.floating[Any]], low: float, high: float, slope_db: float) -> Signal:
    safe = np.maximum(frequencies, 1.0)
    gain = 1 / np.sqrt((1 + (low / safe) ** 4) * (1 + (safe / high) ** 8))
    return _float32(gain * safe ** (slope_db / 6.02))


def _kick(desk: _Desk) -> Signal:
    end, fall = desk.between(42, 68), desk.between(0.012, 0.05)
    body = desk.sweep(end * desk.between(2.2, 6), end, fall) * desk.decay(desk.between(0.03, 0.2))
    click = desk.noise(300, desk.between(2000, 7000)) * desk.decay(desk.between(0.002, 0.007))
    sound = body + desk.between(0.04, 0.3) * click
    if desk.chance(0.5):
        skin = desk.noise(60, desk.between(250, 900)) * desk.decay(desk.between(0.02, 0.07))
        sound += desk.between(0.05, 0.25) * skin
    return _bent(sound, desk.between(0.8, 3.0))


def _snare(desk: _Desk) -> Signal:
    pitch, tau = desk.between(160, 250), desk.between(0.035, 0.1)
    shell = desk.sweep(pitch * 1.5, pitch, 0.012) * desk.decay(tau)
    shell += 0.6 * desk.sweep(pitch * 2.1, pitch * desk.between(1.5, 1.9), 0.01) * desk.decay(tau * 0.6)
    wires = desk.noise(desk.between(700, 1800), desk.between(6500, 11000)) * desk.decay(
        desk.between(0.05, 0.15)
    )
    crack = desk.noise(1500, 9000) * desk.decay(0.006)
    level = desk.between(0.25, 0.7)
    return _bent(shell + level * wires + level * crack, desk.between(0.7, 1.8))


def _rim(desk: _Desk) -> Signal:
    pitch = desk.between(380, 560)
    wood = desk.tone(pitch) * desk.decay(desk.between(0.008, 0.02))
    wood += desk.tone(pitch * desk.between(3.2, 4.2)) * desk.decay(desk.between(0.006, 0.02))
    shell = desk.tone(desk.between(170, 300)) * desk.decay(desk.between(0.015, 0.04)) * desk.between(0.2, 0.8)
    stick = desk.noise(desk.between(150, 600), desk.between(4000, 8000)) * desk.decay(
        desk.between(0.006, 0.025)
    )
    return _float32(wood + shell + desk.between(0.3, 0.9) * stick)


def _hat(desk: _Desk, tau: float) -> Signal:
    metal = desk.partials(_plate(desk, 3500, 14000, 12), tau, 0.2) * desk.between(0.3, 1.0)
    hiss = desk.noise(desk.between(4500, 8500), desk.between(11000, 16000)) * desk.decay(tau, attack=0.0005)
    stick = desk.noise(2500, 14000) * desk.decay(0.003) * 0.4
    return _float32(metal + desk.between(0.6, 1.2) * hiss + stick)


def _hat_closed(desk: _Desk) -> Signal:
    return _hat(desk, desk.between(0.012, 0.045))


def _hat_open(desk: _Desk) -> Signal:
    return _hat(desk, desk.between(0.07, 0.25))


def _tom(desk: _Desk, pitch: float) -> Signal:
    tau = desk.between(0.1, 0.3)
    body = desk.sweep(pitch * desk.between(1.25, 1.9), pitch, desk.between(0.02, 0.08)) * desk.decay(tau)
    body += desk.tone(pitch * desk.between(1.5, 1.65)) * desk.decay(tau * 0.4) * 0.3
    skin = desk.noise(pitch, desk.between(500, 1500)) * desk.decay(desk.between(0.02, 0.09))
    stick = desk.noise(250, desk.between(2500, 7000)) * desk.decay(desk.between(0.005, 0.02))
    return _float32(body + desk.between(0.04, 0.2) * stick + desk.between(0.03, 0.2) * skin)


def _tom_low(desk: _Desk) -> Signal:
    return _tom(desk, desk.between(74, 105))


def _tom_mid(desk: _Desk) -> Signal:
    return _tom(desk, desk.between(95, 140))


def _tom_high(desk: _Desk) -> Signal:
    return _tom(desk, desk.between(120, 185))


def _plate(desk: _Desk, low: float, high: float, count: int) -> list[float]:
    """Frequencies of a plate's modes in Hz, evenly spread on a logarithmic scale."""
    return [desk.between(low, high) for _ in range(count)]


def _crash(desk: _Desk) -> Signal:
    tau, rise = desk.between(0.4, 1.2), desk.between(0.002, 0.01)
    wash = desk.noise(desk.between(700, 1400), desk.between(8000, 12000)) * desk.decay(tau, rise)
    burst = desk.noise(1000, 12000) * desk.decay(tau * 0.15) * desk.between(0.5, 1.5)
    plate = desk.partials(_plate(desk, 600, 10000, 24), tau, 0.3) * desk.between(0.8, 1.8)
    roar = desk.noise(350, 1200) * desk.decay(tau * 0.3) * desk.between(0.1, 0.3)
    return _float32(wash + burst + plate + roar)


def _ride(desk: _Desk) -> Signal:
    tau = desk.between(0.5, 1.4)
    ping = desk.partials(_plate(desk, 2500, 9500, 16), tau * 0.6, 0.2) * desk.between(0.3, 0.8)
    bell = desk.partials(_plate(desk, 320, 900, 6), tau, 0.3) * desk.between(0.1, 0.5)
    wash = desk.noise(desk.between(2500, 6000), 10500) * desk.decay(tau * 0.5) * desk.between(0.08, 0.35)
    tip = (
        desk.noise(desk.between(1500, 4000), 13000)
        * desk.decay(desk.between(0.003, 0.012))
        * desk.between(0.4, 1.2)
    )
    return _float32(ping + bell + wash + tip)


def _clap(desk: _Desk) -> Signal:
    gap, hands = desk.between(0.007, 0.013), int(desk.rng.integers(3, 5))
    envelope = np.zeros(len(desk.time), np.float32)
    for hand in range(hands):
        since = desk.time - hand * gap * desk.between(0.9, 1.1)
        envelope += np.where(since >= 0, np.exp(-np.maximum(since, 0) / 0.003), 0).astype(np.float32)
    since = np.maximum(desk.time - (hands - 1) * gap, 0)
    tail = np.exp(-since / desk.between(0.04, 0.14)) * (since > 0) * desk.between(0.3, 0.7)
    return desk.noise(desk.between(700, 1100), desk.between(1800, 4000)) * (
        envelope + tail.astype(np.float32)
    )


def _cowbell(desk: _Desk) -> Signal:
    pitch = desk.between(480, 640)
    tones = desk.square(pitch) + desk.square(pitch * desk.between(1.45, 1.52))
    envelope = desk.decay(desk.between(0.05, 0.2)) + desk.decay(0.012)
    return desk.filtered(tones, pitch * 0.9, pitch * desk.between(4, 9)) * envelope


def _shaker(desk: _Desk) -> Signal:
    grains = desk.noise(desk.between(3000, 6000), desk.between(9000, 15000))
    swell = desk.between(0.004, 0.02)
    return grains * desk.decay(desk.between(0.008, 0.025), attack=swell)


def _synth(desk: _Desk) -> Signal:
    """A note of a keyboard: two detuned oscillators or two operators, with a sustained envelope."""
    pitch = 55.0 * 2 ** (int(desk.rng.integers(0, 40)) / 12)
    if desk.chance(0.5):
        index = desk.between(0.1, 0.8) * desk.decay(desk.between(0.1, 0.8))
        note = _sine(pitch * desk.time + index * desk.tone(pitch * int(desk.rng.integers(1, 5))))
    else:
        note = desk.filtered(desk.square(pitch) + desk.square(pitch * 1.006), 20, pitch * desk.between(3, 12))
    return note * desk.decay(desk.between(0.5, 2.5), attack=desk.between(0.002, 0.05))


_INSTRUMENTS: dict[str, tuple[Callable[[_Desk], Signal], str]] = {
    "Kick": (_kick, "Kick"),
    "Snare": (_snare, "Snare"),
    "Rim": (_rim, "Snare"),
    "HihatClosed": (_hat_closed, "Hihat"),
    "HihatOpen": (_hat_open, "Hihat"),
    "TomLow": (_tom_low, "Tom"),
    "TomMid": (_tom_mid, "Tom"),
    "TomHigh": (_tom_high, "Tom"),
    "Crash": (_crash, "Crash"),
    "Ride": (_ride, "Ride"),
    "Clap": (_clap, "misc"),
    "Cowbell": (_cowbell, "misc"),
    "Shaker": (_shaker, "misc"),
    "Synth": (_synth, "misc"),
}

LABELS: tuple[str, ...] = tuple(_INSTRUMENTS)
"""Fine labels that `render` knows."""

CANONICAL: dict[str, str] = {label: canonical for label, (_, canonical) in _INSTRUMENTS.items()}
"""Fine label → canonical label."""


def render(
    label: str, rng: np.random.Generator, rate: int = 44_100, seconds: float = LONGEST_SECONDS
) -> Signal:
    """Render one drum hit.

    Parameters
    ----------
    label
        One of `LABELS`.
    rng
        Where all parameters are drawn from.
    rate
        Sample rate in Hz.
    seconds
        Longest duration; the tail below -70 dB is cut as well.

    Returns
    -------
    ndarray of float32, shape (samples,)
        Mono, peak between 0.12 and 0.98.
    """
    desk = _Desk(rng, rate, np.arange(int(seconds * rate)) / rate)
    sound = _INSTRUMENTS[label][0](desk)
    if desk.chance(0.4):
        sound = sound + _room(desk, sound)
    sound = sound + _breath(desk) * (desk.between(0.0005, 0.01) * np.max(np.abs(sound)))
    return _mastered(desk, _trimmed(sound))


def _breath(desk: _Desk) -> Signal:
    """Return what leaks into every microphone: pink noise that follows the hit."""
    return desk.noise(40, 12000, slope_db=-3) * desk.decay(desk.between(0.02, 0.15))


def _room(desk: _Desk, sound: Signal) -> Signal:
    """Return the answer of a small room: `sound` convolved with decaying noise, 12 to 26 dB down."""
    answer = desk.noise(200, 8000) * desk.decay(desk.between(0.05, 0.2))
    size = fft.next_fast_len(2 * len(sound), real=True)
    wet = fft.irfft(fft.rfft(sound, size) * fft.rfft(answer, size), size)[: len(sound)]
    level = desk.between(0.05, 0.25) * np.max(np.abs(sound)) / max(float(np.max(np.abs(wet))), 1e-12)
    return _float32(wet * level)


def _trimmed(sound: Signal) -> Signal:
    """Cut what comes after the last sample above -70 dB of the peak."""
    loud = np.flatnonzero(np.abs(sound) > 3e-4 * np.max(np.abs(sound)))
    return sound[: max(int(loud[-1]) + 1, 64)] if len(loud) else sound


def _mastered(desk: _Desk, sound: Signal) -> Signal:
    """Set the peak, fade the last samples out, and leave some silence before some of the sounds."""
    peak = desk.between(0.12, 0.98)
    fade = min(len(sound), desk.rate // 100)
    sound = sound * (peak / max(float(np.max(np.abs(sound))), 1e-9))
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    if desk.chance(0.25):
        sound = np.concatenate([np.zeros(int(desk.rng.uniform(0, 0.01) * desk.rate), np.float32), sound])
    return sound.astype(np.float32)[: int(LONGEST_SECONDS * desk.rate)]
