"""Manifests, and folds that no family and no content is on two sides of."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drumline.errors import ConfigError, DrumlineError
from drumline_convert.corpus import Recording, default_corpus, read_corpus, recordings_of
from drumline_convert.manifest import read_manifest, write_manifest
from drumline_convert.split import assert_no_leak, family_folds, family_groups, split_by_family
from drumline_convert.taxonomy import TrainingTaxonomy


def recording(family: str, content: str, canonical: int = 0, split: str | None = None) -> Recording:
    values = {"label": "Kick", "kit": family, "family": family, "source": "source", "licence": "CC0-1.0"}
    return Recording(
        path=Path("/x.wav"), hash=content.zfill(16), split=split, fine=0, canonical=canonical, **values
    )


def assert_no_side_shares(recordings: list[Recording], sides: np.ndarray) -> None:
    for key in ("family", "hash"):
        found: dict[str, set[int]] = {}
        for row, side in zip(recordings, sides, strict=True):
            found.setdefault(getattr(row, key), set()).add(int(side))
        assert all(len(side) == 1 for side in found.values()), f"a {key} is on two sides"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60), st.integers(0, 6)), min_size=1, max_size=80),
    st.lists(st.floats(0.05, 1), min_size=2, max_size=5),
    st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_no_family_and_no_content_is_on_two_sides_and_no_side_is_empty(
    rows: list[tuple[int, int, int]], shares: list[float], seed: int
) -> None:
    recordings = [recording(f"f{family}", f"{content:x}", label) for family, content, label in rows]
    shares = [share / sum(shares) for share in shares]
    if family_groups(recordings).max() + 1 < len(shares):
        with pytest.raises(ConfigError, match="families cannot be split"):
            split_by_family(recordings, shares, seed)
        return
    sides = split_by_family(recordings, shares, seed)
    assert_no_side_shares(recordings, sides)
    assert set(sides.tolist()) == set(range(len(shares)))


@pytest.mark.parametrize("sides", [["train", "test", "test"], ["train", "train", "fold0"]])
def test_a_split_that_leaks_is_an_error(sides: list[str]) -> None:
    rows = [recording("a", "1"), recording("a", "2"), recording("b", "2")]
    with pytest.raises(DrumlineError, match="is on 2 sides"):
        assert_no_leak(rows, sides)
    assert_no_leak(rows, ["train"] * 3)
    assert_no_leak(rows, ["train", "train", None])


def test_shares_are_kept_for_every_class() -> None:
    rng = np.random.default_rng(2)
    rows = [
        recording(f"family{family}", f"{family:x}{number:03x}", int(rng.integers(7)))
        for family in range(60)
        for number in range(int(rng.integers(3, 60)))
    ]
    sides = split_by_family(rows, (0.7, 0.15, 0.15), seed=1)
    for canonical in range(7):
        share = np.bincount(sides[[row.canonical == canonical for row in rows]], minlength=3)
        assert np.allclose(share / share.sum(), (0.7, 0.15, 0.15), atol=0.06)


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
    with pytest.raises(ConfigError, match="2 families cannot be split into 5 sides"):
        family_folds([recording("a", "1"), recording("b", "2")], 5)


def test_the_manifest_is_read(tiny_corpus: Path, taxonomy: TrainingTaxonomy) -> None:
    recordings = read_corpus(tiny_corpus, taxonomy)
    assert len(recordings) == 72
    assert all(row.path.is_file() and taxonomy.fine[row.fine] == row.label for row in recordings)


def test_a_manifest_and_its_directory_give_the_same_recordings(
    tiny_corpus: Path, taxonomy: TrainingTaxonomy
) -> None:
    by_path = {row.path: row for row in read_corpus(tiny_corpus / "manifest.jsonl", taxonomy)}
    assert by_path == {row.path: row for row in read_corpus(tiny_corpus, taxonomy)}


def test_what_is_kept_for_testing_is_not_learnt_from(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    rows = read_manifest(tiny_corpus / "manifest.jsonl").rows
    sides = ["test" if row.family in ("family0", "family1") else None for row in rows]
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [replace(row, split=side) for row, side in zip(rows, sides, strict=True)])
    assert {row.family for row in read_corpus(path, taxonomy)} == {f"family{n}" for n in range(2, 6)}
    write_manifest(path, [replace(row, split="test") for row in rows])
    with pytest.raises(ConfigError, match="none may be learnt from"):
        read_corpus(path, taxonomy)


def test_the_folds_of_a_manifest_are_used_as_they_are() -> None:
    rows = [recording(f"f{n}", f"{n:x}", split=f"fold{n % 3}") for n in range(12)]
    assert family_folds(rows, 3).tolist() == [n % 3 for n in range(12)]
    with pytest.raises(ConfigError, match="the manifest has 3 folds, not 5"):
        family_folds(rows, 5)
    with pytest.raises(ConfigError, match="no recordings of fold1"):
        family_folds([row for row in rows if row.fold != 1], 3)
    with pytest.raises(DrumlineError, match="is on 2 sides"):
        family_folds([*rows, recording("f0", "99", split="fold1")], 3)
    partly = [*rows, recording("other", "99")]
    assert len(family_folds(partly, 3)) == 13


def test_a_label_outside_the_taxonomy_is_named(tiny_corpus: Path, taxonomy: TrainingTaxonomy) -> None:
    row = replace(read_manifest(tiny_corpus / "manifest.jsonl").rows[0], label="Theremin")
    with pytest.raises(ConfigError, match=r"the label 'Theremin' of .* is not in the taxonomy"):
        recordings_of([row], taxonomy)


def test_a_missing_manifest_says_how_to_name_one(tmp_path: Path, taxonomy: TrainingTaxonomy) -> None:
    with pytest.raises(ConfigError, match="--corpus"):
        read_corpus(tmp_path / "nowhere", taxonomy)


def test_a_directory_without_metadata_has_to_be_scanned_first(
    tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    with pytest.raises(ConfigError, match="drumline dataset scan"):
        read_corpus(tmp_path, taxonomy)


def test_a_directory_whose_files_are_not_as_stated_is_not_trained_on(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    row = read_manifest(tiny_corpus / "manifest.jsonl").rows[0]
    copy = tmp_path / "kick.wav"
    copy.write_bytes(row.path.read_bytes() + b"more")
    write_manifest(tmp_path / "manifest.jsonl", [replace(row, path=copy)])
    with pytest.raises(ConfigError, match=r"kick\.wav' cannot be used: its content is not"):
        read_corpus(tmp_path, taxonomy)


def test_the_corpus_of_real_recordings_splits_without_a_leak(taxonomy: TrainingTaxonomy) -> None:
    corpus = default_corpus()
    if not (corpus / "manifest.jsonl").exists():
        pytest.skip(f"no corpus at {os.fspath(corpus)}: set DRUMLINE_CORPUS")
    recordings = read_corpus(corpus, taxonomy)
    folds = family_folds(recordings)
    assert_no_side_shares(recordings, folds)
    for canonical in range(len(taxonomy.canonical)):
        share = np.bincount(folds[[row.canonical == canonical for row in recordings]], minlength=5)
        assert share.min() > 0.1 * share.sum()
