"""Manifests, and folds that no family and no content is on two sides of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drumline.errors import ConfigError
from drumline_convert.corpus import Recording, default_corpus, read_corpus
from drumline_convert.split import family_folds
from drumline_convert.taxonomy import TrainingTaxonomy


def recording(family: str, content: str, canonical: int = 0) -> Recording:
    return Recording(Path("x.wav"), "Kick", 0, canonical, family, content, "source", "CC0-1.0")


def assert_no_leak(recordings: list[Recording], folds: np.ndarray) -> None:
    for key in ("family", "content"):
        sides: dict[str, set[int]] = {}
        for row, fold in zip(recordings, folds, strict=True):
            sides.setdefault(getattr(row, key), set()).add(int(fold))
        assert all(len(side) == 1 for side in sides.values()), f"a {key} is on two sides"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60), st.integers(0, 6)), min_size=1, max_size=80)
)
@settings(max_examples=60, deadline=None)
def test_no_family_and_no_content_is_on_two_sides(rows: list[tuple[int, int, int]]) -> None:
    recordings = [recording(f"f{family}", f"{content:x}", label) for family, content, label in rows]
    try:
        folds = family_folds(recordings, 3)
    except ConfigError:
        return
    assert_no_leak(recordings, folds)


def test_families_that_share_a_file_stay_together() -> None:
    rows = [recording("a", "1"), recording("a", "2"), recording("b", "2"), recording("c", "3")]
    folds = family_folds(rows, 2)
    assert folds[0] == folds[1] == folds[2] != folds[3]


def test_the_split_is_seeded_and_balanced() -> None:
    rng = np.random.default_rng(1)
    rows = [
        recording(f"family{family}", f"{family:x}{number:03x}", int(rng.integers(7)))
        for family in range(40)
        for number in range(int(rng.integers(3, 60)))
    ]
    folds = family_folds(rows, 5, seed=3)
    assert np.array_equal(folds, family_folds(rows, 5, seed=3))
    assert np.bincount(folds).min() > 0.8 * len(rows) / 5


def test_too_few_families_are_an_error() -> None:
    with pytest.raises(ConfigError, match="2 families cannot be split into 5 folds"):
        family_folds([recording("a", "1"), recording("b", "2")], 5)


def test_the_manifest_is_read(tiny_corpus: Path, taxonomy: TrainingTaxonomy) -> None:
    recordings = read_corpus(tiny_corpus, taxonomy)
    assert len(recordings) == 72
    assert all(row.path.is_file() and taxonomy.fine[row.fine] == row.label for row in recordings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "a.wav"}', "line 1: not a manifest row"),
        ("no json", "line 1: not a manifest row"),
        (json.dumps({"label": "Theremin"}), "line 1: the label 'Theremin' is not in the taxonomy"),
        ("", "has no rows"),
    ],
)
def test_a_bad_manifest_names_the_line(
    tmp_path: Path, taxonomy: TrainingTaxonomy, line: str, message: str
) -> None:
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_corpus(tmp_path, taxonomy)


def test_a_missing_manifest_says_how_to_name_one(tmp_path: Path, taxonomy: TrainingTaxonomy) -> None:
    with pytest.raises(ConfigError, match="--corpus"):
        read_corpus(tmp_path / "nowhere", taxonomy)


def test_the_corpus_of_real_recordings_splits_without_a_leak(taxonomy: TrainingTaxonomy) -> None:
    corpus = default_corpus()
    if not (corpus / "manifest.jsonl").exists():
        pytest.skip(f"no corpus at {os.fspath(corpus)}: set DRUMLINE_CORPUS")
    recordings = read_corpus(corpus, taxonomy)
    folds = family_folds(recordings)
    assert_no_leak(recordings, folds)
    for canonical in range(len(taxonomy.canonical)):
        share = np.bincount(folds[[row.canonical == canonical for row in recordings]], minlength=5)
        assert share.min() > 0.1 * share.sum()
