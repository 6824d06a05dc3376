"""Decisions: from stored probabilities to the assigned label. A pure function, run again at will."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from drumline.errors import ConfigError
from drumline.labels import MISC
from drumline.thresholds import LabelThresholds

__all__ = [
    "PROBABILITY_DIGITS",
    "Decision",
    "DecisionSettings",
    "Reason",
    "conclude",
    "decide",
    "failed_decision",
    "rounded_probability",
]

Reason = Literal["top1", "gated", "below_threshold", "out_of_target", "load_error", "override"]
"""The last stands in no index: `rebuild` counts it for files whose label a person gave."""

PROBABILITY_DIGITS: Final = 6


def rounded_probability(value: float) -> float:
    """Return a probability as a record stores it."""
    return round(value, PROBABILITY_DIGITS)


@dataclass(frozen=True, slots=True)
class DecisionSettings:
    """What turns probabilities into an assigned label.

    Parameters
    ----------
    canonical_of
        Fine label → canonical label or `misc`.
    threshold
        Smallest probability (summed over one canonical label) that is believed, 0..1.
    misc
        Label of what is not believed, not wanted, or no kit drum.
    target_labels
        Canonical labels that are wanted; the others go to `misc`. None: all.
    thresholds
        Canonical label → its own threshold in place of `threshold`; None: the label is never believed.
    gate_threshold
        Smallest probability of being a kit drum, by the model's gate, that lets a file pass, 0..1. None: all
        files pass.
    """

    canonical_of: Mapping[str, str]
    threshold: float = 0.5
    misc: str = MISC
    target_labels: frozenset[str] | None = None
    thresholds: LabelThresholds = field(default_factory=dict)
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold {self.threshold} is not between 0 and 1")
        if self.gate_threshold is not None and not 0.0 <= self.gate_threshold <= 1.0:
            raise ConfigError(f"gate threshold {self.gate_threshold} is not between 0 and 1")
        self._check_known(self.target_labels or frozenset(), "target label")
        self._check_known(self.thresholds.keys(), "label with a threshold")
        for label, threshold in self.thresholds.items():
            if threshold is not None and not 0.0 <= threshold <= 1.0:
                raise ConfigError(f"threshold {threshold} of {label} is not between 0 and 1")

    def _check_known(self, labels: Set[str], what: str) -> None:
        unknown = labels - set(self.canonical_of.values()) - {self.misc}
        if unknown:
            known = ", ".join(sorted(set(self.canonical_of.values())))
            raise ConfigError(f"unknown {what}: {', '.join(sorted(unknown))}", f"Labels are: {known}.")

    def believes(self, label: str, confidence: float) -> bool:
        """Whether a canonical label with this summed probability reaches its threshold."""
        threshold = self.thresholds.get(label, self.threshold)
        return threshold is not None and confidence >= threshold

    def rejects(self, gate: float | None) -> bool:
        """Whether the gate's probability keeps a file from being called a kit drum."""
        return self.gate_threshold is not None and gate is not None and gate < self.gate_threshold

    def with_misc(self, misc_in_map: str) -> DecisionSettings:
        """Return the same settings with the mapping's own misc renamed to `misc`."""
        renamed = {
            fine: self.misc if label == misc_in_map else label for fine, label in self.canonical_of.items()
        }
        return replace(self, canonical_of=renamed)


class Decision(NamedTuple):
    """An assigned label and why.

    `assigned_conf` is the summed probability of the most probable canonical label, also where the file
    was then routed to misc; `label_top1` and `conf_top1` are the most probable fine label's.
    """

    label_top1: str | None
    conf_top1: float | None
    assigned_label: str
    assigned_conf: float | None
    assigned_reason: Reason
    misc_routed: bool
    below_misc_threshold: bool
    out_of_target: bool


def decide(probs: Mapping[str, float], settings: DecisionSettings, gate: float | None = None) -> Decision:
    """Decide one file.

    Parameters
    ----------
    probs
        Fine label → probability, as stored in a record; labels that are absent count as 0.
    settings
        Mapping, thresholds and targets.
    gate
        Probability of being a kit drum, as stored in a record; None of a model without a gate.

    Raises
    ------
    ValueError
        When `probs` is empty: for a file without a prediction, see `failed_decision`.

    Notes
    -----
    Ties go to the label that is first in the alphabet; sums are rounded before they are compared, so the
    result depends neither on the order of the labels nor on how floats add up.
    """
    highest = max(probs.values())
    label_top1 = min(fine for fine, probability in probs.items() if probability == highest)
    summed: dict[str, float] = {}
    for fine, probability in probs.items():
        canonical = settings.canonical_of[fine]
        summed[canonical] = summed.get(canonical, 0.0) + probability
    rounded = {label: min(rounded_probability(total), 1.0) for label, total in summed.items()}
    best = min(rounded, key=lambda label: (-rounded[label], label))
    return conclude(settings, label_top1, probs[label_top1], best, rounded[best], gate)


def conclude(
    settings: DecisionSettings,
    label_top1: str,
    conf_top1: float,
    best: str,
    confidence: float,
    gate: float | None = None,
) -> Decision:
    """Decide a file of which the most probable labels are known.

    Parameters
    ----------
    settings
        Thresholds and targets.
    label_top1, conf_top1
        The most probable fine label.
    best, confidence
        The most probable canonical label and its summed probability, rounded.
    gate
        As for `decide`.
    """
    below = not settings.believes(best, confidence)
    targets = settings.target_labels
    outside = targets is not None and best != settings.misc and best not in targets
    reason: Reason = "top1"
    if settings.rejects(gate):
        reason = "gated"
    elif below or outside:
        reason = "below_threshold" if below else "out_of_target"
    assigned = best if reason == "top1" else settings.misc
    return Decision(
        label_top1, conf_top1, assigned, confidence, reason, assigned == settings.misc, below, outside
    )


def failed_decision(settings: DecisionSettings) -> Decision:
    """Return the decision for a file that could not be loaded."""
    return Decision(None, None, settings.misc, None, "load_error", True, False, False)
