"""The label set, and what it collapses and folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drumline.errors import ConfigError
from drumline.labels import CANONICAL_LABELS, MISC
from drumline_convert.taxonomy import TrainingTaxonomy, read_taxonomy


def test_the_default_taxonomy_has_the_six_drums_and_misc(taxonomy: TrainingTaxonomy) -> None:
    assert taxonomy.canonical == (*CANONICAL_LABELS, MISC)
    assert len(taxonomy.fine) >= 34


@pytest.mark.parametrize(
    ("label", "canonical"),
    [
        ("Splash", "Crash"),
        ("China", "Crash"),
        ("Rim", "Snare"),
        ("Timbale", "Tom"),
        ("RideBell", "Ride"),
        ("HihatPedal", "Hihat"),
        ("TomLow", "Tom"),
        ("Clap", "misc"),
        ("Castanet", "misc"),
        ("Gong", "misc"),
    ],
)
def test_labels_collapse_as_the_corpus_says(taxonomy: TrainingTaxonomy, label: str, canonical: str) -> None:
    index = taxonomy.canonical_index(label)
    assert index is not None
    assert taxonomy.canonical[index] == canonical


def test_every_fine_label_collapses_to_exactly_one(taxonomy: TrainingTaxonomy) -> None:
    assert np.array_equal(taxonomy.collapse.sum(axis=1), np.ones(len(taxonomy.fine)))


def test_an_unknown_label_has_no_index(taxonomy: TrainingTaxonomy) -> None:
    assert taxonomy.fine_index("Theremin") is None
    assert taxonomy.canonical_index("Theremin") is None


def test_a_fold_into_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "taxonomy.json"
    path.write_text(json.dumps({"misc": "misc", "canonical": {"Kick": "Kick"}, "fold": {"Gong": "Perc"}}))
    with pytest.raises(ConfigError, match="folds into unknown labels: Perc"):
        read_taxonomy(path)


def test_a_file_that_is_no_taxonomy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "taxonomy.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"taxonomy\.json"):
        read_taxonomy(path)
