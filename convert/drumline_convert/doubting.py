"""Labels that a training itself doubts: their recordings weigh less in it.

What may be learnt from is cross-validated first, by family, so each of its recordings is judged by a network
that heard neither it nor its family. The rule is that of `drumline_convert.cleaning`. Only what the training
may learn from has a say, so a fold that is held out from it is held out from its doubts too: a
cross-validation of such trainings measures what cleaning is worth, without a leak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError
from drumline_convert.calibration import fit_temperature
from drumline_convert.cleaning import is_doubtful
from drumline_convert.metrics import softmax

__all__ = ["DoubtSettings", "doubtful"]


@dataclass(frozen=True, slots=True)
class DoubtSettings:
    """Which labels are doubted, and what they then weigh.

    Parameters
    ----------
    folds
        Networks that are trained beforehand, each on all families but its share, to judge that; fewer where
        there are fewer families. With 0, or a single family, no label is doubted.
    probability
        What another canonical label must have at least.
    weight
        What the weight of a doubted recording is multiplied by; 0: it counts for nothing in the loss.
    """

    folds: int = 0
    probability: float = 0.9
    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"doubt.folds {self.folds} is neither 0 nor at least 2")
        if not 0 < self.probability <= 1 or not 0 <= self.weight <= 1:
            raise ConfigError("doubt.probability must be above 0 and at most 1, and doubt.weight within 0..1")


def doubtful(
    logits: NDArray[np.float32], fine: NDArray[np.intp], collapse: NDArray[np.float32], probability: float
) -> NDArray[np.bool_]:
    """Tell which labels are doubted, (m,).

    Parameters
    ----------
    logits
        (m, fine), of every recording by a network that did not hear its family.
    fine
        Stated fine label index of every recording, (m,).
    collapse
        Matrix (fine, canonical) of 0 and 1.
    probability
        See `DoubtSettings`.
    """
    stated = collapse.argmax(axis=1)[fine]
    probs = softmax(logits, fit_temperature(logits, stated, collapse)) @ collapse
    return is_doubtful(probs, stated, probability)
