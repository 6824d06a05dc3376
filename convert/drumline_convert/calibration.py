"""Fits what turns logits into probabilities, on recordings that the networks never saw.

The likelihood is that of the canonical decision: the probabilities that people act on are sums over fine
labels. How a fitted calibrator is applied stands in `drumline.calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from drumline.calibration import (
    Calibrator,
    PlattScaling,
    TemperatureScaling,
    VectorScaling,
    group_log_odds,
)
from drumline.errors import UsageError
from drumline_convert.metrics import expected_calibration_error, negative_log_likelihood, softmax

__all__ = [
    "METHODS",
    "Method",
    "calibration_figures",
    "calibration_json",
    "cross_fitted",
    "fit_calibrator",
    "fit_temperature",
]

Method: TypeAlias = Literal["temperature", "vector", "platt"]
METHODS: tuple[Method, ...] = get_args(Method)

CALIBRATION_VERSION = 1
"""Version of a bundle's first calibration."""

_PRIOR_SD = 0.05
"""Of vector scaling's parameters around the temperature. Recordings of a family are alike, so there are fewer
draws than recordings: looser priors fit the families at hand and are worse on others."""

_SMALLEST_SLOPE = 0.01

Fit: TypeAlias = Callable[[NDArray[Any], NDArray[np.intp], NDArray[np.float32]], Calibrator]


def fit_temperature(
    logits: NDArray[Any], true: NDArray[np.intp], collapse: NDArray[np.float32] | None = None
) -> float:
    """Return the temperature in 0.05..20 that makes the negative log-likelihood smallest (Guo et al. 2017).

    Parameters
    ----------
    logits
        (n, k), of recordings held out from training.
    true
        Index of the true label, (n,): a column of `collapse` when that is given, else of `logits`.
    collapse
        (k, canonical) of 0 and 1; when given, the likelihood is that of the canonical decision.

    Raises
    ------
    UsageError
        When there are no recordings.
    """
    if not len(logits):
        raise UsageError("a temperature cannot be fitted on no recordings")
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        probs = softmax(logits, float(np.exp(log_temperature)))
        return negative_log_likelihood(probs if collapse is None else probs @ collapse, true)

    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(result.x)), 4)


def fit_calibrator(
    method: Method, logits: NDArray[Any], true: NDArray[np.intp], collapse: NDArray[np.float32]
) -> Calibrator:
    """Fit a calibrator of the canonical decision.

    Parameters
    ----------
    method
        ``"temperature"``, ``"vector"`` or ``"platt"``.
    logits
        (n, labels), of recordings held out from training.
    true
        True canonical label, a column of `collapse`, (n,).
    collapse
        (labels, canonical) of 0 and 1.

    Raises
    ------
    UsageError
        When there are no recordings.
    """
    return _FITS[method](np.asarray(logits, np.float64), true, collapse)


def _temperature(
    logits: NDArray[Any], true: NDArray[np.intp], collapse: NDArray[np.float32]
) -> TemperatureScaling:
    return TemperatureScaling(fit_temperature(logits, true, collapse))


def _vector(logits: NDArray[Any], true: NDArray[np.intp], collapse: NDArray[np.float32]) -> VectorScaling:
    """Fit a scale and a bias for each label, most probable under a normal prior around the temperature."""
    from scipy.optimize import minimize

    labels = logits.shape[1]
    start = np.r_[np.full(labels, 1 / fit_temperature(logits, true, collapse)), np.zeros(labels)]
    own = collapse.T[true].astype(np.float64)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = np.split(parameters, 2)
        probs = softmax(logits * scale + bias)
        inside = np.maximum((probs * own).sum(axis=1), 1e-12)
        slope = probs - probs * own / inside[:, np.newaxis]
        distance = (parameters - start) / _PRIOR_SD
        value = -np.log(inside).sum() + (distance**2).sum() / 2
        gradient = np.r_[(slope * logits).sum(axis=0), slope.sum(axis=0)] + distance / _PRIOR_SD
        return value / len(true), gradient / len(true)

    bounds = [(_SMALLEST_SLOPE, None)] * labels + [(None, None)] * labels
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x.round(6)
    scale, bias = np.split(found, 2)
    return VectorScaling(tuple(scale.tolist()), tuple(bias.tolist()))


def _platt(logits: NDArray[Any], true: NDArray[np.intp], collapse: NDArray[np.float32]) -> PlattScaling:
    """Fit a sigmoid for each canonical label that the model has, with Platt's smoothed targets.

    Each is fitted against the rest, so the likelihood of the decision between all labels may get worse.
    """
    fit_temperature(logits, true, collapse)
    columns, groups = np.unique(collapse.argmax(axis=1), return_inverse=True)
    odds = group_log_odds(logits, groups.tolist())
    fitted = [_sigmoid(odds[:, place], true == column) for place, column in enumerate(columns)]
    slope, intercept = zip(*fitted, strict=True)
    return PlattScaling(tuple(groups.tolist()), slope, intercept)


def _sigmoid(odds: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Return slope and intercept of the sigmoid that fits best (Platt 1999, equations 3 to 5)."""
    from scipy.optimize import minimize
    from scipy.special import expit

    ones, zeros = positive.sum(), (~positive).sum()
    target = np.where(positive, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        score = parameters[0] * odds + parameters[1]
        gap = expit(score) - target
        return (np.logaddexp(0, score) - target * score).mean(), np.array([(gap * odds).mean(), gap.mean()])

    bounds = [(_SMALLEST_SLOPE, None), (None, None)]
    slope, intercept = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds).x.round(6)
    return float(slope), float(intercept)


_FITS: dict[Method, Fit] = {"temperature": _temperature, "vector": _vector, "platt": _platt}


def cross_fitted(
    fit: Callable[[NDArray[np.intp]], Calibrator], logits: NDArray[Any], folds: Sequence[int]
) -> NDArray[np.float64]:
    """Return probabilities (n, labels) of each fold by what was fitted on the others.

    Parameters
    ----------
    fit
        Gives a calibrator for the recordings that are chosen by number.
    logits
        (n, labels).
    folds
        Fold of each recording, (n,); at least two.
    """
    probs = np.empty(logits.shape)
    for fold in np.unique(folds):
        inside = np.asarray(folds) == fold
        probs[inside] = fit(np.flatnonzero(~inside))(logits[inside])
    return probs


def calibration_figures(probs: NDArray[np.float64], true: NDArray[np.intp]) -> dict[str, float]:
    """Return ECE (15 bins) and negative log-likelihood (nats) of canonical probabilities (n, canonical)."""
    ece, nll = expected_calibration_error(probs, true), negative_log_likelihood(probs, true)
    return {"ece": round(ece, 4), "nll": round(nll, 4)}


def calibration_json(
    logits: NDArray[Any],
    canonical: NDArray[np.intp],
    collapse: NDArray[np.float32],
    fitted_on: dict[str, Any],
    method: Method = "temperature",
) -> dict[str, Any]:
    """Fit a calibrator of the canonical decision; return the content of ``calibration.json``.

    Parameters
    ----------
    logits, canonical, collapse, method
        As for `fit_calibrator`.
    fitted_on
        What the recordings are, for people.
    """
    calibrator = fit_calibrator(method, logits, canonical, collapse)
    return {
        **calibrator.parameters(),
        "keeps_ranking": calibrator.keeps_ranking,
        "version": CALIBRATION_VERSION,
        "fitted_on": fitted_on,
        "before": calibration_figures(softmax(logits) @ collapse, canonical),
        "after": calibration_figures(calibrator(logits).astype(np.float64) @ collapse, canonical),
    }
