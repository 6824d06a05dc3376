"""Calibrates a bundle: on families that it was not trained on, with operating points, and a way back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle, load_bundle
from drumline.calibration import Calibrator, read_calibrator
from drumline.durable import output_errors, sync_directory, write_bytes, write_json
from drumline.errors import ConfigError, UsageError
from drumline.thresholds import operating_point_name
from drumline_convert.calibration import (
    METHODS,
    Method,
    calibration_figures,
    calibration_json,
    cross_fitted,
    fit_calibrator,
)
from drumline_convert.card import with_calibration
from drumline_convert.corpus import Recording, open_manifest, recordings_of
from drumline_convert.metrics import Outcomes, softmax
from drumline_convert.operating import held_out_effect, operating_point
from drumline_convert.predictions import collapse_of, read_held_out, refuse_leaks, run_bundles
from drumline_convert.progress import Progress
from drumline_convert.provenance import refuse_what_was_learnt, training_set_of
from drumline_convert.split import family_folds, family_groups
from drumline_convert.taxonomy import DEFAULT_TAXONOMY, TrainingTaxonomy, read_taxonomy

__all__ = [
    "PRECISIONS",
    "CalibrationSettings",
    "HeldOutLogits",
    "calibrate",
    "full_calibration",
    "undo_calibration",
    "write_calibration",
]

PRECISIONS = (0.9, 0.95, 0.99)
"""Operating points that a calibration fits when nothing else is wanted."""

_PREVIOUS = "calibration.previous.json"
_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What is calibrated on what.

    Parameters
    ----------
    model
        Bundle, by directory or by name.
    manifest
        Manifest of the recordings.
    method
        See `drumline_convert.calibration.fit_calibrator`.
    precisions
        Operating points, 0..1 each.
    splits
        Sides of the manifest's split that are used.
    held_out
        File of held-out logits of a cross-validation, in place of running the model: for a model that was
        trained on all recordings.
    taxonomy
        Taxonomy file.
    """

    model: Path
    manifest: Path
    method: Method = "temperature"
    precisions: tuple[float, ...] = PRECISIONS
    splits: tuple[str, ...] = ("validation",)
    held_out: Path | None = None
    taxonomy: Path = DEFAULT_TAXONOMY

    def __post_init__(self) -> None:
        wrong = [value for value in self.precisions if not 0 < value <= 1]
        if wrong:
            raise UsageError(f"the precision {wrong[0]} is not between 0 and 1")


@dataclass(frozen=True)
class HeldOutLogits:
    """Logits of recordings that the networks never saw.

    Parameters
    ----------
    logits
        (n, labels).
    recordings
        What they are of, n.
    collapse
        (labels, canonical) of 0 and 1.
    names
        Canonical labels, misc last.
    folds
        Fold by family of each recording, (n,), for what is said of families that were not fitted on; None
        where there is one family only.
    """

    logits: NDArray[np.float32]
    recordings: Sequence[Recording]
    collapse: NDArray[np.float32]
    names: Sequence[str]
    folds: Sequence[int] | None

    @property
    def canonical(self) -> NDArray[np.intp]:
        """True canonical label of each recording, (n,)."""
        return np.array([recording.canonical for recording in self.recordings], np.intp)

    def outcomes(self, calibrator: Calibrator) -> Outcomes:
        """Return the calibrated outcomes."""
        return self._outcomes(calibrator(self.logits).astype(np.float64))

    def cross_fitted(self, method: Method) -> Outcomes | None:
        """Return outcomes of each fold, calibrated by what was fitted on the others; None without folds."""
        if self.folds is None:
            return None

        def fit(chosen: NDArray[np.intp]) -> Calibrator:
            return fit_calibrator(method, self.logits[chosen], self.canonical[chosen], self.collapse)

        return self._outcomes(cross_fitted(fit, self.logits, self.folds))

    def _outcomes(self, probs: NDArray[np.float64]) -> Outcomes:
        fine = np.array([recording.fine for recording in self.recordings], np.intp)
        right = probs.argmax(axis=1) == fine
        return Outcomes(probs @ self.collapse, self.canonical, right, np.ones(len(fine), bool))


def calibrate(settings: CalibrationSettings, progress: Progress | None = None) -> dict[str, Any]:
    """Fit a bundle's calibration and operating points; writes nothing.

    Returns
    -------
    dict
        The content of ``calibration.json``, for `write_calibration`.

    Raises
    ------
    ConfigError
        When the manifest is wrong, has nobody on the wanted side, or the model was trained on who is.
    BundleError
        When the bundle cannot be used.
    """
    bundle = load_bundle(settings.model)
    taxonomy = read_taxonomy(settings.taxonomy)
    manifest = open_manifest(settings.manifest, taxonomy)
    where = f"manifest {str(settings.manifest)!r}"
    refuse_leaks(manifest.rows, [row.split for row in manifest], where)
    if settings.held_out is not None:
        held = _of_cross_validation(bundle, recordings_of(manifest, taxonomy), settings.held_out, taxonomy)
        what = f"held-out logits of a cross-validation, {len(set(held.folds or ()))} folds by family"
    else:
        rows = recordings_of(manifest.side(*settings.splits), taxonomy)
        _refuse_what_was_learnt(bundle, rows, settings)
        held = _of_model(bundle, rows, taxonomy, progress)
        unknown = training_set_of(bundle) is None
        known = "the model does not say what it was trained on" if unknown else "the model never heard them"
        what = f"recordings of the side {', '.join(settings.splits)}; {known}"
    made = full_calibration(held, {"what": what}, settings.method, settings.precisions)
    earlier = bundle.calibration_version
    return {**made, "version": earlier + 1 if isinstance(earlier, int) else made["version"]}


