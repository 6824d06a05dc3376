"""Thresholds: one number for all labels, or an operating point of the bundle, with one for each label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from drumline.errors import BundleError, ConfigError

__all__ = [
    "LabelThresholds",
    "OperatingPoints",
    "Threshold",
    "is_threshold",
    "operating_point_name",
    "parse_threshold",
    "read_operating_points",
    "resolve_gate",
    "resolve_threshold",
]

Threshold: TypeAlias = float | str
"""A probability 0..1, or the name of an operating point: ``"precision=0.95"``."""

LabelThresholds: TypeAlias = Mapping[str, float | None]
"""Canonical label → smallest probability that is believed; None: none is."""

OperatingPoints: TypeAlias = Mapping[str, LabelThresholds]
"""Name of an operating point → its thresholds."""

_NAME: Final = re.compile(r"precision=(0?\.\d+|1(?:\.0*)?)", re.ASCII)


def operating_point_name(precision: float) -> str:
    """Return the name of the operating point for a wanted precision, 0..1."""
    return f"precision={precision:g}"


def parse_threshold(text: str) -> Threshold:
    """Read what is written on a command line: ``0.7``, ``precision=0.95``.

    Raises
    ------
    ValueError
        When it is neither a number nor the name of an operating point.
    """
    if named := _NAME.fullmatch(text.strip()):
        return operating_point_name(float(named[1]))
    if not text.isascii():
        raise ValueError(f"{text!r} has digits other than 0 to 9")
    return float(text)


def is_threshold(value: Any) -> bool:
    """Whether `value` is a probability or the name of an operating point."""
    if isinstance(value, str):
        return _NAME.fullmatch(value) is not None
    return _is_probability(value)


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def resolve_threshold(
    threshold: Threshold, points: OperatingPoints, whose: str
) -> tuple[float, LabelThresholds]:
    """Return the threshold of labels without one of their own, and those that have one.

    Parameters
    ----------
    threshold
        What was asked for.
    points
        Operating points that there are.
    whose
        Who has them, for the message: ``"bundle mfcc-cnn"``.

    Raises
    ------
    ConfigError
        When there is no such operating point.
    """
    if not isinstance(threshold, str):
        return threshold, {}
    # The same precision may be written otherwise: "precision=.950".
    name = str(parse_threshold(threshold)) if is_threshold(threshold) else threshold
    if name in points:
        return 0.0, points[name]
    known = ", ".join(sorted(points)) or "none"
    raise ConfigError(
        f"{whose} has no operating point {name!r}; it has: {known}",
        "'drumline calibrate --precision …' adds one to the bundle. They hold for the bundle's own mapping.",
    )


def resolve_gate(enabled: bool, threshold: float | None, fitted: float | None, whose: str) -> float | None:
    """Return the smallest probability that passes the gate; None: there is no gate, or it stands open.

    Parameters
    ----------
    enabled, threshold
        What was asked for; None: the threshold that the gate was fitted for.
    fitted
        That of the model's gate; None where it has none.
    whose
        Who has it, for the message: ``"bundle mfcc-cnn"``.

    Raises
    ------
    ConfigError
        When a threshold was asked for, and there is no gate.
    """
    if threshold is not None and fitted is None:
        raise ConfigError(
            f"{whose} has no gate that a threshold could be set for",
            "Leave the gate's threshold out, or give a bundle one: 'drumline gate'.",
        )
    return (fitted if threshold is None else threshold) if enabled else None


def read_operating_points(calibration: Mapping[str, Any], labels: frozenset[str]) -> OperatingPoints:
    """Read the operating points of a ``calibration.json``.

    Parameters
    ----------
    calibration
        The file's content: ``{"operating_points": {name: {"thresholds": {label: 0..1 or null}}}}``.
    labels
        Canonical labels without misc: each must have a threshold.

    Raises
    ------
    BundleError
        When they are not that.
    """
    points = calibration.get("operating_points", {})
    try:
        read = {parse_threshold(name): dict(point["thresholds"]) for name, point in points.items()}
        whole = all(isinstance(name, str) and _are_thresholds(point, labels) for name, point in read.items())
    except (TypeError, KeyError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise BundleError(
            "the operating points in calibration.json are not one threshold for each canonical label",
            "Fit them again: 'drumline calibrate'.",
        )
    return {str(name): point for name, point in read.items()}


def _are_thresholds(point: Mapping[str, Any], labels: frozenset[str]) -> bool:
    values = point.values()
    return point.keys() == labels and all(value is None or _is_probability(value) for value in values)
