"""Figures of a cross-validation, from the held-out logits of every recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline_convert.bootstrap import Resampling, interval
from drumline_convert.calibration import fit_temperature
from drumline_convert.metrics import Outcomes, class_scores, evaluate, measure, softmax
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["figures", "metrics_table"]


def figures(
    logits: NDArray[np.float32],
    fine: NDArray[np.intp],
    fold_of: NDArray[np.intp],
    labels: Sequence[str],
    families: Sequence[str],
    taxonomy: TrainingTaxonomy,
) -> dict[str, Any]:
    """Measure every fold, their mean, and the classes over all folds.

    Parameters
    ----------
    logits
        (n, fine), each by a network that did not see the recording's fold.
    fine, fold_of
        True fine label index and fold of every recording, (n,).
    labels, families
        Label of every recording as its manifest states it, and its family.

    Returns
    -------
    dict
        ``folds`` and ``mean`` (see `drumline_convert.metrics.Metrics`; probabilities before calibration);
        ``calibrated``, the same with a temperature fitted on the other folds, as a bundle decides, with
        ``interval`` (95 % over families, all folds together) and ``ece_pooled`` (all folds together);
        ``classes`` (precision, recall, F1, support) and ``confused`` (labels most often called wrongly).
    """
    collapse = taxonomy.collapse
    canonical = collapse.argmax(axis=1)[fine]
    probs = np.empty(logits.shape)
    for fold in range(int(fold_of.max()) + 1):
        inside = fold_of == fold
        temperature = fit_temperature(logits[~inside], canonical[~inside], collapse)
        probs[inside] = softmax(logits[inside], temperature)
    decided = (probs @ collapse).argmax(axis=1)
    return {
        **_by_fold(softmax(logits), fine, fold_of, collapse),
        "calibrated": {
            **_by_fold(probs, fine, fold_of, collapse),
            "interval": _intervals(probs, fine, collapse, families),
            "ece_pooled": round(evaluate(probs, fine, collapse).ece, 4),
        },
        "classes": _class_table(decided, canonical, taxonomy.canonical),
        "confused": _confused(decided, canonical, labels, taxonomy.canonical),
    }


def _by_fold(
    probs: NDArray[np.float64],
    fine: NDArray[np.intp],
    fold_of: NDArray[np.intp],
    collapse: NDArray[np.float32],
) -> dict[str, Any]:
    folds = [
        evaluate(probs[fold_of == fold], fine[fold_of == fold], collapse).to_json()
        for fold in range(int(fold_of.max()) + 1)
    ]
    mean = {name: round(float(np.mean([fold[name] for fold in folds])), 4) for name in folds[0]}
    return {"folds": folds, "mean": mean}


def _intervals(
    probs: NDArray[np.float64],
    fine: NDArray[np.intp],
    collapse: NDArray[np.float32],
    families: Sequence[str],
) -> dict[str, list[float | None]]:
    outcomes = Outcomes.of(probs, fine, collapse)
    samples = Resampling().of(families, lambda weights: measure(outcomes, weights))
    return {name: interval(values) for name, values in samples.items()}


def _class_table(
    decided: NDArray[np.intp], true: NDArray[np.intp], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    scores = class_scores(decided, true, len(names))
    return {
        name: {
            "precision": round(float(scores.precision[index]), 4),
            "recall": round(float(scores.recall[index]), 4),
            "f1": round(float(scores.f1[index]), 4),
            "support": int(scores.support[index]),
        }
        for index, name in enumerate(names)
    }


def _confused(
    decided: NDArray[np.intp],
    true: NDArray[np.intp],
    labels: Sequence[str],
    names: Sequence[str],
    most: int = 10,
) -> list[dict[str, Any]]:
    support = Counter(labels)
    wrong = Counter(
        (label, names[found])
        for label, found, right in zip(labels, decided, true, strict=True)
        if found != right
    )
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [
        {"label": label, "called": called, "recordings": count, "of": support[label]}
        for (label, called), count in ranked
    ]


def metrics_table(metrics: dict[str, Any]) -> str:
    """Return the figures as text: a line per fold and their mean."""
    names = list(metrics["mean"])
    calibrated = metrics["calibrated"]
    rows = [*enumerate(calibrated["folds"], start=1), ("mean", calibrated["mean"])]
    rows += [
        (end, {name: calibrated["interval"][name][place] for name in names})
        for place, end in enumerate(("low", "high"))
    ]
    rows.append(("plain", metrics["mean"]))
    lines = ["fold  " + "".join(name.rjust(15) for name in names)]
    lines += [f"{fold!s:6}" + "".join(_number(values[name]) for name in names) for fold, values in rows]
    lines.append("each fold with a temperature from the other folds; low, high: 95 % of the resamples of the")
    lines.append("families, all folds together; plain: the mean before calibration")
    lines.append(f"ECE of all folds together: {calibrated['ece_pooled']:.4f}")
    if "reduced" in metrics:
        lines.append(_reduced(metrics["reduced"]))
    return "\n".join(lines)


def _reduced(facts: dict[str, Any]) -> str:
    before, after = facts["before"]["files_per_cpu_second"], facts["after"]["files_per_cpu_second"]
    return (
        f"{facts['precision']}: {after:,} files per CPU-second, {before:,} in float32; the same label for "
        f"{100 * facts['agreement']:.1f} % of the recordings"
    )


def _number(value: float | None) -> str:
    return f"{'–':>15}" if value is None else f"{value:15.4f}"
