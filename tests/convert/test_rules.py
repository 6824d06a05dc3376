"""Labels read off names: whole words only, and never a guess."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from drumline.errors import ConfigError
from drumline_convert.corpus import default_corpus
from drumline_convert.rules import DEFAULT_RULES, LabelRules, read_rules, words_of
from drumline_convert.taxonomy import TrainingTaxonomy


@pytest.fixture(scope="module")
def rules() -> LabelRules:
    return read_rules()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("HiHat_Open-03", "hi hat open"),
        ("808Kick", "kick"),
        ("HHClosed", "hh closed"),
        ("BD", "bd"),
        ("  snare (tight) [v2].old", "snare tight v old"),
        ("Grosse Caisse éclatée", "grosse caisse éclatée"),
        ("", ""),
    ],
)
def test_names_are_cut_into_words(name: str, words: str) -> None:
    assert " ".join(words_of(name)) == words


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("Kick 01", "Kick"),
        ("808_bass_drum", "Kick"),
        ("bass 01", "Bass"),
        ("kickstart", ""),
        ("snares", "Snare"),
        ("Snare Rimshot", "Rim"),
        ("hat", "Hihat"),
        ("Hi-Hat closed", "HihatClosed"),
        ("open old hat", "HihatOpen"),
        ("OH 3", "HihatOpen"),
        ("Floor Tom OH", "TomLow"),
        ("ride bell", "RideBell"),
        ("cow bell", "Cowbell"),
        ("Kick+Snare", "Kick Snare"),
        ("kick loop", "Kick Loop"),
        ("Drum and Bass", ""),
        ("percussion conga", "Conga"),
        ("take 17", ""),
    ],
)
def test_names_say_labels(rules: LabelRules, name: str, labels: str) -> None:
    assert rules.said_by(name) == frozenset(labels.split())


@pytest.mark.parametrize(
    ("file", "folders", "labels"),
    [
        ("01", ["Pack", "Kicks"], "Kick"),
        ("kick", ["Kicks"], "Kick"),
        ("kick", ["Snares"], "Kick Snare"),
        ("rim 3", ["Snares"], "Rim"),
        ("hat 3", ["Open Hats"], "HihatOpen"),
        ("kick 3", ["Kicks and Snares"], "Kick"),
        ("3", ["Kicks and Snares"], "Kick Snare"),
        ("conga", ["Percussion"], "Conga"),
        ("3", ["Snares", "Claps"], "Clap"),
        ("3", ["Vendor"], ""),
        ("3", ["Paper Moon Loops"], ""),
        ("kick", ["Club Tropicana FX"], "Kick"),
        ("3", ["01 Kick Drums (Acoustic)"], "Kick"),
        ("3", ["Kick Drums 01", "Drum and Bass"], "Kick"),
    ],
)
def test_a_file_and_its_folders_have_to_agree(
    rules: LabelRules, file: str, folders: list[str], labels: str
) -> None:
    assert rules.decide(file, folders) == frozenset(labels.split())


def test_a_tempo_casts_doubt_on_a_label(rules: LabelRules) -> None:
    assert rules.doubt("rave_kick01 - 180 BPM") == "bpm"
    assert rules.doubt("rave_kick01") is None


def test_every_label_of_the_rules_is_one_of_the_taxonomy(
    rules: LabelRules, taxonomy: TrainingTaxonomy
) -> None:
    assert set(rules.labels) <= set(taxonomy.known)
    assert set(taxonomy.known) - set(rules.labels) == {"Other"}


def test_the_text_before_the_label_is_what_a_flat_name_says_of_its_kit(rules: LabelRules) -> None:
    names = ["Vendor_Vol.2_Kick_01", "808 Closed Hat", "Kick Hard", "17"]
    assert [rules.text_before_label(name) for name in names] == ["Vendor Vol 2", "808 Closed", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no mapping"),
        ("labels: {Kick: [kick]}\nlabel: {}", "'label' is unknown"),
        ("silent: [x]", "no section 'labels'"),
        ("labels: {Kick: [808]}", "808 is no text"),
        ("labels: {Kick: ['808']}", "a part without words"),
        ("labels: {Kick: [kick]}\ncovers: {Kick: [Kik]}", "'covers' names 'Kik'"),
        ("labels: [", "are wrong"),
    ],
)
def test_rules_that_are_wrong_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_rules(path)


def test_rules_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the label rules .*mine\.yml"):
        read_rules(tmp_path / "mine.yml")


def test_an_edited_copy_of_the_rules_is_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(DEFAULT_RULES.read_text().replace("labels:\n", "labels:\n  Boing: [boing]\n", 1))
    assert read_rules(path).said_by("Boing 3") == {"Boing"}


def test_what_the_rules_say_of_real_names_is_the_canonical_label(
    rules: LabelRules, taxonomy: TrainingTaxonomy
) -> None:
    manifest = default_corpus() / "manifest.jsonl"
    if not manifest.exists():
        pytest.skip("no corpus: set DRUMLINE_CORPUS")
    counts: Counter[str] = Counter()
    for row in map(json.loads, manifest.read_text().splitlines()):
        said = rules.said_by(Path(row["path"]).stem.partition("__")[2])
        counts["several" if len(said) > 1 else "one" if said else "none"] += 1
        if len(said) == 1 and not rules.doubt(Path(row["path"]).stem):
            counts["believed"] += 1
            index = taxonomy.canonical_index(*said)
            counts["right"] += index is not None and taxonomy.canonical[index] == row["canonical"]
    assert counts["right"] > 0.99 * counts["believed"]
    assert counts["one"] > 0.65 * sum(counts[kind] for kind in ("one", "several", "none"))
