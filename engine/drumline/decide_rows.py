"""Many decisions at once: what `drumline.decide` says of single files, for all rows of a batch.

The sums and the sorting, which are most of a decision, are done by NumPy for the whole batch; the rules
themselves are `conclude`'s. Rounding before anything is compared makes both ways equal to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drumline.decide import PROBABILITY_DIGITS, Decision, DecisionSettings, conclude
from drumline.records import Top

__all__ = ["Decided", "RowDecider"]


class Decided(NamedTuple):
    """What a record says of a prediction: sparse probabilities, most probable fine labels, decision."""

    probs: dict[str, float]
    topk: list[Top]
    decision: Decision


class RowDecider:
    """Decides rows of probabilities.

    Parameters
    ----------
    labels
        Fine labels, in the order of the columns.
    settings
        As for `drumline.decide.decide`.
    top_k
        How many of the most probable fine labels are listed.
    """

    def __init__(self, labels: Sequence[str], settings: DecisionSettings, top_k: int) -> None:
        self._labels, self._settings, self._top_k = tuple(labels), settings, top_k
        # In alphabetical order, the first of equals is the one that wins a tie.
        self._sorted = sorted(labels)
        self._sorted_columns = [self._labels.index(label) for label in self._sorted]
        groups = [settings.canonical_of[label] for label in self._labels]
        self._canonical = sorted(set(groups))
        self._grouped_columns = sorted(range(len(groups)), key=groups.__getitem__)
        self._group_starts = [sorted(groups).index(label) for label in self._canonical]

    def __call__(self, rows: NDArray[np.floating], gates: Sequence[float | None]) -> list[Decided]:
        """Decide files.

        Parameters
        ----------
        rows
            Probabilities, shape (files, labels); in each row at least one is not rounded to 0.
        gates
            Probability of being a kit drum for each file; None where the model does not tell.
        """
        if not len(rows):
            return []
        rounded = np.asarray(rows, np.float64).round(PROBABILITY_DIGITS)
        likely = np.argsort(-rounded[:, self._sorted_columns], axis=1, kind="stable")[:, : self._top_k]
        summed = np.add.reduceat(rounded[:, self._grouped_columns], self._group_starts, axis=1)
        summed = np.minimum(summed.round(PROBABILITY_DIGITS), 1.0)
        best = summed.argmax(axis=1)
        columns = rounded.tolist(), likely.tolist(), best.tolist(), summed.max(axis=1).tolist(), gates
        return [self._decided(*values) for values in zip(*columns, strict=True)]

    def _decided(
        self, row: list[float], likely: list[int], best: int, confidence: float, gate: float | None
    ) -> Decided:
        probs = dict(compress(zip(self._labels, row, strict=True), row))
        names = [self._sorted[place] for place in likely]
        topk = [Top(label=name, prob=probs[name]) for name in names if name in probs]
        decision = conclude(
            self._settings, names[0], probs[names[0]], self._canonical[best], confidence, gate
        )
        return Decided(probs, topk, decision)
