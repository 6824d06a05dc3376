"""Tallies add up, in any order."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.records import Record
from drumline.tally import CONFIDENCE_BINS, DURATION_EDGES, Tally
from tests.making import make_record, records


def counted(tally: Tally) -> dict[str, object]:
    """Everything but the sums of floats, whose last digits depend on the order."""
    values = tally.to_json()
    return {name: value for name, value in values.items() if not name.endswith("_sum")}


@given(st.lists(records), st.lists(records))
def test_the_tally_of_all_is_the_sum_of_the_tallies(some: list[Record], others: list[Record]) -> None:
    total, other = Tally.of(some), Tally.of(others)
    total.merge(other)
    assert counted(total) == counted(Tally.of(some + others))
    assert total.duration_sum == pytest.approx(Tally.of(some + others).duration_sum)


@given(st.lists(records), st.lists(records))
def test_taking_some_records_out_leaves_the_tally_of_the_others(
    some: list[Record], others: list[Record]
) -> None:
    whole, expected = Tally.of(some + others), Tally.of(some)
    left = whole.without(Tally.of(others))
    assert counted(left) == counted(expected)
    # What is taken away can be much larger than what is left: the difference is as exact as the whole is.
    for name in ("confidence_sum", "duration_sum"):
        left_sum, expected_sum, whole_sum = (getattr(tally, name) for tally in (left, expected, whole))
        assert left_sum.keys() == expected_sum.keys()
        for label, value in expected_sum.items():
            assert left_sum[label] == pytest.approx(value, rel=1e-9, abs=1e-12 * whole_sum[label])


@given(st.lists(records))
def test_records_count_the_same_one_by_one_and_all_at_once(some: list[Record]) -> None:
    tally = Tally()
    for record in some:
        tally.add(record)
    assert tally == Tally.of(some)


@given(st.lists(records))
def test_a_tally_survives_json(some: list[Record]) -> None:
    tally = Tally.of(some)
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


@given(st.lists(records))
def test_every_record_is_counted_once_in_each_report(some: list[Record]) -> None:
    tally = Tally.of(some)
    report = tally.report()
    classified = tally.records - tally.failed
    assert sum(report["labels"].values()) == classified
    assert sum(report["fine_labels"].values()) == classified
    assert sum(report["errors"].values()) == tally.failed
    assert sum(report["reasons"].values()) == sum(report["formats"].values()) == len(some)
    assert sum(report["duration_histogram"]["counts"]) == classified
    histograms = report["confidence_histogram"]
    assert {label: sum(counts) for label, counts in histograms.items()} == report["labels"]


def test_sparse_files_of_any_size_can_be_counted() -> None:
    tally = Tally(records=3, size=3 * (2**63 - 1))
    assert orjson.loads(orjson.dumps([tally.to_json(), tally.report()]))[1]["size_bytes"] == 2**63 - 1


@pytest.mark.parametrize(
    ("duration", "place"), [(0.0, 0), (0.05, 0), (0.051, 1), (10.0, 11), (10.1, len(DURATION_EDGES))]
)
def test_a_duration_falls_below_its_upper_edge(duration: float, place: int) -> None:
    report = Tally.of([make_record(duration_sec=duration)]).report()
    assert report["duration_histogram"]["counts"][place] == 1


def test_full_confidence_falls_into_the_last_bin() -> None:
    report = Tally.of([make_record(probs={"Kick": 1.0})]).report()
    assert report["confidence_histogram"]["Kick"] == [0] * (CONFIDENCE_BINS - 1) + [1]


def test_means_are_per_assigned_label() -> None:
    made = [make_record(probs={"Kick": value}, duration_sec=value) for value in (0.6, 0.8)]
    report = Tally.of([*made, make_record(error="decode_error")]).report()
    assert report["mean_confidence"] == {"Kick": 0.7}
    assert report["mean_duration_sec"] == {"Kick": 0.7}
    assert (report["total_duration_sec"], report["errors"]) == (1.4, {"decode_error": 1})


def test_a_report_does_not_depend_on_the_order_of_what_was_counted() -> None:
    records = [make_record(error=None, format=name) for name in ("wav", "aiff", "flac", "aiff", "wav")]
    reports = [Tally.of(some).report() for some in (records, records[::-1])]
    assert [list(report["formats"]) for report in reports] == [["aiff", "wav", "flac"]] * 2
