"""Synthesised drums, and a tiny corpus of them: four labels, six families, files of a fifth of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from drumline_convert.content import hash_file
from drumline_convert.manifest import Row, write_manifest

RATE = 22_050
LABELS = ("Kick", "Snare", "HihatClosed", "Cowbell")


def drum(label: str, rng: np.random.Generator) -> np.ndarray:
    """Return a fifth of a second that somewhat resembles `label`."""
    time = np.arange(RATE // 5) / RATE
    noise = rng.standard_normal(len(time))
    pitch = rng.uniform(0.8, 1.25)
    wave = {
        "Kick": lambda: np.sin(2 * np.pi * pitch * 60 * time * (1 + np.exp(-40 * time))),
        "Snare": lambda: 0.5 * np.sin(2 * np.pi * pitch * 190 * time) + 0.5 * noise,
        "HihatClosed": lambda: np.diff(noise, prepend=0.0) * np.exp(-30 * time),
        "Cowbell": lambda: np.sign(np.sin(2 * np.pi * pitch * 540 * time)),
    }[label]()
    return np.asarray(0.5 * wave * np.exp(-12 * time), np.float32)


def write_corpus(directory: Path, families: int = 6, per_label: int = 3) -> Path:
    rng = np.random.default_rng(7)
    rows = []
    for family in range(families):
        for label in LABELS:
            for number in range(per_label):
                path = directory / "audio" / f"kit{family}" / f"{label}_{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, drum(label, rng), RATE)
                rows.append(manifest_row(path, label, f"family{family}"))
    write_manifest(directory / "manifest.jsonl", rows)
    return directory


def manifest_row(path: Path, label: str, family: str, **changes: object) -> Row:
    stated = {"kit": family, "source": "synthesised", "licence": "CC0-1.0"}
    return Row(path=path, label=label, family=family, hash=hash_file(path), **{**stated, **changes})
