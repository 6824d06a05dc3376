"""Gates are fitted, become part of the graph, and are measured by what they keep out of the drums."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drumline.bundle import Bundle, load_bundle
from drumline.errors import BundleError, ConfigError
from drumline.index import read_index
from drumline.inference import open_session
from drumline.runs import open_run
from drumline_convert.gates import contamination, fit_head, make_gate, passing_threshold
from drumline_convert.held_out_gate import make_held_out_gate
from drumline_convert.labelled import Said, Truth, read_rows, rows_of, said_of, truth_of
from drumline_convert.manifest import Row, read_manifest, write_manifest
from drumline_convert.predictions import save_held_out
from drumline_convert.provenance import write_training_set
from tests.convert.test_ensembles import LOG_MEL, labelled, member, trained
from tests.making import CommandLine


@pytest.fixture
def manifest(tiny_corpus: Path, tmp_path: Path) -> Path:
    sides = {"kit0": "test", "kit1": "test", "kit2": "train"}
    paths = sorted((tiny_corpus / "audio").glob("*/*.wav"))
    rows = [labelled(path, sides.get(path.parent.name, "validation")) for path in paths]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    return tmp_path / "manifest.jsonl"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A model that has learnt nothing and calls most sounds drums: only its gate can keep misc out."""
    path = member(tmp_path / "plain", 4).path
    mapping = json.loads((path / "canonical_mapping.json").read_text())
    drums = {
        label: "Tom"
        for label, canonical in mapping["map"].items()
        if canonical == "misc" != label != "Cowbell"
    }
    (path / "canonical_mapping.json").write_text(json.dumps({**mapping, "map": mapping["map"] | drums}))
    return load_bundle(path)


def test_a_head_separates_what_can_be_separated_and_needs_both_kinds() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (400, 5)).astype(np.float32)
    is_drum = logits[:, 0] - logits[:, 2] + rng.normal(0, 0.3, 400) > 0.5
    head = fit_head(logits[:200], is_drum[:200])
    right = (head(logits[200:]) > 0.5) == is_drum[200:]
    assert right.mean() > 0.93
    with pytest.raises(ConfigError, match="only one of the two"):
        fit_head(logits, np.ones(400, bool))


def test_the_threshold_is_the_highest_that_lets_the_wanted_share_pass() -> None:
    gate = np.arange(100) / 100
    is_drum = np.arange(100) % 2 == 0
    for recall in (0.5, 0.9, 0.98, 0.999):
        threshold = passing_threshold(gate, is_drum, recall)
        passing = (gate[is_drum] >= threshold).mean()
        assert passing >= recall
        assert (gate[is_drum] >= threshold + 0.021).mean() < recall


def test_contamination_counts_what_is_taken_away_on_both_sides() -> None:
    collapse = np.array([[1, 0], [0, 1]], np.float32)  # Kick, misc
    truth = Truth(np.array([0, 0, 0, 1, 1, 1]), collapse)
    kick, misc = [0.9, 0.1], [0.2, 0.8]
    said = Said(
        np.zeros((6, 2), np.float32), np.array([kick, kick, misc, kick, kick, misc], np.float32), None
    )
    found = contamination(said, np.array([0.9, 0.1, 0.9, 0.2, 0.8, 0.1]), truth, 0.5)
    assert (found.called_drums, found.contamination) == (4, 0.5)
    assert (found.called_drums_gated, found.contamination_gated) == (2, 0.5)
    assert (found.removed, found.lost) == (0.5, 0.5)


