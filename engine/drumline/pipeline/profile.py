"""The profile of a run: what every process did with its time, and what bounds the whole.

The stages record laps (see `drumline.laps`), the supervisor samples how many slots wait where. The report is
one JSON object, ``profile.json`` in the run directory; ``profile.trace.json`` beside it is a timeline in
Chrome's trace format, which https://ui.perfetto.dev opens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson

from drumline.durable import write_bytes, write_json
from drumline.laps import Lap, LapTable, Recorder, Row, Step
from drumline.machine import usable_cpus
from drumline.pipeline.bound import StageTimes, name_bound, suggested_workers

__all__ = ["PROFILE_NAME", "STAGES", "TRACE_NAME", "Profile", "recorded", "saved"]

PROFILE_NAME, TRACE_NAME = "profile.json", "profile.trace.json"
STAGES = ("supervisor", "walk", "discover", "extract", "predict", "write")
_MOST_SAMPLES = 2048
_WAITING = (Step.WAIT_INPUT, Step.WAIT_OUTPUT, Step.SUPERVISE)


class _Sample(NamedTuple):
    """Slots that wait at one moment, how many may be in flight, and how many files are done."""

    time: float
    slots: dict[str, int]
    allowed: int
    done: int


class Profile:
    """Measures one run; made before its processes are forked.

    Parameters
    ----------
    workers
        Extract workers.

    Attributes
    ----------
    directory
        The run directory; None until there is one.
    memory
        As ``memory`` in summary.json: slots and workers that were wanted, and those that memory had room for.
    """

    def __init__(self, workers: int) -> None:
        self._processes = [
            (stage, n) for stage in STAGES for n in range(workers if stage == "extract" else 1)
        ]
        self._table = LapTable(len(self._processes))
        self.directory: Path | None = None
        self.memory: dict[str, float] = {}
        self._samples: list[_Sample] = []
        self._keep_every = self._offered = 0

    def recorder(self, stage: str, number: int = 0) -> Recorder:
        """Return the stopwatch of a process (called in that process)."""
        return self._table.recorder(self._processes.index((stage, number)))

    def sample(self, slots: dict[str, int], allowed: int, done: int) -> None:
        """Note how many slots wait and how many may be in flight; a long run keeps fewer samples."""
        self._offered += 1
        if self._offered >= self._keep_every:
            self._samples.append(_Sample(time.monotonic(), dict(slots), allowed, done))
            self._offered = 0
        if len(self._samples) >= _MOST_SAMPLES:
            del self._samples[::2]
            self._keep_every = max(2, 2 * self._keep_every)

    def report(self) -> dict[str, Any]:
        """Return all that was measured, as JSON."""
        rows = self._rows()
        main = rows["supervisor"][0]
        times = {stage: _times(of) for stage, of in rows.items()}
        read = sum(row.files(Step.READ) for row in rows["extract"])
        elapsed = max(main.ended, *(row.ended for of in rows.values() for row in of)) - main.started
        return {
            "elapsed_sec": round(elapsed, 3),
            "first_record_sec": self._first_record_sec(rows["write"][0], main.started),
            "files_read": read,
            "cpus": usable_cpus(),
            "workers": len(rows["extract"]),
            "bound": name_bound(times, usable_cpus(), elapsed),
            "suggested_workers": suggested_workers(times, usable_cpus(), read),
            "stages": {stage: _stage_report(of, times[stage], read) for stage, of in rows.items()},
            "batches": _batch_report(rows["predict"][0]),
            "memory": self.memory,
            "queues": self._queue_report(main.started),
        }

    def trace(self) -> dict[str, Any]:
        """Return the timeline in Chrome's trace format; times in microseconds since the start."""
        began, names = self._rows()["supervisor"][0].started, [_name(step) for step in Step]
        events: list[dict[str, Any]] = [_named("process_name", 0, "drumline")]
        for place, (stage, number) in enumerate(self._processes):
            events.append(_named("thread_name", place, f"{stage} {number}" if stage == "extract" else stage))
            events += (
                {
                    "ph": "X",
                    "pid": 1,
                    "tid": place,
                    "name": names[step],
                    "args": {"files": files},
                    "ts": _microseconds(start - began),
                    "dur": _microseconds(end - start),
                }
                for step, files, start, end in self._table.row(place).spans()
            )
        for sample in self._samples:
            at = {"ph": "C", "pid": 1, "ts": _microseconds(sample.time - began)}
            events.append({**at, "name": "slots", "args": sample.slots})
            events.append({**at, "name": "slots allowed", "args": {"slots": sample.allowed}})
            events.append({**at, "name": "files done", "args": {"files": sample.done}})
        return {"displayTimeUnit": "ms", "traceEvents": events}

    def save(self, directory: Path) -> None:
        """Write report and timeline into a directory."""
        write_json(directory / PROFILE_NAME, self.report())
        write_bytes(directory / TRACE_NAME, orjson.dumps(self.trace()))

    def _rows(self) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {stage: [] for stage in STAGES}
        for place, (stage, _) in enumerate(self._processes):
            rows[stage].append(self._table.row(place))
        return rows

    @staticmethod
    def _first_record_sec(write: Row, began: float) -> float | None:
        ends = (span.end for span in write.spans() if span.step == Step.CACHE)
        first = next(ends, None)
        return None if first is None else round(first - began, 3)

    def _queue_report(self, began: float) -> dict[str, Any]:
        names = list(self._samples[0].slots) if self._samples else []
        rows = [[round(at - began, 3), *slots.values(), *rest] for at, slots, *rest in self._samples]
        return {"columns": ["sec", *names, "slots_allowed", "files_done"], "samples": rows}


