"""Predictions for the recordings of a manifest: by bundles, from an index, or from held-out logits.

Bundles are run by the engine's own decoder, features and session. An index holds what the engine said when
it was run, so that what is measured is what ships. Held-out logits are those of a cross-validation: each
recording by the network that did not see its family.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.audio import AudioError, Decoder, Waveform
from drumline.bundle import Bundle, load_bundle
from drumline.calibration import Calibrator
from drumline.decide import DecisionSettings
from drumline.durable import write_bytes
from drumline.errors import BundleError, ConfigError
from drumline.index import read_index
from drumline.inference import Session, open_session
from drumline.labels import Taxonomy
from drumline.machine import usable_cpus
from drumline.rows import RowReader
from drumline.runs import Run, open_run
from drumline.thresholds import OperatingPoints
from drumline_convert.calibration import cross_fitted, fit_calibrator
from drumline_convert.content import MANIFEST_HASH
from drumline_convert.corpus import Recording
from drumline_convert.manifest import Row
from drumline_convert.metrics import softmax
from drumline_convert.progress import Progress
from drumline_convert.provenance import TrainingSet, training_set_of
from drumline_convert.split import leaks
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = [
    "BundleOutputs",
    "HeldOut",
    "Predictions",
    "collapse_of",
    "predictions_of_bundles",
    "predictions_of_held_out",
    "predictions_of_index",
    "read_held_out",
    "refuse_leaks",
    "run_bundles",
    "save_held_out",
]


_BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """What one model says of the rows of a manifest.

    Parameters
    ----------
    name
        Of the model; unique in a report.
    about
        What it is, for people and for the JSON: kind, version, fingerprint, calibration …
    taxonomy
        Fine labels in the order of the columns, and what they collapse to.
    probs
        Calibrated fine probabilities, (n, fine); rows of what failed are NaN.
    plain
        The same before calibration; None where that is not known.
    failed
        Row → why there is no prediction.
    trained_on
        Families and content that it has seen; None where it does not say.
    points
        Operating points.
    gate, gate_threshold
        What the model's gate says of each recording, (n,), and what passes; None where there is none.
    decided
        What made the decisions of an index; None for models.
    """

    name: str
    about: dict[str, Any]
    taxonomy: Taxonomy
    probs: NDArray[np.float64]
    plain: NDArray[np.float64] | None
    failed: dict[int, str]
    trained_on: TrainingSet | None = None
    points: OperatingPoints = field(default_factory=dict)
    gate: NDArray[np.float64] | None = None
    gate_threshold: float | None = None
    decided: DecisionSettings | None = None


@dataclass(frozen=True)
class BundleOutputs:
    """What a bundle's model gives for n recordings; NaN for those that cannot be read.

    Parameters
    ----------
    logits
        (n, labels), before calibration.
    gate
        Probability of being a kit drum, (n,); None of a model without a gate.
    """

    logits: NDArray[np.float32]
    gate: NDArray[np.float64] | None

    @classmethod
    def empty(cls, bundle: Bundle, recordings: int) -> BundleOutputs:
        """Make room for the outputs of a bundle."""
        gate = None if bundle.gate is None else np.full(recordings, np.nan)
        return cls(np.full((recordings, len(bundle.labels)), np.nan, np.float32), gate)

    def fill(self, places: list[int], session: Session, features: NDArray[np.float32]) -> None:
        """Run the model for the recordings at `places`."""
        self.logits[places] = session.logits(features)
        if self.gate is not None:
            self.gate[places] = session.predict(features).gate


def predictions_of_bundles(
    rows: Sequence[Row], bundles: Sequence[Bundle], progress: Progress | None = None
) -> list[Predictions]:
    """Run bundles over the recordings; a recording that cannot be read has no prediction.

    Raises
    ------
    DrumlineError
        When a bundle cannot be opened, or no recording can be read.
    """
    outputs, failed = run_bundles(rows, bundles, progress)
    return [_of_bundle(bundle, given, failed) for bundle, given in zip(bundles, outputs, strict=True)]


def run_bundles(
    rows: Sequence[Row], bundles: Sequence[Bundle], progress: Progress | None = None
) -> tuple[list[BundleOutputs], dict[int, str]]:
    """Return the outputs of each bundle, and row → why it could not be read.

    Front ends that bundles share are computed once. Raises as `predictions_of_bundles`.
    """
    sessions = [open_session(bundle, "cpu", usable_cpus()) for bundle in bundles]
    readers = {bundle.front_ends: RowReader(bundle.front_ends) for bundle in bundles}
    outputs = [BundleOutputs.empty(bundle, len(rows)) for bundle in bundles]
    failed: dict[int, str] = {}
    for start in range(0, len(rows), _BATCH):
        places = range(start, min(start + _BATCH, len(rows)))
        batches = {wanted: _read(rows, places, reader) for wanted, reader in readers.items()}
        for bundle, session, given in zip(bundles, sessions, outputs, strict=True):
            features, read, errors = batches[bundle.front_ends]
            given.fill(read, session, features)
            failed.update(errors)
        if progress:
            progress(places.stop, len(rows))
    if len(failed) == len(rows):
        raise ConfigError(
            f"none of the {len(rows):,} recordings of the manifest can be read; the first: {failed[0]}",
            "Paths are relative to the manifest: is it where its recordings are?",
        )
    return outputs, failed


def _read(
    rows: Sequence[Row], places: Sequence[int], reader: RowReader
) -> tuple[NDArray[np.float32], list[int], dict[int, str]]:
    """Return the features of what can be read, which rows those are, and why the others cannot."""
    found: list[NDArray[np.float32]] = []
    read: list[int] = []
    errors: dict[int, str] = {}
    for place in places:
        path = rows[place].path
        try:
            found.append(reader.row(partial(_decoded, os.fsencode(path))))
            read.append(place)
        except AudioError as error:
            errors[place] = f"{path}: {error.message}"
        except OSError as error:
            errors[place] = f"{path}: {error.strerror or error}"
    return np.reshape(found, (len(found), *reader.shape)).astype(np.float32), read, errors


def _decoded(path: bytes, decoder: Decoder) -> Waveform:
    return decoder.decode_path(path)


def _of_bundle(bundle: Bundle, given: BundleOutputs, failed: dict[int, str]) -> Predictions:
    about = {
        "kind": "bundle",
        "version": bundle.version,
        "description": bundle.description,
        "fingerprint": bundle.fingerprint,
        "calibration": bundle.calibrator.parameters()["method"],
        "keeps_ranking": bundle.calibrator.keeps_ranking,
    }
    return Predictions(
        name=bundle.name,
        about=about,
        taxonomy=bundle.taxonomy,
        probs=bundle.calibrator(given.logits).astype(np.float64),
        plain=softmax(given.logits),
        failed=failed,
        trained_on=training_set_of(bundle),
        points=bundle.operating_points,
        gate=given.gate,
        gate_threshold=bundle.gate.threshold if bundle.gate else None,
    )


def predictions_of_index(rows: Sequence[Row], source: Path) -> Predictions:
    """Take the predictions of a finished run, by content hash.

    Raises
    ------
    IndexFormatError
        When there is no run or index, or it cannot be understood.
    ConfigError
        When it holds another kind of hash than the manifest, or none of its recordings.
    """
    run = open_run(source)
    taxonomy, facts = _taxonomy_of_run(run)
    model = facts.pop("name", "index")
    column = {label: place for place, label in enumerate(taxonomy.fine)}
    place_of: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        place_of.setdefault(row.hash, []).append(place)
    probs, gate = np.full((len(rows), len(column)), np.nan), np.full(len(rows), np.nan)
    failed = {place: f"{row.path}: not in the index" for place, row in enumerate(rows)}
    for record in read_index(run.index_path):
        for place in place_of.get(record["hash"] or "", ()):
            if (error := record["errors"]) is not None:
                failed[place] = f"{rows[place].path}: {error['message']}"
            elif failed.pop(place, None) is not None:
                probs[place] = _dense(record["probs"] or {}, column)
                gate[place] = np.nan if (said := record.get("gate")) is None else said
    if len(failed) == len(rows):
        raise _nothing_in_common(run)
    return Predictions(
        name=f"{model} as in {run.name}",
        about={**facts, "kind": "index", "run": run.name},
        taxonomy=taxonomy,
        probs=probs,
        plain=None,
        failed=failed,
        trained_on=_training_set_of_run(facts),
        points=run.operating_points(),
        gate=gate if np.isfinite(gate).any() else None,
        decided=run.decision_settings(),
    )


def _nothing_in_common(run: Run) -> ConfigError:
    algorithm = run.info.get("settings", {}).get("hash_algorithm", MANIFEST_HASH)
    if algorithm != MANIFEST_HASH:
        return ConfigError(
            f"{run.name} was made with {algorithm} hashes, and manifests hold {MANIFEST_HASH}",
            f"Classify the archive with --hash-algorithm {MANIFEST_HASH}.",
        )
    return ConfigError(
        f"{run.name} holds a prediction for none of the manifest's recordings",
        "Classify the directory that holds them: drumline infer DIR.",
    )


def _taxonomy_of_run(run: Run) -> tuple[Taxonomy, dict[str, Any]]:
    if not run.info:
        return load_bundle().taxonomy, {}
    model, misc = run.info["model"], run.misc_label()
    facts = {key: model.get(key) for key in ("name", "version", "path", "fingerprint")}
    return Taxonomy(tuple(model["labels"]), run.info["canonical_map"], misc), facts


def _training_set_of_run(facts: dict[str, Any]) -> TrainingSet | None:
    """Return what the run's bundle was trained on, where that bundle is still the same."""
    try:
        bundle = load_bundle(facts["path"])
    except (BundleError, KeyError, TypeError):
        return None
    return training_set_of(bundle) if bundle.fingerprint == facts["fingerprint"] else None


