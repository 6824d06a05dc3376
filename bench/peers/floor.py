"""The floor: drumline's own steps one after the other, without any pipeline.

    python -m bench.peers.floor ARCHIVE INDEX

One process on one core reads, hashes, decodes, computes features and statistics, and runs the model in one
thread. There is no walk that compares, no cache, no index, no recovery. Its CPU time per file is what a
pipeline cannot go below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from bench.peers.common import Analysed, Model, run
from drumline.audio import AudioError, Decoder
from drumline.bundle import Bundle
from drumline.features import FeatureExtractor
from drumline.inference import open_session

__all__ = ["analyse_all", "in_one_thread"]


def analyse_all(paths: list[Path], bundle: Bundle) -> Iterable[Analysed]:
    """Read and analyse all files."""
    decoder, extractor = Decoder(bundle.front_end), FeatureExtractor(bundle.front_end)
    for path in paths:
        data = path.read_bytes()
        record = {"path": str(path), "hash": xxhash.xxh3_64(data).hexdigest()}
        try:
            waveform = decoder.decode(data, os.fsencode(path))
        except AudioError as error:
            yield Analysed({"path": str(path), "error": str(error)}, None)
            continue
        features = np.empty(bundle.front_end.shape, np.float32)
        analysis = extractor.extract(waveform.samples, features)
        yield Analysed(record | {"rms_db": analysis.rms_db, "duration_sec": waveform.duration_sec}, features)


def in_one_thread(bundle: Bundle) -> Model:
    """Open the model as drumline does: with more threads than one, this would be no core's floor."""
    return open_session(bundle, "cpu", threads=1).logits


if __name__ == "__main__":
    run("drumline's own steps and no pipeline", analyse_all, in_one_thread)
