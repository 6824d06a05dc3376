"""The guard of the speed asks twice before it complains."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import guard
from bench.guard import guarded


@pytest.mark.parametrize(
    ("ratios", "kept", "asked"),
    [
        ([9.0], True, 1),
        ([7.9, 8.0], True, 2),
        ([7.9, 3.0, 99.0], False, 2),
        ([math.nan, 9.0], True, 2),
        ([math.nan, math.nan, 9.0], False, 2),
    ],
)
def test_a_ratio_under_the_bar_is_measured_once_more(ratios: list[float], kept: bool, asked: int) -> None:
    left = list(ratios)
    assert guarded(lambda _times: left.pop(0), 8.0) is kept
    assert len(ratios) - len(left) == asked


@pytest.mark.parametrize(
    ("ours", "expected"), [(0.75, 20.0), (0.5, math.nan), (0.55, math.nan), (0.4, math.nan)]
)
def test_a_time_of_hardly_more_than_the_start_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: float, expected: float
) -> None:
    """Few files take 0.5 s with the start and the plain way takes 1 s for them, 6 s for all."""
    monkeypatch.setattr(guard, "_write_archive", lambda *_: None)
    monkeypatch.setattr(guard, "_ours", lambda _, name: {"500 files": ours, "few": 0.5}[name])
    monkeypatch.setattr(guard, "_plain", lambda _, name: {"500 files": 6.0, "few": 1.0}[name])
    assert guard._ratio(tmp_path, 500) == pytest.approx(expected, nan_ok=True)


def test_what_counts_for_nothing_is_measured_again_with_more_files() -> None:
    asked: list[int] = []

    def ratio(times: int) -> float:
        asked.append(times)
        return math.nan if times == 1 else 9.0

    assert guarded(ratio, 8.0)
    assert asked == [1, 4]
