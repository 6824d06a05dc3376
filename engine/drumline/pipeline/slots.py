"""The slot table: one block of shared memory, one *slot* for every file in flight.

Protocol
--------
A slot belongs to one process at a time, and its `state` says to which stage. Only the owner writes to it.

    FREE ──discover──► TODO ──extract──► CLAIMED ──► READY ──predict──► PREDICTING ──► DONE ──write──► FREE

- discover fills `kind`, `path`, `size`, `mtime_ns`, sets TODO (or DONE, for work that needs no audio) and
  puts the slot's number on a queue.
- extract sets CLAIMED and `owner` before it looks at the file, fills hash, audio facts and features, sets
  READY (or DONE, for a failure or a known twin) and hands the number on.
- predict and write take a number only when the slot is READY or DONE respectively, and change the state
  before anything else. A number that arrives twice is thereby dropped the second time, so the supervisor
  may put a dead worker's slots on a queue again without knowing how far the worker came.
- write sets FREE and returns the number to discover.

Fields of a slot:

====================  ===========================================================================
state, kind           of `State` and `Kind`
path, path_length     bytes below the archive root (a name alone where kind is GONE), and how many
size, mtime_ns        bytes; nanoseconds since the epoch: as discovered, then as read
tries                 how often a worker died of this file
owner                 number of the worker that claimed it, -1 before
error, message        place in `ERROR_TYPES` (0: none) and text of a failure
hash                  hexadecimal content hash, empty while unknown
twin                  1 where the prediction was taken over from a file with the same content
format … channels     of the file; sample_rate in Hz, duration_sec of the whole file
rms_db                level of the analysed samples, dB of full scale; NaN where not wanted
spectral_centroid     mean over the frames, Hz; spectral_rolloff likewise; NaN where not wanted
features              float32, shape of the front end
reach                 how many leading values of `features` are the file's: the samples of a waveform, or all;
                      what is behind them counts as 0, whatever is there
probs                 float32, one for each fine label
gate                  float32, probability of being a kit drum; NaN of a model without a gate
frame, lines          of kind CARRY: frame in the cache, and a bit for each of its lines
directory             of kind GONE and GONE_DIRECTORY: directory in the cache
====================  ===========================================================================

`claims` closes the last gap: the kernel writes slot numbers straight from the queue into the worker's row
of it (see `SlotQueue.get_into`), so a number that was taken from the queue is on record even if the worker
dies before its next instruction. A row is cleared as soon as its slots are CLAIMED.

The block is anonymous shared memory, inherited by fork: it has no name, so nothing can be left in /dev/shm
by a kill, and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from drumline.errors import StageError
from drumline.index import FRAME_LINES
from drumline.records import ErrorType

__all__ = [
    "CLAIM_SLOTS",
    "DEVICES",
    "ERROR_TYPES",
    "NO_SLOT",
    "PATH_BYTES",
    "PATH_MAX",
    "Gauge",
    "Kind",
    "SlotTable",
    "State",
]

PATH_MAX: Final = 4096
"""Bytes of the longest path that a system call takes, with the NUL behind it."""

PATH_BYTES: Final = PATH_MAX + 256
"""A directory that can be listed has a path below `PATH_MAX`, and a name has 255 bytes: every path fits."""
CLAIM_SLOTS: Final = 4
"""Slots that a worker takes from the queue at once."""

NO_SLOT: Final = 0xFFFF_FFFF
ERROR_TYPES: Final[tuple[str, ...]] = ("", *get_args(ErrorType))


DEVICES: Final = ("cpu", "cuda")


class State(IntEnum):
    """To whom a slot belongs."""

    FREE = 0
    TODO = 1
    CLAIMED = 2
    READY = 3
    PREDICTING = 4
    DONE = 5
    WRITING = 6


class Kind(IntEnum):
    """What a slot asks of the writer."""

    FILE = 0
    """A file with a prediction or a failure: write its record."""
    CARRY = 1
    """Records of an earlier run that still hold: `frame` and the bits of `lines`."""
    GONE = 2
    """A file that is no longer there: forget `path` (a name) in `directory`."""
    GONE_DIRECTORY = 3
    """A directory that is no longer there: forget all files of `directory`."""


class Gauge(IntEnum):
    """Places in the block of shared counters; each is written by one stage only, or by the supervisor."""

    DISCOVERED = 0
    DISCOVERED_BYTES = 1
    DISCOVERY_DONE = 2
    QUEUED = 3
    RESUMED = 4
    GONE = 5
    SKIPPED_LINKS = 6
    SKIPPED_SPECIAL = 7
    UNREADABLE_DIRECTORIES = 8
    WRITTEN = 9
    CARRIED = 10
    TWINS = 11
    FAILED = 12
    WRITTEN_BYTES = 13
    DEVICE = 14
    """1 + place in `DEVICES`; 0 while no model is open."""
    FORESEEN = 15
    """Files counted by name, ahead of the walk."""
    FORESEEN_ALL = 16
    SLOTS_ALLOWED = 17
    """How many slots may be in flight with the memory there is; the supervisor's."""
    BATCH_ALLOWED = 18
    """How many files may be in a batch with the memory there is; the supervisor's."""
    ANSWERED = 19
    """Files for which the model gave something finite, and 1 for all those of earlier runs."""
    UNANSWERED = 20
    """Files for which it gave nothing finite."""
    WATCHED = 21
    """1 where somebody sees how far the run is; the supervisor's."""


