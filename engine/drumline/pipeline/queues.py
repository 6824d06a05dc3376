"""Queues of slot numbers: kernel pipes.

Protocol
--------
A queue carries 4-byte slot numbers and nothing else. Writes of up to PIPE_BUF bytes and all reads are
atomic in the kernel, so numbers are never torn, no lock exists that a killed process could keep, and the
end of the stream is known when every writer has closed (or died). A slot number is on one queue at most, so
back-pressure comes from the finite number of slots. There are no more slots than a pipe holds numbers
(`SlotQueue.capacity`), so writers do not wait for readers, and no circle of waiting can close.

Whoever waits on a queue waits on the *lifeline* too: a pipe whose only writer is the supervisor. When the
supervisor is gone, even by SIGKILL, the wait ends with `LifelineCut` and the stage exits: no orphans.
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

from drumline.errors import StageError

__all__ = ["Lifeline", "LifelineCut", "Queues", "SlotQueue"]

_NUMBER_BYTES = 4
_SMALLEST_PIPE = 16_384  # macOS; Linux tells
_ATOMIC_NUMBERS = select.PIPE_BUF // _NUMBER_BYTES


class LifelineCut(Exception):  # noqa: N818  (a signal, not a mistake)
    """The supervisor is gone."""


class Lifeline:
    """A pipe that ends when the supervisor does."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def hold(self) -> None:
        """Keep only the end that notices (called in a stage)."""
        os.close(self.writer)

    def close(self) -> None:
        """Close both ends (called in the supervisor, after the stages have ended)."""
        os.close(self.reader)
        os.close(self.writer)


class SlotQueue:
    """A queue of slot numbers between processes that were forked from one another.

    Parameters
    ----------
    lifeline
        Ends every wait when the supervisor is gone.
    """

    def __init__(self, lifeline: Lifeline) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        self._lifeline = lifeline

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

    def _wait(self, descriptor: int, event: int, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._lifeline.reader, 0)
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if self._lifeline.reader in ready:
            raise LifelineCut
        return bool(ready)

    def use(self, *, read: bool = False, write: bool = False) -> None:
        """Keep only the ends that this process uses, so that the end of the stream can be seen."""
        if not read:
            self.close_reader()
        if not write:
            self.close_writer()

    def close_reader(self) -> None:
        """Stop reading."""
        self.reader = _close(self.reader)

    def close_writer(self) -> None:
        """Stop writing."""
        self.writer = _close(self.writer)


def _close(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1


@dataclass(frozen=True)
class Queues:
    """The four queues of a pipeline.

    Parameters
    ----------
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
    todo: SlotQueue
    ready: SlotQueue
    done: SlotQueue
    free: SlotQueue

    @classmethod
    def create(cls) -> Queues:
        """Make the pipes."""
        try:
            lifeline = Lifeline()
            return cls(lifeline, *(SlotQueue(lifeline) for _ in range(4)))
        except OSError as error:
            way_out = "Raise the limit of open files (ulimit -n)."
            raise StageError(f"cannot make pipes: {error.strerror}", way_out) from error

    def keep(self, *, reads: SlotQueue | None = None, writes: Sequence[SlotQueue] = ()) -> None:
        """Close, in a stage, every end that it does not use."""
        self.lifeline.hold()
        for queue in (self.todo, self.ready, self.done, self.free):
            queue.use(read=queue is reads, write=queue in writes)

    def close(self) -> None:
        """Close every end (called in the supervisor, after the stages have ended)."""
        self.lifeline.close()
        for queue in (self.todo, self.ready, self.done, self.free):
            queue.use()
