"""Labels that held-out networks doubt: found by rule, listed with reasons, changed only where asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.errors import ConfigError
from drumline_convert.cleaning import CleaningSettings, cleaned_rows, find_doubts
from drumline_convert.corpus import Recording, recordings_of
from drumline_convert.manifest import Row, read_manifest, write_manifest
from drumline_convert.predictions import save_held_out
from drumline_convert.taxonomy import TrainingTaxonomy
from tests.making import CommandLine

SURE, UNSURE = 9.0, 4.0
CLEAN = ("dataset", "clean", "manifest.jsonl", "--held-out", "held_out.npz")


@pytest.fixture
def rows(tiny_corpus: Path) -> list[Row]:
    return list(read_manifest(tiny_corpus / "manifest.jsonl"))


def heard(
    path: Path, rows: list[Row], taxonomy: TrainingTaxonomy, others: dict[int, tuple[str, float]]
) -> Path:
    """Write held-out logits that agree with all labels but `others`: place → label heard, and how surely."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.3, (len(rows), len(taxonomy.fine)))
    for place, row in enumerate(rows):
        label, height = others.get(place, (row.label, 6.0 if place % 5 else 4.5))
        logits[place, taxonomy.fine.index(label)] += height
    folds = [int(row.family[-1]) % 3 for row in rows]
    save_held_out(path, "networks", taxonomy.fine, [row.hash for row in rows], folds, logits)
    return path


def placed(rows: list[Row], taxonomy: TrainingTaxonomy) -> list[Recording]:
    return recordings_of(rows, taxonomy)


def test_only_what_is_surely_heard_otherwise_is_doubtful(
    rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    held_out = heard(
        tmp_path / "h.npz", rows, taxonomy, {0: ("Snare", SURE), 1: ("Snare", 2.0), 12: ("Rim", SURE)}
    )
    cleaning = find_doubts(placed(rows, taxonomy), taxonomy, held_out, CleaningSettings())
    (doubt,) = [each for each in cleaning.doubts if each.row.path == rows[0].path]
    assert (doubt.stated, doubt.heard, doubt.heard_fine) == ("Kick", "Snare", "Snare")
    assert doubt.probability >= doubt.threshold >= 0.9
    assert rows[1].path not in {each.row.path for each in cleaning.doubts}
    assert doubt.action == "weighed down"
    assert f"heard as Snare with {doubt.probability:.2f}" in doubt.why
    assert cleaning.judged == len(rows)
    assert cleaning.disagreements >= len(cleaning.doubts) == len({each.row.path for each in cleaning.doubts})


def test_another_fine_label_of_the_same_drum_is_no_doubt(
    rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    snare = next(place for place, row in enumerate(rows) if row.label == "Snare")
    held_out = heard(tmp_path / "h.npz", rows, taxonomy, {snare: ("Rim", SURE)})
    assert not find_doubts(placed(rows, taxonomy), taxonomy, held_out, CleaningSettings()).doubts


def test_a_second_hearing_has_to_say_the_same(
    rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    one = heard(tmp_path / "one.npz", rows, taxonomy, {0: ("Snare", SURE), 1: ("Snare", SURE)})
    two = heard(tmp_path / "two.npz", rows, taxonomy, {0: ("Snare", UNSURE), 1: ("Cowbell", SURE)})
    cleaning = find_doubts(placed(rows, taxonomy), taxonomy, one, CleaningSettings(), two)
    assert [each.row.path for each in cleaning.doubts] == [rows[0].path]
    assert (cleaning.disagreements, cleaning.second_agrees) == (2, 1)


def test_the_test_side_is_never_touched(rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path) -> None:
    kept = rows[0].family
    sides = [replace(row, split="test" if row.family == kept else "train") for row in rows]
    held_out = heard(tmp_path / "h.npz", sides, taxonomy, {0: ("Snare", SURE)})
    cleaning = find_doubts(placed(sides, taxonomy), taxonomy, held_out, CleaningSettings())
    assert not cleaning.doubts
    assert cleaning.judged == sum(row.family != kept for row in rows)
    everything = [replace(row, split="test") for row in rows]
    with pytest.raises(ConfigError, match="side test"):
        find_doubts(placed(everything, taxonomy), taxonomy, held_out, CleaningSettings())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (CleaningSettings(weight=0.25), ("Kick", 0.25)),
        (CleaningSettings(weight=0.0), None),
        (CleaningSettings(relabel=0.95), ("Snare", 1.0)),
    ],
    ids=["weighed down", "left out", "relabelled"],
)
def test_a_doubtful_row_is_treated_as_asked_and_no_other_changes(
    rows: list[Row],
    taxonomy: TrainingTaxonomy,
    tmp_path: Path,
    settings: CleaningSettings,
    expected: tuple[str, float] | None,
) -> None:
    held_out = heard(tmp_path / "h.npz", rows, taxonomy, {0: ("Snare", SURE)})
    cleaning = find_doubts(placed(rows, taxonomy), taxonomy, held_out, settings)
    cleaned = {row.path: row for row in cleaned_rows(rows, cleaning, settings)}
    doubtful = cleaned.pop(rows[0].path, None)
    assert (doubtful and (doubtful.label, doubtful.weight)) == expected
    assert {path: replace(row, split=None) for path, row in cleaned.items()} == {
        row.path: row for row in rows[1:]
    }


def test_a_manifest_without_sides_gets_the_folds_of_the_networks(
    rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    held_out = heard(tmp_path / "h.npz", rows, taxonomy, {})
    settings = CleaningSettings()
    cleaning = find_doubts(placed(rows, taxonomy), taxonomy, held_out, settings)
    assert all(row.fold == int(row.family[-1]) % 3 for row in cleaned_rows(rows, cleaning, settings))
    sides = [replace(row, split="train") for row in rows]
    assert {row.split for row in cleaned_rows(sides, cleaning, settings)} == {"train"}


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"doubt": 0.0}, {"weight": 2.0}, {"relabel": 0.5}):
        with pytest.raises(ConfigError):
            CleaningSettings(**wrong)


