"""Queues of slot numbers: kernel pipes.

Protocol
--------
A queue carries 4-byte slot numbers and nothing else. Writes of up to PIPE_BUF bytes and all reads are
atomic in the kernel, so numbers are never torn, no lock exists that a killed process could keep, and the
end of the stream is known when every writer has closed (or died). A slot number is on one queue at most, so
back-pressure comes from the finite number of slots. There are no more slots than a pipe holds numbers
(`SlotQueue.capacity`), so writers do not wait for readers, and no circle of waiting can close.
"""

from __future__ import annotations

import fcntl
import os
import select
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drumline.pipeline.pipes import Lifeline, LifelineCut, Pipe, Stream, pipe_errors

__all__ = ["Lifeline", "LifelineCut", "Queues", "SlotQueue"]

_NUMBER_BYTES = 4
_SMALLEST_PIPE = 16_384  # macOS; Linux tells
_ATOMIC_NUMBERS = select.PIPE_BUF // _NUMBER_BYTES


class SlotQueue(Pipe):
    """A queue of slot numbers."""

    @property
    def capacity(self) -> int:
        """How many numbers the pipe holds."""
        size = (
            fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else _SMALLEST_PIPE
        )
        return size // _NUMBER_BYTES

    def put(self, slots: Sequence[int] | NDArray[np.integer]) -> None:
        """Append slot numbers; waits while the pipe is full, as doubled numbers might make it."""
        numbers = array("I", slots)
        for start in range(0, len(numbers), _ATOMIC_NUMBERS):
            chunk = numbers[start : start + _ATOMIC_NUMBERS].tobytes()
            while not self._written(chunk):
                self._wait(self.writer, select.POLLOUT, None)

    def _written(self, chunk: bytes) -> bool:
        try:
            os.write(self.writer, chunk)
        except BlockingIOError:
            return False
        return True

    def get(self, limit: int, timeout: float | None = None) -> list[int] | None:
        """Take up to `limit` numbers, waiting up to `timeout` seconds for the first.

        Returns
        -------
        list of int or None
            Empty when the time is up; None at the end of the stream.
        """
        buffer = np.empty(limit, np.uint32)
        count = self.get_into(buffer, timeout)
        return None if count is None else buffer[:count].tolist()

    def get_into(self, buffer: NDArray[np.uint32], timeout: float | None = None) -> int | None:
        """Like `get`, but the kernel copies the numbers straight into `buffer`."""
        view = buffer.view(np.uint8).data
        while self._wait(self.reader, select.POLLIN, timeout):
            try:
                return os.readv(self.reader, [view]) // _NUMBER_BYTES or None
            except BlockingIOError:
                continue  # another reader was faster
        return 0


@dataclass(frozen=True)
class Queues:
    """The queues of a pipeline.

    Parameters
    ----------
    listings
        walk → discover: directories with their files.
    todo
        discover → extract: files to read.
    ready
        extract → predict: features to classify.
    done
        discover, extract, predict → write: records to write.
    free
        write → discover: slots to fill.
    """

    lifeline: Lifeline
    listings: Stream
    todo: SlotQueue
    ready: SlotQueue
    done: SlotQueue
    free: SlotQueue

    @classmethod
    def create(cls, lifeline: Lifeline, listings: Stream) -> Queues:
        """Make the pipes that are not there yet."""
        with pipe_errors():
            return cls(lifeline, listings, *(SlotQueue(lifeline) for _ in range(4)))

    @property
    def capacity(self) -> int:
        """How many numbers each of the queues of slots holds."""
        return min(queue.capacity for queue in (self.todo, self.ready, self.done, self.free))

    def keep(self, *, reads: Sequence[Pipe | Stream] = (), writes: Sequence[Pipe | Stream] = ()) -> None:
        """Close, in a stage, every end that it does not use."""
        self.lifeline.hold()
        for queue in self._all():
            queue.use(read=queue in reads, write=queue in writes)

    def _all(self) -> tuple[Pipe | Stream, ...]:
        return (self.listings, self.todo, self.ready, self.done, self.free)

    def close(self) -> None:
        """Close every end (called in the supervisor, after the stages have ended)."""
        for queue in self._all():
            queue.use()
