"""What bounds a run, from the time that its stages took: one sentence, and how many workers would suit."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["StageTimes", "name_bound", "suggested_workers"]

_SATURATED = 0.85
"""Share of the time from which a stage, or all CPUs together, are busy all the time."""

_CROWDED = 0.2
"""Waiting for a CPU, as a share of the CPU time, from which CPUs are scarce."""

_BLOCKED = 0.3
"""Share of a worker's busy time without a CPU from which it is the disk that it waits for."""

_SINGLE = ("walk", "discover", "predict", "write")
_MOST_WORKERS_PER_CPU = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """The time that all processes of a stage took together, in seconds.

    Parameters
    ----------
    processes
        How many ran.
    elapsed_sec, busy_sec
        From begin to end, and without the waiting for other stages.
    cpu_sec
        CPU time.
    crowded_sec
        Waiting for a CPU; 0 where the system does not tell.
    costliest
        The step that took longest.
    """

    processes: int
    elapsed_sec: float
    busy_sec: float
    cpu_sec: float
    crowded_sec: float
    costliest: str

    @property
    def busy(self) -> float:
        """Busy share of the time."""
        return self.busy_sec / self.elapsed_sec if self.elapsed_sec else 0.0

    @property
    def blocked_sec(self) -> float:
        """Busy time without a CPU that was not for want of one: waiting for the disk."""
        return max(0.0, self.busy_sec - self.cpu_sec - self.crowded_sec)


def name_bound(times: dict[str, StageTimes], cpus: int, elapsed_sec: float) -> str:
    """Say in one sentence what bounds the run."""
    if not times["extract"].processes:
        busiest = max(("walk", "discover", "write"), key=lambda stage: times[stage].busy_sec)
        return f"Nothing had to be read: {_of(busiest, times)}."
    if _blocked(times["extract"]):
        return _waiting(times["extract"])
    cpu = sum(stage.cpu_sec for stage in times.values())
    crowded = sum(stage.crowded_sec for stage in times.values())
    share = cpu / (cpus * max(elapsed_sec, 1e-9))
    if share >= _SATURATED or crowded >= _CROWDED * cpu:
        most = max(times, key=lambda stage: times[stage].cpu_sec)
        used = f"{share:.0%} of {cpus} CPUs is used, and processes wait for more"
        part = times[most].cpu_sec / max(cpu, 1e-9)
        return f"The CPUs: {used}; {most} takes {part:.0%} of it, most for {times[most].costliest}."
    busiest = max(("extract", *_SINGLE), key=lambda stage: times[stage].busy)
    if times[busiest].busy < _SATURATED:
        return f"No stage is busy all the time, as in a short run; busiest: {_of(busiest, times)}."
    return f"The {busiest} stage while CPUs are free: {_of(busiest, times)}."


def _blocked(extract: StageTimes) -> bool:
    waits = extract.blocked_sec >= max(_BLOCKED * extract.busy_sec, extract.crowded_sec)
    return waits and extract.busy >= _SATURATED


def _waiting(extract: StageTimes) -> str:
    share = f"the workers wait {extract.blocked_sec / extract.busy_sec:.0%} of their busy time for it"
    if extract.costliest == "read":
        return f"The disk: {share}."
    return f"The disk or ffmpeg: {share}, most in {extract.costliest}."


def _of(stage: str, times: dict[str, StageTimes]) -> str:
    return f"{stage} is busy {times[stage].busy:.0%} of its time, most with {times[stage].costliest}"


def suggested_workers(times: dict[str, StageTimes], cpus: int, files: int) -> int | None:
    """Return the fewest extract workers that would keep up with the tightest limit; None for no files read.

    The limits are the CPU time of all stages on `cpus` CPUs, and that of each stage of which there is one.
    The workers need their CPU time and, where it bounds, their waiting for disk and ffmpeg.
    """
    if not files:
        return None
    extract = times["extract"]
    limits = [sum(stage.cpu_sec for stage in times.values()) / cpus]
    limits += [times[stage].cpu_sec for stage in _SINGLE]
    needed = extract.cpu_sec + (extract.blocked_sec if _blocked(extract) else 0.0)
    wanted = needed / max(*limits, 1e-9)
    return min(max(1, math.ceil(wanted - 0.1)), _MOST_WORKERS_PER_CPU * cpus)
