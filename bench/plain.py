"""The plain way to classify an archive, written as its users write it: what drumline is compared with.

    python -m bench.plain ARCHIVE INDEX.jsonl

One process, file after file: librosa reads and computes, hashlib hashes, ONNX Runtime with its own
defaults gets batches of 32, and one JSON line per file is written. Same files, same model, same decision.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import librosa
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from drumline.bundle import Bundle, load_bundle

__all__ = ["classify"]

BATCH_SIZE = 32
SUFFIXES = {".wav", ".aif", ".aiff", ".flac", ".ogg", ".opus", ".mp3", ".caf", ".au", ".w64"}
THRESHOLD = 0.5


def audio_files(archive: Path) -> list[Path]:
    """List the archive's audio files, sorted."""
    found = (path for path in archive.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not path.name.startswith("._"))


def analyse(path: Path, bundle: Bundle) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Read one file; returns what its record says and its MFCC, (coefficients, frames) in dB."""
    front_end = bundle.front_end
    samples, rate = librosa.load(path, sr=front_end.sample_rate, mono=True)
    duration = len(samples) / rate
    samples = samples[: front_end.samples]
    spectral = {"y": samples, "n_fft": front_end.n_fft, "hop_length": front_end.hop_length}
    record = {
        "path": str(path),
        "md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "duration_sec": duration,
        "rms": float(np.mean(librosa.feature.rms(y=samples))),
        "spectral_centroid": float(np.mean(librosa.feature.spectral_centroid(sr=rate, **spectral))),
        "spectral_rolloff": float(np.mean(librosa.feature.spectral_rolloff(sr=rate, **spectral))),
    }
    peak = np.max(np.abs(samples))
    samples = samples / peak if peak > 0 else samples
    spectral["y"] = np.pad(samples, (0, front_end.samples - len(samples)))
    mfcc = librosa.feature.mfcc(sr=rate, n_mfcc=front_end.n_mfcc, n_mels=front_end.n_mels, **spectral)
    return record, mfcc


def decide(logits: NDArray[np.float32], bundle: Bundle) -> tuple[str, float]:
    """Return the assigned label and its probability from one file's logits."""
    probabilities = bundle.calibrator(logits[np.newaxis])[0]
    summed: dict[str, float] = {}
    for label, probability in zip(bundle.labels, probabilities, strict=True):
        canonical = bundle.taxonomy.canonical_of[label]
        summed[canonical] = summed.get(canonical, 0.0) + float(probability)
    best = max(summed, key=lambda label: summed[label])
    return (best if summed[best] >= THRESHOLD else bundle.taxonomy.misc), summed[best]


def classify(archive: Path, bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Yield one record per audio file of the archive."""
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    files = audio_files(archive)
    for start in range(0, len(files), BATCH_SIZE):
        records, features = [], []
        for path in files[start : start + BATCH_SIZE]:
            try:
                record, mfcc = analyse(path, bundle)
            except Exception as error:  # whatever librosa raises, the file is skipped
                yield {"path": str(path), "error": f"{type(error).__name__}: {error}"}
                continue
            records.append(record)
            features.append(mfcc)
        if records:
            batch = np.stack(features).astype(np.float32).reshape(len(features), *shape)
            (logits,) = session.run([bundle.logits_name], {bundle.input_name: batch})
            for record, row in zip(records, logits, strict=True):
                label, confidence = decide(row, bundle)
                yield {**record, "label": label, "confidence": confidence}


@click.command(help="Classify ARCHIVE the plain way into INDEX, and print a summary as JSON.")
@click.argument("archive", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("index", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", help="Bundle, by name or directory.")
def main(archive: Path, index: Path, model: str | None) -> None:
    """Classify an archive."""
    warnings.simplefilter("ignore")
    start, count = time.perf_counter(), 0
    with index.open("w", encoding="utf-8") as stream:
        for record in classify(archive, load_bundle(model)):
            stream.write(json.dumps(record) + "\n")
            count += 1
    click.echo(json.dumps({"files": count, "elapsed_sec": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
