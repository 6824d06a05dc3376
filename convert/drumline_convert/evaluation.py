"""Evaluation: figures of models on the recordings of a manifest, with intervals and paired differences.

`evaluate_manifest` measures and returns plain values, the content of ``report.json``;
`drumline_convert.report` shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline import __version__
from drumline.bundle import load_bundle
from drumline.decide import DecisionSettings
from drumline.errors import ConfigError, UsageError
from drumline_convert.bootstrap import Resampling, interval
from drumline_convert.breakdown import believed_at, by_group, confused_labels, effect_of, rounded
from drumline_convert.corpus import Recording, open_manifest, recordings_of
from drumline_convert.manifest import Row
from drumline_convert.metrics import (
    Metrics,
    Outcomes,
    measure,
    reliability,
    risk_coverage,
    roc_curve,
    scores_of,
    weighted_confusions,
)
from drumline_convert.predictions import (
    Predictions,
    collapse_of,
    predictions_of_bundles,
    predictions_of_held_out,
    predictions_of_index,
    read_held_out,
    refuse_leaks,
)
from drumline_convert.progress import PhaseProgress
from drumline_convert.taxonomy import DEFAULT_TAXONOMY, TrainingTaxonomy, read_taxonomy

__all__ = ["SCHEMA_VERSION", "EvaluationSettings", "evaluate_manifest"]

SCHEMA_VERSION = 1


_FEW_FAMILIES = 10
_POINTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated on what.

    Parameters
    ----------
    manifest
        Manifest of the recordings.
    models
        Bundles, by directory or by name.
    indexes
        Runs or index files, whose predictions are taken as the engine made them.
    held_out
        Files of held-out logits, of a cross-validation.
    splits
        Sides of the manifest's split that are evaluated. Empty: ``test`` where there is one, else all rows.
    taxonomy
        Taxonomy file: labels of the manifest → canonical labels.
    resampling
        For the intervals.
    """

    manifest: Path
    models: tuple[Path, ...] = ()
    indexes: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ()
    taxonomy: Path = DEFAULT_TAXONOMY
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        if not (self.models or self.indexes or self.held_out):
            raise UsageError("nothing to evaluate", "Give --model, --index or --held-out.")


@dataclass(frozen=True)
class _Truth:
    """The recordings that are judged, n of them, and what they are."""

    rows: tuple[Recording, ...]
    taxonomy: TrainingTaxonomy

    @property
    def canonical(self) -> NDArray[np.intp]:
        return np.array([row.canonical for row in self.rows], np.intp)

    @property
    def families(self) -> list[str]:
        return [row.family for row in self.rows]

    def take(self, chosen: NDArray[np.intp]) -> _Truth:
        return replace(self, rows=tuple(self.rows[place] for place in chosen.tolist()))

    def fine(self, labels: Sequence[str]) -> NDArray[np.intp]:
        """Index of each true label among a model's `labels`, -1 where it is none of them."""
        place_of = {label: place for place, label in enumerate(labels)}
        fold = self.taxonomy.fold
        return np.array(
            [place_of.get(row.label, place_of.get(fold.get(row.label, ""), -1)) for row in self.rows], np.intp
        )


def evaluate_manifest(settings: EvaluationSettings, progress: PhaseProgress | None = None) -> dict[str, Any]:
    """Measure models on a manifest.

    Parameters
    ----------
    settings
        What on what.
    progress
        Is told how far it is.

    Returns
    -------
    dict
        What ``report.json`` holds: ``data``, ``warnings``, ``models`` and ``differences``.

    Raises
    ------
    ConfigError
        When the manifest is missing or broken, a label is not in the taxonomy, a family or content hash is on
        two sides of the split, or no recording can be read.
    BundleError, IndexFormatError
        When a model or a run cannot be used.
    """
    taxonomy = read_taxonomy(settings.taxonomy)
    manifest = open_manifest(settings.manifest, taxonomy)
    refuse_leaks(manifest.rows, [row.split for row in manifest], f"manifest {str(settings.manifest)!r}")
    rows, splits = _chosen(manifest.rows, settings)
    truth = _Truth(tuple(recordings_of(rows, taxonomy)), taxonomy)
    predictions = _predictions(settings, truth, progress)
    judged = _judged(predictions)
    truth, left_out = truth.take(judged), _left_out(predictions)
    models = [_Model.of(prediction, truth, judged) for prediction in predictions]
    samples = _resampled(models, truth, settings.resampling, progress)
    return {
        "schema_version": SCHEMA_VERSION,
        "drumline_version": __version__,
        "data": _data(settings, truth, splits, left_out),
        "warnings": _warnings(models, truth, left_out),
        "models": [
            _report(model, truth, sample, settings.resampling)
            for model, sample in zip(models, samples, strict=True)
        ],
        "differences": _differences(models, samples, settings.resampling),
    }


