"""One sound → one row of features: those of all front ends that a bundle needs, one behind the other.

Most bundles have one front end, and their rows have its shape, (coefficients, frames) or (samples,). The
members of an ensemble may have several; then a row is flat, and each front end has its stretch of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from drumline.audio import Decoder, Waveform
from drumline.features import Analysis, FeatureExtractor
from drumline.frontend import FrontEnd, row_parts, row_shape
from drumline.laps import Lap, no_lap

__all__ = ["RowReader"]

Floats = NDArray[np.float32]


class RowReader:
    """Decodes sounds and computes their rows; one per process, as its parts reuse their buffers.

    Parameters
    ----------
    front_ends
        What is computed, without repetition.
    lap
        Is told when a step of a file has ended.
    """

    def __init__(self, front_ends: Sequence[FrontEnd], lap: Lap = no_lap) -> None:
        self.front_ends = tuple(front_ends)
        self.shape = row_shape(front_ends)
        self._is_waveform = len(front_ends) == 1 and front_ends[0].kind == "waveform"
        self._extractors = [FeatureExtractor(front_end, lap) for front_end in front_ends]
        # Front ends of one sample rate share what is decoded for the longest of them.
        longest: dict[int, FrontEnd] = {}
        for front_end in sorted(front_ends, key=lambda front_end: front_end.samples):
            longest[front_end.sample_rate] = front_end
        self._decoders = {rate: Decoder(front_end, lap) for rate, front_end in longest.items()}

    def waveforms(self, decode: Callable[[Decoder], Waveform]) -> dict[int, Waveform]:
        """Return the sound at each sample rate that is needed; `decode` is called once for each."""
        return {rate: decode(decoder) for rate, decoder in self._decoders.items()}

    def fill(
        self, waveforms: dict[int, Waveform], row: Floats, *, audio_stats: bool = True
    ) -> tuple[Waveform, Analysis]:
        """Fill `row` with the features of `waveforms`; of a row that is one waveform, what `reach` tells.

        Returns
        -------
        What was heard by the first front end, and its statistics.
        """
        first = self.front_ends[0].sample_rate
        found = [
            extractor.extract(
                waveforms[extractor.front_end.sample_rate].samples,
                part[0],
                audio_stats=audio_stats and extractor is self._extractors[0],
                pad=not self._is_waveform,
            )
            for extractor, part in zip(
                self._extractors, row_parts(row[np.newaxis], self.front_ends), strict=True
            )
        ]
        return waveforms[first], found[0]

    def reach(self, heard: Waveform) -> int:
        """Return how many leading values of a row `fill` writes of what the first front end heard."""
        if self._is_waveform:
            return min(len(heard.samples), self.front_ends[0].samples)
        return math.prod(self.shape)

    def row(self, decode: Callable[[Decoder], Waveform]) -> Floats:
        """Return one sound's features in a new array."""
        row = np.zeros(self.shape, np.float32)
        self.fill(self.waveforms(decode), row, audio_stats=False)
        return row
