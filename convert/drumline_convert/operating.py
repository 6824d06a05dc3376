"""Operating points: a threshold for each canonical label, so that what is believed is precise enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.decide import DecisionSettings
from drumline.thresholds import LabelThresholds
from drumline_convert.breakdown import believed_at, effect_of
from drumline_convert.metrics import Outcomes

__all__ = ["FEWEST", "fit_thresholds", "held_out_effect", "operating_point"]

FEWEST = 10
"""A threshold that keeps fewer recordings of a label says nothing of its precision."""


def fit_thresholds(outcomes: Outcomes, names: Sequence[str], precision: float) -> dict[str, float | None]:
    """Return the smallest threshold of each label from which on what is believed is right often enough.

    Parameters
    ----------
    outcomes
        Of recordings held out from training, calibrated.
    names
        Canonical labels, misc last.
    precision
        Wanted share of right ones among what is believed to be a label, 0..1.

    Returns
    -------
    dict
        Label → threshold, without misc; None where no threshold that keeps `FEWEST` recordings is enough.
    """
    return {
        label: _threshold(outcomes, outcomes.decided == place, precision)
        for place, label in enumerate(names[:-1])
    }


def _threshold(outcomes: Outcomes, chosen: NDArray[np.bool_], precision: float) -> float | None:
    # Six decimals, as records hold and decisions compare them.
    confidence = outcomes.confidence[chosen].round(6)
    order = np.argsort(-confidence, kind="stable")
    ranked, kept = confidence[order], np.arange(1, len(order) + 1)
    share = np.cumsum(outcomes.correct[chosen][order]) / kept
    # Equal confidences are believed together: only the last of them can be a threshold.
    last = np.r_[ranked[1:] != ranked[:-1], True] if len(ranked) else np.zeros(0, bool)
    enough = np.flatnonzero(last & (share >= precision - 1e-12) & (kept >= FEWEST))
    return min(float(ranked[enough[-1]]), 1.0) if len(enough) else None


def operating_point(outcomes: Outcomes, names: Sequence[str], precision: float) -> dict[str, Any]:
    """Fit an operating point; returns ``thresholds``, and ``fitted``: what they do to these recordings.

    Parameters are those of `fit_thresholds`.
    """
    thresholds = fit_thresholds(outcomes, names, precision)
    return {
        "thresholds": thresholds,
        "fitted": effect_of(outcomes, names, _believed(outcomes, names, thresholds)),
    }


def held_out_effect(
    outcomes: Outcomes, names: Sequence[str], precision: float, folds: Sequence[int]
) -> dict[str, Any]:
    """Say what an operating point does to families that it was not fitted on.

    Parameters
    ----------
    outcomes
        Of n recordings, each calibrated by what was fitted on other folds.
    names, precision
        As for `fit_thresholds`.
    folds
        Fold by family of each recording, (n,): each has the thresholds of the others.
    """
    fold_of, kept = np.asarray(folds), np.zeros(len(outcomes), bool)
    for fold in np.unique(fold_of):
        inside = np.flatnonzero(fold_of == fold)
        thresholds = fit_thresholds(outcomes.take(np.flatnonzero(fold_of != fold)), names, precision)
        kept[inside] = _believed(outcomes.take(inside), names, thresholds)
    return effect_of(outcomes, names, kept)


def _believed(outcomes: Outcomes, names: Sequence[str], thresholds: LabelThresholds) -> NDArray[np.bool_]:
    decisions = DecisionSettings({name: name for name in names}, 0.0, names[-1], thresholds=thresholds)
    return believed_at(outcomes, names, decisions)
