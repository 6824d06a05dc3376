"""A good pool: worker processes with librosa, soundfile and xxhash; results come back by pickle.

python -m bench.peers.pool ARCHIVE INDEX
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import xxhash

from bench.peers.common import Analysed, padded, read_mono, run
from drumline.bundle import Bundle
from drumline.frontend import FrontEnd
from drumline.machine import usable_cpus

__all__ = ["analyse"]


def analyse(path: Path, front_end: FrontEnd) -> Analysed:
    """Read and analyse one file; the spectrogram serves statistics and MFCC alike."""
    try:
        digest = xxhash.xxh3_64(path.read_bytes()).hexdigest()
        samples, duration = read_mono(path, front_end)
        whole = padded(samples, front_end)
    except Exception as error:  # whatever a library raises, the file is skipped
        return Analysed({"path": str(path), "error": f"{type(error).__name__}: {error}"}, None)
    rate, n_fft, hop_length = front_end.sample_rate, front_end.n_fft, front_end.hop_length
    magnitude = np.abs(librosa.stft(whole, n_fft=n_fft, hop_length=hop_length))
    reached = magnitude[:, : 1 + len(samples) // hop_length]
    mel = librosa.feature.melspectrogram(S=np.square(magnitude), sr=rate, n_mels=front_end.n_mels)
    mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=front_end.top_db), n_mfcc=front_end.n_mfcc)
    record = {
        "path": str(path),
        "hash": digest,
        "duration_sec": duration,
        "rms": float(np.sqrt(np.mean(np.square(samples)))),
        "spectral_centroid": float(librosa.feature.spectral_centroid(S=reached, sr=rate, n_fft=n_fft).mean()),
        "spectral_rolloff": float(librosa.feature.spectral_rolloff(S=reached, sr=rate, n_fft=n_fft).mean()),
    }
    return Analysed(record, mfcc.astype(np.float32))


def _all(paths: list[Path], bundle: Bundle) -> Iterable[Analysed]:
    with ProcessPoolExecutor(usable_cpus()) as pool:
        yield from pool.map(partial(analyse, front_end=bundle.front_end), paths, chunksize=16)


if __name__ == "__main__":
    run("a pool of processes and librosa", _all)
