"""Operating points: named in a bundle, resolved once, and the same in infer, rebuild and Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drumline.bundle import Bundle, load_bundle
from drumline.classify import Classifier
from drumline.cli.common import THRESHOLD
from drumline.decide import DecisionSettings, decide
from drumline.errors import BundleError, ConfigError
from drumline.index import read_index
from drumline.runs import open_run
from drumline.settings import MiscSettings
from drumline.stub import create_stub
from drumline.thresholds import parse_threshold, resolve_threshold
from tests.making import CANONICAL_OF, CommandLine, Outcome, write_tone

LABELS = ("Crash", "Hihat", "Kick", "Ride", "Snare", "Tom")
NEVER = dict.fromkeys(LABELS, None)
ALWAYS = dict.fromkeys(LABELS, 0.0)


def add_points(bundle: Path, **points: Any) -> Bundle:
    """Write operating points into a bundle: ``p95={...}`` for ``precision=0.95``."""
    path = bundle / "calibration.json"
    named = {f"precision=0.{name[1:]}": {"thresholds": point} for name, point in points.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), "operating_points": named}))
    return load_bundle(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "labels.json").write_text(json.dumps([*LABELS, "Rim", "Clap"]))
    create_stub(tmp_path / "stub", str(tmp_path / "labels.json"))
    return add_points(tmp_path / "stub", p95=NEVER, p5=ALWAYS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.7", 0.7),
        ("1", 1.0),
        ("precision=0.95", "precision=0.95"),
        ("precision=.950", "precision=0.95"),
        (" precision=1.0", "precision=1"),
    ],
)
def test_a_threshold_is_a_number_or_a_name_that_is_written_one_way(text: str, value: object) -> None:
    assert parse_threshold(text) == value
    assert THRESHOLD.convert(text, None, None) == value


@pytest.mark.parametrize("text", ["high", "precision=", "precision=2", "recall=0.9", ""])
def test_anything_else_is_no_threshold(text: str) -> None:
    with pytest.raises(ValueError, match="float"):
        parse_threshold(text)
    with pytest.raises(ConfigError, match=r"misc\.threshold"):
        MiscSettings(threshold=text)


def test_each_label_is_held_to_its_own_threshold() -> None:
    settings = DecisionSettings(CANONICAL_OF, 0.5, thresholds={"Kick": 0.9, "Hihat": None})
    believed = {"Kick": 0.89, "Snare": 0.5, "HihatOpen": 1.0}
    decided = {label: decide({label: value}, settings) for label, value in believed.items()}
    assigned = {label: decision.assigned_label for label, decision in decided.items()}
    assert assigned == {"Kick": "misc", "Snare": "Snare", "HihatOpen": "misc"}
    assert decided["HihatOpen"].assigned_reason == "below_threshold"


@pytest.mark.parametrize("thresholds", [{"Kik": 0.5}, {"Kick": 1.5}])
def test_thresholds_of_unknown_labels_and_beyond_one_are_refused(thresholds: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"Kik|1\.5"):
        DecisionSettings(CANONICAL_OF, thresholds=thresholds)


def test_a_point_that_the_bundle_lacks_is_refused_with_those_that_it_has(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"'precision=0\.8'.*precision=0\.5, precision=0\.95"):
        resolve_threshold("precision=0.8", bundle.operating_points, "the bundle")


@pytest.mark.parametrize(
    "points",
    [
        {"precision=0.9": {"thresholds": {"Kick": 0.5}}},
        {"precision=0.9": {"thresholds": {**NEVER, "Kick": 1.5}}},
        {"precision=0.9": {"thresholds": {**NEVER, "Kick": "0.5"}}},
        {"precision=0.9": {}},
        {"sharp": {"thresholds": NEVER}},
        {"0.5": {"thresholds": NEVER}},
        [],
    ],
)
def test_points_without_one_threshold_for_each_label_are_refused(bundle: Bundle, points: object) -> None:
    path = bundle.path / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "operating_points": points}))
    with pytest.raises(BundleError, match="operating points"):
        load_bundle(bundle.path)


def test_points_change_no_probability_and_so_no_fingerprint(bundle: Bundle) -> None:
    assert add_points(bundle.path).fingerprint == bundle.fingerprint


def test_another_mapping_has_no_operating_points(bundle: Bundle, tmp_path: Path) -> None:
    same = bundle.path / "canonical_mapping.json"
    assert load_bundle(bundle.path, canonical_map=same).operating_points == bundle.operating_points
    other = json.loads(same.read_text())
    other["map"]["Rim"] = "misc"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert load_bundle(bundle.path, canonical_map=tmp_path / "other.json").operating_points == {}


def test_infer_and_rebuild_decide_by_the_point_and_run_json_holds_what_it_was(
    bundle: Bundle, tmp_path: Path, command: CommandLine
) -> None:
    (tmp_path / "archive").mkdir()
    for place in range(30):
        write_tone(tmp_path / f"archive/{place}.wav", hertz=60.0 + 150 * place)
    runs, tree = tmp_path / "runs", tmp_path / "tree"
    options = ("--model", bundle.path, "--runs-root", runs, "--workers", "1", "--quiet")
    done = command("infer", tmp_path / "archive", *options, "--threshold", "precision=0.95")
    assert done.code == 0, done.err
    run = open_run(runs)
    records = list(read_index(run.index_path))
    assert {record["assigned_label"] for record in records} == {"misc"}
    assert "below_threshold" in {record["assigned_reason"] for record in records}
    assert run.info["settings"]["misc"]["threshold"] == "precision=0.95"
    assert run.info["decision"] == {
        "threshold": 0.0,
        "thresholds": NEVER,
        "gate_threshold": None,
    }
    assert command("verify", runs).code == 0

    add_points(bundle.path)  # what the run resolved holds, whatever becomes of the bundle
    assert labels_of(command("rebuild", runs, "--out", tree, "--labels", "Kick", *PLANNED)) == {"misc"}
    believing = DecisionSettings(bundle.taxonomy.canonical_of, 0.0)
    wanted = {decide(record["probs"] or {}, believing).assigned_label for record in records}
    assert len(wanted) > 1
    believed = command("rebuild", runs, "--out", tree, "--threshold", "precision=0.5", *PLANNED)
    assert labels_of(believed) == wanted
    refused = command("rebuild", runs, "--out", tree, "--threshold", "precision=0.7")
    assert refused.code == 3
    assert "precision=0.5, precision=0.95" in refused.err


PLANNED = ("--dry-run", "--json")


def labels_of(planned: Outcome) -> set[str]:
    return {label for label, total in planned.json()["plan"]["labels"].items() if total["files"]}


def test_the_classifier_takes_a_point_too(bundle: Bundle, tmp_path: Path) -> None:
    write_tone(tmp_path / "tone.wav")
    (prediction,) = Classifier(bundle, device="cpu", threshold="precision=0.95")([tmp_path / "tone.wav"])
    assert prediction.label == "misc"
    with pytest.raises(ConfigError, match=r"precision=0\.1"):
        Classifier(bundle, device="cpu", threshold="precision=0.1")


@pytest.mark.parametrize("text", ["٠.٥", "precision=٠.٩", "precision=0.٩"])
def test_thresholds_are_written_in_the_digits_0_to_9(text: str) -> None:
    with pytest.raises(ValueError, match="digits other"):
        parse_threshold(text)
