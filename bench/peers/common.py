"""What the peers share: the model and its decisions, batches, the command line.

And mathematics for those of them whose library stops at the spectrogram.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import librosa
import numpy as np
import onnxruntime
import scipy.fft
import soundfile
from librosa.filters import mel as mel_filters
from numpy.typing import NDArray

from bench.plain import audio_files, decide
from drumline.bundle import Bundle, load_bundle
from drumline.frontend import FrontEnd

__all__ = [
    "BATCH_SIZE",
    "Analysed",
    "Model",
    "Spectral",
    "batched",
    "classify",
    "padded",
    "read_mono",
    "run",
    "with_own_defaults",
]

T = TypeVar("T")
Floats = NDArray[np.float32]

BATCH_SIZE = 64


class Analysed(NamedTuple):
    """What is known of a file before the model runs: its record so far, and its MFCC or None."""

    record: dict[str, Any]
    mfcc: Floats | None


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut an iterable into lists of at most `size`."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_mono(
    path: Path, front_end: FrontEnd, samples: Floats | None = None, rate: int = 0
) -> tuple[Floats, float]:
    """Return a file's analysed samples, shape (n,), at the front end's rate, and its duration in seconds.

    `samples`, shape (frames, channels), and `rate` are given where something else than soundfile decoded it.
    """
    if samples is None:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    duration = len(mono) / rate
    if rate != front_end.sample_rate:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=front_end.sample_rate)
    return mono[: front_end.samples], duration


def padded(samples: Floats, front_end: FrontEnd) -> Floats:
    """Return `samples` scaled to a peak of 1, at the front end's length."""
    peak = float(np.abs(samples).max(initial=0.0))
    scaled = samples / peak if peak > 0 else samples
    return np.pad(scaled, (0, front_end.samples - len(samples))).astype(np.float32)


class Spectral:
    """From a magnitude spectrogram, (bins, frames), to MFCC and statistics, in NumPy and SciPy.

    Parameters
    ----------
    front_end
        What is computed.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end
        rate, n_fft = front_end.sample_rate, front_end.n_fft
        self._mel = mel_filters(sr=rate, n_fft=n_fft, n_mels=front_end.n_mels)
        self._hertz = librosa.fft_frequencies(sr=rate, n_fft=n_fft).astype(np.float32)

    def mfcc(self, magnitude: Floats) -> Floats:
        """Return the MFCC, (coefficients, frames), in dB."""
        mel = self._mel @ np.square(magnitude)
        decibels = 10.0 * np.log10(np.maximum(mel, 1e-10))
        decibels = np.maximum(decibels, decibels.max() - self.front_end.top_db)
        cepstrum: Floats = scipy.fft.dct(decibels, axis=0, norm="ortho")[: self.front_end.n_mfcc]
        return cepstrum

    def statistics(self, samples: Floats, magnitude: Floats) -> dict[str, float]:
        """Return level, centroid and rolloff of the frames that `samples` reaches."""
        reached = magnitude[:, : 1 + len(samples) // self.front_end.hop_length]
        running = np.cumsum(reached, axis=0)
        total = np.maximum(running[-1], 1e-30)
        rolloff = self._hertz[(running >= 0.85 * total).argmax(axis=0)]
        return {
            "rms": float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0,
            "spectral_centroid": float(np.mean(self._hertz @ reached / total)),
            "spectral_rolloff": float(np.mean(rolloff)),
        }


Model = Callable[[Floats], Floats]
"""Features (batch, coefficients, frames) → logits (batch, labels)."""


def with_own_defaults(bundle: Bundle) -> Model:
    """Open the model as ONNX Runtime's users do: with a thread for every core."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(bundle.model_path, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]

    def logits(features: Floats) -> Floats:
        batch = features.reshape(len(features), *shape)
        (found,) = session.run([bundle.logits_name], {bundle.input_name: batch})
        return np.asarray(found)

    return logits


def classify(analysed: Iterable[Analysed], bundle: Bundle, model: Model) -> Iterator[dict[str, Any]]:
    """Run the model on batches of what was analysed and yield finished records."""
    for batch in batched(analysed, BATCH_SIZE):
        told = [item for item in batch if item.mfcc is not None]
        yield from (item.record for item in batch if item.mfcc is None)
        if told:
            features = np.stack([item.mfcc for item in told if item.mfcc is not None])
            for item, row in zip(told, model(features.astype(np.float32)), strict=True):
                label, confidence = decide(row, bundle)
                yield {**item.record, "label": label, "confidence": confidence}


def run(
    name: str,
    analyse: Callable[[list[Path], Bundle], Iterable[Analysed]],
    open_model: Callable[[Bundle], Model] = with_own_defaults,
) -> None:
    """Be the program of a peer: `analyse` does, for all paths, what comes before the model."""

    @click.command(help=f"Classify ARCHIVE with {name} into INDEX, and print a summary as JSON.")
    @click.argument("archive", type=click.Path(exists=True, file_okay=False, path_type=Path))
    @click.argument("index", type=click.Path(dir_okay=False, path_type=Path))
    def main(archive: Path, index: Path) -> None:
        warnings.simplefilter("ignore")
        start, cpu, count, bundle = time.perf_counter(), _cpu(), 0, load_bundle(None)
        with index.open("w", encoding="utf-8") as stream:
            for record in classify(analyse(audio_files(archive), bundle), bundle, open_model(bundle)):
                stream.write(json.dumps(record) + "\n")
                count += 1
        seconds = {"elapsed_sec": time.perf_counter() - start, "cpu_sec": _cpu() - cpu}
        click.echo(json.dumps({"files": count, **seconds}))

    main()


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