def _chosen(rows: tuple[Row, ...], settings: EvaluationSettings) -> tuple[list[Row], list[str]]:
    there = sorted({row.split for row in rows if row.split is not None})
    wanted = list(settings.splits) or (["test"] if "test" in there else [])
    absent = sorted(set(wanted) - set(there))
    if absent:
        raise ConfigError(
            f"the manifest {str(settings.manifest)!r} has no rows on the side {', '.join(absent)}",
            f"It has: {', '.join(there) or 'no split'}. 'drumline dataset split' makes one.",
        )
    return [row for row in rows if not wanted or row.split in wanted], wanted or ["all"]


def _predictions(
    settings: EvaluationSettings, truth: _Truth, progress: PhaseProgress | None
) -> list[Predictions]:
    def on_rows(done: int, of: int) -> None:
        if progress:
            progress("classifying", done, of)

    bundles = [load_bundle(model) for model in settings.models]
    found = predictions_of_bundles(truth.rows, bundles, on_rows) if bundles else []
    found += [predictions_of_index(truth.rows, source) for source in settings.indexes]
    found += [
        predictions_of_held_out(truth.rows, read_held_out(truth.rows, path), truth.taxonomy)
        for path in settings.held_out
    ]
    return found


def _judged(predictions: list[Predictions]) -> NDArray[np.intp]:
    """Rows for which every model has a prediction: differences are paired."""
    whole = np.all([np.isfinite(each.probs).all(axis=1) for each in predictions], axis=0)
    if not whole.any():
        raise ConfigError("there is no recording for which every model has a prediction")
    return np.flatnonzero(whole)


def _left_out(predictions: list[Predictions]) -> list[dict[str, str]]:
    return [{"model": each.name, "why": why} for each in predictions for why in each.failed.values()]


