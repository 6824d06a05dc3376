"""Rows of one batch in host memory, where a device can fetch them from."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Staging"]

Floats = NDArray[np.float32]


class Staging:
    """Rows that are filled again and again, and remember how far.

    Of a waveform, only what the file reaches is copied: most one-shots are much shorter than a row, and one
    process copies the rows of all.

    Parameters
    ----------
    rows
        Shape (size, …), float32, all 0.
    """

    def __init__(self, rows: Floats) -> None:
        self.rows = rows
        self._length = math.prod(rows.shape[1:])
        self._filled = np.zeros(len(rows), np.intp)

    def gather(self, features: Floats, places: list[int], reach: NDArray[np.integer]) -> Floats:
        """Fill the first rows, and return them.

        Parameters
        ----------
        features
            Shape (slots, …).
        places
            Which of them make up the batch.
        reach
            How many leading values of each slot count; those behind them become 0. (slots,)
        """
        # Row by row: np.take would copy the whole table each time, whose slots hold more than features.
        for row, (place, end) in enumerate(zip(places, reach[places].tolist(), strict=True)):
            if end == self._length:
                self.rows[row] = features[place]
            else:
                self.rows[row, :end] = features[place, :end]
                self.rows[row, end : self._filled[row]] = 0.0
            self._filled[row] = end
        return self.rows[: len(places)]

    def copy(self, rows: Floats) -> Floats:
        """Fill the first rows with others, (n, …), and return them."""
        batch = self.rows[: len(rows)]
        batch[...] = rows.reshape(batch.shape)
        self._filled[: len(rows)] = self._length
        return batch
