"""Calibrators: each equals its formula, and a calibration.json that does not fit the model is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drumline.calibration import (
    Calibrator,
    PlattScaling,
    TemperatureScaling,
    VectorScaling,
    read_calibrator,
)
from drumline.errors import BundleError

GROUPS = (0, 0, 1, 2, 2)
CALIBRATORS: list[Calibrator] = [
    TemperatureScaling(1.7),
    VectorScaling((1.0, 0.5, 2.0, 1.5, 0.8), (0.1, -0.2, 0.0, 1.0, -1.0)),
    PlattScaling(GROUPS, (0.8, 1.2, 0.9), (0.1, -0.3, 0.0)),
]
LOGITS = np.random.default_rng(3).normal(0, 4, (50, 5)).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def test_vector_scaling_is_the_softmax_of_scaled_and_shifted_logits() -> None:
    calibrator = VectorScaling((1.0, 0.5, 2.0, 1.5, 0.8), (0.1, -0.2, 0.0, 1.0, -1.0))
    expected = softmax(LOGITS.astype(np.float64) * calibrator.scale + calibrator.bias)
    np.testing.assert_allclose(calibrator(LOGITS), expected, atol=1e-6)


def test_platt_scaling_is_a_sigmoid_of_each_groups_log_odds_brought_to_one() -> None:
    calibrator = PlattScaling(GROUPS, (0.8, 1.2, 0.9), (0.1, -0.3, 0.0))
    plain = softmax(LOGITS.astype(np.float64))
    sums = plain @ np.equal.outer(GROUPS, np.arange(3))
    sigmoid = 1 / (1 + np.exp(-(np.log(sums / (1 - sums)) * calibrator.slope + calibrator.intercept)))
    wanted = sigmoid / sigmoid.sum(axis=1, keepdims=True)
    expected = plain / sums[:, GROUPS] * wanted[:, GROUPS]
    np.testing.assert_allclose(calibrator(LOGITS), expected, atol=1e-5)


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=lambda it: type(it).__name__)
@given(logits=arrays(np.float32, (2, 5), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_probabilities_are_finite_and_sum_to_one_for_any_logits(
    calibrator: Calibrator, logits: np.ndarray
) -> None:
    probabilities = calibrator(logits)
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=lambda it: type(it).__name__)
def test_parameters_survive_the_file(calibrator: Calibrator) -> None:
    read = read_calibrator(json.loads(json.dumps(calibrator.parameters())), labels=5)
    assert read == calibrator


def test_only_a_temperature_says_that_it_keeps_the_ranking() -> None:
    assert [calibrator.keeps_ranking for calibrator in CALIBRATORS] == [True, False, False]
    order = np.argsort(LOGITS, kind="stable")
    assert np.array_equal(np.argsort(CALIBRATORS[0](LOGITS), kind="stable"), order)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"method": "isotonic"}, "isotonic"),
        ({"method": "temperature", "temperature": 0}, "not from 1e-06 to 1e\\+06"),
        ({"method": "temperature", "temperature": 1e-300}, "temperature of the calibration is 1e-300"),
        ({"method": "temperature", "temperature": 1e300}, "temperature of the calibration is 1e"),
        ({"method": "vector", "scale": [1e300] * 5, "bias": [0.0] * 5}, "finite"),
        ({"method": "temperature", "temperature": "warm"}, "warm"),
        ({"method": "vector", "scale": [1.0] * 5}, "bias"),
        ({"method": "vector", "scale": [1.0] * 4, "bias": [0.0] * 5}, "5 finite"),
        ({"method": "vector", "scale": [1e999] * 5, "bias": [0.0] * 5}, "finite"),
        ({"method": "platt", "groups": [0, 1], "slope": [1, 1], "intercept": [0, 0]}, "group of each label"),
        ({"method": "platt", "groups": [0] * 5, "slope": [1], "intercept": [0]}, "group of each label"),
        ({"method": "platt", "groups": [0, 0, 0, 0, 7], "slope": [1, 1], "intercept": [0, 0]}, "group"),
    ],
)
def test_a_calibration_that_does_not_fit_the_model_is_refused(value: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        read_calibrator(value, labels=5)


def test_without_a_method_the_logits_are_taken_as_they_are() -> None:
    for value in ({}, {"method": "none"}):
        assert read_calibrator(value, labels=5) == TemperatureScaling(1.0)
