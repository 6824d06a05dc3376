"""Stage 3, predict (× 1): run the model on what is ready, in batches as they come.

Protocol
--------
Takes numbers from `ready`: as many as there are up to the largest batch that memory allows, waiting a few
milliseconds for more when they are few. Rows are gathered into one contiguous input; probabilities go back
into the slots, the slots on `done`. The model is opened when the first slot arrives, so a rescan that finds
nothing new never loads it.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from drumline.failpoints import step
from drumline.inference import Session, open_session
from drumline.laps import Lap, Step
from drumline.machine import usable_cpus
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import DEVICES, Gauge, SlotTable, State

__all__ = ["predict"]

_PATIENCE_SEC = 0.004
"""How long a batch waits for more files once it has one."""

_CPUS_PER_THREAD = 4
"""One thread of the model keeps up with about this many CPUs' worth of extract workers."""


def predict(job: Job, table: SlotTable, queues: Queues, lap: Lap) -> None:
    """Predict until there are no more features."""
    session: Session | None = None
    # One input for all batches: new ones of ever other sizes would fragment the heap.
    rows = np.empty((job.settings.batch_size, *job.bundle.row_shape), np.float32)
    while (slots := _next_batch(queues, int(table.counters[Gauge.BATCH_ALLOWED]))) is not None:
        lap(Step.WAIT_INPUT, 0)
        if slots := table.take(slots, State.READY, State.PREDICTING):
            if session is None:
                session = _open(job, table)
                lap(Step.START, 0)
            _predict(session, table, slots, rows[: len(slots)], lap)
            with step("predict.hand-over"):
                queues.done.put(slots)
            lap(Step.HAND_ON, len(slots))


def _open(job: Job, table: SlotTable) -> Session:
    threads = max(1, usable_cpus() // _CPUS_PER_THREAD)
    session = open_session(job.bundle, job.settings.device, threads)
    table.counters[Gauge.DEVICE] = 1 + DEVICES.index(session.device)
    return session


def _next_batch(queues: Queues, largest: int) -> list[int] | None:
    slots = queues.ready.get(largest)
    deadline = time.monotonic() + _PATIENCE_SEC
    while slots and len(slots) < largest and (left := deadline - time.monotonic()) > 0:
        more = queues.ready.get(largest - len(slots), timeout=left)
        if not more:
            break
        slots += more
    return slots


def _predict(
    session: Session, table: SlotTable, slots: list[int], rows: NDArray[np.float32], lap: Lap
) -> None:
    np.take(table.view("features"), slots, axis=0, out=rows, mode="clip")
    lap(Step.GATHER, len(slots))
    outputs = session.predict(rows)
    lap(Step.MODEL, len(slots))
    finite = np.isfinite(outputs.probabilities.sum(axis=1))
    table.view("probs")[slots] = outputs.probabilities
    table.view("gate")[slots] = np.nan
    if outputs.gate is not None:
        finite &= np.isfinite(outputs.gate)
        table.view("gate")[slots] = outputs.gate
    for place in np.flatnonzero(~finite):
        table.fail(slots[place], "invalid_samples", "the model gives no finite output for this file")
    table.view("state")[np.asarray(slots)[finite]] = State.DONE
