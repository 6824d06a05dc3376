"""Decisions from stored probabilities."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.decide import DecisionSettings, decide, failed_decision
from drumline.errors import ConfigError
from tests.making import CANONICAL_OF, DECISIONS, probabilities


def settings(**changes: object) -> DecisionSettings:
    return DecisionSettings(CANONICAL_OF, **changes)  # type: ignore[arg-type]


def test_probabilities_of_one_canonical_label_are_summed() -> None:
    decision = decide({"Kick": 0.4, "Snare": 0.35, "Rim": 0.25}, DECISIONS)
    assert (decision.label_top1, decision.conf_top1) == ("Kick", 0.4)
    assert (decision.assigned_label, decision.assigned_conf) == ("Snare", 0.6)
    assert decision.assigned_reason == "top1"


def test_below_the_threshold_a_file_goes_to_misc_and_keeps_its_confidence() -> None:
    decision = decide({"Kick": 0.49, "HihatOpen": 0.3, "Snare": 0.21}, DECISIONS)
    assert (decision.assigned_label, decision.assigned_conf) == ("misc", 0.49)
    assert (decision.assigned_reason, decision.below_misc_threshold) == ("below_threshold", True)
    assert decision.misc_routed


def test_the_threshold_itself_is_believed() -> None:
    assert decide({"Kick": 0.5, "Snare": 0.5}, DECISIONS).assigned_label == "Kick"


def test_a_label_that_is_not_wanted_goes_to_misc() -> None:
    decision = decide({"Kick": 0.9, "Snare": 0.1}, settings(target_labels=frozenset({"Snare"})))
    assert (decision.assigned_label, decision.assigned_reason) == ("misc", "out_of_target")
    assert (decision.out_of_target, decision.below_misc_threshold) == (True, False)


def test_what_the_model_calls_misc_is_no_failure_of_the_threshold() -> None:
    decision = decide({"Clap": 0.9, "Kick": 0.1}, settings(target_labels=frozenset({"Kick"})))
    assert (decision.assigned_label, decision.assigned_reason) == ("misc", "top1")
    assert (decision.misc_routed, decision.out_of_target) == (True, False)


def test_a_file_that_failed_is_misc_with_its_reason() -> None:
    decision = failed_decision(settings(misc="rest"))
    assert (decision.assigned_label, decision.assigned_reason) == ("rest", "load_error")
    assert decision.label_top1 is None
    assert decision.assigned_conf is None


def test_misc_can_have_another_name_than_in_the_mapping() -> None:
    renamed = settings(misc="rest").with_misc("misc")
    assert decide({"Clap": 0.9, "Kick": 0.1}, renamed).assigned_label == "rest"


def test_what_the_gate_rejects_is_misc_whatever_else_holds() -> None:
    gated = settings(gate_threshold=0.4, threshold=0.95, target_labels=frozenset({"Snare"}))
    decision = decide({"Kick": 0.9, "Snare": 0.1}, gated, gate=0.39)
    assert (decision.assigned_label, decision.assigned_reason) == ("misc", "gated")
    assert (decision.assigned_conf, decision.below_misc_threshold, decision.out_of_target) == (
        0.9,
        True,
        True,
    )
    assert decide({"Clap": 0.9, "Kick": 0.1}, gated, gate=0.1).assigned_reason == "gated"


@pytest.mark.parametrize(("threshold", "gate"), [(0.4, 0.4), (None, 0.0), (0.4, None), (0.0, 0.0)])
def test_the_gate_lets_pass_what_reaches_its_threshold_or_was_never_asked(
    threshold: float | None, gate: float | None
) -> None:
    decision = decide({"Kick": 0.9, "Snare": 0.1}, settings(gate_threshold=threshold), gate)
    assert (decision.assigned_label, decision.assigned_reason) == ("Kick", "top1")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_of_the_gate_outside_0_and_1_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="gate threshold"):
        settings(gate_threshold=threshold)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_and_1_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        settings(threshold=threshold)


def test_an_unknown_target_label_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Cowbell") as error:
        settings(target_labels=frozenset({"Cowbell", "Kick"}))
    assert "Kick" in error.value.way_out


@given(probabilities, st.randoms(use_true_random=False))
def test_a_decision_does_not_depend_on_the_order_of_the_labels(
    probs: dict[str, float], shuffler: random.Random
) -> None:
    labels = list(probs)
    shuffler.shuffle(labels)
    assert decide({label: probs[label] for label in labels}, DECISIONS)[2:] == decide(probs, DECISIONS)[2:]


@given(probabilities, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_assigns_more(probs: dict[str, float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    if decide(probs, settings(threshold=low)).misc_routed:
        assert decide(probs, settings(threshold=high)).misc_routed


def test_a_tie_of_sums_does_not_depend_on_how_floats_add_up() -> None:
    settings = DecisionSettings({"a": "Snare", "b": "Snare", "c": "Snare", "k": "Kick"}, threshold=0.0)
    probs = {"a": 0.05, "b": 0.1, "c": 0.15, "k": 0.3}
    for order in itertools.permutations(probs):
        assert decide({label: probs[label] for label in order}, settings).assigned_label == "Kick"
