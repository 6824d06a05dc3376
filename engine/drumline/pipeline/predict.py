"""Stage 3, predict (× 1): run the model on what is ready, in batches as they come.

Protocol
--------
Takes numbers from `ready`: as many as there are up to the largest batch that memory allows, waiting a few
milliseconds for more when they are few. Rows are gathered into one contiguous input; probabilities go back
into the slots, the slots on `done`. The model is opened when the first slot arrives, so a rescan that finds
nothing new never loads it.

Files for which the model gives nothing finite are held back until it has given something finite for any, as
long as that leaves the others half of the slots: a model that does so for none ends the run before a record
says that all files are at fault. A model that did so in an earlier run is not doubted.

On a GPU a batch is *under way* while the next one is gathered and copied. It is finished as soon as that one
has been started, or when none comes within the few milliseconds: no slot waits for files that are not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drumline.cuda import CudaSettings
from drumline.errors import BundleError
from drumline.failpoints import step
from drumline.inference import Outputs, Session, open_session
from drumline.laps import Lap, Step
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import DEVICES, Gauge, SlotTable, State

__all__ = ["predict"]

_PATIENCE_SEC = 0.004
"""How long a batch waits for more files once it has one, and one under way for the next …"""

_GLANCES = 4
"""… and how often it looks for them meanwhile."""

_UNANSWERED_AT_ALL = 20
"""So many files with nothing finite, and none with: the model is at fault, not the files."""

_GLANCE_SEC = 0.1
"""Time between two looks at whether what is held back is in the way."""


class _Batch(NamedTuple):
    """What has been started: its slots, and what waits for their outputs."""

    slots: list[int]
    outputs: Callable[[], Outputs]


def predict(job: Job, table: SlotTable, queues: Queues, lap: Lap) -> None:
    """Predict until there are no more features."""
    session: Session | None = None
    under_way: _Batch | None = None
    doubtful = _Doubtful(table, job)
    while (slots := _next_batch(queues, table, _patience(under_way, doubtful))) is not None:
        lap(Step.WAIT_INPUT, 0)
        queues.done.put(doubtful.give_way())
        started: _Batch | None = None
        if slots := table.take(slots, State.READY, State.PREDICTING):
            if session is None:
                session = _open(job, table)
                lap(Step.START, 0)
            started = _start(session, table, slots, job.settings.batch_size, lap)
        _finish(under_way, table, queues, doubtful, lap)
        under_way = started
        if session is not None and not session.runner.overlaps:
            _finish(under_way, table, queues, doubtful, lap)
            under_way = None
    _finish(under_way, table, queues, doubtful, lap)
    queues.done.put(doubtful.fail())


def _patience(under_way: _Batch | None, doubtful: _Doubtful) -> float | None:
    """Return the seconds that may be waited for the next file; None: for ever."""
    return doubtful.patience if under_way is None else _PATIENCE_SEC


def _open(job: Job, table: SlotTable) -> Session:
    settings = job.settings
    cuda = CudaSettings(settings.batch_size, settings.cuda_graphs, settings.cuda_memory_mb)
    session = open_session(job.bundle, settings.device, settings.thread_count, settings.cpu_batch_size, cuda)
    table.counters[Gauge.DEVICE] = 1 + DEVICES.index(session.device)
    return session


def _next_batch(queues: Queues, table: SlotTable, patience: float | None) -> list[int] | None:
    largest = int(table.counters[Gauge.BATCH_ALLOWED])
    slots = queues.ready.get(largest, timeout=patience)
    for _ in range(_GLANCES):
        if not slots or len(slots) == largest:
            break
        # To be woken up for each slot would take the CPU from the workers each time.
        time.sleep(_PATIENCE_SEC / _GLANCES)
        slots += queues.ready.get(largest - len(slots), timeout=0) or []
    return slots


def _start(session: Session, table: SlotTable, slots: list[int], largest: int, lap: Lap) -> _Batch:
    # Rows for the largest batch, always: new ones of ever other sizes would fragment the heap.
    rows = session.stage(largest).gather(table.view("features"), slots, table.view("reach"))
    lap(Step.GATHER, len(slots))
    outputs = session.start(rows)
    lap(Step.MODEL, 0)
    return _Batch(slots, outputs)


def _finish(batch: _Batch | None, table: SlotTable, queues: Queues, doubtful: _Doubtful, lap: Lap) -> None:
    """Fill in what the model says of a batch, and hand its slots on."""
    if batch is None:
        return
    slots, outputs = batch.slots, batch.outputs()
    lap(Step.MODEL, len(slots))
    finite: NDArray[np.bool_] = np.isfinite(outputs.probabilities.sum(axis=1))
    table.view("probs")[slots] = outputs.probabilities
    table.view("gate")[slots] = np.nan
    if outputs.gate is not None:
        finite &= np.isfinite(outputs.gate)
        table.view("gate")[slots] = outputs.gate
    with step("predict.hand-over"):
        queues.done.put(doubtful.sort_out(slots, finite))
    lap(Step.HAND_ON, len(slots))


class _Doubtful:
    """Slots for which the model gave nothing finite, held back until it gave something finite for any."""

    def __init__(self, table: SlotTable, job: Job) -> None:
        self._table, self._bundle = table, job.bundle.name
        table.counters[Gauge.ANSWERED] += job.answered_before
        self._slots: list[int] = []

    @property
    def patience(self) -> float | None:
        """Seconds until what is held back has to be looked at again; None when nothing is."""
        return _GLANCE_SEC if self._slots else None

    def give_way(self) -> list[int]:
        """Return what is held back, as failures, when memory does not allow the slots for it any more."""
        room = self._table.counters[Gauge.SLOTS_ALLOWED] // 2
        return self.fail() if len(self._slots) > room else []

    def sort_out(self, slots: list[int], finite: NDArray[np.bool_]) -> list[int]:
        """Return which slots are to be handed on; those that are finite are done.

        Raises
        ------
        BundleError
            When the model has given nothing finite for many files, and for none has given it.
        """
        counters, numbers = self._table.counters, np.asarray(slots)
        answered: list[int] = numbers[finite].tolist()
        self._table.view("state")[answered] = State.DONE
        self._slots += numbers[~finite].tolist()
        counters[Gauge.ANSWERED] += len(answered)
        counters[Gauge.UNANSWERED] += len(slots) - len(answered)
        if counters[Gauge.ANSWERED]:
            return answered + self.fail()
        if (files := int(counters[Gauge.UNANSWERED])) >= _UNANSWERED_AT_ALL:
            raise BundleError(
                f"the model of bundle {self._bundle} gives no finite output:"
                f" not for one of the first {files} files",
                "It is damaged, or was converted wrongly: make it again, or give another with --model.",
            )
        return self.give_way()

    def fail(self) -> list[int]:
        """Turn what is held back into failures, and return it."""
        slots, self._slots = self._slots, []
        for slot in slots:
            self._table.fail(slot, "invalid_samples", "the model gives no finite output for this file")
        return slots
