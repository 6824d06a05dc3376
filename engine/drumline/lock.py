"""One writer at a time: a lock that dies with its holder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drumline.durable import output_errors
from drumline.errors import BusyError, OutputError

__all__ = ["exclusive"]

_RETRY_SEC = 0.05
_MODE = 0o666


@contextmanager
def exclusive(path: Path, what: str, patience_sec: float = 5.0) -> Iterator[None]:
    """Hold the lock file `path` while the enclosed code runs.

    Parameters
    ----------
    path
        The lock file; made when it is missing, and left behind; it holds the holder's process id.
    what
        What is locked, for the message.
    patience_sec
        How long to wait: the processes of a run that was just killed need a moment to notice.

    Raises
    ------
    BusyError
        When another process holds it; the message says which.
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    try:
        _acquire(descriptor, what, time.monotonic() + patience_sec)
        with output_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, what: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                way_out = "Its file system must know locks: choose another place."
                raise OutputError(f"cannot lock {what}: {error.strerror}", way_out) from error
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise BusyError(
                    f"{what} is in use by process {holder}, or by what is left of it",
                    "Wait until it has ended, then try again.",
                ) from error
            time.sleep(_RETRY_SEC)
        else:
            return
