"""A gate for a bundle that was trained on all recordings there are: fitted on its cross-validation.

Head and threshold are those of all held-out logits together. What they do is measured fold by fold, each with
a head and a threshold from the other folds, so on families that neither the network nor the gate has heard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle, load_bundle
from drumline.durable import new_directory, write_json
from drumline.errors import ConfigError
from drumline_convert.gates import (
    check_gateless,
    contamination,
    fit_head,
    gated_graph,
    passing_threshold,
    write_gated,
)
from drumline_convert.labelled import Said, Truth, rows_of, truth_of
from drumline_convert.predictions import HeldOut, read_held_out

__all__ = ["make_held_out_gate"]


def make_held_out_gate(
    name: str | Path, out: Path, manifest: Path, held_out: Path, recall: float = 0.98
) -> dict[str, Any]:
    """Write a bundle with a head as its gate, fitted on held-out logits.

    Parameters
    ----------
    name
        Bundle that gets the gate.
    manifest
        Labelled recordings.
    held_out
        What the bundle's cross-validation left, ``held_out.npz``.
    recall
        Share of the kit drums that shall pass.

    Returns
    -------
    dict
        As of `drumline_convert.gates.make_gate`.

    Raises
    ------
    BundleError
        When the bundle names members or has a gate.
    ConfigError
        When the logits are of other labels or of one fold alone, or those of all folds but one are of one
        kind of sound.
    """
    bundle = load_bundle(name)
    check_gateless(bundle, None)
    rows = rows_of(manifest)
    held = read_held_out(rows, held_out)
    _check(held, bundle, held_out)
    truth = truth_of([rows[place] for place in held.places.tolist()], bundle.taxonomy)
    _refuse_a_fold_with_all_of_a_kind(held, truth, held_out)
    gate, limits = _by_other_folds(held, truth, recall)
    said = Said(held.logits, np.asarray(bundle.calibrator(held.logits), np.float32), None)
    head = fit_head(held.logits, truth.is_drum)
    threshold = passing_threshold(head(held.logits), truth.is_drum, recall)
    what = {"held_out": held_out.name, "recordings": len(held.places)}
    report = {
        "kind": "head",
        "threshold": threshold,
        "recall": recall,
        "fitted_on": what,
        "measured_on": {**what, "folds": len(set(held.folds.tolist()))},
        "measured": contamination(said, gate, truth, limits).to_json(),
    }
    with new_directory(out) as draft:
        write_gated(bundle, gated_graph(bundle, head, None), threshold, draft, out.name)
        write_json(draft / "gate.json", report)
    return report


def _check(held: HeldOut, bundle: Bundle, path: Path) -> None:
    if held.labels != bundle.labels:
        raise ConfigError(
            f"{str(path)!r} holds logits of other labels than {bundle.name} has",
            "Give the cross-validation of this model.",
        )
    if len(set(held.folds.tolist())) < 2:
        raise ConfigError(
            f"{str(path)!r} holds one fold only: nothing is left to measure on",
            "Cross-validate with at least two folds.",
        )


def _refuse_a_fold_with_all_of_a_kind(held: HeldOut, truth: Truth, path: Path) -> None:
    for fold in sorted(set(held.folds.tolist())):
        others = truth.is_drum[held.folds != fold]
        drums, rest = int(others.sum()), int((~others).sum())
        if not drums or not rest:
            raise ConfigError(
                f"without fold {fold}, {str(path)!r} has {drums:,} kit drums and {rest:,} other sounds: "
                "no gate can be fitted for that fold",
                "Cross-validate with other folds, so that each leaves both kinds, or add recordings.",
            )


def _by_other_folds(
    held: HeldOut, truth: Truth, recall: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the gate says of each recording and the threshold there, (n,), from the other folds."""
    gate = np.empty(len(held.folds))
    limits = np.empty(len(held.folds))
    for fold in set(held.folds.tolist()):
        inside = held.folds == fold
        drums = truth.is_drum[~inside]
        head = fit_head(held.logits[~inside], drums)
        gate[inside] = head(held.logits[inside])
        limits[inside] = passing_threshold(head(held.logits[~inside]), drums, recall)
    return gate, limits
