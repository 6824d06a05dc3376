"""Figures of quality, from probabilities and true labels alone.

Every figure is a function of the weight that each recording has. With ones it is the figure itself; with the
counts of a resample it is the figure of that resample (`drumline_convert.bootstrap`), many at once. So there
is one formula for a figure and for its interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BINS",
    "FIGURES",
    "ClassScores",
    "Metrics",
    "Outcomes",
    "auroc",
    "class_scores",
    "evaluate",
    "expected_calibration_error",
    "measure",
    "negative_log_likelihood",
    "precision_at_coverage",
    "reliability",
    "risk_coverage",
    "roc_curve",
    "scores_of",
    "softmax",
    "weighted_confusions",
]

Probabilities = NDArray[np.float64]
Labels = NDArray[np.intp]
Weights = NDArray[np.float64]

BINS = 15
"""Bins of confidence, of equal width."""

_COVERAGE = 0.8
_TPR = 0.95

FIGURES = {
    "accuracy": "accuracy, canonical labels and misc",
    "macro_f1": "macro-F1 over the canonical labels and misc",
    "six_accuracy": "accuracy among drums that are called drums",
    "fine_accuracy": "accuracy, fine labels",
    "ece": "ECE, 15 bins",
    "auroc": "AUROC of drums against misc",
    "fpr_95": "misc that passes where 95 % of the drums do (FPR at 95 % TPR)",
    "precision_80": "precision at 80 % coverage",
}
"""Name of a figure → what it is."""


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Precision, recall and F1 of every class, and how many recordings it truly has; each (…, k)."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures that the project publishes; NaN where one is undefined.

    Parameters
    ----------
    accuracy
        Over the canonical labels (misc included).
    macro_f1
        Unweighted mean of the F1 of the classes that occur.
    six_accuracy
        Share of right labels among drums that are called drums; 0 where none is.
    fine_accuracy
        Over the fine labels.
    ece
        Expected calibration error of the canonical decision, 15 bins.
    auroc
        Drums against misc, by the probability of not being misc.
    fpr_95
        Share of misc that is at least as drum-like as the 95 % most drum-like drums.
    precision_80
        Accuracy of the most confident 80 %.
    """

    accuracy: float
    macro_f1: float
    six_accuracy: float
    fine_accuracy: float
    ece: float
    auroc: float
    fpr_95: float
    precision_80: float

    def to_json(self) -> dict[str, float]:
        """Return the figures by name, rounded to four places."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Outcomes:
    """What a model said of recordings, beside what they are.

    Parameters
    ----------
    probs
        Canonical probabilities, (n, k); misc is the last of the k.
    canonical
        True canonical label, (n,).
    fine_right
        Whether the most probable fine label is the true one, (n,).
    fine_judged
        Whether the true fine label is one of the model's, (n,); the others do not count in the fine accuracy.
    """

    probs: Probabilities
    canonical: Labels
    fine_right: NDArray[np.bool_]
    fine_judged: NDArray[np.bool_]

    @classmethod
    def of(cls, fine_probs: Probabilities, fine: Labels, collapse: NDArray[Any]) -> Outcomes:
        """Collapse fine probabilities (n, fine); `fine` (n,) must all be among the model's labels."""
        right = fine_probs.argmax(axis=1) == fine
        return cls(fine_probs @ collapse, collapse.argmax(axis=1)[fine], right, np.ones(len(fine), bool))

    def __len__(self) -> int:
        return len(self.canonical)

    @property
    def classes(self) -> int:
        """Number of canonical labels, misc included."""
        return int(self.probs.shape[1])

    @cached_property
    def decided(self) -> Labels:
        """Most probable canonical label, (n,)."""
        return np.asarray(self.probs.argmax(axis=1))

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of that label, (n,)."""
        return np.asarray(self.probs.max(axis=1))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that label is right, (n,)."""
        return np.asarray(self.decided == self.canonical)

    @property
    def drum(self) -> NDArray[np.bool_]:
        """Whether the recording truly is a drum of the kit, (n,)."""
        return np.asarray(self.canonical != self.classes - 1)

    @property
    def drumness(self) -> NDArray[np.float64]:
        """Probability of not being misc, (n,)."""
        return 1 - self.probs[:, -1]

    def take(self, chosen: NDArray[Any]) -> Outcomes:
        """Return the outcomes of the recordings that `chosen` indexes."""
        return Outcomes(
            self.probs[chosen], self.canonical[chosen], self.fine_right[chosen], self.fine_judged[chosen]
        )


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> Probabilities:
    """Return probabilities of `logits` (n, k) divided by `temperature`, computed in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def evaluate(fine_probs: Probabilities, fine: Labels, collapse: NDArray[Any]) -> Metrics:
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
    figures = measure(Outcomes.of(fine_probs, fine, collapse))
    return Metrics(**{name: float(values[0]) for name, values in figures.items()})


def measure(outcomes: Outcomes, weights: Weights | None = None) -> dict[str, NDArray[np.float64]]:
    """Compute all `FIGURES` under each row of `weights`.

    Parameters
    ----------
    outcomes
        Of n recordings.
    weights
        (r, n), not negative; None: one row of ones.

    Returns
    -------
    dict
        Name → (r,); NaN where a figure is undefined, as the AUROC without misc.
    """
    weights = np.ones((1, len(outcomes))) if weights is None else weights
    confusions = weighted_confusions(outcomes, weights)
    kit = confusions[:, :-1, :-1]
    scores = scores_of(confusions)
    present = scores.support > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": _traces(confusions) / confusions.sum(axis=(1, 2)),
            "macro_f1": np.where(present, scores.f1, 0).sum(axis=1) / present.sum(axis=1),
            "six_accuracy": _traces(kit) / np.maximum(kit.sum(axis=(1, 2)), 1),
            "fine_accuracy": (weights @ (outcomes.fine_right & outcomes.fine_judged))
            / (weights @ outcomes.fine_judged),
            "ece": _calibration_errors(outcomes, weights),
            "auroc": _aurocs(outcomes.drumness, outcomes.drum, weights),
            "fpr_95": _false_positive_rates(outcomes.drumness, outcomes.drum, weights, _TPR),
            "precision_80": _precisions(outcomes, weights, _COVERAGE),
        }


def weighted_confusions(outcomes: Outcomes, weights: Weights) -> NDArray[np.float64]:
    """Return the confusion matrix of each row of `weights`, (r, true label, called label)."""
    k = outcomes.classes
    cells = np.zeros((len(outcomes), k * k))
    cells[np.arange(len(outcomes)), outcomes.canonical * k + outcomes.decided] = 1
    return np.asarray(weights @ cells).reshape(len(weights), k, k)


def _traces(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.trace(matrices, axis1=1, axis2=2))


def class_scores(decided: Labels, true: Labels, classes: int) -> ClassScores:
    """Return precision, recall, F1 and support of each of `classes`; 0 where undefined."""
    confusion = np.zeros((classes, classes), np.intp)
    np.add.at(confusion, (true, decided), 1)
    return scores_of(confusion)


def scores_of(confusion: NDArray[Any]) -> ClassScores:
    """Return the scores of a confusion matrix (…, true label, called label); 0 where undefined.

    Precision is hits over what was called so, recall hits over what is so, F1 their harmonic mean.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    support, called = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return ClassScores(
        precision=hits / np.maximum(called, 1),
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(support + called, 1),
        support=support,
    )


