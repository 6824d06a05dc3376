"""What a model costs at run time, as the engine runs it on a CPU."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from drumline.inference import open_graph

__all__ = ["files_per_cpu_second"]

_BATCHES_PER_ROUND = 4


def files_per_cpu_second(path: Path, batch: int = 64, rounds: int = 60) -> float:
    """Measure an ONNX model alone: files per second of CPU time, one thread, batches of `batch`.

    The best of many short rounds counts, since other work on the machine only ever makes one slower.
    """
    session = open_graph(path).session
    entry = session.get_inputs()[0]
    features = np.random.default_rng(0).normal(0, 20, (batch, *entry.shape[1:])).astype(np.float32)

    def seconds() -> float:
        start = time.process_time()
        for _ in range(_BATCHES_PER_ROUND):
            session.run(None, {entry.name: features})
        return time.process_time() - start

    return batch * _BATCHES_PER_ROUND / min(seconds() for _ in range(rounds))
