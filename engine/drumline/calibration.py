"""Calibration: from a model's logits to probabilities that can be believed. Fitted in `drumline_convert`.

``calibration.json`` names the method and holds its parameters, in the order of the model's outputs::

    {"method": "temperature", "temperature": 1.11, …}
    {"method": "vector", "scale": [one per label], "bias": [one per label], …}
    {"method": "platt", "groups": [group of each label], "slope": [one per group], "intercept": […], …}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drumline.errors import BundleError

__all__ = [
    "Calibrator",
    "PlattScaling",
    "TemperatureScaling",
    "VectorScaling",
    "group_log_odds",
    "read_calibrator",
    "softmax",
]

Floats = NDArray[np.float32]

_SMALLEST_TEMPERATURE = 1e-6
_LARGEST_TEMPERATURE = 1e6
_LARGEST_PARAMETER = 1e30
"""Products with logits still fit float32."""


class Calibrator(Protocol):
    """Turns logits into probabilities."""

    @property
    def keeps_ranking(self) -> bool:
        """Whether the order of a recording's fine labels is always that of its logits."""

    def __call__(self, logits: Floats) -> Floats:
        """Return probabilities, (n, labels) float32, of `logits` (n, labels)."""

    def parameters(self) -> dict[str, Any]:
        """Return the method and its parameters, as ``calibration.json`` holds them."""


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the softmax of ``logits / temperature`` over the last axis, float32, without overflow."""
    scaled = np.asarray(logits, np.float32) / np.float32(temperature)
    scaled -= scaled.max(axis=-1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(scaled)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


@dataclass(frozen=True, slots=True)
class TemperatureScaling:
    """Softmax of the logits over one temperature (Guo et al. 2017, section 4.2): the ranking stays.

    Parameters
    ----------
    temperature
        1e-6..1e6; above 1 it makes the model less sure of itself.
    """

    temperature: float = 1.0
    keeps_ranking = True

    def __post_init__(self) -> None:
        # Beyond these, logits of ordinary size leave float32 or become all alike.
        if not _SMALLEST_TEMPERATURE <= self.temperature <= _LARGEST_TEMPERATURE:
            raise BundleError(
                f"the temperature of the calibration is {self.temperature}, not from "
                f"{_SMALLEST_TEMPERATURE:g} to {_LARGEST_TEMPERATURE:g}",
                "Fit it again: 'drumline calibrate'.",
            )

    def __call__(self, logits: Floats) -> Floats:
        """Return probabilities, (n, labels) float32, of `logits` (n, labels)."""
        return softmax(logits, self.temperature)

    def parameters(self) -> dict[str, Any]:
        """Return the method and its parameters, as ``calibration.json`` holds them."""
        return {"method": "temperature", "temperature": self.temperature}


@dataclass(frozen=True, slots=True)
class VectorScaling:
    """Softmax of ``scale × logits + bias``, both by label (Guo et al. 2017): the ranking may change.

    Parameters
    ----------
    scale, bias
        One for each fine label, in output order.
    """

    scale: tuple[float, ...]
    bias: tuple[float, ...]
    keeps_ranking = False

    def __call__(self, logits: Floats) -> Floats:
        """Return probabilities, (n, labels) float32, of `logits` (n, labels)."""
        scale, bias = (np.asarray(values, np.float32) for values in (self.scale, self.bias))
        return softmax(np.asarray(logits, np.float32) * scale + bias)

    def parameters(self) -> dict[str, Any]:
        """Return the method and its parameters, as ``calibration.json`` holds them."""
        return {"method": "vector", "scale": list(self.scale), "bias": list(self.bias)}


@dataclass(frozen=True, slots=True)
class PlattScaling:
    """A sigmoid of each canonical label's log-odds, the sum brought to 1 (Platt 1999, one against the rest).

    The labels of one group keep their shares of the group's probability. The ranking may change.

    Parameters
    ----------
    groups
        Group of each fine label, in output order, 0..groups-1: its canonical label when it was fitted.
    slope, intercept
        Of each group's sigmoid.
    """

    groups: tuple[int, ...]
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    keeps_ranking = False

    def __call__(self, logits: Floats) -> Floats:
        """Return probabilities, (n, labels) float32, of `logits` (n, labels)."""
        exact = np.asarray(logits, np.float64)
        odds = group_log_odds(exact, self.groups)
        sigmoid = -np.logaddexp(0.0, -(odds * self.slope + np.asarray(self.intercept)))
        inside = _log_sums(exact, _members(self.groups))
        return softmax((exact + (sigmoid - inside)[:, list(self.groups)]).astype(np.float32))

    def parameters(self) -> dict[str, Any]:
        """Return the method and its parameters, as ``calibration.json`` holds them."""
        lists = {"groups": self.groups, "slope": self.slope, "intercept": self.intercept}
        return {"method": "platt", **{name: list(values) for name, values in lists.items()}}


def group_log_odds(logits: NDArray[np.floating], groups: Sequence[int]) -> NDArray[np.float64]:
    """Return the logarithm of each group's odds under the softmax of `logits` (n, labels), (n, groups)."""
    exact, members = np.asarray(logits, np.float64), _members(groups)
    return _log_sums(exact, members) - _log_sums(exact, ~members)


def _members(groups: Sequence[int]) -> NDArray[np.bool_]:
    """Matrix (labels, groups): which labels are in which group."""
    return np.equal.outer(groups, np.arange(1 + max(groups)))


def _log_sums(logits: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logarithm of the summed exponentials (n, groups) of the labels in each column of `members`."""
    chosen = np.where(members, logits[:, :, np.newaxis], -np.inf)
    return np.asarray(np.logaddexp.reduce(chosen, axis=1))


def read_calibrator(value: Mapping[str, Any], labels: int) -> Calibrator:
    """Read the method and parameters of a ``calibration.json`` for a model with `labels` outputs.

    Raises
    ------
    BundleError
        When the method is unknown, or parameters are missing, not finite, or not one for each label.
    """
    method = value.get("method", "temperature")
    try:
        match method:
            case "none" | "temperature":
                return TemperatureScaling(float(value.get("temperature", 1.0)))
            case "vector":
                return VectorScaling(_floats(value["scale"], labels), _floats(value["bias"], labels))
            case "platt":
                return _platt(value, labels)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"the calibration by {method} is incomplete or does not fit {labels} labels: {error}",
            "Fit it again: 'drumline calibrate'.",
        ) from error
    raise BundleError(f"unknown method of calibration: {method!r}", "Known are temperature, vector, platt.")


def _platt(value: Mapping[str, Any], labels: int) -> PlattScaling:
    groups = tuple(int(group) for group in value["groups"])
    count = len(value["slope"])
    if len(groups) != labels or set(groups) != set(range(count)) or count < 2:
        raise ValueError("groups must name the group of each label")
    return PlattScaling(groups, _floats(value["slope"], count), _floats(value["intercept"], count))


def _floats(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(abs(number) <= _LARGEST_PARAMETER for number in numbers):
        raise ValueError(f"{count} finite numbers are needed")
    return numbers