@contextmanager
def recorded(profile: Profile, stage: str, number: int = 0) -> Iterator[Lap]:
    """Give a process its lap, and note at its end what CPU time it had."""
    recorder = profile.recorder(stage, number)
    try:
        yield recorder
    finally:
        recorder.finish(helpers=stage == "extract")  # ffmpeg; the supervisor's children are the stages


@contextmanager
def saved(profile: Profile | None) -> Iterator[None]:
    """Save a profile in its run directory at the end, however that comes; an interrupted run has one, too."""
    try:
        yield
    finally:
        if profile and profile.directory and profile.directory.is_dir():
            profile.save(profile.directory)


def _times(rows: list[Row]) -> StageTimes:
    steps = {step: sum(row.seconds(step) for row in rows) for step in Step}
    return StageTimes(
        processes=sum(row.started > 0 for row in rows),
        elapsed_sec=sum(row.ended - row.started for row in rows if row.started),
        busy_sec=sum(seconds for step, seconds in steps.items() if step not in _WAITING),
        cpu_sec=sum(row.cpu_sec for row in rows),
        crowded_sec=sum(row.crowded_sec for row in rows),
        costliest=_name(max((step for step in Step if step not in _WAITING), key=lambda step: steps[step])),
    )


def _stage_report(rows: list[Row], times: StageTimes, read: int) -> dict[str, Any]:
    elapsed = max(times.elapsed_sec, 1e-9)
    steps = (step for step in Step if step not in _WAITING and any(row.laps(step) for row in rows))
    return {
        "processes": times.processes,
        "busy": round(times.busy_sec / elapsed, 4),
        "waiting_for_input": round(sum(row.seconds(Step.WAIT_INPUT) for row in rows) / elapsed, 4),
        "waiting_for_output": round(sum(row.seconds(Step.WAIT_OUTPUT) for row in rows) / elapsed, 4),
        "cpu_sec": round(times.cpu_sec, 3),
        "waiting_for_cpu_sec": round(times.crowded_sec, 3),
        "steps": {_name(step): _step_report(rows, step, read) for step in steps},
    }


def _step_report(rows: list[Row], step: Step, read: int) -> dict[str, Any]:
    seconds, files = sum(row.seconds(step) for row in rows), sum(row.files(step) for row in rows)
    return {
        "sec": round(seconds, 4),
        "files": files,
        "calls": sum(row.laps(step) for row in rows),
        "ms_per_file": round(1000 * seconds / (files or read), 5) if files or read else None,
    }


def _batch_report(predict: Row) -> dict[str, Any] | None:
    # Each batch is gathered once; the model has two laps of it, for its start and its end.
    count = predict.laps(Step.GATHER)
    if not count:
        return None
    sizes = [span.files for span in predict.spans() if span.step == Step.GATHER]
    up_to = Counter(1 << (size - 1).bit_length() for size in sizes)
    return {
        "count": count,
        "mean": round(predict.files(Step.GATHER) / count, 2),
        "median": median(sizes),
        "largest": max(sizes),
        "up_to": {str(size): up_to[size] for size in sorted(up_to)},
    }


def _name(step: Step) -> str:
    return step.name.lower().replace("_", " ")


def _named(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 1, "tid": thread, "name": kind, "args": {"name": name}}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 1)
