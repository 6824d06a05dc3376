"""The same input gives the same labels at any batch size and worker count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from drumline.bundle import find_bundle
from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, assert_equal

CONFIDENCES = ("conf_top1", "assigned_conf", "topk", "probs")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def shipped() -> Path:
    """The model that people use: a stub would be too simple to tell batches apart."""
    return find_bundle(None)


@pytest.fixture(scope="module")
def one_by_one(restored: Callable[[], Infer], shipped: Path) -> Records:
    infer = replace(restored(), model=shipped).elsewhere("one-by-one")
    infer.counts("--batch-size", "1", workers=1)
    return infer.records()


@pytest.mark.parametrize(("batch_size", "workers"), [(7, 1), (64, 1), (1, 3), (7, 3), (64, 3)])
def test_batches_and_workers_change_no_label(
    tidy: Infer, shipped: Path, one_by_one: Records, batch_size: int, workers: int
) -> None:
    tidy.model = shipped
    tidy.counts("--batch-size", str(batch_size), workers=workers)
    records = tidy.records()
    assert_equal(records, one_by_one, *CONFIDENCES)
    for path, record in records.items():
        expected = one_by_one[path]
        labels = {*record["probs"], *expected["probs"]}
        for label in labels:
            assert record["probs"].get(label, 0) == pytest.approx(
                expected["probs"].get(label, 0), abs=TOLERANCE
            )
        assert record["assigned_conf"] == pytest.approx(expected["assigned_conf"], abs=TOLERANCE)


def test_two_runs_give_byte_for_byte_equal_records(tidy: Infer) -> None:
    first = tidy.fresh_records()
    assert_equal(tidy.fresh_records(), first)


def test_files_that_come_slowly_are_predicted_in_batches_as_they_come(tidy: Infer) -> None:
    """Nothing waits for a batch to be full."""
    before = tidy.records()
    tidy.counts("--fresh", "--batch-size", "4096", slow=0.01)
    assert_equal(tidy.records(), before)
