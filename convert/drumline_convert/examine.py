"""What the recordings of a manifest are like: can they be decoded, how long and how loud are they."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drumline.audio import AudioError, Decoder
from drumline.frontend import FrontEnd
from drumline_convert.content import read_recording
from drumline_convert.manifest import Row
from drumline_convert.parallel import in_parts

__all__ = ["Examined", "Fault", "clipped_share", "examine"]

Fault = Literal["missing", "unreadable", "changed"]

_FLAT_SAMPLES = 4
_FULL_SCALE = 0.97


@dataclass(frozen=True, slots=True)
class Examined:
    """One recording.

    Parameters
    ----------
    fault, message
        Why it cannot be used, or None and empty.
    duration_sec
        Of the whole file.
    peak_db
        Largest magnitude of the analysed samples, dB re full scale; -inf for digital silence.
    clipped
        Share of the analysed samples that lie on flat tops, 0..1.
    """

    fault: Fault | None = None
    message: str = ""
    duration_sec: float = 0.0
    peak_db: float = -np.inf
    clipped: float = 0.0


def examine(rows: Sequence[Row], workers: int = 1) -> Iterator[tuple[Row, Examined]]:
    """Decode every recording as the engine does, and iterate over (row, what it is like), in order."""
    return in_parts(_examined, rows, workers)


def _examined(rows: Sequence[Row]) -> list[Examined]:
    decoder = Decoder(FrontEnd())
    return [_one(row, decoder) for row in rows]


def _one(row: Row, decoder: Decoder) -> Examined:
    try:
        digest, waveform = read_recording(row.path, decoder)
    except FileNotFoundError:
        return Examined("missing", "there is no such file")
    except (OSError, AudioError) as error:
        return Examined("unreadable", str(error))
    if digest != row.hash:
        return Examined("changed", f"its content is {digest}, not {row.hash}")
    peak = float(np.abs(waveform.samples).max())
    level = 20 * float(np.log10(peak)) if peak else -np.inf
    return Examined(None, "", waveform.duration_sec, level, clipped_share(waveform.samples))


def clipped_share(samples: NDArray[np.float32]) -> float:
    """Return the share of samples that lie on flat tops at full scale, 0..1.

    A flat top is four or more equal samples of at least 0.97 of full scale; a loud sine has none.
    Resampling blurs them, so of files at other rates than 44.1 kHz fewer are found.

    Parameters
    ----------
    samples
        (n,) float32, full scale is 1.
    """
    top = np.abs(samples) >= _FULL_SCALE
    same = top[1:] & (samples[1:] == samples[:-1])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
    runs = edges[1::2] - edges[::2] + 1
    return float(runs[runs >= _FLAT_SAMPLES].sum() / max(len(samples), 1))
