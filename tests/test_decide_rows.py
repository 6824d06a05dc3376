"""Decisions of whole batches are those of single files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.decide import DecisionSettings, decide
from drumline.decide_rows import RowDecider
from drumline.records import sparse_probs, topk_of
from tests.making import CANONICAL_OF

LABELS = tuple(CANONICAL_OF)

fractions = st.sampled_from([0.0, 1e-7, 4e-7, 0.1, 0.25, 0.333333, 0.5, 1.0]) | st.floats(0, 1, width=32)
rows = st.lists(fractions, min_size=len(LABELS), max_size=len(LABELS)).filter(lambda row: max(row) > 1e-6)
batches = st.lists(rows, max_size=6)
thresholds = st.dictionaries(st.sampled_from(["Kick", "Snare"]), st.none() | st.floats(0, 1), max_size=2)
gates = st.none() | st.sampled_from([0.0, 0.3, 0.300001, 1.0])


@given(
    batches,
    st.floats(0, 1),
    thresholds,
    st.none() | st.frozensets(st.sampled_from(["Kick", "Snare", "Hihat"])),
    gates,
    gates,
    st.integers(1, 9),
)
def test_a_batch_is_decided_as_its_files_are_one_by_one(
    batch: list[list[float]],
    threshold: float,
    by_label: dict[str, float | None],
    targets: frozenset[str] | None,
    gate_threshold: float | None,
    gate: float | None,
    top_k: int,
) -> None:
    settings = DecisionSettings(CANONICAL_OF, threshold, "misc", targets, by_label, gate_threshold)
    table = np.array(batch, np.float32).reshape(len(batch), len(LABELS))
    decided = RowDecider(LABELS, settings, top_k)(table, [gate] * len(batch))
    probabilities = list(sparse_probs(LABELS, table))
    assert [one.probs for one in decided] == probabilities
    assert [one.topk for one in decided] == [topk_of(probs, top_k) for probs in probabilities]
    assert [one.decision for one in decided] == [decide(probs, settings, gate) for probs in probabilities]


def test_ties_go_to_the_label_that_is_first_in_the_alphabet() -> None:
    settings = DecisionSettings({"b": "Y", "a": "X", "c": "X", "d": "Y"}, 0.0)
    (one,) = RowDecider(("b", "a", "c", "d"), settings, 4)(np.full((1, 4), 0.25, np.float32), [None])
    assert (one.decision.label_top1, one.decision.assigned_label) == ("a", "X")
    assert [top["label"] for top in one.topk] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_row_has_its_own_gate(count: int) -> None:
    settings = DecisionSettings(CANONICAL_OF, gate_threshold=0.5)
    table = np.eye(len(LABELS), dtype=np.float32)[:count]
    decided = RowDecider(LABELS, settings, 1)(table, [0.4, 0.6, None][:count])
    assert [one.decision.assigned_reason for one in decided] == ["gated", "top1", "top1"][:count]