@pytest.fixture
def manifest(rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "manifest.jsonl", rows)
    heard(tmp_path / "held_out.npz", rows, taxonomy, {0: ("Snare", SURE)})
    return tmp_path / "manifest.jsonl"


def test_the_command_reports_what_it_writes(
    command: CommandLine, manifest: Path, rows: list[Row], tmp_path: Path
) -> None:
    before = manifest.read_bytes()
    plan = command("dataset", "clean", "manifest.jsonl", "--held-out", "held_out.npz", "--dry-run", "--json")
    assert plan.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held_out.npz", "manifest.jsonl"]
    outcome = command(
        *("dataset", "clean", "manifest.jsonl", "--held-out", "held_out.npz"),
        *("--relabel", "0.95", "--overrides", "corrections.jsonl"),
    )
    assert outcome.code == 0
    assert "1 relabelled" in outcome.out
    assert manifest.read_bytes() == before
    report = json.loads((tmp_path / "cleaning" / "cleaning.json").read_text())
    assert [each["path"] for each in report["recordings"]] == [str(rows[0].path)]
    assert plan.json()["recordings"][0]["why"] == report["recordings"][0]["why"]
    page = (tmp_path / "cleaning" / "cleaning.html").read_text()
    assert rows[0].path.as_uri() in page
    assert report["recordings"][0]["why"] in page
    correction = json.loads((tmp_path / "corrections.jsonl").read_text())
    assert correction == {"hash": rows[0].hash, "correct_label": "Snare"}
    cleaned = read_manifest(tmp_path / "cleaned.jsonl")
    assert [row.label for row in cleaned if row.path == rows[0].path] == ["Snare"]


def test_nothing_is_written_when_something_else_is_in_the_way(
    command: CommandLine, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "heard").mkdir()
    (tmp_path / "heard" / "cleaning.json").write_text("mine")
    for option, path in (("--out", "notes.txt"), ("--overrides", "notes.txt"), ("--report", "heard")):
        outcome = command(*CLEAN, "--relabel", "0.95", option, path)
        assert outcome.code == 8
        assert "exists already" in outcome.err
        assert f"Give another path with {option}." in outcome.err
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "cleaning").exists()
    assert not (tmp_path / "cleaned.jsonl").exists()


def test_corrections_of_a_person_are_never_replaced(
    command: CommandLine, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "corrections.jsonl").write_text('{"hash": "5f1c07c0b1a3d2e4", "correct_label": "Tom"}\n')
    before = (tmp_path / "corrections.jsonl").read_bytes()
    outcome = command(*CLEAN, "--relabel", "0.95", "--overrides", "corrections.jsonl")
    assert outcome.code == 8
    assert "corrections.jsonl' exists already and is not replaced" in outcome.err
    assert (tmp_path / "corrections.jsonl").read_bytes() == before
    assert not (tmp_path / "cleaned.jsonl").exists()


def test_corrections_are_not_asked_for_where_nothing_is_relabelled(
    command: CommandLine, manifest: Path, tmp_path: Path
) -> None:
    outcome = command(*CLEAN, "--overrides", "doubts.jsonl")
    assert outcome.code == 2
    assert "--relabel" in outcome.err
    assert not (tmp_path / "doubts.jsonl").exists()


def test_a_manifest_is_not_cleaned_in_place(command: CommandLine, manifest: Path, tmp_path: Path) -> None:
    before = manifest.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(manifest)
    for same in ("./manifest.jsonl", "link.jsonl"):
        outcome = command(*CLEAN, "--out", same)
        assert outcome.code == 2
        assert "is the manifest itself" in outcome.err
    assert manifest.read_bytes() == before
    assert not (tmp_path / "cleaning").exists()


def test_logits_that_are_none_are_named(command: CommandLine, manifest: Path) -> None:
    outcome = command("dataset", "clean", "manifest.jsonl", "--held-out", "manifest.jsonl")
    assert outcome.code != 0
    assert "drumline train crossval" in outcome.err
