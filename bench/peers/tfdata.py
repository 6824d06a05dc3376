"""tf.data: parallel map and prefetch, with TensorFlow's own transforms on whole batches.

    python -m bench.peers.tfdata ARCHIVE INDEX

soundfile decodes, as TensorFlow itself reads nothing but 16-bit WAV. TensorFlow's mel scale is HTK's, so the
filters are librosa's: else the labels could not be the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import xxhash
from librosa.filters import mel as mel_filters
from numpy.typing import NDArray

from bench.peers.common import BATCH_SIZE, Analysed, padded, read_mono, run
from drumline.bundle import Bundle
from drumline.frontend import FrontEnd

__all__ = ["Graph", "analyse_all"]


class Graph:
    """Batches of waveforms to MFCC and statistics, as a TensorFlow function."""

    def __init__(self, tf: Any, front_end: FrontEnd) -> None:
        self._tf, self._front_end = tf, front_end
        rate, n_fft = front_end.sample_rate, front_end.n_fft
        self._mel = tf.constant(mel_filters(sr=rate, n_fft=n_fft, n_mels=front_end.n_mels).T)
        self._hertz = tf.constant(librosa.fft_frequencies(sr=rate, n_fft=n_fft).astype(np.float32))

    def __call__(self, samples: Any, counts: Any) -> tuple[Any, Any, Any]:
        """Return MFCC (batch, coefficients, frames), and centroid and rolloff (batch,)."""
        tf, front_end = self._tf, self._front_end
        edge = front_end.n_fft // 2
        magnitude = tf.abs(
            tf.signal.stft(tf.pad(samples, [[0, 0], [edge, edge]]), front_end.n_fft, front_end.hop_length)
        )
        decibels = tf.math.log(tf.maximum(tf.square(magnitude) @ self._mel, 1e-10)) * (10.0 / np.log(10.0))
        decibels = tf.maximum(decibels, tf.reduce_max(decibels, [1, 2], keepdims=True) - front_end.top_db)
        mfcc = tf.signal.dct(decibels, norm="ortho")[..., : front_end.n_mfcc]
        reached = tf.sequence_mask(1 + counts // front_end.hop_length, front_end.frames, tf.float32)
        total = tf.maximum(tf.reduce_sum(magnitude, -1), 1e-30)
        centroid = tf.linalg.matvec(magnitude, self._hertz) / total
        running = tf.cumsum(magnitude, -1)
        below = running < 0.85 * running[..., -1:]
        rolloff = tf.gather(self._hertz, tf.reduce_sum(tf.cast(below, tf.int32), -1))
        frames = tf.reduce_sum(reached, -1)
        means = (tf.reduce_sum(values * reached, -1) / frames for values in (centroid, rolloff))
        return (tf.transpose(mfcc, [0, 2, 1]), *means)


def _reader(front_end: FrontEnd) -> Any:
    def read(name: bytes) -> tuple[NDArray[np.float32], np.int32, bytes]:
        path = Path(os.fsdecode(name))
        try:
            digest = xxhash.xxh3_64(path.read_bytes()).hexdigest()
            samples, _ = read_mono(path, front_end)
            return padded(samples, front_end), np.int32(len(samples)), digest.encode()
        except Exception:  # whatever a library raises, the file is skipped
            return np.zeros(front_end.samples, np.float32), np.int32(-1), b""

    return read


def analyse_all(paths: list[Path], bundle: Bundle) -> Iterable[Analysed]:
    """Read, decode and transform all files."""
    import tensorflow as tf

    front_end, graph = bundle.front_end, Graph(tf, bundle.front_end)
    read, types = _reader(front_end), (tf.float32, tf.int32, tf.string)

    def load(name: Any) -> tuple[Any, ...]:
        samples, count, digest = tf.numpy_function(read, [name], types, stateful=False)
        return name, tf.ensure_shape(samples, [front_end.samples]), tf.ensure_shape(count, []), digest

    data = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH_SIZE)
    data = data.map(lambda names, samples, counts, digests: (names, counts, digests, *graph(samples, counts)))
    for batch in data.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        yield from map(_analysed, *batch)


def _analysed(name: bytes, count: int, digest: bytes, mfcc: Any, centroid: Any, rolloff: Any) -> Analysed:
    path = os.fsdecode(name)
    if count < 0:
        return Analysed({"path": path, "error": "not read"}, None)
    statistics = {"spectral_centroid": float(centroid), "spectral_rolloff": float(rolloff)}
    return Analysed({"path": path, "hash": digest.decode(), **statistics}, mfcc)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    run("tf.data", analyse_all)
