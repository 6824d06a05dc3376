"""`drumline evaluate`: what it measures, what it says on its face, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from drumline.bundle import load_bundle
from drumline.classify import Classifier
from drumline.stub import create_stub
from drumline_convert.bootstrap import Resampling
from drumline_convert.corpus import recordings_of
from drumline_convert.evaluation import EvaluationSettings, evaluate_manifest
from drumline_convert.manifest import Row, write_manifest
from drumline_convert.metrics import FIGURES, softmax
from drumline_convert.predictions import predictions_of_held_out, read_held_out, save_held_out
from drumline_convert.provenance import TrainingSet, training_set_of, write_training_set
from drumline_convert.report import write_report
from drumline_convert.taxonomy import TrainingTaxonomy
from tests.making import CommandLine, make_bundle, write_tone

LABELS = ("Kick", "Snare", "HihatClosed", "Clap", "Castanet")
FEW = Resampling(50)


class Place:
    """Tones of four families, a manifest of them, and a bundle that has learnt nothing."""

    def __init__(self, base: Path) -> None:
        self.base, self.bundle = base, base / "stub"
        create_stub(self.bundle)
        self.rows = [
            self._row(f"family{family}", label, 60 + 97 * family + 400 * kind)
            for family in range(4)
            for kind, label in enumerate(LABELS)
        ]
        self.write(self.rows)

    def _row(self, family: str, label: str, hertz: float) -> Row:
        path = self.base / "sounds" / family / f"{label}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tone(path, hertz=hertz)
        digest = xxhash.xxh3_64_hexdigest(path.read_bytes())
        return Row(path, label, family, family, f"source{family[-1]}", "CC0-1.0", digest)

    @property
    def manifest(self) -> Path:
        return self.base / "manifest.jsonl"

    def write(self, rows: Sequence[Row]) -> None:
        write_manifest(self.manifest, rows)

    def evaluate(self, **settings: Any) -> dict[str, Any]:
        given = {"models": (self.bundle,), "resampling": FEW, "manifest": self.manifest, **settings}
        return evaluate_manifest(EvaluationSettings(**given))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_measured_is_what_the_classifier_says(place: Place, taxonomy: TrainingTaxonomy) -> None:
    report = place.evaluate()
    right = accuracy(place.bundle, place, taxonomy)
    (model,) = report["models"]
    assert model["figures"]["accuracy"]["value"] == pytest.approx(right, abs=1e-4)
    assert sum(map(sum, model["confusion"]["counts"])) == len(place.rows)
    assert sum(pair["recordings"] for pair in model["confused"]) == round((1 - right) * len(place.rows))
    assert {name: scores["support"] for name, scores in model["classes"].items()} == report["data"]["labels"]
    assert report["data"]["labels"]["misc"] == 8  # Castanet is folded into another label


def test_an_ensemble_of_two_front_ends_is_measured_like_any_bundle(
    place: Place, command: CommandLine, taxonomy: TrainingTaxonomy
) -> None:
    front_end = {**load_bundle(place.bundle).front_end.to_json(), "normalise": "none"}
    other, both = make_bundle(place.base / "other", front_end=front_end), place.base / "both"
    made = command("ensemble", place.bundle, other.path, "--out", both, "--weights", "0.5,0.5")
    assert made.code == 0, made.err
    (model,) = place.evaluate(models=(both,))["models"]
    assert model["figures"]["accuracy"]["value"] == pytest.approx(accuracy(both, place, taxonomy), abs=1e-4)


@pytest.mark.parametrize("normalise", ["peak", "none"], ids=["one graph", "members of their own"])
def test_an_ensemble_was_trained_on_all_that_its_members_were(
    place: Place, command: CommandLine, normalise: str
) -> None:
    front_end = {**load_bundle(place.bundle).front_end.to_json(), "normalise": normalise}
    other, both = make_bundle(place.base / "other", front_end=front_end), place.base / "both"
    for bundle, rows in ((place.bundle, place.rows[:1]), (other.path, place.rows[10:11])):
        write_training_set(bundle, rows)
    made = command("ensemble", place.bundle, other.path, "--out", both, "--weights", "0.5,0.5")
    assert made.code == 0, made.err
    assert training_set_of(load_bundle(both)) == TrainingSet.of([place.rows[0], place.rows[10]])


def accuracy(bundle: Path, place: Place, taxonomy: TrainingTaxonomy) -> float:
    """Return how often the classifier is right."""
    predicted = Classifier(load_bundle(bundle), device="cpu", threshold=0.0)([row.path for row in place.rows])
    canonical = [taxonomy.canonical[taxonomy.canonical_index(row.label) or 0] for row in place.rows]
    return float(np.mean([said.label == true for said, true in zip(predicted, canonical, strict=True)]))


def test_predictions_of_an_index_are_measured_like_those_of_its_model(
    place: Place, command: CommandLine
) -> None:
    runs = place.base / "runs"
    options = ("--model", place.bundle, "--runs-root", runs, "--workers", "1", "--quiet")
    assert command("infer", place.base / "sounds", *options).code == 0
    report = place.evaluate(indexes=(runs,))
    model, index = report["models"]
    assert index["name"] == f"stub as in {index['run']}"
    for name in FIGURES:
        if name != "ece":  # probabilities in an index have six decimals
            assert index["figures"][name]["value"] == pytest.approx(model["figures"][name]["value"], abs=1e-3)
    assert index["reliability"]["before"] is None
    assert model["reliability"]["before"] is not None
    (difference,) = report["differences"]
    assert difference["figures"]["accuracy"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert index["thresholds"][-1]["threshold"] == "as the run decided"
    assert index["thresholds"][-1]["labels"] == index["thresholds"][1]["labels"]  # which was 0.5


def test_the_same_seed_gives_the_same_report(place: Place) -> None:
    def evaluated(seed: int) -> dict[str, Any]:
        return place.evaluate(models=(load_bundle().path,), resampling=Resampling(50, seed))

    assert evaluated(0) == evaluated(0)
    one, other = (evaluated(seed)["models"][0]["figures"] for seed in (0, 1))
    assert [each["value"] for each in one.values()] == [each["value"] for each in other.values()]
    # Not by one figure: shares of few families have few values, and two seeds may meet in one.
    assert [each["interval"] for each in one.values()] != [each["interval"] for each in other.values()]


def test_the_report_needs_no_other_file_and_shows_every_figure(place: Place, tmp_path: Path) -> None:
    report = place.evaluate(models=(place.bundle, load_bundle().path))
    write_report(report, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(links) > 6
    assert {link.partition(":")[0] if ":" in link else link[0] for link in links} <= {"data", "file", "#"}
    assert not re.search(r"@import|url\(|<script|<link", html)
    assert "$" not in re.sub(r"base64,[^\"]+", "", html)
    for what in FIGURES.values():
        assert html.count(what) >= 3  # the figure, the difference, what it means
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    plots = sorted(path.name for path in (tmp_path / "out" / "plots").iterdir())
    assert len(plots) == 6
    assert all((tmp_path / "out" / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in plots)


def test_names_from_files_are_no_markup(place: Place, tmp_path: Path) -> None:
    rows = [replace(row, source="<script>alert(1)</script>") for row in place.rows]
    place.write(rows)
    write_report(place.evaluate(), tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "report.html").read_text()


def face(place: Place, out: Path) -> str:
    write_report(place.evaluate(), out)
    return (out / "report.html").read_text().partition("<h2")[0]


def test_the_face_says_when_a_model_was_trained_on_what_it_is_measured_on(
    place: Place, tmp_path: Path
) -> None:
    assert "does not say what it was trained on" in face(place, tmp_path / "unknown")
    write_training_set(place.bundle, place.rows[:7])
    told = face(place, tmp_path / "seen")
    assert 'class="invalid"' in told
    assert "was trained on 2 of the 4 families here (10 of 20 recordings)" in told
    write_training_set(place.bundle, [replace(place.rows[0], family="other", hash="f" * 16)])
    assert "trained on" not in face(place, tmp_path / "unseen")


def test_content_counts_as_seen_also_under_another_familys_name(place: Place) -> None:
    write_training_set(place.bundle, [replace(place.rows[3], family="renamed")])
    assert place.evaluate()["models"][0]["seen_in_training"] == {"recordings": 1, "families": 1}


def test_only_the_test_side_is_measured_where_there_is_one(place: Place) -> None:
    sides = {"family0": "test", "family1": "validation"}
    place.write([replace(row, split=sides.get(row.family, "train")) for row in place.rows])
    assert place.evaluate()["data"]["recordings"] == 5
    assert place.evaluate(splits=("validation", "train"))["data"]["recordings"] == 15


def test_a_recording_that_cannot_be_read_is_in_no_figure_and_named(place: Place) -> None:
    place.rows[0].path.write_bytes(b"RIFF")
    place.rows[1].path.unlink()
    report = place.evaluate()
    assert report["data"]["recordings"] == 18
    assert {each["why"].partition(":")[0] for each in report["data"]["left_out"]} == {
        str(row.path) for row in place.rows[:2]
    }
    assert any("2 predictions are missing" in warning["text"] for warning in report["warnings"])


def test_held_out_logits_are_calibrated_by_the_other_folds(
    place: Place, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    folds = [int(row.family[-1]) % 2 for row in place.rows]
    logits = np.random.default_rng(0).normal(0, 3, (len(folds), len(taxonomy.fine)))
    for place_of, row in enumerate(place.rows):
        logits[place_of, taxonomy.fine_index(row.label)] += 9.0 if folds[place_of] else 0.0
    hashes = [row.hash for row in place.rows]
    save_held_out(tmp_path / "held.npz", "folds", taxonomy.fine, hashes, folds, logits)
    recordings = recordings_of(place.rows, taxonomy)
    found = predictions_of_held_out(recordings, read_held_out(recordings, tmp_path / "held.npz"), taxonomy)
    assert found.plain is not None
    np.testing.assert_allclose(found.plain, softmax(logits), atol=1e-5)
    # Fold 0 is as sure as fold 1 allows to be, and the other way round.
    sure = found.probs.max(axis=1) > found.plain.max(axis=1)
    assert sure[np.array(folds) == 0].all()
    assert not sure[np.array(folds) == 1].any()
    report = place.evaluate(models=(), held_out=(tmp_path / "held.npz",))
    assert report["models"][0]["seen_in_training"] == {"recordings": 0, "families": 0}


def test_held_out_logits_with_a_family_in_two_folds_are_refused(
    place: Place, tmp_path: Path, taxonomy: TrainingTaxonomy, command: CommandLine
) -> None:
    logits = np.zeros((len(place.rows), len(taxonomy.fine)))
    folds = np.arange(len(place.rows)) % 2
    save_held_out(
        tmp_path / "held.npz", "leaky", taxonomy.fine, [row.hash for row in place.rows], folds, logits
    )
    refused = command("evaluate", "--held-out", tmp_path / "held.npz", "--manifest", place.manifest)
    assert refused.code == 3
    assert "is on 2 sides: 0, 1 (4 such)" in refused.err


@pytest.mark.parametrize("content", [b"", b'{"hash": 1}\n', b"PK\5\6" + bytes(18), b"PK\3\4torn"])
def test_what_holds_no_held_out_logits_is_named_without_advice_from_numpy(
    place: Place, command: CommandLine, content: bytes
) -> None:
    (place.base / "s.jsonl").write_bytes(content)
    refused = command("evaluate", "--manifest", place.manifest, "--held-out", place.base / "s.jsonl")
    assert refused.code == 3
    assert "cannot read held-out logits" in refused.err
    assert "drumline train crossval" in refused.err
    assert "pickle" not in refused.err


def test_a_report_replaces_only_a_report(place: Place, command: CommandLine) -> None:
    out = place.base / "out"
    out.mkdir()
    options = ("--model", place.bundle, "--manifest", place.manifest, "--out", out)
    for name in ("report.html", "report.json"):
        (out / name).write_text("mine")
        refused = command("evaluate", *options)
        assert refused.code == 8
        assert [path.read_text() for path in out.iterdir()] == ["mine"]
        (out / name).unlink()


def test_the_command_writes_the_report_and_prints_it_as_json(place: Place, command: CommandLine) -> None:
    options = ("--model", place.bundle, "--manifest", place.manifest, "--out", place.base / "out")
    told = command("evaluate", *options, "--resamples", "20", "--seed", "4", "--json")
    assert told.code == 0, told.err
    assert told.json() == json.loads((place.base / "out" / "report.json").read_text())
    assert (told.json()["data"]["resamples"], told.json()["data"]["seed"]) == (20, 4)
    shown = command("evaluate", *options, "--resamples", "20")
    assert "accuracy" in shown.out
    assert "does not say what it was trained on" in shown.err


def broken_manifests(place: Place) -> dict[str, tuple[Any, int, str]]:
    good, rows = place.manifest.read_text(), place.rows
    splits = [replace(row, split=("train", "test")[number % 2]) for number, row in enumerate(rows)]
    return {
        "missing": (None, 3, "manifest.jsonl"),
        "empty": ("\n", 3, "no rows"),
        "broken": (good + "{\n", 3, "line 21"),
        "label": ([replace(rows[0], label="Theremin"), *rows[1:]], 3, "'Theremin' of"),
        "leak": (splits, 3, "is on 2 sides: test, train"),
        "elsewhere": ([replace(row, path=place.base / f"no{row.hash}") for row in rows], 3, "none of the 20"),
    }


@pytest.mark.parametrize("kind", ["missing", "empty", "broken", "label", "leak", "elsewhere"])
def test_a_manifest_that_is_wrong_is_refused_with_the_cause(
    place: Place, command: CommandLine, kind: str
) -> None:
    content, code, words = broken_manifests(place)[kind]
    place.manifest.unlink()
    if isinstance(content, str):
        place.manifest.write_text(content)
    elif content is not None:
        place.write(content)
    options = ("--model", place.bundle, "--manifest", place.manifest, "--out", place.base / "out")
    refused = command("evaluate", *options)
    assert refused.code == code, refused.err
    assert words in refused.err
    assert "Traceback" not in refused.err
    assert not (place.base / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "nothing to evaluate"),
        (("--model", "no-such-bundle"), 4, "no-such-bundle"),
        (("--index", "nowhere"), 7, "nowhere"),
        (("--held-out", "nowhere.npz"), 3, "nowhere.npz"),
        (("--model", "mfcc-cnn", "--split", "holdout"), 3, "holdout"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    place: Place, command: CommandLine, options: tuple[str, ...], code: int, words: str
) -> None:
    refused = command("evaluate", "--manifest", place.manifest, *options)
    assert refused.code == code, refused.err
    assert words in refused.err


def test_an_index_with_other_hashes_says_which_it_needs(place: Place, command: CommandLine) -> None:
    options = ("--runs-root", place.base / "runs", "--model", place.bundle, "--workers", "1", "--quiet")
    assert command("infer", place.base / "sounds", *options, "--hash-algorithm", "md5").code == 0
    refused = command("evaluate", "--index", place.base / "runs", "--manifest", place.manifest)
    assert refused.code == 3
    assert "--hash-algorithm xxh3_64" in refused.err
