"""The guard of the speed asks twice before it complains."""

from __future__ import annotations

import pytest

from bench.guard import guarded


@pytest.mark.parametrize(
    ("ratios", "kept", "asked"), [([9.0], True, 1), ([7.9, 8.0], True, 2), ([7.9, 3.0, 99.0], False, 2)]
)
def test_a_ratio_under_the_bar_is_measured_once_more(ratios: list[float], kept: bool, asked: int) -> None:
    left = list(ratios)
    assert guarded(lambda: left.pop(0), 8.0) is kept
    assert len(ratios) - len(left) == asked
