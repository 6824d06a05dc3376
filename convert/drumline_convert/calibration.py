"""One temperature for the logits (Guo et al. 2017), fitted on recordings that the networks never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.errors import UsageError
from drumline_convert.metrics import expected_calibration_error, negative_log_likelihood, softmax

__all__ = ["calibration_json", "fit_temperature"]

CALIBRATION_VERSION = 1


def fit_temperature(
    logits: NDArray[Any], true: NDArray[np.intp], collapse: NDArray[np.float32] | None = None
) -> float:
    """Return the temperature in 0.05..20 that makes the negative log-likelihood smallest.

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
        return negative_log_likelihood(_probs(logits, float(np.exp(log_temperature)), collapse), true)

    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(result.x)), 4)


def calibration_json(
    logits: NDArray[Any],
    canonical: NDArray[np.intp],
    collapse: NDArray[np.float32],
    fitted_on: dict[str, Any],
) -> dict[str, Any]:
    """Fit a temperature for the canonical decision; return the content of ``calibration.json``."""
    temperature = fit_temperature(logits, canonical, collapse)

    def figures(value: float) -> dict[str, float]:
        probs = _probs(logits, value, collapse)
        ece, nll = expected_calibration_error(probs, canonical), negative_log_likelihood(probs, canonical)
        return {"ece": round(ece, 4), "nll": round(nll, 4)}

    return {
        "method": "temperature",
        "temperature": temperature,
        "version": CALIBRATION_VERSION,
        "fitted_on": fitted_on,
        "before": figures(1.0),
        "after": figures(temperature),
    }


def _probs(
    logits: NDArray[Any], temperature: float, collapse: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    probs = softmax(logits, temperature)
    return probs if collapse is None else probs @ collapse
