"""`drumline.spectra`: the compiled kernel says what NumPy and SciPy say, and never reads past an array."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from drumline.features import mel_filterbank
from drumline.frontend import FrontEnd
from drumline.spectra import CompiledSpectra, PlainSpectra, compiled_kernel

SIZES = ((2048, 512, 128), (1024, 300, 80), (4096, 1024, 128), (512, 2000, 20), (64, 64, 8), (8, 3, 2))
FRAMES = (1, 2, 15, 16, 17, 98)


def decaying_noise(count: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).standard_normal(count)
    return (noise * np.exp(-np.arange(count) / 8000)).astype(np.float32)


def test_the_kernel_is_compiled_where_there_is_a_compiler() -> None:
    if shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no C compiler, or none of Python's headers")
    assert compiled_kernel() is not None


def test_a_kernel_of_another_version_counts_as_none(
    kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "VERSION", kernel.VERSION + 1)
    assert compiled_kernel() is None


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize(("n_fft", "hop_length", "n_mels"), SIZES)
def test_both_ways_give_the_same_figures(
    kernel: ModuleType, n_fft: int, hop_length: int, n_mels: int, frames: int, kind: int
) -> None:
    if kind >= kernel.KINDS:
        pytest.skip("this processor has not what the kernel's faster kinds need")
    mel = mel_filterbank(44_100, n_fft, n_mels)
    samples = decaying_noise((frames - 1) * hop_length + n_fft)
    plain = PlainSpectra(n_fft, hop_length, mel).figures(samples, frames, statistics=True)
    compiled = CompiledSpectra(n_fft, hop_length, mel, kernel, kind).figures(samples, frames, statistics=True)
    np.testing.assert_allclose(compiled.mel, plain.mel, rtol=0, atol=2e-6 * plain.mel.max())
    np.testing.assert_allclose(compiled.mean_power, plain.mean_power, rtol=1e-5)
    np.testing.assert_allclose(compiled.centroid, plain.centroid, rtol=1e-5)
    unsure = plain.close | compiled.close
    np.testing.assert_array_equal(compiled.rolloff[~unsure], plain.rolloff[~unsure])
    assert unsure.mean() < 0.5


def test_statistics_that_were_not_asked_for_are_zero(kernel: ModuleType) -> None:
    mel = mel_filterbank(44_100, 512, 20)
    for spectra in (PlainSpectra(512, 128, mel), CompiledSpectra(512, 128, mel, kernel)):
        figures = spectra.figures(decaying_noise(1024), 5, statistics=False)
        assert figures.mel.max() > 0.0
        assert not any(values.any() for values in figures[2:])


def test_a_larger_file_after_a_smaller_one_finds_room(kernel: ModuleType) -> None:
    mel, samples = mel_filterbank(44_100, 512, 20), decaying_noise(20_000)
    used = CompiledSpectra(512, 128, mel, kernel)
    for frames in (3, 100, 5, 140):
        fresh = CompiledSpectra(512, 128, mel, kernel).figures(samples, frames, statistics=True)
        for found, expected in zip(used.figures(samples, frames, statistics=True), fresh, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_fft", [1, 4, 1000, 3 * 512])
def test_frames_of_other_lengths_are_left_to_the_plain_way(kernel: ModuleType, n_fft: int) -> None:
    assert not CompiledSpectra.fits(n_fft)
    with pytest.raises(ValueError, match=str(n_fft)):
        CompiledSpectra(n_fft, 64, mel_filterbank(44_100, n_fft, 1), kernel)


@pytest.mark.parametrize("which", range(12))
def test_an_array_that_is_too_small_is_refused(kernel: ModuleType, which: int) -> None:
    front_end, frames = FrontEnd(n_fft=64, hop_length=16, n_mels=4, n_mfcc=4), 3
    arrays = [
        np.zeros(1000, np.float32),
        np.zeros(64, np.float32),
        np.zeros(64, np.complex64),
        np.array([0, 2, 4, 6, 8], np.int32),
        np.array([0, 2, 4, 31], np.int32),
        np.ones(8, np.float32),
        np.zeros(2 * 64 * 16 + 16 * (frames + 4 + 16), np.float32),
        np.zeros((4, frames), np.float32),
        np.zeros(frames, np.float32),
        np.zeros(frames, np.float32),
        np.zeros(frames, np.int32),
        np.zeros(frames, np.bool_),
    ]
    sizes = (0, front_end.n_fft, front_end.hop_length, 5, frames, 0.85, 4e-6, True)
    kernel.analyse(*sizes, *arrays)
    if which == 0:  # samples that are missing are zeros
        kernel.analyse(*sizes, np.zeros(0, np.float32), *arrays[1:])
        return
    if which == 4:
        arrays[which] = np.array([0, 2, 4, 32], np.int32)
    else:
        arrays[which] = arrays[which].reshape(-1)[:-1].copy()
    with pytest.raises(ValueError, match="do not fit"):
        kernel.analyse(*sizes, *arrays)


def test_the_kernel_leaves_scipy_alone(kernel: ModuleType) -> None:
    program = (
        "import sys, numpy; from drumline.features import FeatureExtractor;"
        "from drumline.frontend import FrontEnd;"
        "FeatureExtractor(FrontEnd(deltas=1)).features(numpy.ones(4000, numpy.float32));"
        "print('scipy' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


@pytest.mark.parametrize(
    ("starts", "bins"), [([0, 2**31 - 1, -(2**31)], [1, 0]), ([0, 9, 8], [0, 0]), ([-1, 4, 8], [0, 0])]
)
def test_bands_outside_of_the_weights_are_refused(
    kernel: ModuleType, starts: list[int], bins: list[int]
) -> None:
    spectra = CompiledSpectra(64, 16, mel_filterbank(44_100, 64, 2), kernel)
    spectra.figures(np.zeros(1000, np.float32), 3, statistics=True)
    window, turns, _, _, _ = spectra._tables
    spectra._tables = (
        *(window, turns, np.array(starts, np.int32), np.array(bins, np.int32), np.ones(8, np.float32)),
    )
    with pytest.raises(ValueError, match="do not fit"):
        spectra.figures(np.zeros(1000, np.float32), 3, statistics=True)


@pytest.mark.parametrize(("place", "value"), [(0, 99), (0, -1), (3, 2**40), (3, 0), (2, 2**40), (4, 2**40)])
def test_sizes_that_cannot_be_are_refused(kernel: ModuleType, place: int, value: int) -> None:
    spectra = CompiledSpectra(64, 16, mel_filterbank(44_100, 64, 2), kernel)
    figures = spectra.figures(np.zeros(1000, np.float32), 3, statistics=True)
    sizes = [*spectra._sizes, 3]
    sizes[place] = value
    arrays = (np.zeros(1000, np.float32), *spectra._tables, spectra._scratch, *figures)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.analyse(*sizes, 0.85, 4e-6, True, *arrays)
