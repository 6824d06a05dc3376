"""`drumline.coefficients`: the compiled kernel writes what NumPy writes, and never past an array."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from drumline.coefficients import CompiledCoefficients, PlainCoefficients, Written
from drumline.features import mel_filterbank
from drumline.frontend import FrontEnd
from drumline.spectra import FrameFigures

FRONT_ENDS = (
    FrontEnd(),
    FrontEnd(n_mels=40, n_mfcc=13, n_fft=512, hop_length=128, samples=3000),
    FrontEnd(n_mels=7, n_mfcc=7, top_db=30.0, samples=9000),
    FrontEnd(n_mels=5, n_mfcc=1),
    FrontEnd(kind="log-mel", n_mels=64),
)
REACHED = (1, 3, 8, 16, 17, 98)


def figures(front_end: FrontEnd, frames: int) -> FrameFigures:
    """Powers over 18 orders of magnitude, zeros among them."""
    random = np.random.default_rng(frames)
    mel = (10.0 ** random.uniform(-14, 4, (front_end.n_mels, frames))).astype(np.float32)
    mel[:, frames // 2] = 0.0
    mean_power = (10.0 ** random.uniform(-8, 6, frames)).astype(np.float32)
    nothing = np.zeros(frames, np.int32)
    return FrameFigures(mel, mean_power, nothing.astype(np.float32), nothing, nothing.astype(bool))


def written(way: PlainCoefficients, front_end: FrontEnd, frames: int) -> tuple[Written, NDArray[np.float32]]:
    out = np.full((front_end.coefficients, front_end.frames), np.nan, np.float32)
    return way.write(figures(front_end, frames), out), out


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("frames", REACHED)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_both_ways_write_the_same_coefficients(
    kernel: ModuleType, front_end: FrontEnd, frames: int, kind: int
) -> None:
    if kind >= kernel.KINDS:
        pytest.skip("this processor has not what the kernel's faster kinds need")
    frames = min(frames, front_end.frames)
    mel = mel_filterbank(front_end.sample_rate, front_end.n_fft, front_end.n_mels)
    expected, plain = written(PlainCoefficients(front_end, mel), front_end, frames)
    found, out = written(CompiledCoefficients(front_end, mel, kernel, kind), front_end, frames)
    np.testing.assert_allclose(found.mel_db, expected.mel_db, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.floor, expected.floor, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(found.noisy, expected.noisy)
    np.testing.assert_allclose(out, plain, rtol=0, atol=5e-4)
    if frames < front_end.frames:
        np.testing.assert_allclose(out[1:, frames:], plain[1:, frames:], rtol=0, atol=2e-5)


def test_frames_with_a_band_below_the_transforms_noise_are_told(kernel: ModuleType) -> None:
    front_end = FrontEnd()
    mel = mel_filterbank(front_end.sample_rate, front_end.n_fft, front_end.n_mels)
    even = figures(front_end, 3)._replace(mean_power=np.array([1e-3, 1e7, 1e-3], np.float32))
    even.mel[:] = 1e-3
    for way in (PlainCoefficients(front_end, mel), CompiledCoefficients(front_end, mel, kernel)):
        told = even._replace(mel=even.mel.copy())
        assert way.write(told, np.empty((40, 98), np.float32)).noisy.tolist() == [False, True, False]


def test_some_frames_written_anew_equal_those_written_at_once() -> None:
    for front_end in FRONT_ENDS:
        mel = mel_filterbank(front_end.sample_rate, front_end.n_fft, front_end.n_mels)
        way = PlainCoefficients(front_end, mel)
        (mel_db, floor, _), out = written(way, front_end, 12)
        anew, chosen = out.copy(), np.array([0, 5, 11])
        anew[:, chosen] = np.nan
        way.write_anew(mel_db[:, chosen], floor, anew, chosen)
        np.testing.assert_allclose(anew, out, rtol=0, atol=1e-4)


@pytest.mark.parametrize("which", range(7))
def test_an_array_that_is_too_small_is_refused(kernel: ModuleType, which: int) -> None:
    n_mels, n_mfcc, frames, reached = 6, 4, 5, 3
    arrays = [
        np.ones((n_mels, reached), np.float32),
        np.ones(reached, np.float32),
        np.zeros(n_mels, np.float32),
        np.zeros((n_mfcc, n_mels)),
        np.zeros(kernel.LANES * n_mels),
        np.zeros(reached, np.bool_),
        np.zeros((n_mfcc, frames), np.float32),
    ]
    kernel.finish(0, n_mfcc, frames, reached, 80.0, *arrays)
    # One band more than the others have is what a table of noise that does not fit is.
    arrays[which] = np.zeros(7, np.float32) if which == 2 else arrays[which].reshape(-1)[:-1].copy()
    with pytest.raises(ValueError, match="do not fit"):
        kernel.finish(0, n_mfcc, frames, reached, 80.0, *arrays)


@pytest.mark.parametrize(
    "sizes",
    [(99, 4, 5, 3), (-1, 4, 5, 3), (0, 7, 5, 3), (0, -1, 5, 3), (0, 4, 2, 3), (0, 4, 5, 0), (0, 4, 2**40, 3)],
)
def test_sizes_that_cannot_be_are_refused(kernel: ModuleType, sizes: tuple[int, int, int, int]) -> None:
    arrays = (np.ones((6, 3), np.float32), np.ones(3, np.float32), np.zeros(6, np.float32), np.zeros((4, 6)))
    rest = (np.zeros(kernel.LANES * 6), np.zeros(3, np.bool_), np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        kernel.finish(*sizes, 80.0, *arrays, *rest)