def _slot_dtype(feature_shape: tuple[int, ...], classes: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("state", "u1"),
            ("kind", "u1"),
            ("error", "u1"),
            ("tries", "u1"),
            ("twin", "u1"),
            ("channels", "u2"),
            ("path_length", "u2"),
            ("owner", "i4"),
            ("sample_rate", "u4"),
            ("reach", "u4"),
            ("size", "i8"),
            ("mtime_ns", "i8"),
            ("directory", "i8"),
            ("frame", "i8"),
            ("duration_sec", "f8"),
            ("rms_db", "f8"),
            ("spectral_centroid", "f8"),
            ("spectral_rolloff", "f8"),
            ("lines", "u1", (FRAME_LINES // 8,)),
            ("hash", "S64"),
            ("format", "S8"),
            ("message", "S240"),
            ("path", "u1", (PATH_BYTES,)),
            ("probs", "f4", (classes,)),
            ("gate", "f4"),
            ("features", "f4", feature_shape),
        ],
        align=True,
    )


@dataclass(frozen=True)
class SlotTable:
    """The shared block: slots, claims, counters, and label counts for the progress display.

    Attributes are views of the shared memory; assigning to their elements is seen by all stages.

    Attributes
    ----------
    slots
        Structured array, one element for each slot.
    block, offset
        The shared memory itself, and where the slots begin in it, in bytes.
    claims
        Slot numbers that a worker has just taken, shape (workers, CLAIM_SLOTS); `NO_SLOT` where none.
    current, started
        Slot that each worker is reading, and since when (`time.monotonic`).
    counters
        Indexed by `Gauge`.
    label_counts
        Files per assigned label, in the order of `assigned_labels`.
    """

    slots: NDArray[Any]
    block: mmap.mmap
    offset: int
    claims: NDArray[np.uint32]
    current: NDArray[np.uint32]
    started: NDArray[np.float64]
    counters: NDArray[np.int64]
    label_counts: NDArray[np.int64]

    @staticmethod
    def slot_bytes(feature_shape: tuple[int, ...], classes: int) -> int:
        """Return the size of one slot."""
        return _slot_dtype(feature_shape, classes).itemsize

    @classmethod
    def create(
        cls, slots: int, workers: int, feature_shape: tuple[int, ...], classes: int, labels: int
    ) -> SlotTable:
        """Allocate a table.

        Parameters
        ----------
        slots
            Files in flight at most.
        workers
            Extract workers.
        feature_shape
            Shape of one feature tensor (float32).
        classes
            Fine labels.
        labels
            Assigned labels to be counted.

        Raises
        ------
        StageError
            When the memory cannot be had.
        """
        parts: list[tuple[np.dtype[Any], tuple[int, ...]]] = [
            (np.dtype(np.int64), (len(Gauge),)),
            (np.dtype(np.int64), (labels,)),
            (np.dtype(np.float64), (workers,)),
            (np.dtype(np.uint32), (workers,)),
            (np.dtype(np.uint32), (workers, CLAIM_SLOTS)),
            (_slot_dtype(feature_shape, classes), (slots,)),
        ]
        sizes = [-(-dtype.itemsize * int(np.prod(shape)) // 64) * 64 for dtype, shape in parts]
        block = _shared_memory(sum(sizes))
        offsets = np.cumsum([0, *sizes[:-1]]).tolist()
        arrays: list[NDArray[Any]] = [
            np.ndarray(shape, dtype, buffer=block, offset=offset)
            for (dtype, shape), offset in zip(parts, offsets, strict=True)
        ]
        counters, label_counts, started, current, claims, table = arrays
        claims[:] = NO_SLOT
        current[:] = NO_SLOT
        return cls(table, block, offsets[-1], claims, current, started, counters, label_counts)

    def view(self, name: str) -> NDArray[Any]:
        """Return one field of all slots, as a view."""
        field: NDArray[Any] = self.slots[name]
        return field

    def take(self, slots: list[int], expected: State, state: State) -> list[int]:
        """Take slots over: keep those in the expected state, and set the new one.

        Only the one consumer of a queue may call this for the states of that queue.
        """
        states = self.slots["state"]
        found = states[slots].tolist()  # one by one, NumPy would take 3 µs a slot
        taken = [slot for slot, at in dict(zip(slots, found, strict=True)).items() if at == expected]
        states[taken] = state
        return taken

    def fill(self, slots: list[int], **columns: Any) -> None:
        """Set fields of many slots at once, each to one value for all or to a list with one for each."""
        for name, values in columns.items():
            self.slots[name][slots] = values

    def set_path(self, slot: int, path: bytes) -> None:
        """Set a slot's path."""
        self.slots["path"][slot, : len(path)] = np.frombuffer(path, np.uint8)
        self.slots["path_length"][slot] = len(path)

    def paths(self, slots: list[int]) -> list[bytes]:
        """Return the paths of slots."""
        # Without its length, NumPy would look for the end of each from the last of 4,352 bytes on.
        paths, lengths = self.slots["path"], self.slots["path_length"][slots].tolist()
        return [paths[slot, :length].tobytes() for slot, length in zip(slots, lengths, strict=True)]

    def fail(self, slot: int, error: str, message: str) -> None:
        """Turn a slot into a typed failure."""
        self.slots["error"][slot] = ERROR_TYPES.index(error)
        self.slots["message"][slot] = message.encode("utf-8", "backslashreplace")[:240]
        self.slots["state"][slot] = State.DONE

    def give_back(self, slots: list[int]) -> None:
        """Give the memory of free slots back to the system: they read as zeros, or stay where it refuses.

        What a slot shares with its neighbours' pages stays. Memory comes again when the slot is filled.
        """
        if not hasattr(mmap, "MADV_REMOVE"):
            return
        size, page = self.slots.dtype.itemsize, mmap.PAGESIZE
        for slot in slots:
            begin = self.offset + slot * size
            first, end = -(-begin // page) * page, (begin + size) // page * page
            if first < end:
                with suppress(OSError):  # as a sandbox or an old kernel may
                    self.block.madvise(mmap.MADV_REMOVE, first, end - first)

    def count(self, *states: State) -> int:
        """Return how many slots are in one of these states."""
        return int(np.isin(self.slots["state"], states).sum())


def _shared_memory(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size)
    except OSError as error:
        raise StageError(
            f"no {size >> 20} MB of shared memory for the slot table: {os.strerror(error.errno or 0)}",
            "Use a smaller --batch-size or fewer --workers, or give the container more memory.",
        ) from error