def test_a_head_becomes_part_of_the_graph_and_labels_stay_what_they_were(
    bundle: Bundle, manifest: Path, tmp_path: Path, command: CommandLine
) -> None:
    outcome = command(
        *(
            "gate",
            bundle.path,
            "--manifest",
            manifest,
            "--out",
            tmp_path / "gated",
            "--recall",
            "0.9",
            "--json",
        )
    )
    assert outcome.code == 0, outcome.err
    report = outcome.json()
    gated = load_bundle(tmp_path / "gated")
    assert gated.gate is not None
    assert gated.gate.threshold == report["threshold"]
    rows = rows_of(manifest, "validation")
    features, truth = read_rows(rows, bundle.front_ends), truth_of(rows, bundle.taxonomy)
    plain, said = said_of(bundle, features), said_of(gated, features)
    np.testing.assert_allclose(said.probabilities, plain.probabilities, atol=1e-5)
    assert said.gate is not None
    np.testing.assert_allclose(said.gate, fit_head(plain.logits, truth.is_drum)(plain.logits), atol=1e-3)
    assert (said.gate[truth.is_drum] >= gated.gate.threshold).mean() >= 0.9
    assert json.loads((tmp_path / "gated/gate.json").read_text()) == report
    assert report["measured"]["recordings"] == 24


def test_a_gated_bundle_runs_through_the_pipeline(
    bundle: Bundle, manifest: Path, tiny_corpus: Path, tmp_path: Path, command: CommandLine
) -> None:
    report = make_gate(bundle.path, tmp_path / "gated", manifest, recall=0.5)
    archive = tiny_corpus / "audio" / "kit0"
    outcome = command(
        *("infer", archive, "--model", tmp_path / "gated", "--runs-root", tmp_path / "runs"),
        *("--workers", "1", "--quiet"),
    )
    assert outcome.code == 0, outcome.err
    records = list(read_index(open_run(tmp_path / "runs").index_path))
    for record in records:
        gate = record["gate"]
        assert gate is not None
        assert (gate < report["threshold"]) == (record["assigned_reason"] == "gated")
    assert {"gated"} < {record["assigned_reason"] for record in records} | {"top1"}


