"""The supervisor: starts the stages, watches them, and ends them in order.

Protocol
--------
Order of ends: walk leaves when it has met the whole archive, or is far ahead and leaves the rest to
discover; discover, when all of it is compared. When no slot waits for extraction any more, the supervisor
closes `todo`; the workers leave; it closes `ready` and `done`; predict leaves, then write. Each stage
sees the end of its stream only when nothing can come any more.

Workers and predict start when the first file has to be read, so a rescan that finds nothing new costs three
processes.

How much may be under way follows the memory that is left (`drumline.memory`): the supervisor looks four times
a second, and says in the counters how many slots may be in flight and how large a batch may be. Workers
that memory has no room for start later, when it has.

A worker that dies is replaced. Its slots are told by `owner`: the one it was working on is tried once more
and then failed as `worker_crash`, `timeout` or `out_of_memory`, the others are queued again. A stage of
which there is only one cannot be replaced without losing its place: its death ends the run, and the same
command goes on.

The first Ctrl-C (or SIGTERM, SIGHUP) stops in order: no new files, workers finish the file at hand, what is
predicted is written. The second kills everything; what is on disk is whole in either case.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from drumline import memory
from drumline.errors import Interrupted, StageError
from drumline.laps import Lap
from drumline.machine import give_way
from drumline.pipeline.assemble import assigned_labels
from drumline.pipeline.discover import discover
from drumline.pipeline.job import Job
from drumline.pipeline.pipes import Pipe, Stream
from drumline.pipeline.process import StageProcess, measured
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import NO_SLOT, Gauge, Kind, SlotTable, State
from drumline.pipeline.walk import Walking
from drumline.pipeline.write import write
from drumline.progress import Progress, Snapshot

if TYPE_CHECKING:
    from drumline.pipeline.profile import Profile

__all__ = ["Outcome", "supervise"]

_TICK_SEC = 0.02  # how late the supervisor may notice something; a tick costs 50 µs
_RESCAN_TICK_SEC = 0.005  # while nothing has to be read, the run may be over at any moment
_TRIES = 2
# Ctrl-C is to end within 2 s: a file at hand gets half of it, and what is predicted the rest to be written.
_WORKERS_MAY_FINISH_SEC = 1.0
_ALL_MAY_FINISH_SEC = 1.8
_IDLE_DEATHS = 20  # in a row, without a file read: not bad luck but a broken environment
_MB = 1_000_000
_NEARLY = 0.9  # of the memory that a worker may have: who died there did not get the next piece
_PAUSED_SEC = 1.0  # a tick that took this long was no tick: the machine slept


@dataclass(frozen=True)
class Outcome:
    """What the shared counters said at the end, and what memory allowed."""

    counters: dict[str, int]
    elapsed_sec: float
    memory: dict[str, float]


class _Signals:
    """Counts requests to stop while the pipeline runs, and notes that it goes on after it was stopped."""

    def __init__(self) -> None:
        self.requests = 0
        self.continued = False
        self._breaking_off = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCONT:
            self.continued = True
            return
        self.requests += 1
        if self._breaking_off:
            raise KeyboardInterrupt

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Let a request to stop break off what is done here, and be heeded after it."""
        self._breaking_off = True
        try:
            with suppress(KeyboardInterrupt):
                yield
        finally:
            self._breaking_off = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Count SIGINT, SIGTERM and SIGHUP, and note SIGCONT; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT)
        # A command started by nohup ignores SIGHUP, and goes on ignoring it.
        before = {number: signal.getsignal(number) for number in numbers}
        noted = [number for number in numbers if before[number] is not signal.SIG_IGN]
        for number in noted:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in noted:
                signal.signal(number, before[number])


