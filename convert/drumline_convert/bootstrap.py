"""Confidence intervals: the bootstrap over families.

Recordings of one family are alike, so recordings are no independent draws, but families nearly are: a
resample draws as many families as there are, with replacement, and takes all recordings of each as often as
it was drawn (the cluster bootstrap; Field & Welsh 2007). Intervals are percentiles of the resamples (Efron &
Tibshirani 1993). All models are measured on the same resamples, so their differences are paired. What cannot
be negative and is near 0, as the ECE, is larger in resamples than in the data: its interval may lie above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.errors import UsageError

__all__ = ["Resampling", "interval"]

_CELLS = 1 << 21
"""Weights that are held at once, (resamples × recordings): 16 MB."""

Statistic = Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How resamples are drawn.

    Parameters
    ----------
    resamples
        How many.
    seed
        The same seed, families and number of resamples give the same intervals.
    level
        Share of the resamples that an interval holds.
    """

    resamples: int = 1_000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise UsageError(f"{self.resamples} resamples give no interval")

    def weights(self, families: Sequence[str]) -> Iterator[NDArray[np.float64]]:
        """Yield blocks of weights, (some resamples, n), for recordings of these `families` (n,)."""
        names, place = np.unique(np.asarray(families, str), return_inverse=True)
        share = np.full(len(names), 1 / len(names))
        counts = np.random.default_rng(self.seed).multinomial(len(names), share, size=self.resamples)
        block = max(_CELLS // max(len(place), 1), 1)
        for start in range(0, self.resamples, block):
            yield counts[start : start + block, place].astype(np.float64)

    def of(self, families: Sequence[str], statistic: Statistic) -> dict[str, NDArray[np.float64]]:
        """Return a statistic of every resample: name → (resamples, …)."""
        blocks = [statistic(weights) for weights in self.weights(families)]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def interval(values: NDArray[np.float64], level: float = 0.95) -> Any:
    """Return the middle `level` of (resamples, …) as [low, high], or lists of it; None where undefined."""
    defined = np.isfinite(values).any(axis=0)
    tails = [50 * (1 - level), 50 * (1 + level)]
    pairs = np.moveaxis(np.nanpercentile(np.where(defined, values, 0.0), tails, axis=0), 0, -1)
    plain: NDArray[Any] = pairs.round(4).astype(object)
    plain[~np.asarray(defined)] = None
    return plain.tolist()