def _dense(probs: dict[str, float], column: dict[str, int]) -> NDArray[np.float64]:
    row = np.zeros(len(column))
    for label, value in probs.items():
        row[column[label]] = value
    return row


def refuse_leaks(rows: Sequence[Row], sides: Sequence[Hashable | None], where: str) -> None:
    """Raise `ConfigError` when a family or a content of `rows` is on two sides.

    Parameters
    ----------
    rows, sides
        Rows, and the fold or the side of a split of each; None is on no side.
    where
        What is split, for the message.
    """
    if found := leaks(rows, sides):
        raise ConfigError(
            f"{where} leaks: {found[0]} ({len(found)} such)",
            "Figures of it would flatter. 'drumline dataset split' makes a split by family and content.",
        )


def save_held_out(
    path: Path, name: str, labels: Sequence[str], hashes: Sequence[str], folds: Any, logits: Any
) -> None:
    """Write the held-out logits of a cross-validation for `predictions_of_held_out`.

    Parameters
    ----------
    path
        File ``….npz``.
    name
        What the model is called in the report.
    labels
        Fine labels, in the order of the columns.
    hashes, folds, logits
        Content hash (XXH3-64, hexadecimal), fold and logits of each recording: (n,), (n,), (n, labels).

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        name=np.array(name),
        labels=np.array(labels),
        hashes=np.array(hashes),
        folds=np.asarray(folds, np.int16),
        logits=np.asarray(logits, np.float32),
    )
    write_bytes(path, stream.getvalue())


@dataclass(frozen=True)
class HeldOut:
    """Held-out logits of those rows of a manifest that a cross-validation had.

    Parameters
    ----------
    name, labels
        Of the model, and its fine labels in the order of the columns.
    places
        Which rows of the manifest those are, (m,).
    folds, logits
        Fold and logits of each, (m,) and (m, labels).
    """

    name: str
    labels: tuple[str, ...]
    places: NDArray[np.intp]
    folds: NDArray[np.intp]
    logits: NDArray[np.float32]


def read_held_out(rows: Sequence[Row], path: Path) -> HeldOut:
    """Read what `save_held_out` wrote, for the rows of a manifest.

    Raises
    ------
    ConfigError
        When the file cannot be read, has nothing in common with the manifest, or a family or a content hash
        is in two folds.
    """
    stored = _stored_held_out(path)
    place_of = {str(digest): place for place, digest in enumerate(stored["hashes"])}
    source = np.array([place_of.get(row.hash, -1) for row in rows], np.intp)
    known = np.flatnonzero(source >= 0)
    if not len(known):
        raise ConfigError(f"{str(path)!r} holds logits for none of the manifest's recordings")
    folds = stored["folds"][source[known]].astype(np.intp)
    refuse_leaks([rows[place] for place in known.tolist()], folds.tolist(), repr(str(path)))
    labels = tuple(map(str, stored["labels"]))
    return HeldOut(str(stored["name"]), labels, known, folds, stored["logits"][source[known]])


def _stored_held_out(path: Path) -> dict[str, Any]:
    try:
        # NumPy would take anything that is no .npz for a pickle, and advise to allow that.
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no .npz file" if path.is_file() else "there is no such file")
        with np.load(path, allow_pickle=False) as stored:
            held = {name: stored[name] for name in ("name", "labels", "hashes", "folds", "logits")}
        if held["logits"].shape != (len(held["hashes"]), len(held["labels"])):
            raise ValueError("logits are not one row for each hash")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"cannot read held-out logits from {str(path)!r}: {error}",
            "'drumline train crossval' writes them.",
        ) from error
    return held


def predictions_of_held_out(
    rows: Sequence[Recording], held: HeldOut, taxonomy: TrainingTaxonomy
) -> Predictions:
    """Take held-out logits of these rows; each fold is calibrated by a temperature from the other folds.

    Raises
    ------
    ConfigError
        When the model decides between other canonical labels than the taxonomy.
    """
    labels = Taxonomy(held.labels, taxonomy.labels.canonical_of, taxonomy.labels.misc)
    plain = np.full((len(rows), len(held.labels)), np.nan)
    probs = plain.copy()
    plain[held.places] = softmax(held.logits)
    probs[held.places] = _calibrated_by_other_folds(held, rows, collapse_of(labels, taxonomy))
    missing = sorted(set(range(len(rows))) - set(held.places.tolist()))
    return Predictions(
        name=held.name,
        about={"kind": "held-out", "folds": len(set(held.folds.tolist())), "calibration": "temperature"},
        taxonomy=labels,
        probs=probs,
        plain=plain,
        failed={place: f"{rows[place].path}: not among the held-out logits" for place in missing},
        trained_on=TrainingSet(frozenset(), frozenset()),
    )


def _calibrated_by_other_folds(
    held: HeldOut, rows: Sequence[Recording], collapse: NDArray[np.float32]
) -> NDArray[np.float64]:
    true = np.array([rows[place].canonical for place in held.places.tolist()], np.intp)
    if len(set(held.folds.tolist())) == 1:
        return softmax(held.logits)

    def fit(chosen: NDArray[np.intp]) -> Calibrator:
        return fit_calibrator("temperature", held.logits[chosen], true[chosen], collapse)

    return cross_fitted(fit, held.logits, held.folds.tolist())


def collapse_of(labels: Taxonomy, taxonomy: TrainingTaxonomy) -> NDArray[np.float32]:
    """Return the matrix (fine, canonical) of 0 and 1 from a model's labels to the taxonomy's canonical ones.

    Raises
    ------
    ConfigError
        When the model decides between other canonical labels than the taxonomy.
    """
    names = [taxonomy.labels.misc if name == labels.misc else name for name in labels.canonical]
    if set(names) != set(taxonomy.canonical):
        raise ConfigError(
            f"the model decides between {', '.join(names)}, and the taxonomy between "
            f"{', '.join(taxonomy.canonical)}",
            "Give the taxonomy that belongs to it: --taxonomy FILE.",
        )
    matrix = np.zeros((len(labels.fine), len(taxonomy.canonical)), np.float32)
    for row, label in enumerate(labels.fine):
        name = labels.canonical_of[label]
        matrix[row, taxonomy.canonical.index(taxonomy.labels.misc if name == labels.misc else name)] = 1
    return matrix
