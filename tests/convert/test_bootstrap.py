"""Figures under weights, and intervals by resampling families."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drumline.errors import UsageError
from drumline_convert import bootstrap
from drumline_convert.bootstrap import Resampling, interval
from drumline_convert.metrics import FIGURES, Outcomes, measure, reliability, risk_coverage, roc_curve

CLASSES = 4


def outcomes(recordings: int, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    probs = rng.dirichlet(np.full(CLASSES, 0.4), recordings).round(2)
    true = np.array([rng.choice(CLASSES, p=row / row.sum()) for row in probs])
    return Outcomes(probs, true, rng.random(recordings) < 0.5, rng.random(recordings) < 0.9)


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 3), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_weight_counts_as_that_many_recordings(seed: int, counts: list[int]) -> None:
    given_outcomes = outcomes(len(counts), seed)
    if not sum(counts):
        return
    weighted = measure(given_outcomes, np.array([counts], float))
    repeated = measure(given_outcomes.take(np.repeat(np.arange(len(counts)), counts)))
    for name in FIGURES:
        np.testing.assert_allclose(weighted[name], repeated[name], atol=1e-12, err_msg=name)


def test_what_passes_of_misc_is_what_scikit_learns_curve_says() -> None:
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    some = outcomes(500, seed=3)
    fpr, tpr, _ = sk.roc_curve(some.drum, some.drumness, drop_intermediate=False)
    assert measure(some)["fpr_95"][0] == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    ours = roc_curve(some)
    np.testing.assert_allclose(ours["tpr"], tpr, atol=1e-12)
    np.testing.assert_allclose(ours["fpr"], fpr, atol=1e-12)


def test_figures_without_misc_or_without_drums_are_undefined_not_wrong() -> None:
    some = outcomes(200)
    for chosen in (np.flatnonzero(some.drum), np.flatnonzero(~some.drum)):
        figures = measure(some.take(chosen))
        assert np.isnan(figures["auroc"][0])
        assert np.isnan(figures["fpr_95"][0])
        assert np.isfinite(figures["accuracy"][0])


def test_the_risk_at_a_coverage_is_the_error_of_what_is_kept() -> None:
    some = outcomes(100)
    curve = risk_coverage(some)
    assert curve["risk"][-1] == pytest.approx(1 - some.correct.mean())
    assert 1 - curve["risk"][79] == pytest.approx(measure(some)["precision_80"][0])


def test_the_bins_of_the_reliability_diagram_make_the_calibration_error() -> None:
    some = outcomes(300)
    bins = reliability(some)
    some_bins = bins["count"] > 0
    gaps = np.abs(bins["accuracy"] - bins["confidence"])[some_bins]
    error = (bins["count"][some_bins] * gaps).sum() / 300
    assert error == pytest.approx(measure(some)["ece"][0])


def test_a_resample_draws_whole_families_as_many_as_there_are() -> None:
    families = ["a", "a", "b", "c", "c", "c", "d"]
    (weights,) = Resampling(resamples=50).weights(families)
    assert weights.shape == (50, 7)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3, 6]].sum(axis=1) == 4).all()


def test_intervals_are_seeded_and_do_not_depend_on_how_many_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some, families = outcomes(120), [f"f{place % 12}" for place in range(120)]

    def bounds(seed: int) -> list[float]:
        sample = Resampling(200, seed).of(families, lambda weights: measure(some, weights))
        return list(interval(sample["macro_f1"]))

    first = bounds(0)
    monkeypatch.setattr(bootstrap, "_CELLS", 700)
    assert bounds(0) == first
    assert bounds(1) != first


def test_an_interval_holds_the_figure_and_grows_when_families_are_few() -> None:
    # Recordings of one family are all right or all wrong: there are as many draws as families.
    right = np.repeat(np.random.default_rng(2).random(60) < 0.7, 10)

    def width(families: int) -> float:
        names = [f"f{place * families // 600}" for place in range(600)]
        sample = Resampling().of(names, lambda weights: {"share": weights @ right / weights.sum(axis=1)})
        low, high = interval(sample["share"])
        assert low <= right.mean() <= high
        return float(high - low)

    assert width(60) > 2 * width(600)


def test_an_undefined_figure_has_no_interval_and_gives_no_warning() -> None:
    values = np.array([[np.nan, 1.0], [np.nan, np.nan], [np.nan, 3.0]])
    undefined, defined = interval(values)
    assert undefined == [None, None]
    assert defined == [1.05, 2.95]


def test_no_resamples_are_refused() -> None:
    with pytest.raises(UsageError, match="0 resamples"):
        Resampling(resamples=0)
