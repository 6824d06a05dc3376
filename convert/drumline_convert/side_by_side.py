"""Several trainings at once, each in a process of its own, with one thread.

A second thread gains next to nothing on networks as small as these, while trainings side by side do not get
in one another's way. So every training of several has one thread, however many run at once: that decides when
they are done, not what comes out.

A worker is spawned, not forked, since a fork of a process in which TensorFlow runs threads can hang. It
prepares the workbench anew (the features are in their store by then), does one training, whose result is a
file, and ends. Lines to report and its error come through a pipe; a pipe that ends before the training is
that of a worker that was killed. When one fails, or we are stopped, all are killed at once: what is on disk
is whole at any moment, and the same trainings go on after their last whole epoch.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple, cast

from drumline.errors import DrumlineError, StageError
from drumline.machine import end_with_parent
from drumline_convert.workbench import ModelSettings, Workbench, prepare

__all__ = ["Training", "train_side_by_side"]

_GO_ON = "Give the same command again: it goes on after the last whole epoch."
_TERMINAL = {signal.SIGINT, signal.SIGHUP}


class Training(NamedTuple):
    """The training of a workbench that holds `fold` out; None: that on all recordings."""

    bench: Workbench
    fold: int | None

    @property
    def result(self) -> Path:
        """The file that is there when it is done."""
        return self.bench.result(self.fold)


def train_side_by_side(
    trainings: Sequence[Training], cores: int, on_done: Callable[[], None] = lambda: None
) -> None:
    """Do the trainings that are not done yet, so many at once as there are cores.

    Parameters
    ----------
    trainings
        All of them, done or not: one alone has all cores as its threads, and runs in this process.
    on_done
        Called after each training.

    Raises
    ------
    DrumlineError
        What ended a training, with its name; `StageError` when its process was killed.
    """
    missing = list({one.result: one for one in trainings if not one.result.exists()}.values())
    threads = 1 if len(trainings) > 1 else cores
    missing = [one._replace(bench=_with_threads(one.bench, threads)) for one in missing]
    if cores < 2 or len(missing) < 2:
        for one in missing:
            one.bench.complete(one.fold)
            on_done()
        return
    _train_in_processes(missing, cores, on_done)


def _with_threads(bench: Workbench, threads: int) -> Workbench:
    return replace(bench, settings=replace(bench.settings, threads=threads))


class _Worker(NamedTuple):
    """A process and the training that it does."""

    process: SpawnProcess
    training: Training

    def end(self) -> None:
        """Kill the process, which has nothing more to do than to end."""
        self.process.kill()
        self.process.join()


def _train_in_processes(missing: Sequence[Training], at_once: int, on_done: Callable[[], None]) -> None:
    waiting = list(missing)
    busy: dict[Connection, _Worker] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < at_once:
                _start(waiting.pop(0), busy)
            for ready in wait(list(busy)):
                reader = cast("Connection", ready)
                if _hear(reader, busy[reader]):
                    busy.pop(reader).end()
                    reader.close()
                    on_done()
    finally:
        for reader, worker in busy.items():
            worker.end()
            reader.close()


def _start(training: Training, busy: dict[Connection, _Worker]) -> None:
    reader, writer = get_context("spawn").Pipe(duplex=False)
    task = (training.bench.settings, training.fold, writer, os.getpid())
    process = get_context("spawn").Process(target=_work, args=task, daemon=True)
    with writer, _terminal_held():
        process.start()
        busy[reader] = _Worker(process, training)


@contextmanager
def _terminal_held() -> Iterator[None]:
    """Keep Ctrl-C from processes that start here, which inherit what is blocked: it is ours to answer."""
    # Started only now, multiprocessing's own process would unblock the signals again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear(reader: Connection, worker: _Worker) -> bool:
    """Take in what a worker says, and tell whether it is done."""
    name = worker.training.bench.name_of(worker.training.fold)
    try:
        said = reader.recv()
    except (EOFError, OSError) as error:
        worker.end()
        code = worker.process.exitcode or 0
        killed = f"Where memory was short, use fewer --threads. {_GO_ON}"
        raise StageError(
            f"the process that trained {name} {'was killed' if code < 0 else 'ended'} (exit code {code})",
            killed if code < 0 else f"What it said stands above. {_GO_ON}",
        ) from error
    if isinstance(said, DrumlineError):
        raise type(said)(f"training {name}: {said.what}", said.way_out)
    if isinstance(said, str):
        worker.training.bench.report(said)
    return said is None


def _work(settings: ModelSettings, fold: int | None, writer: Connection, parent: int) -> None:
    """Do one training; runs in a process of its own, and ends with that which started it."""
    end_with_parent()
    if os.getppid() != parent:
        return
    try:
        prepare(settings, writer.send).complete(fold)
        writer.send(None)
    except DrumlineError as error:
        writer.send(error)
    except Exception as error:
        traceback.print_exc()
        cause = "".join(traceback.format_exception_only(error)).strip()
        writer.send(StageError(cause, _GO_ON))
