"""Figures equal scikit-learn's; a temperature improves the likelihood and leaves the order alone."""

from __future__ import annotations

import numpy as np
import pytest

from drumline.errors import UsageError
from drumline_convert.calibration import calibration_json, fit_temperature
from drumline_convert.crossval import figures, metrics_table
from drumline_convert.metrics import (
    auroc,
    class_scores,
    evaluate,
    expected_calibration_error,
    negative_log_likelihood,
    precision_at_coverage,
    softmax,
)
from drumline_convert.taxonomy import TrainingTaxonomy

N = 400


@pytest.fixture
def logits(taxonomy: TrainingTaxonomy) -> np.ndarray:
    """Logits that are right most of the time, and far too sure."""
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 4, (N, len(taxonomy.fine)))
    scores[np.arange(N), labels(taxonomy)] += rng.normal(7, 6, N)
    return scores.astype(np.float32)


def labels(taxonomy: TrainingTaxonomy) -> np.ndarray:
    return np.random.default_rng(6).integers(0, len(taxonomy.fine), N)


def test_figures_equal_those_of_scikit_learn(taxonomy: TrainingTaxonomy, logits: np.ndarray) -> None:
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    fine = labels(taxonomy)
    collapse = taxonomy.collapse
    true = collapse.argmax(axis=1)[fine]
    probs = softmax(logits) @ collapse
    decided = probs.argmax(axis=1)
    ours = evaluate(softmax(logits), fine, collapse)
    assert ours.accuracy == pytest.approx(sk.accuracy_score(true, decided))
    assert ours.macro_f1 == pytest.approx(sk.f1_score(true, decided, average="macro"))
    assert ours.fine_accuracy == pytest.approx(sk.accuracy_score(fine, logits.argmax(axis=1)))
    assert ours.auroc == pytest.approx(sk.roc_auc_score(true != 6, 1 - probs[:, 6]))
    drums = (true != 6) & (decided != 6)
    assert ours.six_accuracy == pytest.approx(sk.accuracy_score(true[drums], decided[drums]))
    precision, recall, f1, support = sk.precision_recall_fscore_support(true, decided, zero_division=0)
    scores = class_scores(decided, true, 7)
    for mine, theirs in zip(
        (scores.precision, scores.recall, scores.f1, scores.support),
        (precision, recall, f1, support),
        strict=True,
    ):
        assert np.allclose(mine, theirs)
    log_loss = sk.log_loss(true, probs / probs.sum(axis=1, keepdims=True), labels=np.arange(7))
    assert negative_log_likelihood(probs, true) == pytest.approx(log_loss, rel=1e-4)


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert np.isnan(auroc(np.array([0.5]), np.array([True])))


def test_the_calibration_error_is_that_of_its_definition() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    true = np.array([0, 1, 1, 0])
    assert expected_calibration_error(probs, true) == pytest.approx((2 * 0.4 + 0.4 + 0) / 4)


def test_precision_at_coverage_keeps_the_most_confident() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.3, 0.7], [0.95, 0.05]])
    true = np.array([0, 0, 0, 1, 0])
    assert precision_at_coverage(probs, true, 0.8) == 1.0
    assert precision_at_coverage(probs, true, 1.0) == 0.8


def test_a_temperature_improves_the_likelihood_and_leaves_the_ranking(
    taxonomy: TrainingTaxonomy, logits: np.ndarray
) -> None:
    fine = labels(taxonomy)
    temperature = fit_temperature(logits, fine)
    before, after = softmax(logits), softmax(logits, temperature)
    assert temperature > 1.1
    assert negative_log_likelihood(after, fine) < negative_log_likelihood(before, fine)
    assert np.array_equal(np.argsort(before, kind="stable"), np.argsort(after, kind="stable"))


def test_calibration_says_what_it_gained(taxonomy: TrainingTaxonomy, logits: np.ndarray) -> None:
    true = taxonomy.collapse.argmax(axis=1)[labels(taxonomy)]
    value = calibration_json(logits, true, taxonomy.collapse, {"what": "a test"})
    assert value["after"]["nll"] < value["before"]["nll"]
    assert value["after"]["ece"] < value["before"]["ece"]
    assert value["fitted_on"] == {"what": "a test"}


def test_no_recordings_give_no_temperature() -> None:
    with pytest.raises(UsageError, match="no recordings"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.intp))


def test_the_mean_over_folds_is_the_mean(taxonomy: TrainingTaxonomy, logits: np.ndarray) -> None:
    fine, fold_of = labels(taxonomy), np.arange(N) % 4
    names = [taxonomy.fine[index] for index in fine]
    families = [f"family{number}" for number in np.arange(N) % 12]
    value = figures(logits, fine, fold_of, names, families, taxonomy)
    expected = np.mean([fold["accuracy"] for fold in value["folds"]])
    assert value["mean"]["accuracy"] == pytest.approx(expected, abs=1e-4)
    assert sum(scores["support"] for scores in value["classes"].values()) == N
    assert all(entry["recordings"] <= entry["of"] for entry in value["confused"])
    assert value["calibrated"]["mean"]["ece"] < value["mean"]["ece"]
    low, high = value["calibrated"]["interval"]["accuracy"]
    assert low < value["calibrated"]["mean"]["accuracy"] < high
    assert metrics_table(value).count("\n") == 11
