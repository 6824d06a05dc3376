"""Helpers: processes that do the heavy part of a task while the main process prepares the next ones.

Counting: the main process finds frames of the index, helpers unpack and count them. Reading: helpers turn
them into rows of a rebuild's plan and look for the files in the archive.
Placing: the main process announces batches, helpers make the names; that costs the kernel more time than all
that Python does for it, and several processes can ask it to at the same time.

The main process gives a task only to a helper that is idle, so a helper is always there to read it, and its
answer is read before it gets another: no pipe ever fills from both sides. A helper that reads the end of its
pipe ends: when the main process dies, helpers finish the task they have (a batch was announced before) and
go. When the main process gives up (Ctrl-C, full disk), it kills them: a task may end anywhere. They ignore
Ctrl-C and its kin themselves.

Helpers are forked, so they start in a millisecond with the tree's descriptors, and the tree stays locked
until the last one has gone. Where there are other threads (fork would not be safe) or little to do, the main
process does the tasks itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

from drumline.errors import DrumlineError, StageError
from drumline.machine import usable_cpus

__all__ = ["Helpers", "helpers_for"]

_MOST_HELPERS = 4
_WORTH_HELP = 4_000
"""Files; fewer are done faster than helpers start."""

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Helpers(Protocol[Task, Answer]):
    """Whoever does tasks; a context manager."""

    def __enter__(self) -> Helpers[Task, Answer]: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def give(self, task: Task) -> list[tuple[Task, Answer]]:
        """Hand over a task; return tasks that are done by now, earlier ones too, with their answers."""

    def finish(self) -> list[tuple[Task, Answer]]:
        """Wait for the rest."""


def helpers_for(work: Callable[[Task], Answer], files: int) -> Helpers[Task, Answer]:
    """Return helpers for work on so many files; exceptions of the work are raised here."""
    cpus = usable_cpus()
    if files < _WORTH_HELP or cpus < 2 or threading.active_count() > 1:
        return Alone(work)
    return Forked(work, min(cpus, _MOST_HELPERS))


class Alone(Generic[Task, Answer]):
    """No helpers: the main process does each task at once."""

    def __init__(self, work: Callable[[Task], Answer]) -> None:
        self._work = work

    def __enter__(self) -> Alone[Task, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def give(self, task: Task) -> list[tuple[Task, Answer]]:
        """See `Helpers`."""
        return [(task, self._work(task))]

    def finish(self) -> list[tuple[Task, Answer]]:
        """See `Helpers`."""
        return []


class Forked(Generic[Task, Answer]):
    """Forked helpers; they start when the context is entered."""

    def __init__(self, work: Callable[[Task], Answer], size: int) -> None:
        self._work, self._size = work, size
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Task] = {}
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Forked[Task, Answer]:
        with ExitStack() as on_error:
            on_error.push(self.__exit__)
            for _ in range(self._size):
                self._start()
            on_error.pop_all()
        return self

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._idle.append(ours)
        process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, self._idle, self._work), daemon=True
        )
        try:
            process.start()
        finally:
            theirs.close()
        self._processes.append(process)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()
        for process in self._processes:
            if error is not None:
                process.kill()
            process.join()
            process.close()

    def give(self, task: Task) -> list[tuple[Task, Answer]]:
        """See `Helpers`."""
        done = self._collect(0 if self._idle else None)
        connection = self._idle.pop()
        self._busy[connection] = task
        try:
            connection.send(task)
        except OSError as error:
            raise _died() from error
        return done

    def finish(self) -> list[tuple[Task, Answer]]:
        """See `Helpers`."""
        done: list[tuple[Task, Answer]] = []
        while self._busy:
            done += self._collect(None)
        return done

    def _collect(self, timeout: float | None) -> list[tuple[Task, Answer]]:
        done = []
        for ready in wait(list(self._busy), timeout):
            connection = cast("Connection", ready)
            answer = _answer(connection)
            done.append((self._busy.pop(connection), answer))
            self._idle.append(connection)
        return done


def _answer(connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except (EOFError, OSError) as error:
        raise _died() from error
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _died() -> StageError:
    return StageError("a helper process died", "Give the same command again: it goes on where it stopped.")


def _failed(error: Exception) -> StageError:
    cause = "".join(traceback.format_exception_only(error)).strip()
    return StageError(f"a helper process failed: {cause}", "This is a fault of drumline: please report it.")


def _serve(connection: Connection, others: list[Connection], work: Callable[[Any], Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for other in others:
        other.close()
    try:
        while True:
            _reply(connection, _done(work, connection.recv()))
    except (EOFError, OSError):
        os._exit(0)  # the main process has gone, or needs no help any more


def _done(work: Callable[[Any], Any], task: Any) -> Any:
    """Do a task; return its answer, or its error: of other than our own and the system's what it says."""
    try:
        return work(task)
    except (DrumlineError, OSError) as error:
        return error
    except Exception as error:  # it may be of a kind that cannot be sent
        return _failed(error)


def _reply(connection: Connection, answer: Any) -> None:
    try:
        connection.send(answer)
    except OSError:
        raise
    except Exception as error:  # nothing was sent: answers are encoded first
        connection.send(_failed(error))