@dataclass(frozen=True)
class _Model:
    """A model's predictions for the judged recordings, beside the truth."""

    name: str
    predictions: Predictions
    judged: NDArray[np.intp]
    outcomes: Outcomes
    before: Outcomes | None

    @classmethod
    def of(cls, predictions: Predictions, truth: _Truth, judged: NDArray[np.intp]) -> _Model:
        """Put predictions beside the truth."""
        collapse = collapse_of(predictions.taxonomy, truth.taxonomy)
        fine = truth.fine(predictions.taxonomy.fine)

        def outcomes(probs: NDArray[np.float64]) -> Outcomes:
            chosen = probs[judged]
            return Outcomes(chosen @ collapse, truth.canonical, chosen.argmax(axis=1) == fine, fine >= 0)

        plain = predictions.plain
        before = None if plain is None else outcomes(plain)
        return cls(predictions.name, predictions, judged, outcomes(predictions.probs), before)

    def statistic(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Compute what gets an interval, under each row of `weights`."""
        scores = scores_of(weighted_confusions(self.outcomes, weights))
        values = measure(self.outcomes, weights)
        if self.before is not None:
            values["ece_before"] = measure(self.before, weights)["ece"]
        return {**values, "precision": scores.precision, "recall": scores.recall, "f1": scores.f1}


_Sample = dict[str, NDArray[np.float64]]


def _resampled(
    models: list[_Model], truth: _Truth, resampling: Resampling, progress: PhaseProgress | None
) -> list[_Sample]:
    samples = []
    for done, model in enumerate(models):
        if progress:
            progress("resampling", done, len(models))
        samples.append(resampling.of(truth.families, model.statistic))
    return samples


def _data(
    settings: EvaluationSettings, truth: _Truth, splits: list[str], left_out: list[dict[str, str]]
) -> dict[str, Any]:
    labels = Counter(truth.taxonomy.canonical[index] for index in truth.canonical)
    return {
        "manifest": str(settings.manifest),
        "splits": splits,
        "recordings": len(truth.rows),
        "families": len(set(truth.families)),
        "sources": len({row.source for row in truth.rows}),
        "labels": {label: labels[label] for label in truth.taxonomy.canonical},
        "left_out": left_out,
        "resamples": settings.resampling.resamples,
        "seed": settings.resampling.seed,
        "level": settings.resampling.level,
    }


def _warnings(models: list[_Model], truth: _Truth, left_out: list[dict[str, str]]) -> list[dict[str, str]]:
    found = [warning for model in models for warning in _trained_on_warnings(model, truth)]
    families = len(set(truth.families))
    if families < _FEW_FAMILIES:
        found.append(
            _warning(f"Only {families} families: the intervals say little, and the figures not much more.")
        )
    if left_out:
        found.append(
            _warning(f"{len(left_out):,} predictions are missing; those recordings are in no figure.")
        )
    return found


def _warning(text: str, severity: str = "warning") -> dict[str, str]:
    return {"severity": severity, "text": text}


def _trained_on_warnings(model: _Model, truth: _Truth) -> list[dict[str, str]]:
    seen = _seen(model, truth)
    if seen is None:
        return [
            _warning(
                f"{model.name} does not say what it was trained on: its figures may be of recordings that it "
                "has learnt."
            )
        ]
    if not seen["recordings"]:
        return []
    text = (
        f"{model.name} was trained on {seen['families']:,} of the {len(set(truth.families)):,} families here "
        f"({seen['recordings']:,} of {len(truth.rows):,} recordings): its figures are of what it has learnt, "
        "and say nothing of kits that it has not heard."
    )
    return [_warning(text, "invalid")]


def _seen(model: _Model, truth: _Truth) -> dict[str, int] | None:
    """Count recordings and families that were part of the model's training; None where it does not say."""
    trained_on = model.predictions.trained_on
    if trained_on is None:
        return None
    rows = [row for row in truth.rows if trained_on.holds(row)]
    return {"recordings": len(rows), "families": len({row.family for row in rows})}


def _report(model: _Model, truth: _Truth, sample: _Sample, resampling: Resampling) -> dict[str, Any]:
    level, names = resampling.level, truth.taxonomy.canonical
    confusion = weighted_confusions(model.outcomes, np.ones((1, len(truth.rows))))[0]
    before = model.before
    return {
        "name": model.name,
        **model.predictions.about,
        "seen_in_training": _seen(model, truth),
        "figures": _figures(model, sample, level),
        "classes": _classes(confusion, sample, names, level),
        "confusion": {"labels": list(names), "counts": confusion.astype(int).tolist()},
        "confused": confused_labels(model.outcomes, truth.rows, names),
        "reliability": {
            "before": None if before is None else _plain(reliability(before)),
            "after": _plain(reliability(model.outcomes)),
        },
        "risk_coverage": _thinned(risk_coverage(model.outcomes)),
        "roc": _thinned(roc_curve(model.outcomes)),
        "sources": by_group(model.outcomes, [row.source for row in truth.rows], truth.families, resampling),
        "families": by_group(model.outcomes, truth.families, truth.families),
        "thresholds": _thresholds(model, names),
    }


def _figures(model: _Model, sample: _Sample, level: float) -> dict[str, Any]:
    values = {name: float(value[0]) for name, value in measure(model.outcomes).items()}
    if model.before is not None:
        values["ece_before"] = float(measure(model.before)["ece"][0])
    return {
        name: {"value": rounded(value), "interval": interval(sample[name], level)}
        for name, value in values.items()
    }


def _classes(
    confusion: NDArray[np.float64], sample: _Sample, names: Sequence[str], level: float
) -> dict[str, Any]:
    scores = scores_of(confusion)
    parts = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    bounds = {part: interval(sample[part], level) for part in parts}
    return {
        name: {
            **{part: rounded(values[place]) for part, values in parts.items()},
            **{f"{part}_interval": bounds[part][place] for part in parts},
            "support": int(scores.support[place]),
        }
        for place, name in enumerate(names)
    }


def _plain(curve: dict[str, NDArray[np.float64]]) -> dict[str, list[float | None]]:
    return {name: [rounded(value) for value in values] for name, values in curve.items()}


def _thinned(curve: dict[str, NDArray[np.float64]]) -> dict[str, list[float | None]]:
    """Keep some hundred points of a curve, both ends among them."""
    length = len(next(iter(curve.values())))
    kept = np.unique(np.linspace(0, length - 1, min(length, _POINTS)).astype(int))
    return _plain({name: values[kept] for name, values in curve.items()})


def _thresholds(model: _Model, names: Sequence[str]) -> list[dict[str, Any]]:
    """Say what the usual threshold and each operating point would do."""
    predictions = model.predictions
    plain = DecisionSettings(predictions.taxonomy.canonical_of, misc=predictions.taxonomy.misc)
    asked = {"0": replace(plain, threshold=0.0), "0.5": plain}
    if predictions.gate_threshold is not None:
        asked["0.5 and the gate"] = replace(plain, gate_threshold=predictions.gate_threshold)
    for name, point in predictions.points.items():
        asked[name] = replace(plain, threshold=0.0, thresholds=point)
    if predictions.decided is not None:
        asked["as the run decided"] = predictions.decided
    gate = None if predictions.gate is None else predictions.gate[model.judged]
    believed = {
        name: believed_at(model.outcomes, names, decisions, gate) for name, decisions in asked.items()
    }
    return [{"threshold": name, **effect_of(model.outcomes, names, kept)} for name, kept in believed.items()]


def _differences(
    models: list[_Model], samples: list[_Sample], resampling: Resampling
) -> list[dict[str, Any]]:
    """Measure every later model against the first, on the same resamples."""
    figures = [measure(model.outcomes) for model in models]
    names = list(Metrics.__dataclass_fields__)
    return [
        {
            "model": model.name,
            "minus": models[0].name,
            "figures": {
                name: {
                    "value": rounded(values[name][0] - figures[0][name][0]),
                    "interval": interval(sample[name] - samples[0][name], resampling.level),
                }
                for name in names
            },
        }
        for model, values, sample in list(zip(models, figures, samples, strict=True))[1:]
    ]
