"""`drumline.features` gives what librosa gives, for every length and setting."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drumline.audio import read_waveform
from drumline.errors import BundleError
from drumline.features import Analysis, FeatureExtractor, mel_filterbank
from drumline.frontend import FrontEnd
from drumline.spectra import hann_window
from tests import librosa_reference as reference

LENGTHS = (1, 2, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 20_000, 49_999, 50_000)
SETTINGS = (
    FrontEnd(),
    FrontEnd(kind="log-mel"),
    FrontEnd(kind="log-mel", n_mels=64, n_fft=1024, hop_length=256, samples=20_000),
    FrontEnd(sample_rate=22_050, samples=22_050, n_fft=1024, hop_length=300, n_mels=80, n_mfcc=20),
    FrontEnd(n_fft=1000, hop_length=1500, samples=12_345, n_mels=32, n_mfcc=32),
    FrontEnd(n_fft=4096, hop_length=1024, top_db=60.0),
    FrontEnd(normalise="none"),
    FrontEnd(deltas=1),
    FrontEnd(deltas=2, delta_width=5, n_mfcc=20),
    FrontEnd(kind="log-mel", deltas=2, n_mels=64, samples=65_024),
    FrontEnd(deltas=1, delta_width=9, samples=4096),  # one window is all there is
)


def mono(frames: int, seed: int = 0) -> NDArray[np.float32]:
    return reference.drum(frames, seed=seed)[:, 0].astype(np.float32)


def assert_equals_librosa(samples: NDArray[np.float32], front_end: FrontEnd) -> None:
    features, analysis = reference.features(samples, front_end), reference.analysis(samples, front_end)
    for compiled in (False, True):
        out = np.full(front_end.shape, np.nan, np.float32)
        found = FeatureExtractor(front_end, compiled=compiled).extract(samples, out)
        np.testing.assert_allclose(out, features, rtol=0, atol=reference.MAX_DIFFERENCE_DB)
        reference.assert_same_analysis(found, analysis)


@pytest.mark.parametrize("front_end", SETTINGS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_features_and_statistics_equal_librosa_at_every_length(length: int, front_end: FrontEnd) -> None:
    assert_equals_librosa(mono(length), front_end)


@pytest.mark.parametrize(
    "front_end",
    [
        FrontEnd(),
        FrontEnd(kind="log-mel"),
        FrontEnd(deltas=2),
        FrontEnd(kind="log-mel", n_mels=64, n_fft=1024, hop_length=441, samples=30_000),
        FrontEnd(kind="log-mel", samples=65_024, deltas=1),
    ],
    ids=str,
)
def test_features_and_statistics_equal_librosa_on_recordings(front_end: FrontEnd) -> None:
    for path in reference.recordings(every=60):
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
        assert_equals_librosa(librosa.to_mono(samples.T), front_end)


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_recordings_resampled_to_any_rate_equal_librosa(rate: int) -> None:
    front_end = FrontEnd(kind="log-mel", sample_rate=rate, samples=rate, n_mels=80, deltas=1)
    for path in reference.recordings(every=400):
        samples = read_waveform(path, front_end).samples
        expected = reference.load(path.read_bytes(), front_end)
        np.testing.assert_allclose(samples, expected, atol=1e-5, rtol=0)
        assert_equals_librosa(samples, front_end)


def test_deltas_stand_below_the_coefficients_and_change_nothing_of_them() -> None:
    samples = mono(20_000)
    plain, both = (FeatureExtractor(FrontEnd(deltas=deltas)).features(samples) for deltas in (0, 2))
    assert both.shape == (120, 98)
    np.testing.assert_array_equal(both[:40], plain)


@pytest.mark.parametrize(
    "wrong",
    [{"deltas": 3}, {"deltas": True}, {"delta_width": 4}, {"delta_width": 1}, {"deltas": 1, "samples": 2048}],
    ids=str,
)
def test_deltas_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BundleError, match="front end"):
        FrontEnd(**wrong)  # type: ignore[arg-type]


def test_the_waveform_stands_below_the_coefficients_as_means_of_its_samples() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5_000).astype(np.float32)
    for front_end in (FrontEnd(waveform=16), FrontEnd(waveform=4, deltas=1, hop_length=1600)):
        plain = FeatureExtractor(replace(front_end, waveform=0)).features(samples)
        both = FeatureExtractor(front_end).features(samples)
        assert both.shape == front_end.shape
        assert np.array_equal(both[: len(plain)], plain)
        padded = np.zeros(front_end.frames * front_end.hop_length, np.float32)
        padded[:5_000] = samples / np.abs(samples).max()
        means = padded.reshape(front_end.frames * front_end.waveform, -1).mean(axis=1)
        assert np.allclose(both[len(plain) :].T.reshape(-1), means, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"waveform": -1}, {"waveform": True}, {"waveform": 100}])
def test_a_waveform_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BundleError, match="waveform"):
        FrontEnd(**wrong)


def test_a_front_end_without_deltas_reads_as_it_did_before_there_were_any() -> None:
    old = {"kind", "sample_rate", "samples", "n_fft", "hop_length", "n_mels", "n_mfcc", "top_db", "normalise"}
    assert set(FrontEnd().to_json()) == old  # what fingerprints of bundles and feature stores are made of
    for front_end in (FrontEnd(), FrontEnd(deltas=2, delta_width=5)):
        assert FrontEnd.from_json(front_end.to_json()) == front_end


@pytest.mark.parametrize("kind", ["mfcc", "log-mel"])
@pytest.mark.parametrize("treble_db", [-40, -55, -60, -65, -70, -75, -80, -90])
def test_treble_far_below_a_loud_kick_keeps_its_level(treble_db: float, kind: str) -> None:
    """A float32 transform alone misses it by several thousandths of a dB."""
    time = np.arange(30_000) / 44_100
    noise = np.random.default_rng(1).standard_normal(len(time)) * 10 ** (treble_db / 20)
    kick = np.sin(2 * np.pi * 55.0 * time) + noise
    assert_equals_librosa((0.5 * kick).astype(np.float32), FrontEnd(kind=kind))  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [0, 1, 511, 512, 1024, 25_000, 49_151, 49_152, 49_999])
def test_a_single_click_anywhere_equals_librosa(position: int) -> None:
    samples = np.zeros(50_000, np.float32)
    samples[position] = -0.25
    assert_equals_librosa(samples, FrontEnd())


@pytest.mark.parametrize("front_end", SETTINGS, ids=str)
@pytest.mark.parametrize("length", [1, 513, 60_000])
def test_silence_gives_the_floor_and_no_warning(length: int, front_end: FrontEnd) -> None:
    samples = np.zeros(length, np.float32)
    out = np.full(front_end.shape, np.nan, np.float32)
    assert FeatureExtractor(front_end).extract(samples, out) == Analysis(-120.0, 0.0, 0.0)
    expected = reference.features(samples, front_end)
    np.testing.assert_allclose(out, expected, rtol=0, atol=reference.MAX_DIFFERENCE_DB)


def test_no_samples_count_as_silence() -> None:
    extractor = FeatureExtractor(FrontEnd())
    out = np.empty((40, 98), np.float32)
    assert extractor.extract(np.zeros(0, np.float32), out) == Analysis(-120.0, 0.0, 0.0)
    np.testing.assert_array_equal(out, extractor.features(np.zeros(100, np.float32)))


def test_what_is_past_the_analysed_samples_changes_nothing() -> None:
    extractor = FeatureExtractor(FrontEnd())
    samples = mono(70_000)
    np.testing.assert_array_equal(extractor.features(samples), extractor.features(samples[:50_000]))


@pytest.mark.parametrize("gain", [1e-40, 1e-30, 1e-3, 1e6, 1e14])
def test_gain_changes_the_level_and_nothing_else(gain: float) -> None:
    extractor = FeatureExtractor(FrontEnd())
    samples, out = mono(10_000), np.empty((40, 98), np.float32)
    before = extractor.extract(samples, out)
    expected = out.copy()
    after = extractor.extract((samples.astype(np.float64) * gain).astype(np.float32), out)
    if gain > 1e-38:  # below, float32 itself has only a few bits left
        np.testing.assert_allclose(out, expected, atol=reference.MAX_DIFFERENCE_DB, rtol=0)
        assert after.spectral_centroid == pytest.approx(before.spectral_centroid, rel=1e-4)
    assert np.isfinite(out).all()
    assert after.rms_db == pytest.approx(max(-120.0, before.rms_db + 20 * np.log10(gain)), abs=1e-3)


def test_an_earlier_file_leaves_nothing_behind() -> None:
    extractor = FeatureExtractor(FrontEnd())
    lengths = (50_000, 1, 513, 30_000, 2, 50_000, 0, 4096)
    for seed, length in enumerate(lengths):
        samples = mono(length, seed) if length else np.zeros(0, np.float32)
        fresh = FeatureExtractor(FrontEnd()).features(samples)
        np.testing.assert_array_equal(extractor.features(samples), fresh)


def test_statistics_can_be_left_out() -> None:
    extractor, out = FeatureExtractor(FrontEnd()), np.empty((40, 98), np.float32)
    whole = extractor.extract(mono(10_000), out)
    expected = out.copy()
    assert extractor.extract(mono(10_000), out, audio_stats=False) == Analysis(whole.rms_db, 0.0, 0.0)
    np.testing.assert_array_equal(out, expected)


def test_samples_are_never_written_to() -> None:
    samples = mono(10_000)
    samples.flags.writeable = False
    FeatureExtractor(FrontEnd()).features(samples)


def test_a_field_of_a_structured_array_can_be_filled() -> None:
    table = np.zeros(3, np.dtype([("size", "i8"), ("features", "f4", (40, 98))]))
    extractor = FeatureExtractor(FrontEnd())
    extractor.extract(mono(10_000), table["features"][1])
    np.testing.assert_array_equal(table["features"][1], extractor.features(mono(10_000)))
    assert not table["features"][[0, 2]].any()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.floats(-(2.0**49), 2.0**49, width=32), min_size=1, max_size=3000))
def test_any_finite_samples_give_finite_features(values: list[float]) -> None:
    for front_end in (FrontEnd(samples=2500), FrontEnd(samples=2500, normalise="none")):
        out = np.full(front_end.shape, np.nan, np.float32)
        found = FeatureExtractor(front_end).extract(np.array(values, np.float32), out)
        assert np.isfinite(out).all()
        assert np.isfinite([found.rms_db, found.spectral_centroid, found.spectral_rolloff]).all()
        assert 0.0 <= found.spectral_centroid <= 22_050.0
        assert 0.0 <= found.spectral_rolloff <= 22_050.0


@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels"), [(44_100, 2048, 128), (22_050, 1000, 40), (8000, 512, 20)]
)
def test_mel_filters_and_window_equal_librosa(rate: int, n_fft: int, n_mels: int) -> None:
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels)
    np.testing.assert_allclose(mel_filterbank(rate, n_fft, n_mels), expected, rtol=1e-5, atol=1e-9)
    window = librosa.filters.get_window("hann", n_fft, fftbins=True)
    np.testing.assert_allclose(hann_window(n_fft), window, atol=1e-12)


def test_memory_stays_the_same_from_file_to_file() -> None:
    extractor, out, samples = FeatureExtractor(FrontEnd()), np.empty((40, 98), np.float32), mono(20_000)
    tracemalloc.start()
    try:
        for _ in range(50):
            extractor.extract(samples, out)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            extractor.extract(samples, out)
        gc.collect()
        # NumPy keeps some small blocks for later; whoever kept as much as one array's header a file fails.
        assert tracemalloc.get_traced_memory()[0] - before < 50 * 1000
    finally:
        tracemalloc.stop()


def test_the_engine_imports_neither_librosa_nor_scipy_signal() -> None:
    program = (
        "import sys, drumline.audio, drumline.features;"
        "print([m for m in ('librosa', 'numba', 'scipy.signal', 'tensorflow') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("tau", [150, 300, 600])
def test_a_sound_that_fades_to_nearly_nothing_keeps_its_statistics(tau: int) -> None:
    noise = np.random.default_rng(0).standard_normal(50_000) * np.exp(-np.arange(50_000) / tau)
    out = np.empty((40, 98), np.float32)
    plain, compiled = (
        FeatureExtractor(FrontEnd(), compiled=way).extract(noise.astype(np.float32), out)
        for way in (False, True)
    )
    assert compiled.spectral_centroid == pytest.approx(plain.spectral_centroid, rel=1e-3)
    assert compiled.spectral_rolloff == pytest.approx(plain.spectral_rolloff, rel=1e-3)
