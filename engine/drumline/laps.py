"""Where time goes: a stopwatch in shared memory, one for each process.

Protocol
--------
A process calls its *lap* with a step whenever that step has ended: the time since the call before belongs
to it. So no time is lost and none counts twice, and the code that is measured has one short call where a step
ends. Without a profile the lap is `no_lap`, which does nothing.

A `Recorder` notes laps in a list, and every 256 of them go into the process's row of a `LapTable`: seconds,
files and laps of each step, and the first and the latest laps as they are, for a timeline. The parent makes
the table before it forks, and reads it at the end; only the process that a row belongs to writes to it.
"""

from __future__ import annotations

import mmap
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drumline.steps import Lap, Step, no_lap

__all__ = ["Lap", "LapTable", "Recorder", "Row", "Span", "Step", "no_lap"]


class Span(NamedTuple):
    """One lap: its step, its files, and when it began and ended (`time.monotonic`)."""

    step: Step
    files: int
    start: float
    end: float


_BLOCK, _FIRST_BLOCKS, _BLOCKS = 256, 16, 48

_ROW = np.dtype(
    [
        ("started", "f8"),
        ("ended", "f8"),
        ("cpu_sec", "f8"),
        ("crowded_sec", "f8"),
        ("blocks_made", "i8"),
        ("seconds", "f8", (len(Step),)),
        ("files", "f8", (len(Step),)),
        ("laps", "f8", (len(Step),)),
        ("blocks", "f8", (_BLOCKS, _BLOCK, len(Span._fields))),
    ]
)


class Recorder:
    """A process's stopwatch; calling it is its `Lap`.

    Parameters
    ----------
    row
        The process's row of a `LapTable`. A process that takes the place of a dead one goes on in its row.
    """

    def __init__(self, row: Any) -> None:
        self._row = row
        self._spans: list[tuple[int, int, float, float]] = []
        self._last = time.monotonic()
        self._cpu_before = float(row["cpu_sec"]) - time.process_time()
        self._crowded_before = float(row["crowded_sec"]) - _waited_for_cpu()
        row["started"] = row["started"] or self._last

    def __call__(self, step: Step, files: int = 1) -> None:
        """End a step."""
        now = time.monotonic()
        self._spans.append((step, files, self._last, now))
        self._last = now
        if len(self._spans) == _BLOCK:
            self._store()

    def _store(self) -> None:
        row, count = self._row, len(self._spans)
        laps = np.array(self._spans, np.float64).reshape(count, len(Span._fields))
        steps = laps[:, 0].astype(np.intp)
        for name, weights in (("seconds", laps[:, 3] - laps[:, 2]), ("files", laps[:, 1]), ("laps", None)):
            row[name] += np.bincount(steps, weights, len(Step))
        place = _block_place(int(row["blocks_made"]))
        row["blocks"][place, :count], row["blocks"][place, count:] = laps, 0.0
        row["blocks_made"] += 1
        row["ended"] = self._last
        self._spans.clear()

    def finish(self, *, helpers: bool = False) -> None:
        """Store what is left, and how long the process had a CPU and how long it waited for one.

        With `helpers`, the CPU time of programs that it has called counts as its own.
        """
        self._store()
        self._row["cpu_sec"] = self._cpu_before + time.process_time() + (_helpers_cpu() if helpers else 0.0)
        self._row["crowded_sec"] = self._crowded_before + _waited_for_cpu()


def _block_place(number: int) -> int:
    """Return where a block of laps lies: the first ones stay, the later ones take turns."""
    if number < _FIRST_BLOCKS:
        return number
    return _FIRST_BLOCKS + (number - _FIRST_BLOCKS) % (_BLOCKS - _FIRST_BLOCKS)


def _helpers_cpu() -> float:
    """Return the CPU time of the programs that this process has called, such as ffmpeg, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _waited_for_cpu() -> float:
    """Return how long this thread could have run while others had the CPUs, in seconds; 0 where untold."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Row:
    """What one process recorded.

    Parameters
    ----------
    row
        Its row of the table.
    """

    def __init__(self, row: Any) -> None:
        self._row = row
        self.started, self.ended = float(row["started"]), float(row["ended"])
        self.cpu_sec, self.crowded_sec = float(row["cpu_sec"]), float(row["crowded_sec"])

    def seconds(self, step: Step) -> float:
        """Return the time of all laps of a step."""
        return float(self._row["seconds"][step])

    def files(self, step: Step) -> int:
        """Return the files of all laps of a step."""
        return int(self._row["files"][step])

    def laps(self, step: Step) -> int:
        """Return how many laps a step had."""
        return int(self._row["laps"][step])

    def spans(self) -> Iterator[Span]:
        """Iterate over the laps that were kept, in order."""
        made, steps = int(self._row["blocks_made"]), list(Step)
        later = max(_FIRST_BLOCKS, made - (_BLOCKS - _FIRST_BLOCKS))
        for number in (*range(min(made, _FIRST_BLOCKS)), *range(later, made)):
            for step, files, start, end in self._row["blocks"][_block_place(number)].tolist():
                if end:
                    yield Span(steps[int(step)], int(files), start, end)


class LapTable:
    """Rows of shared memory, one for each process; made before the processes are forked.

    Parameters
    ----------
    processes
        How many.
    """

    def __init__(self, processes: int) -> None:
        block = mmap.mmap(-1, processes * _ROW.itemsize)
        self._rows: NDArray[Any] = np.ndarray((processes,), _ROW, buffer=block)

    def recorder(self, process: int) -> Recorder:
        """Return the stopwatch of a process (called in that process)."""
        return Recorder(self._rows[process])

    def row(self, process: int) -> Row:
        """Return what a process has recorded."""
        return Row(self._rows[process])