def _refuse_what_was_learnt(bundle: Bundle, rows: Sequence[Recording], settings: CalibrationSettings) -> None:
    if not rows:
        raise ConfigError(
            f"the manifest {str(settings.manifest)!r} has no rows on the side {', '.join(settings.splits)}",
            "'drumline dataset split' makes one; --split names another; --held-out takes a cross-validation.",
        )
    refuse_what_was_learnt(
        bundle,
        rows,
        "Give recordings of other families, or the logits of its cross-validation: --held-out FILE.",
    )


def _of_model(
    bundle: Bundle,
    rows: Sequence[Recording],
    taxonomy: TrainingTaxonomy,
    progress: Progress | None,
) -> HeldOutLogits:
    (given,), failed = run_bundles(rows, [bundle], progress)
    read = [place for place in range(len(rows)) if place not in failed]
    recordings = [rows[place] for place in read]
    folds = None
    if (groups := len(set(family_groups(recordings).tolist()))) > 1:
        folds = family_folds(recordings, min(groups, _FOLDS)).tolist()
    collapse = collapse_of(bundle.taxonomy, taxonomy)
    return HeldOutLogits(given.logits[read], recordings, collapse, taxonomy.canonical, folds)


def _of_cross_validation(
    bundle: Bundle, rows: Sequence[Recording], path: Path, taxonomy: TrainingTaxonomy
) -> HeldOutLogits:
    held = read_held_out(rows, path)
    if held.labels != bundle.labels:
        raise ConfigError(
            f"{str(path)!r} holds logits of other labels than {bundle.name} has",
            "Give the cross-validation of this model.",
        )
    recordings = [rows[place] for place in held.places.tolist()]
    collapse = collapse_of(bundle.taxonomy, taxonomy)
    return HeldOutLogits(held.logits, recordings, collapse, taxonomy.canonical, held.folds.tolist())


def full_calibration(
    held: HeldOutLogits,
    fitted_on: dict[str, Any],
    method: Method = "temperature",
    precisions: Sequence[float] = PRECISIONS,
) -> dict[str, Any]:
    """Fit calibration and operating points, and say how they do on families that they were not fitted on.

    Parameters
    ----------
    held
        Logits of recordings that the networks never saw.
    fitted_on
        What those are, for people; how many recordings and families is added.
    method, precisions
        As in `CalibrationSettings`.

    Returns
    -------
    dict
        The content of ``calibration.json``: what `drumline_convert.calibration.calibration_json` returns and
        ``changed`` (recordings whose canonical label is another one after calibration), ``cross_fitted``
        (ECE and likelihood of every method, each fold by the others) and ``operating_points``.
    """
    families = {recording.family for recording in held.recordings}
    about = {**fitted_on, "recordings": len(held.recordings), "families": len(families)}
    value = calibration_json(held.logits, held.canonical, held.collapse, about, method)
    outcomes = held.outcomes(read_calibrator(value, held.logits.shape[1]))
    before = (softmax(held.logits) @ held.collapse).argmax(axis=1)
    return {
        **value,
        "changed": int((before != outcomes.decided).sum()),
        "cross_fitted": _compared(held),
        "operating_points": _operating_points(held, outcomes, held.cross_fitted(method), precisions),
    }


def _operating_points(
    held: HeldOutLogits, outcomes: Outcomes, checked: Outcomes | None, precisions: Sequence[float]
) -> dict[str, Any]:
    points = {}
    for precision in precisions:
        point = operating_point(outcomes, held.names, precision)
        point["held_out"] = None
        if checked is not None and held.folds is not None:
            point["held_out"] = held_out_effect(checked, held.names, precision, held.folds)
        points[operating_point_name(precision)] = point
    return points


def _compared(held: HeldOutLogits) -> dict[str, Any] | None:
    found = {method: held.cross_fitted(method) for method in METHODS}
    return {
        method: calibration_figures(outcomes.probs, held.canonical)
        for method, outcomes in found.items()
        if outcomes is not None
    } or None


def write_calibration(bundle: Path, calibration: dict[str, Any]) -> None:
    """Put a calibration into a bundle and its card; what was there before can be had back.

    Raises
    ------
    OutputError
        When the bundle cannot be written.
    """
    path = bundle / "calibration.json"
    if path.is_file():
        with output_errors(path):
            write_bytes(bundle / _PREVIOUS, path.read_bytes())
    write_json(path, calibration)
    _renew_card(bundle, calibration)


def undo_calibration(model: Path) -> dict[str, Any]:
    """Put the calibration back that the last `write_calibration` replaced, and return it.

    Raises
    ------
    UsageError
        When none was replaced.
    """
    bundle = load_bundle(model)
    path = bundle.path / _PREVIOUS
    if not path.is_file():
        raise UsageError(f"{bundle.name} holds no earlier calibration", "There is nothing to undo.")
    with output_errors(path):
        os.replace(path, bundle.path / "calibration.json")
        sync_directory(bundle.path)
    restored = load_bundle(bundle.path).calibration
    _renew_card(bundle.path, restored)
    return restored


def _renew_card(bundle: Path, calibration: dict[str, Any]) -> None:
    card = bundle / "MODEL_CARD.md"
    if card.is_file():
        with output_errors(card):
            write_bytes(card, with_calibration(card.read_text("utf-8"), calibration).encode())
