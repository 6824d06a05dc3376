"""Figures of quality, from probabilities and true labels alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ClassScores",
    "Metrics",
    "auroc",
    "class_scores",
    "evaluate",
    "expected_calibration_error",
    "negative_log_likelihood",
    "precision_at_coverage",
    "softmax",
]

Probabilities = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Precision, recall and F1 of every class, and how many recordings it truly has; each (k,)."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures that the project publishes.

    Parameters
    ----------
    accuracy
        Over the seven canonical classes (misc included).
    macro_f1
        Unweighted mean of the F1 of the classes that occur.
    six_accuracy
        Share of right labels among drums that are called drums.
    fine_accuracy
        Over the fine labels.
    ece
        Expected calibration error of the canonical decision, 15 bins.
    auroc
        Drums against misc, by the probability of not being misc.
    precision_80
        Accuracy of the most confident 80 %.
    """

    accuracy: float
    macro_f1: float
    six_accuracy: float
    fine_accuracy: float
    ece: float
    auroc: float
    precision_80: float

    def to_json(self) -> dict[str, float]:
        """Return the figures by name, rounded to four places."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> Probabilities:
    """Return probabilities of `logits` (n, k) divided by `temperature`, computed in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def evaluate(fine_probs: Probabilities, fine: Labels, collapse: NDArray[np.float32]) -> Metrics:
    """Compute all figures.

    Parameters
    ----------
    fine_probs
        (n, fine).
    fine
        True fine label index, (n,).
    collapse
        (fine, canonical) of 0 and 1; misc is the last canonical label.
    """
    canonical = collapse.argmax(axis=1)[fine]
    probs = fine_probs @ collapse
    decided = probs.argmax(axis=1)
    misc = collapse.shape[1] - 1
    drums = (canonical != misc) & (decided != misc)
    scores = class_scores(decided, canonical, collapse.shape[1])
    correct = decided == canonical
    return Metrics(
        accuracy=float(correct.mean()),
        macro_f1=float(scores.f1[scores.support > 0].mean()),
        six_accuracy=float(correct[drums].mean()) if drums.any() else 0.0,
        fine_accuracy=float((fine_probs.argmax(axis=1) == fine).mean()),
        ece=expected_calibration_error(probs, canonical),
        auroc=auroc(1 - probs[:, misc], canonical != misc),
        precision_80=precision_at_coverage(probs, canonical, 0.8),
    )


def class_scores(decided: Labels, true: Labels, classes: int) -> ClassScores:
    """Return precision, recall, F1 and support of each of `classes`; 0 where undefined."""
    confusion = np.zeros((classes, classes), np.intp)
    np.add.at(confusion, (true, decided), 1)
    hits = np.diag(confusion).astype(np.float64)
    support, called = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        precision=hits / np.maximum(called, 1),
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(support + called, 1),
        support=support,
    )


def expected_calibration_error(probs: Probabilities, true: Labels, bins: int = 15) -> float:
    """Weighted mean gap between confidence and accuracy over equal bins of confidence (Guo et al. 2017)."""
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == true
    bin_of = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    gap = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(true))


def negative_log_likelihood(probs: Probabilities, true: Labels) -> float:
    """Mean of -log of the probability of the true label, in nats."""
    return float(-np.log(np.maximum(probs[np.arange(len(true)), true], 1e-12)).mean())


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by the rank-sum formula, ties counted half; NaN with one class only."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    place, count = np.unique(scores, return_inverse=True, return_counts=True)[1:]
    ranks = np.cumsum(count) - (count - 1) / 2
    rank_sum = float(ranks[place[positive]].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def precision_at_coverage(probs: Probabilities, true: Labels, coverage: float) -> float:
    """Accuracy of the share `coverage` of the recordings with the highest confidence."""
    keep = np.argsort(-probs.max(axis=1), kind="stable")[: max(round(coverage * len(true)), 1)]
    return float((probs[keep].argmax(axis=1) == true[keep]).mean())
