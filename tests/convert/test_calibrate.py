"""`drumline calibrate`: better on families that it was not fitted on, and written with a way back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from drumline.bundle import load_bundle
from drumline.calibration import read_calibrator
from drumline.decide import DecisionSettings, decide
from drumline.errors import UsageError
from drumline_convert.calibrate import (
    CalibrationSettings,
    HeldOutLogits,
    calibrate,
    full_calibration,
    undo_calibration,
    write_calibration,
)
from drumline_convert.calibration import METHODS, Method, calibration_figures, fit_calibrator
from drumline_convert.corpus import recordings_of
from drumline_convert.manifest import Row, write_manifest
from drumline_convert.metrics import Outcomes, expected_calibration_error, softmax
from drumline_convert.operating import FEWEST, fit_thresholds
from drumline_convert.predictions import save_held_out
from drumline_convert.provenance import write_training_set
from drumline_convert.taxonomy import TrainingTaxonomy
from tests.making import CommandLine, write_tone

N, FAMILIES = 1_200, 24


def rows_of(count: int, labels: tuple[str, ...]) -> list[Row]:
    def row(place: int) -> Row:
        label, family = labels[place % len(labels)], f"family{place % FAMILIES}"
        path = Path(f"/sounds/{place}.wav")
        return Row(path, label, family, family, "own", "CC0-1.0", xxhash.xxh3_64_hexdigest(b"%d" % place))

    return [row(place) for place in range(count)]


@pytest.fixture(scope="module")
def held(taxonomy: TrainingTaxonomy) -> HeldOutLogits:
    """Logits that are right most of the time, far too sure, and the surer of some labels than of others."""
    rng = np.random.default_rng(5)
    recordings = recordings_of(rows_of(N, taxonomy.fine[::2]), taxonomy)
    logits = rng.normal(0, 4, (N, len(taxonomy.fine)))
    fine = [recording.fine for recording in recordings]
    logits[np.arange(N), fine] += rng.normal(9, 6, N)
    logits[:, 0] += 2
    folds = [int(recording.family.removeprefix("family")) % 3 for recording in recordings]
    return HeldOutLogits(logits.astype(np.float32), recordings, taxonomy.collapse, taxonomy.canonical, folds)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_better_on_families_that_it_was_not_fitted_on(
    held: HeldOutLogits, method: Method
) -> None:
    before = calibration_figures(softmax(held.logits) @ held.collapse, held.canonical)
    checked = held.cross_fitted(method)
    assert checked is not None
    after = calibration_figures(checked.probs, held.canonical)
    assert after["ece"] < before["ece"] / 2
    # Platt's sigmoids are fitted one label against the rest: their likelihood is not that of the decision.
    assert method == "platt" or after["nll"] < before["nll"]


def test_a_temperature_leaves_the_ranking_of_every_recording_alone(held: HeldOutLogits) -> None:
    calibrator = fit_calibrator("temperature", held.logits, held.canonical, held.collapse)
    probs = calibrator(held.logits).astype(np.float64)
    ordered = np.take_along_axis(probs, np.argsort(held.logits, axis=1, kind="stable"), axis=1)
    assert (np.diff(ordered, axis=1) >= 0).all()
    assert calibrator.keeps_ranking


def test_vector_scaling_says_that_it_changes_the_ranking(held: HeldOutLogits) -> None:
    made = full_calibration(held, {"what": "a test"}, "vector")
    calibrator = read_calibrator(made, held.logits.shape[1])
    assert not made["keeps_ranking"]
    assert (calibrator(held.logits).argmax(axis=1) != held.logits.argmax(axis=1)).any()
    assert made["changed"] > 0


def test_platt_scaling_knows_the_labels_by_their_canonical_ones(
    held: HeldOutLogits, taxonomy: TrainingTaxonomy
) -> None:
    made = full_calibration(held, {"what": "a test"}, "platt")
    groups = [taxonomy.canonical[group] for group in made["groups"]]
    assert groups == [taxonomy.labels.canonical_of[label] for label in taxonomy.fine]


def test_what_is_said_of_other_families_is_measured_on_other_families(held: HeldOutLogits) -> None:
    made = full_calibration(held, {"what": "a test"})
    assert set(made["cross_fitted"]) == set(METHODS)
    folds = np.array(held.folds)
    probs = np.empty(held.logits.shape)
    for fold in range(3):
        others = folds != fold
        fitted = fit_calibrator("temperature", held.logits[others], held.canonical[others], held.collapse)
        probs[~others] = fitted(held.logits[~others])
    expected = expected_calibration_error(probs @ held.collapse, held.canonical)
    assert made["cross_fitted"]["temperature"]["ece"] == pytest.approx(expected, abs=1e-4)
    alone = full_calibration(replace(held, folds=None), {"what": "a test"})
    assert alone["cross_fitted"] is None
    assert alone["operating_points"]["precision=0.9"]["held_out"] is None


def outcomes(confidence: list[float], right: list[bool], classes: int = 3) -> Outcomes:
    probs = np.full((len(right), classes), 0.0)
    probs[:, 0] = confidence
    probs[:, 1] = 1 - probs[:, 0]
    true = np.where(right, 0, classes - 1)
    return Outcomes(probs, true, np.zeros(len(right), bool), np.zeros(len(right), bool))


NAMES = ("Kick", "Snare", "misc")


def test_a_threshold_is_the_smallest_from_which_on_precision_is_reached() -> None:
    confidence = np.linspace(0.99, 0.6, 40).round(6).tolist()
    right = [place not in (10, 30, 31, 32, 33, 39) for place in range(40)]
    thresholds = fit_thresholds(outcomes(confidence, right), NAMES, 0.95)
    assert thresholds == {"Kick": confidence[29], "Snare": None}
    assert fit_thresholds(outcomes(confidence, right), NAMES, 0.85)["Kick"] == confidence[39]


def test_equal_confidences_are_believed_together() -> None:
    confidence = [0.9] * FEWEST + [0.8] * 10
    right = [True] * FEWEST + [True] * 5 + [False] * 5
    assert fit_thresholds(outcomes(confidence, right), NAMES, 0.95)["Kick"] == 0.9


def test_a_few_recordings_are_no_evidence() -> None:
    few = outcomes([0.9] * (FEWEST - 1), [True] * (FEWEST - 1))
    assert fit_thresholds(few, NAMES, 0.5)["Kick"] is None
    assert fit_thresholds(outcomes([], []), NAMES, 0.5) == {"Kick": None, "Snare": None}


@pytest.mark.parametrize("precision", [0.8, 0.95, 0.99])
def test_the_engine_decides_by_the_thresholds_as_precisely_as_was_wanted(
    held: HeldOutLogits, taxonomy: TrainingTaxonomy, precision: float
) -> None:
    made = full_calibration(held, {"what": "a test"}, precisions=(precision,))
    thresholds = made["operating_points"][f"precision={precision}"]["thresholds"]
    settings = DecisionSettings(taxonomy.labels.canonical_of, 0.0, thresholds=thresholds)
    probs = read_calibrator(made, held.logits.shape[1])(held.logits)
    decided = [
        decide(dict(zip(taxonomy.fine, row.tolist(), strict=True)), settings).assigned_label for row in probs
    ]
    true = [taxonomy.canonical[index] for index in held.canonical]
    believed = [(label, is_) for label, is_ in zip(decided, true, strict=True) if label != "misc"]
    assert len(believed) > 100
    for label in taxonomy.canonical[:-1]:
        right = [is_ == label for called, is_ in believed if called == label]
        assert not right or np.mean(right) >= precision - 1e-9


class Place:
    """A copy of the shipped bundle, tones of four families, and a manifest with a validation side."""

    def __init__(self, base: Path) -> None:
        self.base, self.bundle = base, base / "bundle"
        shutil.copytree(load_bundle().path, self.bundle)
        (self.bundle / "training_set.json").unlink()
        self.rows = []
        for place, row in enumerate(rows_of(24, ("Kick", "Snare", "Clap"))):
            family = f"family{place % 4}"
            path = base / "sounds" / f"{place}.wav"
            path.parent.mkdir(exist_ok=True)
            write_tone(path, hertz=50 + 60 * place)
            split = "validation" if place % 4 < 2 else "train"
            self.rows.append(replace(row, path=path, family=family, kit=family, split=split))
        self.write(self.rows)

    @property
    def manifest(self) -> Path:
        return self.base / "manifest.jsonl"

    def write(self, rows: list[Row]) -> None:
        write_manifest(self.manifest, rows)

    def read(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.bundle / "calibration.json").read_text())
        return value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_command_writes_bundle_and_card_and_takes_it_back(place: Place, command: CommandLine) -> None:
    before, options = place.read(), ("--model", place.bundle, "--manifest", place.manifest)
    dry = command("calibrate", *options, "--method", "platt", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert place.read() == before
    told = command("calibrate", *options, "--method", "platt", "--precision", "0.8", "--json")
    assert told.code == 0, told.err
    assert told.json() == place.read()
    made = load_bundle(place.bundle)
    assert made.calibrator == read_calibrator(dry.json(), len(made.labels))
    assert (made.calibration_version, list(made.operating_points)) == (
        before["version"] + 1,
        ["precision=0.8"],
    )
    assert made.calibration["fitted_on"]["recordings"] == 12
    assert "does not say what it was trained on" in made.calibration["fitted_on"]["what"]
    card = (place.bundle / "MODEL_CARD.md").read_text()
    assert card.count("## Calibration") == 1
    assert f"By platt, version {before['version'] + 1}, fitted on\n12 recordings of 2 families" in card

    assert command("calibrate", "--model", place.bundle, "--undo").code == 0
    assert place.read() == before
    assert (place.bundle / "MODEL_CARD.md").read_text().count("## Calibration") == 1
    assert command("calibrate", "--model", place.bundle, "--undo").code == 2


def test_another_calibration_is_in_what_a_run_says(place: Place, command: CommandLine) -> None:
    before = place.read()["version"]
    assert command("calibrate", "--model", place.bundle, "--manifest", place.manifest).code == 0
    options = ("--model", place.bundle, "--runs-root", place.base / "runs", "--workers", "1", "--json")
    summary = command("infer", place.base / "sounds", *options, "--threshold", "precision=0.9").json()
    model = summary["model"]
    calibration = place.read()
    points = calibration.pop("operating_points")
    assert model["calibration"] == calibration
    assert model["calibration_version"] == before + 1
    assert model["operating_points"] == {name: point["thresholds"] for name, point in points.items()}
    (run,) = (place.base / "runs").glob("run_*")
    assert json.loads((run / "run.json").read_text())["model"] == model


def test_recordings_that_the_model_has_learnt_are_refused(place: Place, command: CommandLine) -> None:
    write_training_set(place.bundle, [row for row in place.rows if row.family == "family0"])
    refused = command("calibrate", "--model", place.bundle, "--manifest", place.manifest)
    assert refused.code == 3
    assert "was trained on 6 of these 12 recordings" in refused.err
    assert "--held-out" in refused.err


def test_a_model_of_all_recordings_is_calibrated_by_its_cross_validation(
    place: Place, command: CommandLine
) -> None:
    write_training_set(place.bundle, place.rows)
    labels = load_bundle(place.bundle).labels
    logits = np.random.default_rng(1).normal(0, 3, (24, len(labels)))
    folds = [int(row.family[-1]) for row in place.rows]
    path = place.base / "held_out.npz"
    save_held_out(path, "bundle", labels, [row.hash for row in place.rows], folds, logits)
    options = ("--model", place.bundle, "--manifest", place.manifest, "--held-out", path)
    told = command("calibrate", *options, "--json")
    assert told.code == 0, told.err
    assert told.json()["fitted_on"]["recordings"] == 24
    assert "4 folds by family" in told.json()["fitted_on"]["what"]
    save_held_out(path, "other", labels[::-1], [row.hash for row in place.rows], folds, logits)
    assert command("calibrate", *options).code == 3


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "no manifest was given"),
        (("--manifest", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("--split", "test"), 3, "no rows on the side test"),
        (("--precision", "1.5"), 2, "1.5"),
        (("--method", "isotonic"), 2, "isotonic"),
        (("--held-out", "nowhere.npz"), 3, "nowhere.npz"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cause(
    place: Place, command: CommandLine, options: tuple[str, ...], code: int, words: str
) -> None:
    manifest = () if not options or "--manifest" in options else ("--manifest", place.manifest)
    before = place.read()
    refused = command("calibrate", "--model", place.bundle, *manifest, *options)
    assert refused.code == code, refused.err
    assert words in refused.err
    assert "Traceback" not in refused.err
    assert place.read() == before


def test_a_family_on_two_sides_is_refused(place: Place, command: CommandLine) -> None:
    place.write([replace(row, family="family0") for row in place.rows])
    refused = command("calibrate", "--model", place.bundle, "--manifest", place.manifest)
    assert refused.code == 3
    assert "is on 2 sides: train, validation" in refused.err


def test_the_library_says_the_same(place: Place) -> None:
    made = calibrate(CalibrationSettings(model=place.bundle, manifest=place.manifest))
    write_calibration(place.bundle, made)
    assert place.read() == json.loads(json.dumps(made))
    undo_calibration(place.bundle)
    with pytest.raises(UsageError, match="no earlier calibration"):
        undo_calibration(place.bundle)
