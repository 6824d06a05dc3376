"""What a classifier is trained to make small.

The cross-entropy of the fine label plus that of the canonical one, whose probability is the sum of its fine
probabilities; so what the engine decides by is trained directly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LossSettings", "canonical_accuracy", "classification_loss"]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The parts of the loss.

    Parameters
    ----------
    label_smoothing
        Share of the fine target that is spread over all fine labels.
    canonical_weight
        Weight of the canonical cross-entropy next to the fine one.
    focal
        Exponent by which recordings that are right already count less (Lin et al. 2017); 0: all alike.
    teacher_weight
        Share of the loss that is the cross-entropy to the teachers' probabilities, where there are teachers
        (Hinton et al. 2015).
    teacher_temperature
        What the logits of teachers and student are divided by in that part.
    """

    label_smoothing: float = 0.05
    canonical_weight: float = 1.0
    focal: float = 0.0
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0


def classification_loss(collapse: NDArray[np.float32], settings: LossSettings) -> Callable[[Any, Any], Any]:
    """Return loss(target, logits) → (batch,).

    Parameters
    ----------
    collapse
        Matrix (fine, canonical) of 0 and 1.

    The target is (batch, fine), probabilities of the fine labels; or (batch, 2 × fine), with the teachers'
    logits behind them.
    """
    import tensorflow as tf

    classes = len(collapse)
    # log of a sum of probabilities = logsumexp of log-probabilities; -1e9 stands for "not in this class".
    outside = tf.constant((1 - collapse) * -1e9)
    summed = tf.constant(collapse)

    def entropy(wanted: Any, log_probs: Any, label: Any) -> Any:
        value = -tf.reduce_sum(wanted * log_probs, axis=1)
        if settings.focal:
            value *= (1.0 - tf.exp(tf.reduce_sum(label * log_probs, axis=1))) ** settings.focal
        return value

    def labels(target: Any, logits: Any) -> Any:
        log_fine = tf.nn.log_softmax(logits)
        log_canonical = tf.reduce_logsumexp(log_fine[:, :, None] + outside[None], axis=1)
        smooth = target * (1 - settings.label_smoothing) + settings.label_smoothing / classes
        canonical = target @ summed
        fine = entropy(smooth, log_fine, target)
        return fine + settings.canonical_weight * entropy(canonical, log_canonical, canonical)

    def teachers(logits_of_teachers: Any, logits: Any) -> Any:
        heat = settings.teacher_temperature
        wanted = tf.nn.softmax(logits_of_teachers / heat)
        return heat**2 * -tf.reduce_sum(wanted * tf.nn.log_softmax(logits / heat), axis=1)

    def loss(target: Any, logits: Any) -> Any:
        value = labels(target[:, :classes], logits)
        if target.shape[1] == classes:
            return value
        share = settings.teacher_weight
        return (1 - share) * value + share * teachers(target[:, classes:], logits)

    return loss


def canonical_accuracy(collapse: NDArray[np.float32]) -> Callable[[Any, Any], Any]:
    """Return a Keras metric: the share of right canonical decisions."""
    import tensorflow as tf

    summed = tf.constant(collapse)

    def accuracy(target: Any, logits: Any) -> Any:
        decided = tf.argmax(tf.nn.softmax(logits) @ summed, axis=1)
        true = tf.argmax(target[:, : len(collapse)] @ summed, axis=1)
        return tf.cast(decided == true, tf.float32)

    return accuracy
