"""No family and no content is on two sides of a split that a published figure was measured on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drumline.errors import ConfigError
from drumline_convert.corpus import default_corpus, read_corpus
from drumline_convert.manifest import Row
from drumline_convert.predictions import refuse_leaks
from drumline_convert.provenance import TrainingSet, read_training_set, write_training_set
from drumline_convert.split import family_folds
from drumline_convert.taxonomy import TrainingTaxonomy
from drumline_convert.workbench import ModelSettings


def row(family: str, digest: str, split: str | None = None) -> Row:
    return Row(
        Path(f"/{family}{digest}.wav"), "Kick", family, family, "own", "CC0-1.0", digest.zfill(16), split
    )


def test_families_and_contents_on_two_sides_are_refused() -> None:
    rows = [row("a", "1"), row("a", "2"), row("b", "2"), row("b", "3"), row("c", "4"), row("c", "5")]
    with pytest.raises(ConfigError, match=r"the manifest leaks: the family 'a' is on 2 sides: 0, 1 \("):
        refuse_leaks(rows, [0, 1, 1, 1, None, 0], "the manifest")
    with pytest.raises(ConfigError, match="the content '0000000000000002'"):
        refuse_leaks(rows, [0, 0, 1, 1, 2, 2], "the manifest")
    refuse_leaks(rows, [0, 0, 0, 0, 1, 1], "the manifest")


def test_the_folds_of_every_published_figure_are_without_a_leak(taxonomy: TrainingTaxonomy) -> None:
    corpus = default_corpus()
    if not (corpus / "manifest.jsonl").exists():
        pytest.skip(f"no corpus at {os.fspath(corpus)}: set DRUMLINE_CORPUS")
    published = ModelSettings(corpus, Path("models/mfcc-cnn"))
    recordings = read_corpus(corpus, taxonomy)
    folds = family_folds(recordings, published.folds, published.training.seed)
    assert len(set(folds.tolist())) == published.folds
    for key in ("family", "hash"):
        sides: dict[str, set[int]] = {}
        for recording, fold in zip(recordings, folds.tolist(), strict=True):
            sides.setdefault(getattr(recording, key), set()).add(fold)
        assert max(map(len, sides.values())) == 1, key


def test_what_a_bundle_was_trained_on_survives_its_file(tmp_path: Path) -> None:
    rows = [row("a", "a1b2"), row("b", "ffffffffffffffff"), row("b", "0")]
    assert read_training_set(tmp_path) is None
    write_training_set(tmp_path, rows)
    stored = read_training_set(tmp_path)
    assert stored == TrainingSet.of(rows)
    assert stored.holds(row("b", "123"))
    assert stored.holds(row("renamed", "ffffffffffffffff"))
    assert not stored.holds(row("c", "eeeeeeeeeeeeeeee"))