def _bin_of(confidence: NDArray[np.float64], bins: int) -> Labels:
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)


def _calibration_errors(outcomes: Outcomes, weights: Weights, bins: int = BINS) -> NDArray[np.float64]:
    gaps = np.zeros((len(outcomes), bins))
    place = np.arange(len(outcomes)), _bin_of(outcomes.confidence, bins)
    gaps[place] = outcomes.correct - outcomes.confidence
    return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1))


def expected_calibration_error(probs: Probabilities, true: Labels, bins: int = BINS) -> float:
    """Weighted mean gap between confidence and accuracy over equal bins of confidence (Guo et al. 2017)."""
    return float(_calibration_errors(_outcomes(probs, true), np.ones((1, len(true))), bins)[0])


def reliability(outcomes: Outcomes, bins: int = BINS) -> dict[str, NDArray[np.float64]]:
    """Return mean confidence, accuracy and number of recordings of each bin of confidence, each (bins,).

    A reliability diagram (DeGroot & Fienberg 1983; Niculescu-Mizil & Caruana 2005) shows one over the other;
    empty bins are NaN.
    """
    place = _bin_of(outcomes.confidence, bins)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    some = np.where(count > 0, count, np.nan)
    return {
        "confidence": np.bincount(place, outcomes.confidence, minlength=bins) / some,
        "accuracy": np.bincount(place, outcomes.correct, minlength=bins) / some,
        "count": count,
    }


