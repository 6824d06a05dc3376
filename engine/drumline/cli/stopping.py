"""Requests to stop: Ctrl-C, SIGTERM and SIGHUP mean the same, wherever a command is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from drumline.errors import Interrupted

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["GO_ON", "stoppable"]

GO_ON = "Nothing is lost: give the same command again to go on."

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOON_S = 0.005
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
        with _not_swallowed():
            yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def _not_swallowed() -> Iterator[None]:
    """Raise `KeyboardInterrupt` again where it came up in a callback, as imports have, which ignores it."""
    hook, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def see(ignored: UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _SOON_S)  # here it would be ignored once more
        else:
            hook(ignored)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = see
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook
