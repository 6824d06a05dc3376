"""Augmented variants, and the store that keeps their features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drumline.audio import read_waveform
from drumline.errors import ConfigError
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline_convert.augment import AugmentSettings, variants
from drumline_convert.corpus import read_corpus
from drumline_convert.dataset import FeatureStore
from drumline_convert.taxonomy import TrainingTaxonomy

FRONT_END = FrontEnd()
AUGMENT = AugmentSettings(variants=3)


def store(root: Path) -> FeatureStore:
    return FeatureStore(root, FRONT_END, AUGMENT)


@pytest.mark.parametrize("length", [1, 50, 2_000, 50_000])
def test_variants_are_finite_and_the_first_is_the_recording(length: int) -> None:
    samples = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    made = list(variants(samples, 44_100, AugmentSettings(variants=40), "ab12"))
    assert len(made) == 40
    assert np.array_equal(made[0], samples)
    assert all(wave.dtype == np.float32 and wave.ndim == 1 and np.isfinite(wave).all() for wave in made)


def test_variants_of_silence_stay_finite() -> None:
    made = variants(np.zeros(5_000, np.float32), 44_100, AugmentSettings(variants=40), "0")
    assert all(np.isfinite(wave).all() for wave in made)


def test_stretching_changes_the_length_and_not_the_pitch() -> None:
    pytest.importorskip("librosa", reason="librosa is not installed: pip install 'drumline[train]'")
    from drumline_convert.augment import _stretch

    tone = np.sin(2 * np.pi * 1_000 * np.arange(44_100) / 44_100).astype(np.float32)
    for seed in range(3):
        made = _stretch(tone, 44_100, AugmentSettings(stretch=0.3), np.random.default_rng(seed))
        middle = np.abs(np.fft.rfft(made[5_000:25_000] * np.hanning(20_000)))
        assert len(made) != len(tone)
        assert middle.argmax() * 44_100 / 20_000 == pytest.approx(1_000, rel=0.01)


def test_gain_changes_the_level_and_nothing_of_the_other_effects() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 4_000).astype(np.float32)
    samples /= np.abs(samples).max()
    plain, louder = (
        list(variants(samples, 44_100, AugmentSettings(gain_db=gain, variants=6), "ab"))
        for gain in (0.0, 12.0)
    )
    for a, b in zip(plain[1:], louder[1:], strict=True):
        ratio = np.abs(b).max() / np.abs(a).max()
        assert 10 ** (-12 / 20) <= ratio <= 10 ** (12 / 20)
        assert np.allclose(a * ratio, b, atol=1e-4)


def test_variants_depend_on_the_content_alone() -> None:
    samples = np.random.default_rng(0).standard_normal(3_000).astype(np.float32)
    first, again = (list(variants(samples, 44_100, AUGMENT, "ab")) for _ in range(2))
    other = list(variants(samples, 44_100, AUGMENT, "ac"))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first[1:], other[1:], strict=True))


def test_the_store_holds_the_features_that_the_engine_computes(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    recordings = read_corpus(tiny_corpus, taxonomy)[:5]
    features, rows = store(tmp_path).load(recordings, workers=1)
    assert features.shape == (5, 3, 40, 98)
    for recording, row in zip(recordings, rows, strict=True):
        expected = FeatureExtractor(FRONT_END).features(read_waveform(recording.path, FRONT_END).samples)
        assert np.array_equal(features[row, 0], expected)


def test_a_torn_store_is_repaired_and_only_what_is_missing_is_computed(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    recordings = read_corpus(tiny_corpus, taxonomy)[:6]
    whole = np.array(store(tmp_path).load(recordings, workers=1)[0])
    directory = store(tmp_path).directory
    with open(directory / "features.f32", "r+b") as stream:
        stream.truncate(whole[:4].nbytes + 100)
    seen: list[tuple[int, int]] = []
    features, rows = store(tmp_path).load(recordings, 1, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert np.array_equal(features[rows], whole)


def test_new_recordings_are_appended_and_order_does_not_matter(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    recordings = read_corpus(tiny_corpus, taxonomy)[:4]
    first = np.array(store(tmp_path).load(recordings[:2], workers=1)[0])
    features, rows = store(tmp_path).load(recordings[::-1], workers=1)
    assert np.array_equal(features[rows[::-1][:2]], first)


def test_workers_compute_the_same_as_one_process(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    recordings = read_corpus(tiny_corpus, taxonomy)[:20]
    one = store(tmp_path / "one").load(recordings, workers=1)[0]
    two = store(tmp_path / "two").load(recordings, workers=2)[0]
    assert np.array_equal(one, two)


def test_another_front_end_or_augmentation_is_another_store(tmp_path: Path) -> None:
    base = store(tmp_path)
    others = [
        replace(base, front_end=FrontEnd(n_mfcc=20)),
        replace(base, augment=AugmentSettings(variants=4)),
    ]
    assert len({base.directory, *(other.directory for other in others)}) == 3


def test_a_recording_that_cannot_be_read_is_named(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    recording = replace(read_corpus(tiny_corpus, taxonomy)[0], path=broken, hash="beef" * 4)
    with pytest.raises(ConfigError, match=r"broken\.wav"):
        store(tmp_path).load([recording], workers=1)


def test_a_recording_that_changed_since_the_manifest_is_refused(
    tiny_corpus: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    first, second = read_corpus(tiny_corpus, taxonomy)[:2]
    with pytest.raises(ConfigError, match="has changed since its manifest was made"):
        store(tmp_path).load([replace(first, path=second.path)], workers=1)
    assert store(tmp_path).load([second], workers=1)[0].shape[0] == 1