def negative_log_likelihood(probs: Probabilities, true: Labels) -> float:
    """Mean of -log of the probability of the true label, in nats."""
    return float(-np.log(np.maximum(probs[np.arange(len(true)), true], 1e-12)).mean())


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by the rank-sum formula, ties counted half; NaN with one class only."""
    return float(_aurocs(scores, positive, np.ones((1, len(scores))))[0])


def _tied_sums(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: Weights
) -> tuple[Weights, Weights, NDArray[np.float64]]:
    """Sum the weights of positives and of negatives, (r, different scores), from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ones, zeros = weights * positive, weights * ~positive
    return (
        np.add.reduceat(ones[:, order], starts, axis=1),
        np.add.reduceat(zeros[:, order], starts, axis=1),
        ranked[starts],
    )


def _aurocs(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: Weights
) -> NDArray[np.float64]:
    """Chance that a positive scores above a negative, ties counted half (Hanley & McNeil 1982), (r,)."""
    ones, zeros, _ = _tied_sums(scores, positive, weights)
    below = zeros.sum(axis=1, keepdims=True) - np.cumsum(zeros, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        wins = (ones * (below + zeros / 2)).sum(axis=1)
        return np.asarray(wins / (ones.sum(axis=1) * zeros.sum(axis=1)))


def _false_positive_rates(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: Weights, rate: float
) -> NDArray[np.float64]:
    """Share of negatives at or above the highest score that `rate` of the positives reach, (r,).

    As in Liang et al. 2018 (ODIN), with the drums as what the model is for.
    """
    ones, zeros, _ = _tied_sums(scores, positive, weights)
    reached = np.cumsum(ones, axis=1) >= rate * ones.sum(axis=1, keepdims=True) - 1e-9
    passed = np.take_along_axis(np.cumsum(zeros, axis=1), reached.argmax(axis=1)[:, np.newaxis], axis=1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = passed / zeros.sum(axis=1)
    return np.where(ones.sum(axis=1) > 0, shares, np.nan)


def roc_curve(outcomes: Outcomes) -> dict[str, NDArray[np.float64]]:
    """Return the shares of misc and of drums at or above each score, highest first: ``fpr`` and ``tpr``."""
    ones, zeros, _ = _tied_sums(outcomes.drumness, outcomes.drum, np.ones((1, len(outcomes))))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "fpr": np.r_[0.0, np.cumsum(zeros[0]) / zeros[0].sum()],
            "tpr": np.r_[0.0, np.cumsum(ones[0]) / ones[0].sum()],
        }


def precision_at_coverage(probs: Probabilities, true: Labels, coverage: float) -> float:
    """Accuracy of the share `coverage` of the recordings with the highest confidence."""
    return float(_precisions(_outcomes(probs, true), np.ones((1, len(true))), coverage)[0])


def _precisions(outcomes: Outcomes, weights: Weights, coverage: float) -> NDArray[np.float64]:
    order = np.argsort(-outcomes.confidence, kind="stable")
    ranked = weights[:, order]
    wanted = np.maximum(np.rint(coverage * ranked.sum(axis=1, keepdims=True)), 1)
    before = np.cumsum(ranked, axis=1) - ranked
    kept = np.clip(wanted - before, 0, ranked)
    return np.asarray(kept @ outcomes.correct[order] / kept.sum(axis=1))


def risk_coverage(outcomes: Outcomes) -> dict[str, NDArray[np.float64]]:
    """Return the share of errors (``risk``) among the most confident share ``coverage``, each (n,).

    The curve of selective classification (El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017).
    """
    order = np.argsort(-outcomes.confidence, kind="stable")
    kept = np.arange(1, len(outcomes) + 1)
    return {"coverage": kept / len(outcomes), "risk": np.cumsum(~outcomes.correct[order]) / kept}


def _outcomes(probs: Probabilities, true: Labels) -> Outcomes:
    unknown = np.zeros(len(true), bool)
    return Outcomes(np.asarray(probs, np.float64), true, unknown, unknown)
