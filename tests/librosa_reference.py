"""What librosa says about a signal: the yardstick of `drumline.audio` and `drumline.features`."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from drumline.features import Analysis
from drumline.frontend import FrontEnd

CORPUS = Path(os.environ.get("DRUMLINE_CORPUS", Path(__file__).parents[2] / "shared" / "corpus"))
MAX_DIFFERENCE_DB = 1e-3


def recordings(every: int) -> list[Path]:
    """Every n-th recording of the corpus; without a corpus, the test is skipped."""
    found = sorted((CORPUS / "audio").glob("**/*.flac"))
    if not found:
        pytest.skip(f"no recordings below {CORPUS}; set DRUMLINE_CORPUS")
    return found[::every]


def encoded(samples: NDArray[np.floating], rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def drum(frames: int, channels: int = 1, seed: int = 0, loudest: float = 0.9) -> NDArray[np.float64]:
    """A swept sine with noise that decays as a drum does, shape (frames, channels)."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames)[:, np.newaxis] / 44_100.0
    body = np.sin(2 * np.pi * (60.0 * time + 8.0 * (1.0 - np.exp(-30.0 * time))) + np.arange(channels))
    hit = (body + 0.3 * rng.standard_normal((frames, channels))) * np.exp(-12.0 * time)
    return loudest * hit / np.abs(hit).max()


def load(file: bytes, front_end: FrontEnd) -> NDArray[np.float32]:
    """`librosa.load` of the whole file, cut to the analysed samples."""
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    mono = librosa.to_mono(samples.T)
    whole = librosa.resample(mono, orig_sr=rate, target_sr=front_end.sample_rate, res_type="soxr_hq")
    return whole[: front_end.samples]


def features(samples: NDArray[np.float32], front_end: FrontEnd) -> NDArray[np.float32]:
    samples = samples[: front_end.samples]
    peak = np.abs(samples).max()
    padded = np.zeros(front_end.samples, np.float32)
    padded[: len(samples)] = samples / peak if front_end.normalise == "peak" and peak > 0 else samples
    stft = {"sr": front_end.sample_rate, "n_fft": front_end.n_fft, "hop_length": front_end.hop_length}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mel = librosa.feature.melspectrogram(y=padded, n_mels=front_end.n_mels, **stft)
        mel_db = librosa.power_to_db(mel, top_db=front_end.top_db)
        plain = (
            mel_db if front_end.kind == "log-mel" else librosa.feature.mfcc(S=mel_db, n_mfcc=front_end.n_mfcc)
        )
        orders = range(1, 1 + front_end.deltas)
        deltas = [librosa.feature.delta(plain, width=front_end.delta_width, order=order) for order in orders]
        return np.concatenate([plain, *deltas])


def analysis(samples: NDArray[np.float32], front_end: FrontEnd) -> Analysis:
    samples = samples[: front_end.samples]
    stft = {"sr": front_end.sample_rate, "n_fft": front_end.n_fft, "hop_length": front_end.hop_length}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # In double precision: in float32, librosa's own sums fall on either side of the 85 %.
        precise = samples.astype(np.float64)
        centroid = librosa.feature.spectral_centroid(y=precise, **stft).mean()
        rolloff = librosa.feature.spectral_rolloff(y=precise, roll_percent=0.85, **stft).mean()
    rms = np.sqrt(np.mean(np.square(samples.astype(np.float64))))
    return Analysis(float(max(-120.0, 20.0 * np.log10(max(rms, 1e-9)))), float(centroid), float(rolloff))


def assert_same_analysis(found: Analysis, expected: Analysis) -> None:
    assert found.rms_db == pytest.approx(expected.rms_db, abs=1e-3)
    assert found.spectral_centroid == pytest.approx(expected.spectral_centroid, rel=1e-3)
    assert found.spectral_rolloff == pytest.approx(expected.spectral_rolloff, rel=1e-3)
