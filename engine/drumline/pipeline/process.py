"""Stage processes: forked from the supervisor, watched by it, and never left behind.

The supervisor is single-threaded, so fork is safe, and it costs a few milliseconds and no memory: what the
parent has imported is shared. A child leaves by `os._exit`, so nothing of the parent's clean-up runs twice.
What goes wrong in a child comes back as one small message in a pipe.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from drumline import errors
from drumline.errors import CacheError, DrumlineError, OutputError, StageError
from drumline.machine import end_with_parent
from drumline.pipeline.pipes import LifelineCut
from drumline.steps import Lap, no_lap

if TYPE_CHECKING:
    from drumline.pipeline.profile import Profile

__all__ = ["Reports", "StageProcess", "measured"]

_FAILED = 70
_REQUESTS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_WAIT_SEC, _WAIT_STEP_SEC = 3.0, 0.002


class Reports:
    """A pipe in which stages say why they end."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def send(self, stage: str, error: DrumlineError) -> None:
        """Say why a stage ends (called in the stage)."""
        message = [stage, type(error).__name__, _clipped(error.what, 2000), _clipped(error.way_out, 800)]
        os.write(self.writer, orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))

    def receive(self) -> DrumlineError | None:
        """Return the first error that was sent (called in the supervisor)."""
        try:
            data = os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return None
        for line in data.splitlines():
            _stage, name, what, way_out = orjson.loads(line)
            kind: type[DrumlineError] = getattr(errors, name, StageError)
            return kind(what, way_out)
        return None

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self.writer)


def _clipped(text: str, size: int) -> str:
    # A pipe takes up to PIPE_BUF (4096) bytes in one piece. The end of a traceback says most.
    return text.encode("utf-8", "backslashreplace")[-size:].decode("utf-8", "ignore")


@dataclass
class StageProcess:
    """A running stage.

    Parameters
    ----------
    name
        The stage's name, for messages.
    pid
        Its process id.
    code
        Exit code, negative for a signal; None while it runs.
    peak_bytes
        Most memory that it had, once it has ended.
    """

    name: str
    pid: int
    code: int | None = None
    peak_bytes: int = 0

    @classmethod
    def start(cls, name: str, body: Callable[[], None], reports: Reports) -> StageProcess:
        """Fork a process that runs `body` and exits."""
        gc.freeze()  # the collector must not touch, and so copy, the pages that are shared
        supervisor, process = os.getpid(), None
        try:
            with _requests_held():
                pid = os.fork()
                if pid == 0:
                    _run(name, body, reports, supervisor)
                process = cls(name, pid)
        except OSError as error:
            raise StageError(f"cannot start the {name} stage: {error.strerror}", _FORK_WAY_OUT) from error
        except BaseException:  # Ctrl-C, held until now: nobody else knows the process yet
            if process:
                process.end()
            raise
        else:
            return process
        finally:
            gc.unfreeze()

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        if self.code is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.peak_bytes = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return self.code

    def kill(self) -> None:
        """Kill the process, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process, and wait until it has ended."""
        self.kill()
        self.wait()

    def wait(self) -> None:
        """Wait until the process has ended, but not for ever: what hangs in the kernel cannot be ended."""
        deadline = time.monotonic() + _WAIT_SEC
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(_WAIT_STEP_SEC)

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.poll() is None


def measured(profile: Profile | None, stage: str, number: int = 0) -> AbstractContextManager[Lap]:
    """Give a process its lap; where nothing is measured, nothing that measures is imported."""
    if profile is None:
        return nullcontext(no_lap)
    from drumline.pipeline.profile import recorded

    return recorded(profile, stage, number)


@contextmanager
def _requests_held() -> Iterator[None]:
    """Let requests to stop wait: what a handler raises in one of Python's hooks around a fork is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(supervisor: int) -> None:
    """End when the supervisor is gone, at once where the system can: a hanging decoder sees no lifeline.

    Elsewhere the lifeline is seen when the file at hand is done.
    """
    end_with_parent()
    if os.getppid() != supervisor:
        raise LifelineCut


def _run(name: str, body: Callable[[], None], reports: Reports, supervisor: int) -> None:
    code = _FAILED
    try:
        _end_with(supervisor)
        # Ctrl-C and a service manager's SIGTERM reach the whole group; only the supervisor answers them.
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
        body()
        code = 0
    except LifelineCut:
        code = 0
    except BaseException as error:
        reports.send(name, _reported(name, error))
    finally:
        os._exit(code)


def _reported(name: str, error: BaseException) -> DrumlineError:
    """Return what the supervisor is to say of an error that ended a stage."""
    import sqlite3  # here, for walk starts before anything else is imported

    from drumline.cache_file import cache_way_out, is_damage

    if isinstance(error, DrumlineError):
        return error
    if isinstance(error, sqlite3.DatabaseError):
        kind = CacheError if is_damage(error) else OutputError
        return kind(f"the {name} stage cannot use the cache: {error}", cache_way_out(error))
    return StageError(f"the {name} stage failed:\n{traceback.format_exc(limit=-4)}", _REPORT)


_FORK_WAY_OUT = "Use fewer --workers, or raise the limits of processes and memory."
_REPORT = (
    "This is a fault in drumline: please report it. The same command goes on where it stopped; where it ends"
    " like this again, delete cache.sqlite in the runs root first: it is made anew from the indexes."
)
