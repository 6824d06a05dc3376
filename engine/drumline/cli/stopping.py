"""Requests to stop: Ctrl-C, SIGTERM and SIGHUP mean the same, wherever a command is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from drumline.errors import Interrupted

__all__ = ["GO_ON", "stoppable"]

GO_ON = "Nothing is lost: give the same command again to go on."

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AT_ONCE = f"drumline: stopped at once\n  {GO_ON}\n".encode()


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first request to stop, and end the process at the second.

    Whatever is on disk is whole at any moment, so nothing more has to be done then. A command started by
    nohup ignores SIGHUP, and one started in the background SIGINT: they go on ignoring it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requests = 0

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal requests
        requests += 1
        if requests == 1:
            raise KeyboardInterrupt
        try:
            os.write(2, _AT_ONCE)
        finally:
            os._exit(Interrupted.exit_code)

    before = {number: signal.getsignal(number) for number in _REQUESTS}
    heard = [number for number in _REQUESTS if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