def test_a_model_of_its_own_rejects_what_it_takes_for_misc(
    bundle: Bundle, manifest: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    other = trained(tmp_path / "other", sorted((tiny_corpus / "audio").glob("*/*.wav")))
    report = make_gate(bundle.path, tmp_path / "gated", manifest, other.path, recall=0.95)
    assert report["kind"] == "model"
    measured = report["measured"]
    assert measured["auroc"] > 0.95 > measured["auroc_of_labels"]
    assert measured["contamination_gated"] < measured["contamination"]
    assert measured["removed"] > 0.8
    gated = load_bundle(tmp_path / "gated")
    features = read_rows(rows_of(manifest, "test"), bundle.front_ends)
    said = open_session(gated, "cpu").predict(features)
    misc = [other.taxonomy.canonical_of[label] == "misc" for label in other.labels]
    expected = 1 - said_of(other, features).probabilities[:, misc].sum(axis=1)
    np.testing.assert_allclose(said.gate, expected, atol=1e-4)
    np.testing.assert_allclose(said.probabilities, said_of(bundle, features).probabilities, atol=1e-5)


@pytest.mark.parametrize("side", ["validation", "test"])
@pytest.mark.parametrize("own", [True, False], ids=["model", "head"])
def test_a_gate_is_not_made_where_drums_or_other_sounds_are_missing(
    bundle: Bundle, manifest: Path, tmp_path: Path, side: str, own: bool
) -> None:
    drums = [row for row in read_manifest(manifest) if row.split != side or row.label in ("Kick", "Snare")]
    write_manifest(tmp_path / "drums.jsonl", drums)
    other = member(tmp_path / "other", 1).path if own else None
    with pytest.raises(ConfigError, match=rf"and 0 other sounds on {side}"):
        make_gate(bundle.path, tmp_path / "out", tmp_path / "drums.jsonl", other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_gate_is_neither_fitted_nor_measured_on_what_a_model_was_trained_on(
    bundle: Bundle, manifest: Path, tmp_path: Path, side: str
) -> None:
    other = member(tmp_path / "other", 1)
    write_training_set(other.path, list(read_manifest(manifest).side(side))[:1])
    with pytest.raises(ConfigError, match=r"other was trained on 12 of these 60 recordings"):
        make_gate(bundle.path, tmp_path / "out", manifest, other.path)
    assert not (tmp_path / "out").exists()


def test_bundles_and_manifests_that_do_not_fit_are_refused(
    bundle: Bundle, manifest: Path, tmp_path: Path
) -> None:
    elsewhere = member(tmp_path / "elsewhere", 1, front_end=LOG_MEL)
    with pytest.raises(BundleError, match="other front ends: log-mel and mfcc"):
        make_gate(bundle.path, tmp_path / "out", manifest, elsewhere.path)
    with pytest.raises(ConfigError, match="no rows of split fold0; it has: test, train, validation"):
        make_gate(bundle.path, tmp_path / "out", manifest, fit_on=["fold0"])
    make_gate(bundle.path, tmp_path / "out", manifest)
    with pytest.raises(BundleError, match="has a gate already"):
        make_gate(tmp_path / "out", tmp_path / "twice", manifest)


def held_out_logits(path: Path, bundle: Bundle, rows: list[Row], folds: list[int]) -> Path:
    """Logits that call everything Kick, and tell drums from others in one label that no decision shows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.2, (len(rows), len(bundle.labels))).astype(np.float32)
    logits[:, bundle.labels.index("Kick")] += 8
    drums = truth_of(rows, bundle.taxonomy).is_drum
    logits[:, bundle.labels.index("Cowbell")] += np.where(drums, -2.0, 2.0)
    save_held_out(path, "cross-validation", bundle.labels, [row.hash for row in rows], folds, logits)
    return path


def test_a_head_is_fitted_on_held_out_logits_and_measured_by_the_other_folds(
    bundle: Bundle, manifest: Path, tmp_path: Path, command: CommandLine
) -> None:
    rows = list(read_manifest(manifest))
    held_out = held_out_logits(tmp_path / "h.npz", bundle, rows, [int(row.family[-1]) % 3 for row in rows])
    options = ("--manifest", manifest, "--held-out", held_out, "--recall", "0.9", "--out", tmp_path / "gated")
    outcome = command("gate", bundle.path, *options, "--json")
    assert outcome.code == 0
    report = outcome.json()
    assert report["measured_on"] == {"held_out": "h.npz", "recordings": len(rows), "folds": 3}
    assert report["measured"]["removed"] == 1.0
    assert report["measured"]["auroc"] == 1.0
    made = load_bundle(tmp_path / "gated")
    assert made.gate is not None
    assert made.gate.threshold == report["threshold"]
    refused = command("gate", bundle.path, *options, "--model", bundle.path)
    assert refused.code == 2


def test_a_fold_that_holds_all_sounds_of_one_kind_is_named(
    bundle: Bundle, manifest: Path, tmp_path: Path
) -> None:
    rows = [
        replace(row, family="misc" if bundle.taxonomy.canonical_of[row.label] == "misc" else row.family)
        for row in read_manifest(manifest)
    ]
    folds = [2 if row.family == "misc" else int(row.family[-1]) % 2 for row in rows]
    held_out = held_out_logits(tmp_path / "h.npz", bundle, rows, folds)
    write_manifest(tmp_path / "misc.jsonl", rows)
    with pytest.raises(ConfigError, match=r"without fold 2, .* 0 other sounds") as refused:
        make_held_out_gate(bundle.path, tmp_path / "gated", tmp_path / "misc.jsonl", held_out)
    assert "other folds" in refused.value.way_out
    assert not (tmp_path / "gated").exists()


def test_held_out_logits_of_one_fold_or_of_other_labels_are_refused(
    bundle: Bundle, manifest: Path, tmp_path: Path
) -> None:
    rows = list(read_manifest(manifest))
    one = held_out_logits(tmp_path / "one.npz", bundle, rows, [0] * len(rows))
    with pytest.raises(ConfigError, match="one fold only"):
        make_held_out_gate(bundle.path, tmp_path / "gated", manifest, one)
    hashes = [row.hash for row in rows]
    save_held_out(
        tmp_path / "o.npz", "x", ["a", "b"], hashes, [0] * len(rows), np.zeros((len(rows), 2), np.float32)
    )
    with pytest.raises(ConfigError, match="other labels"):
        make_held_out_gate(bundle.path, tmp_path / "gated", manifest, tmp_path / "o.npz")
    assert not (tmp_path / "gated").exists()