class _Supervisor:
    def __init__(
        self, job: Job, walking: Walking, progress: Progress, profile: Profile | None, signals: _Signals
    ) -> None:
        self._job, self._progress, self._profile, self._signals = job, progress, profile, signals
        settings = job.settings
        self._workers_wanted = settings.worker_count
        self._queues, self._reports = Queues.create(walking.lifeline, walking.listings), walking.reports
        # Two batches under way, one being gathered, and for each worker a chunk at hand and one waiting.
        wanted = 3 * settings.batch_size + 32 * self._workers_wanted + 64
        self._slots_wanted = min(wanted, self._queues.capacity)
        row, labels = job.bundle.row_shape, len(job.bundle.labels)
        affordable = memory.affordable_slots(memory.read_memory(), SlotTable.slot_bytes(row, labels))
        slots = min(self._slots_wanted, affordable)
        self._labels = assigned_labels(job)
        self._table = SlotTable.create(
            slots,
            self._workers_wanted,
            row,
            labels,
            len(self._labels),
        )
        self._thrift = memory.Thrift(memory.Ration(slots, settings.batch_size, self._workers_wanted))
        self._allow()
        self._table.counters[Gauge.WATCHED] = progress.is_shown
        self._stages: dict[str, StageProcess] = {"walk": walking.process}
        self._workers: dict[int, StageProcess] = {}
        self._timed_out: set[int] = set()
        self._idle_deaths, self._progress_mark = 0, -1
        self._workers_started = 0
        self._started = self._last_tick = time.monotonic()
        self._drained = self._extracted = False

    def run(self) -> Outcome:
        """Run the stages until write has ended."""
        queues = self._queues
        self._start("discover", discover, (queues.listings, queues.free), (queues.todo, queues.done))
        # Only discover reads these: when discover has left, walk and write are told by a broken pipe.
        queues.listings.use()
        queues.free.close_reader()
        self._start("write", write, (queues.done,), (queues.free,))
        while self._stages["write"].running:
            if self._signals.requests:
                self._stop_in_order()
            if self._signals.continued:
                self._signals.continued = False
                self._wake()
            self._tick()
        self._reap()
        self._show()
        if self._profile:
            self._profile.memory = self._memory_facts()
        self._note_a_silent_model()
        counters = {place.name.lower(): int(self._table.counters[place]) for place in Gauge}
        return Outcome(counters, time.monotonic() - self._started, self._memory_facts())

    def _wake(self) -> None:
        """Let every stage go on: Linux may tell a child of a fork of SIGSTOP, and not of SIGCONT."""
        for process in (*self._stages.values(), *self._workers.values()):
            if process.running:
                os.kill(process.pid, signal.SIGCONT)

    def _note_a_silent_model(self) -> None:
        counters, name = self._table.counters, self._job.bundle.name
        if (files := int(counters[Gauge.UNANSWERED])) and not counters[Gauge.ANSWERED]:
            self._progress.note(
                f"the model of bundle {name} gave no finite output for any of {files} files:"
                " it is damaged, or was converted wrongly; --model takes another"
            )

    def _start(
        self,
        name: str,
        stage: Callable[[Job, SlotTable, Queues, Lap], None],
        reads: tuple[Pipe | Stream, ...],
        writes: tuple[Pipe | Stream, ...],
    ) -> None:
        def body() -> None:
            self._behave()
            self._queues.keep(reads=reads, writes=writes)
            with measured(self._profile, name) as lap:
                stage(self._job, self._table, self._queues, lap)

        self._stages[name] = StageProcess.start(name, body, self._reports)

    def _behave(self) -> None:
        if self._job.settings.nice:
            give_way()

    def _start_worker(self, number: int) -> None:
        from drumline.pipeline.extract import OUT_OF_MEMORY, extract

        def body() -> None:
            self._behave()
            queues = self._queues
            queues.keep(reads=(queues.todo,), writes=(queues.ready, queues.done))
            try:
                with measured(self._profile, "extract", number) as lap:
                    extract(self._job, self._table, queues, lap, number)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)  # at once: there may be no memory for anything else

        self._workers[number] = StageProcess.start("extract", body, self._reports)

    def _tick(self) -> None:
        self._wait_for_news()
        self._reap()
        if self._table.counters[Gauge.QUEUED] and "predict" not in self._stages:
            self._start_extraction()
        self._heed_memory()
        self._stop_slow_workers()
        self._close_what_has_ended()
        self._show()
        if self._profile:
            self._profile.sample(self._waiting(), self._thrift.allowed.slots, self._done())

    def _heed_memory(self) -> None:
        if self._thrift.due():
            self._thrift.look(self._workers_started)
            self._allow()
            if self._profile:
                self._profile.memory = self._memory_facts()
        if "predict" in self._stages and not self._drained:
            self._start_workers()

    def _allow(self) -> None:
        counters, allowed = self._table.counters, self._thrift.allowed
        counters[Gauge.SLOTS_ALLOWED], counters[Gauge.BATCH_ALLOWED] = allowed.slots, allowed.batch

    def _memory_facts(self) -> dict[str, float]:
        thrift = self._thrift
        return {
            "slots": len(self._table.slots),
            "slots_wanted": self._slots_wanted,
            "fewest_slots": thrift.fewest_slots,
            "short_sec": round(thrift.short_sec, 3),
            "workers": self._workers_started,
            "workers_wanted": self._workers_wanted,
        }

    def _wait_for_news(self) -> None:
        """Wait a moment, less when a process reports."""
        poll = select.poll()
        poll.register(self._reports.reader, select.POLLIN)
        poll.poll(1000 * (_TICK_SEC if "predict" in self._stages else _RESCAN_TICK_SEC))

    def _start_extraction(self) -> None:
        with self._signals.breaking_off():  # libraries take long where disks are slow
            for stage in ("extract", "predict"):
                importlib.import_module(f"drumline.pipeline.{stage}")
        if self._signals.requests:
            return
        from drumline.pipeline.predict import predict

        self._start_workers()
        self._start("predict", predict, (self._queues.ready,), (self._queues.done,))

    def _start_workers(self) -> None:
        while self._workers_started < self._thrift.allowed.workers:
            self._start_worker(self._workers_started)
            self._workers_started += 1

    def _reap(self) -> None:
        for name, stage in self._stages.items():
            if stage.poll():
                raise self._reports.receive() or StageError(
                    f"the {name} stage was ended by {_cause(stage)}",
                    _way_on(stage),
                )
        for number, worker in list(self._workers.items()):
            if worker.poll() is not None:
                self._bury(number, self._workers.pop(number))

    def _bury(self, number: int, worker: StageProcess) -> None:
        if worker.code == 0:
            return
        if error := self._reports.receive():
            raise error
        self._give_up_on_workers_that_never_start(number)
        self._recover_slots(number, worker)
        self._timed_out.discard(number)
        if not self._drained:
            self._start_worker(number)

    def _give_up_on_workers_that_never_start(self, number: int) -> None:
        finished = self._done()
        if self._table.current[number] != NO_SLOT or finished > self._progress_mark:
            self._idle_deaths, self._progress_mark = 0, finished
        self._idle_deaths += 1
        if self._idle_deaths > _IDLE_DEATHS:
            raise StageError(
                "extract workers die before they read a file", "See what 'drumline doctor' says."
            )

    def _recover_slots(self, number: int, worker: StageProcess) -> None:
        table, queues = self._table, self._queues
        states, owners = table.view("state"), table.view("owner")
        claimed = [slot for slot in table.claims[number].tolist() if slot != NO_SLOT]
        again = [slot for slot in claimed if states[slot] == State.TODO]
        at_hand = int(table.current[number])
        for slot in np.flatnonzero((owners == number) & (states == State.CLAIMED)).tolist():
            if slot == at_hand and not self._may_try_again(slot):
                self._fail(slot, number, worker)
                continue
            states[slot] = State.TODO
            again.append(slot)
        table.claims[number], table.current[number] = NO_SLOT, NO_SLOT
        queues.todo.put(list(dict.fromkeys(again)))
        # What was finished may or may not have been handed on: a number that arrives twice does no harm.
        for state, queue in ((State.READY, queues.ready), (State.DONE, queues.done)):
            queue.put(np.flatnonzero((owners == number) & (states == state)))

    def _may_try_again(self, slot: int) -> bool:
        tries = self._table.view("tries")
        tries[slot] += 1
        return bool(tries[slot] < _TRIES)

    def _fail(self, slot: int, number: int, worker: StageProcess) -> None:
        from drumline.pipeline.extract import OUT_OF_MEMORY

        settings = self._job.settings
        if number in self._timed_out or worker.code == -signal.SIGPROF:
            error, cause = "timeout", f"no progress within {settings.file_timeout_sec:g} s"
        elif worker.code == OUT_OF_MEMORY or worker.peak_bytes > _NEARLY * settings.worker_memory_mb * _MB:
            error, cause = "out_of_memory", f"it takes more than {settings.worker_memory_mb:,} MB"
        else:
            error, cause = "worker_crash", f"the decoder was ended by {_cause(worker)}"
        self._table.fail(slot, error, f"{cause}, {_TRIES} times")

    def _stop_slow_workers(self) -> None:
        now = time.monotonic()
        if now - self._last_tick > _PAUSED_SEC:
            # We were all stopped (a closed lid, a debugger): the workers are not to blame.
            self._table.started[:] += now - self._last_tick
        self._last_tick = now
        for number, worker in self._workers.items():
            busy = self._table.current[number] != NO_SLOT
            if busy and now - self._table.started[number] > self._job.settings.file_timeout_sec:
                self._timed_out.add(number)
                worker.kill()

    def _close_what_has_ended(self) -> None:
        queues = self._queues
        if not self._drained and not self._stages["discover"].running:
            self._drained = not self._table.count(State.TODO, State.CLAIMED)
            if self._drained:
                queues.todo.close_writer()
        if self._drained and not self._extracted and not self._workers:
            self._extracted = True
            queues.ready.close_writer()
            queues.done.close_writer()

    def _stop_in_order(self) -> None:
        self._progress.note("stopping; press Ctrl-C again to stop at once")
        begun = time.monotonic()
        self._stages["discover"].kill()
        self._stages["discover"].wait()
        self._drop_waiting()
        workers_killed = False
        while self._stages["write"].running and self._signals.requests < 2:
            elapsed = time.monotonic() - begun
            if elapsed > _ALL_MAY_FINISH_SEC:
                break
            if elapsed > _WORKERS_MAY_FINISH_SEC and not workers_killed:
                workers_killed = True
                self._drop_workers()
            self._leave_in_order()
            time.sleep(_TICK_SEC)
        raise self._interrupted()

    def _leave_in_order(self) -> None:
        queues = self._queues
        queues.todo.close_writer()
        self._workers = {number: worker for number, worker in self._workers.items() if worker.running}
        if not self._workers:
            queues.ready.close_writer()
            queues.done.close_writer()

    def _drop_waiting(self) -> None:
        while self._queues.todo.get(1024, timeout=0):
            pass

    def _drop_workers(self) -> None:
        for worker in self._workers.values():
            worker.kill()
            worker.wait()

    def _interrupted(self) -> Interrupted:
        found, done = self._found(), self._done()
        return Interrupted(
            f"stopped: {done:,} of {found:,} files found so far are done",
            "Nothing is lost: give the same command again to go on.",
        )

    def _found(self) -> int:
        counters = self._table.counters
        foreseen = 0 if counters[Gauge.DISCOVERY_DONE] else int(counters[Gauge.FORESEEN])
        return max(int(counters[Gauge.DISCOVERED]), foreseen)

    def _done(self) -> int:
        counters = self._table.counters
        return int(counters[Gauge.WRITTEN] + counters[Gauge.CARRIED] + counters[Gauge.RESUMED])

    def _show(self) -> None:
        if self._progress.due():
            self._progress.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        counters = self._table.counters
        return Snapshot(
            found=self._found(),
            found_all=bool(counters[Gauge.DISCOVERY_DONE] or counters[Gauge.FORESEEN_ALL]),
            done=self._done(),
            carried=int(counters[Gauge.CARRIED] + counters[Gauge.RESUMED]),
            failed=int(counters[Gauge.FAILED]),
            written_bytes=int(counters[Gauge.WRITTEN_BYTES]),
            written=int(counters[Gauge.WRITTEN]),
            labels=dict(zip(self._labels, self._table.label_counts.tolist(), strict=True)),
            waiting=self._waiting(),
            slots=len(self._table.slots),
            slots_allowed=self._thrift.allowed.slots,
            workers=self._workers_started,
            workers_wanted=self._workers_wanted,
            elapsed_sec=time.monotonic() - self._started,
        )

    def _waiting(self) -> dict[str, int]:
        states = self._table.view("state")
        return {
            "extract": int((states == State.TODO).sum()),
            "predict": int((states == State.READY).sum()),
            "write": int(((states == State.DONE) & (self._table.view("kind") == Kind.FILE)).sum()),
        }

    def close(self) -> None:
        """Leave no process and no open pipe behind."""
        for process in (*self._stages.values(), *self._workers.values()):
            process.end()
        self._queues.close()


def _cause(process: StageProcess) -> str:
    code = process.code or 0
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _way_on(stage: StageProcess) -> str:
    """Return what to do after a stage's death: SIGKILL is sent by people, and by a kernel out of memory."""
    way = "Nothing is lost: give the same command again to go on."
    limit = memory.read_memory().limit
    if stage.code != -signal.SIGKILL or limit is None:
        return way
    return (
        f"{way} If nobody sent that signal, memory ran out: the limit of the control group is"
        f" {limit // _MB:,} MB; raise it, or give fewer --workers."
    )


def supervise(job: Job, walking: Walking, progress: Progress, profile: Profile | None = None) -> Outcome:
    """Run the pipeline of a job to its end; its walk is under way.

    Raises
    ------
    Interrupted
        When the user stopped it; the same job can be run again and goes on.
    StageError
        When a stage died.
    DrumlineError
        Whatever else a stage reported.
    """
    signals = _Signals()
    with signals.noted():
        supervisor = _Supervisor(job, walking, progress, profile, signals)
        try:
            return supervisor.run()
        finally:
            supervisor.close()
