"""Pipes between stages, and what ends every wait on them.

Protocol
--------
Whoever waits on a pipe waits on the *lifeline* too: a pipe whose only writer is the supervisor. When the
supervisor is gone, even by SIGKILL, the wait ends with `LifelineCut` and the stage exits: no orphans.

A `Stream` carries messages of any length from one process to one other, each behind its length, through
several pipes in turn. Its writer waits while the pipe of the next message is full.
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from typing import NoReturn

from drumline.errors import StageError
from drumline.machine import open_files_limit

__all__ = ["Lifeline", "LifelineCut", "Pipe", "Stream", "pipe_errors"]

_LENGTH_BYTES = 4
_PIECE_BYTES = 1 << 16

_LANE_BYTES = 1 << 20
"""What is asked for, the most that anybody but root is given; a user of many pipes is given less."""

_GONE = select.POLLIN
"""What a lifeline is watched for: nothing is ever written to it, and macOS tells no hang-up unasked."""

_LANES = 4
"""Some 100,000 files that walk can be ahead, as many as it finds until discover begins."""

_AMPLE_OPEN_FILES = 64
"""Where fewer may be open, one lane must do."""


@contextmanager
def pipe_errors() -> Iterator[None]:
    """Turn the system's refusal to make pipes into a `StageError`."""
    try:
        yield
    except OSError as error:
        way_out = "Raise the limit of open files (ulimit -n)."
        raise StageError(f"cannot make pipes: {error.strerror}", way_out) from error


class LifelineCut(Exception):  # noqa: N818  (a signal, not a mistake)
    """The supervisor is gone."""


class Lifeline:
    """A pipe that ends when the supervisor does."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def hold(self) -> None:
        """Keep only the end that notices (called in a stage)."""
        self.writer = _close(self.writer)

    def look(self, timeout: float | None) -> None:
        """Raise `LifelineCut` when the supervisor is gone, or goes within `timeout` seconds; None: ever."""
        poll = select.poll()
        poll.register(self.reader, _GONE)
        if poll.poll(None if timeout is None else timeout * 1000):
            raise LifelineCut

    def close(self) -> None:
        """Close both ends (called in the supervisor, after the stages have ended)."""
        self.reader, self.writer = _close(self.reader), _close(self.writer)


class Pipe:
    """A pipe between processes that were forked from one another.

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

    def _wait(self, descriptor: int, event: int, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._lifeline.reader, _GONE)
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


class _Lane(Pipe):
    """A pipe of messages."""

    def __init__(self, lifeline: Lifeline) -> None:
        super().__init__(lifeline)
        self._received = bytearray()
        with suppress(AttributeError, OSError):  # Linux; others, and users with many pipes, have smaller ones
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _LANE_BYTES)

    def send(self, message: bytes) -> None:
        left = memoryview(len(message).to_bytes(_LENGTH_BYTES, "little") + message)
        while left:
            try:
                left = left[os.write(self.writer, left) :]
            except BlockingIOError:
                self._wait(self.writer, select.POLLOUT, None)

    def receive(self) -> bytes | None:
        length = self._take(_LENGTH_BYTES)
        return None if length is None else self._take(int.from_bytes(length, "little"))

    def _take(self, size: int) -> bytes | None:
        while len(self._received) < size:
            try:
                piece = os.read(self.reader, _PIECE_BYTES)
            except BlockingIOError:
                self._wait(self.reader, select.POLLIN, None)
                continue
            if not piece:
                return None
            self._received += piece
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken


class Stream:
    """A queue of messages with one reader and one writer.

    Messages take turns between several pipes, as a single one holds too little.
    """

    def __init__(self, lifeline: Lifeline) -> None:
        limit = open_files_limit()
        lanes = _LANES if limit is None or limit >= _AMPLE_OPEN_FILES else 1
        self._lanes: list[_Lane] = []
        with ExitStack() as on_error:
            on_error.callback(self.use)
            self._lanes.extend(_Lane(lifeline) for _ in range(lanes))
            on_error.pop_all()
        self._to_send, self._to_receive = cycle(self._lanes), cycle(self._lanes)
        self._lifeline = lifeline

    def use(self, *, read: bool = False, write: bool = False) -> None:
        """Keep only the ends that this process uses, so that the end of the stream can be seen."""
        for lane in self._lanes:
            lane.use(read=read, write=write)

    def send(self, message: bytes) -> None:
        """Append a message; waits while its pipe is full.

        Raises
        ------
        BrokenPipeError
            When its reader has left.
        """
        next(self._to_send).send(message)

    def receive(self) -> bytes | None:
        """Take a message, waiting for it; None at the end of the stream."""
        return next(self._to_receive).receive()

    def wait_for_supervisor(self) -> NoReturn:
        """Wait until the supervisor is gone, or kills this process: it knows what happened to the writer."""
        while True:
            self._lifeline.look(None)

    def look_for_supervisor(self) -> None:
        """Raise `LifelineCut` when the supervisor is gone, as every wait does."""
        self._lifeline.look(0)


def _close(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1
