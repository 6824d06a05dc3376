"""Means of several models' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drumline.errors import BundleError

__all__ = ["SMALLEST_PROBABILITY", "Mean", "MeanKind"]

Floats = NDArray[np.float32]

MeanKind = Literal["arithmetic", "geometric"]
SMALLEST_PROBABILITY: Final = np.float32(1e-30)
"""Of what a logarithm is taken."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean over the members of an ensemble.

    Parameters
    ----------
    kind
        ``"arithmetic"``: the sum of weight × probability; ``"geometric"``: the product of probability to the
        power of weight, brought to a sum of 1.
    weights
        One for each member: not negative, together 1.
    """

    kind: MeanKind
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in get_args(MeanKind):
            raise BundleError(
                f"an ensemble's mean cannot be {self.kind!r}", f"Use {' or '.join(get_args(MeanKind))}."
            )
        allowed = all(isfinite(weight) and weight >= 0.0 for weight in self.weights)
        if not allowed or not isclose(sum(self.weights), 1.0, abs_tol=1e-4):
            raise BundleError(
                f"the weights of an ensemble must be 0 or more and sum to 1, not {self.weights}"
            )

    def logits(self, probabilities: Sequence[Floats]) -> Floats:
        """Return logits whose softmax is the mean.

        Parameters
        ----------
        probabilities
            Of each member, (n, labels).
        """
        if self.kind == "arithmetic":
            return _log(_weighted_sum(self.weights, probabilities))
        return _weighted_sum(self.weights, [_log(values) for values in probabilities])

    def over_some(self, values: Sequence[Floats | None]) -> Floats:
        """Return the arithmetic mean, (n,), of the values (n,) of those members that have any.

        Where all of their weights are 0, each of them counts the same.
        """
        pairs = zip(self.weights, values, strict=True)
        weights, given = zip(*(pair for pair in pairs if pair[1] is not None), strict=True)
        total = sum(weights)
        shares = [weight / total if total else 1 / len(weights) for weight in weights]
        return _weighted_sum(shares, given)


def _weighted_sum(weights: Sequence[float], values: Sequence[Floats]) -> Floats:
    result = np.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        result += np.float32(weight) * value
    return result


def _log(probabilities: Floats) -> Floats:
    logarithm: Floats = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return logarithm
