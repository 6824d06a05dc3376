"""From bundles and labelled recordings to an ensemble: weights, temperature, bundle, report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drumline.bundle import Bundle, load_bundle
from drumline.calibration import softmax
from drumline.ensemble import Mean, MeanKind
from drumline.errors import UsageError
from drumline_convert.calibration import calibration_json
from drumline_convert.ensembles import check_members, fit_weights, measured, write_ensemble
from drumline_convert.labelled import Said, Truth, read_rows, rows_of, said_of, truth_of
from drumline_convert.manifest import Row
from drumline_convert.provenance import refuse_what_was_learnt

__all__ = ["combine"]


def combine(
    names: Sequence[str | Path],
    out: Path,
    mean: MeanKind = "geometric",
    weights: Sequence[str | float] | None = None,
    manifest: Path | None = None,
    splits: Sequence[str] = ("validation",),
    version: str = "0.1.0",
) -> dict[str, Any]:
    """Make an ensemble; see ``drumline ensemble``.

    Parameters
    ----------
    weights
        One for each member, divided by their sum; None: fitted on the manifest, or all equal without one.
    manifest, splits
        Recordings that no member was trained on; None: nothing is fitted.

    Returns
    -------
    dict
        ``members`` (name, weight, figures on the manifest), ``merged``, ``mean``, ``temperature`` and the
        ensemble's own figures.

    Raises
    ------
    BundleError
        When the bundles do not fit together.
    ConfigError
        When the manifest has no such rows, or a member was trained on some of them.
    UsageError
        When the weights are not one number for each bundle.
    """
    bundles = [load_bundle(name) for name in names]
    check_members(bundles)
    given = None if weights is None else _parsed(weights, len(bundles))
    if manifest is None:
        chosen = Mean(mean, given or _shares([1.0] * len(bundles)))
        merged = write_ensemble(bundles, chosen, out, version)
        return _report(bundles, chosen, merged, [{} for _ in bundles])
    rows = rows_of(manifest, *splits)
    for bundle in bundles:
        refuse_what_was_learnt(bundle, rows, "Give recordings of families that no member has learnt.")
    truth = truth_of(rows, bundles[0].taxonomy)
    said = _said(bundles, rows)
    probabilities = [one.probabilities for one in said]
    chosen = Mean(mean, given or fit_weights(probabilities, truth, mean))
    logits = chosen.logits(probabilities)
    calibration = calibration_json(
        logits, truth.canonical, truth.collapse, _fitted_on(manifest, splits, rows)
    )
    own = measured(softmax(logits, calibration["temperature"]), truth)
    figures = [measured(one, truth) for one in probabilities]
    merged = write_ensemble(
        bundles, chosen, out, version, calibration, _table(bundles, figures, own, rows, truth)
    )
    return _report(bundles, chosen, merged, figures) | own | {"temperature": calibration["temperature"]}


def _parsed(weights: Sequence[str | float], count: int) -> tuple[float, ...]:
    try:
        numbers = [float(weight) for weight in weights]
    except ValueError as error:
        raise UsageError(f"weights are numbers: {error}") from error
    if len(numbers) != count or not min(numbers) >= 0 or not 0 < sum(numbers) < math.inf:
        raise UsageError(
            f"{count} bundles need {count} weights of 0 or more, not {', '.join(map(str, weights))}"
        )
    return _shares(numbers)


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)


def _said(bundles: Sequence[Bundle], rows: Sequence[Row]) -> list[Said]:
    read = {front_end: read_rows(rows, [front_end]) for front_end in {b.front_end for b in bundles}}
    return [said_of(bundle, read[bundle.front_end]) for bundle in bundles]


def _fitted_on(manifest: Path, splits: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "what": "logits of the mean; the likelihood is that of the canonical label",
        "manifest": manifest.name,
        "splits": list(splits),
        "recordings": len(rows),
        "families": len({row.family for row in rows}),
    }


def _table(
    bundles: Sequence[Bundle],
    figures: Sequence[dict[str, float]],
    own: dict[str, float],
    rows: Sequence[Row],
    truth: Truth,
) -> str:
    lines = [
        f"| {name} | {values['accuracy']:.4f} | {values['nll']:.4f} |"
        for name, values in [*((b.name, f) for b, f in zip(bundles, figures, strict=True)), ("ensemble", own)]
    ]
    return (
        f"On the {len(rows)} recordings that weights and temperature were fitted on, so these are no "
        f"held-out figures; {truth.collapse.shape[1]} canonical labels:\n\n"
        "| model | accuracy | negative log-likelihood |\n|---|---|---|\n" + "\n".join(lines) + "\n\n"
    )


def _report(
    bundles: Sequence[Bundle], mean: Mean, merged: bool, figures: Sequence[dict[str, float]]
) -> dict[str, Any]:
    listed = zip(bundles, mean.weights, figures, strict=True)
    members = [{"name": bundle.name, "weight": weight, **values} for bundle, weight, values in listed]
    return {"mean": mean.kind, "merged": merged, "members": members}
