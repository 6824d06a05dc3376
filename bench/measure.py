"""How long a command takes, and how much memory all of its processes hold together."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

__all__ = [
    "CommandFailed",
    "Outcome",
    "evict",
    "interleaved",
    "median",
    "ratio_text",
    "ratios",
    "run_command",
    "seconds_text",
    "spread_text",
    "tree_pss",
]

Argument = str | os.PathLike[str]


class CommandFailed(RuntimeError):  # noqa: N818  (what happened, for a person)
    """A measured command ended with an exit code that is not 0."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a command.

    Parameters
    ----------
    seconds
        Wall clock from start to end, the interpreter's start included.
    stdout
        What it printed.
    cpu_sec
        CPU time of it and of all its descendants that it waited for.
    pss
        Samples of the memory of the command and all of its descendants, in bytes; empty when not asked for.
    """

    seconds: float
    stdout: bytes
    cpu_sec: float = 0.0
    pss: tuple[int, ...] = ()

    @property
    def peak_pss(self) -> int:
        """Largest sample of the memory, in bytes."""
        return max(self.pss, default=0)


def run_command(
    command: Sequence[Argument],
    *,
    cwd: Path | None = None,
    pss_every: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a command to its end.

    Parameters
    ----------
    command
        Program and arguments.
    cwd
        Where it runs.
    pss_every
        Seconds between two samples of its memory; None takes none.
    env
        Variables of its environment, besides those of this process.

    Raises
    ------
    CommandFailed
        The exit code is not 0; what it said on stderr is in the message.
    """
    start, cpu = time.perf_counter(), _cpu_of_children()
    variables = {**os.environ, **(env or {})}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=variables
    )
    sampler = _Sampler(process.pid, pss_every) if pss_every else None
    stdout, stderr = process.communicate()
    seconds = time.perf_counter() - start
    samples = sampler.stop() if sampler else ()
    if process.returncode:
        name = " ".join(os.fspath(part) for part in command)
        said = stderr.decode(errors="replace")[-2000:]
        raise CommandFailed(f"{name}: exit code {process.returncode}\n{said}")
    return Outcome(seconds, stdout, _cpu_of_children() - cpu, samples)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Sampler:
    """Takes samples of a process tree's memory in a thread."""

    def __init__(self, pid: int, every: float) -> None:
        self._pid, self._every = pid, every
        self._samples: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(self._every):
            self._samples.append(tree_pss(self._pid))

    def stop(self) -> tuple[int, ...]:
        """End the sampling, and return the samples."""
        self._ended.set()
        self._thread.join()
        return tuple(self._samples)


def tree_pss(pid: int) -> int:
    """Return the memory of a process and all of its descendants in bytes.

    Proportional set size, which counts a page that n processes share as 1/n of a page in each; unique set
    size where the system knows no such thing. Processes that end meanwhile count as nothing.
    """
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_pss, processes))


def _pss(process: psutil.Process) -> int:
    try:
        return _rolled_up(process.pid)
    except (OSError, ValueError):
        return _summed_up(process)


def _rolled_up(pid: int) -> int:
    """Let Linux add up the mappings, ten times faster than reading them all."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no Pss")


def _summed_up(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(memory, "pss", 0) or memory.uss)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def evict(directory: Path) -> None:
    """Ask the system to drop a tree's files from its page cache; their inodes and names may stay cached."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def spread_text(seconds: Sequence[float]) -> str:
    """Return the smallest and the largest in brackets; empty for a single one."""
    return f" ({min(seconds):.2f}–{max(seconds):.2f} s)" if len(seconds) > 1 else ""


def seconds_text(seconds: Sequence[float]) -> str:
    """Return the median with its spread."""
    return f"{median(seconds):.2f} s{spread_text(seconds)}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each repetition, in which both sides met the same moment of the machine."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def ratio_text(found: Sequence[float]) -> str:
    """Return the median ratio, with the smallest and the largest in brackets."""
    spread = f" ({min(found):.2f}–{max(found):.2f})" if len(found) > 1 else ""
    return f"{median(found):.2f}×{spread}"


def interleaved(repeats: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Run A B A B …, so that what drifts on the machine meets all sides alike; returns one list per side."""
    results: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, result in zip(sides, results, strict=True):
            result.append(side())
    return results
