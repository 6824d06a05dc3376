"""How much memory is left, and how much may be under way with it.

What counts is the tightest of what the machine has available, and what each control group (cgroup v1 or v2:
a container, a service, a login) above this process has left. A group's page cache and the kernel's notes on
files are given back when memory is needed, and count as left: reading an archive fills every group with them.

`ration` decides: with plenty everything is allowed, with less than `Memory.comfort` a share of the slots, and
at the end one worker's handful. Slots bound the rest: a file at hand, a row of a batch and a record that
waits each have one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Memory", "Ration", "Thrift", "affordable_slots", "ration", "read_memory"]

_MB: Final = 1_000_000
_COMFORT, _COMFORT_SHARE = 256 * _MB, 4
_SCARCE, _SCARCE_SHARE = 64 * _MB, 16
_FEWEST_SLOTS: Final = 4  # what one worker takes at once
_BATCHES_UNDER_WAY: Final = 3
_TABLE_SHARE: Final = 4
_WORKER: Final = 40 * _MB  # an extract worker with an ffmpeg at work
_LOOK_SEC: Final = 0.25
_UNLIMITED: Final = 1 << 60


class Memory(NamedTuple):
    """What there is, in bytes.

    Parameters
    ----------
    available
        What the machine can give without swapping; None where it does not tell.
    limit, in_use
        Of the tightest control group; None and 0 without one. What can be taken back at once is not in use.
    total
        What the machine has; None where it does not tell.
    """

    available: int | None
    limit: int | None = None
    in_use: int = 0
    total: int | None = None

    @property
    def free(self) -> int | None:
        """What can still be had; None where nothing tells."""
        left = None if self.limit is None else max(0, self.limit - self.in_use)
        return min((amount for amount in (self.available, left) if amount is not None), default=None)

    @property
    def most(self) -> int | None:
        """What there would be if nobody else had any; None where nothing tells."""
        return min((amount for amount in (self.total, self.limit) if amount is not None), default=None)

    @property
    def comfort(self) -> int:
        """From here on up there is plenty: 256 MB, less under a small limit."""
        return _COMFORT if self.limit is None else min(_COMFORT, self.limit // _COMFORT_SHARE)

    @property
    def scarce(self) -> int:
        """From here on down everything is held back that can be: 64 MB, less under a small limit."""
        return _SCARCE if self.limit is None else min(_SCARCE, self.limit // _SCARCE_SHARE)


class Ration(NamedTuple):
    """How much may be under way: slots in flight, files in a batch, extract workers."""

    slots: int
    batch: int
    workers: int


def ration(memory: Memory, full: Ration, running: int) -> Ration:
    """Decide how much may be under way.

    Parameters
    ----------
    memory
        What there is.
    full
        How much is wanted.
    running
        Workers that run: none of them is ended, more of them start only while there is plenty.
    """
    if memory.free is None:
        return full
    share = (memory.free - memory.scarce) / max(1, memory.comfort - memory.scarce)
    slots = round(_FEWEST_SLOTS + max(0.0, min(share, 1.0)) * (full.slots - _FEWEST_SLOTS))
    slots = min(slots, full.slots)
    batch = min(full.batch, max(1, slots // _BATCHES_UNDER_WAY))
    more = max(0, memory.free - memory.comfort) // _WORKER
    if running:  # those that were started last have not grown yet
        more = min(more, 1)
    return Ration(slots, batch, min(full.workers, max(1, running + more)))


def affordable_slots(memory: Memory, slot_bytes: int) -> int:
    """Return how many slots a table may have: a quarter of all memory at most.

    What is left at the moment does not count, for that may pass: a slot costs nothing until it is used, and
    `ration` says how many are.
    """
    if memory.most is None:
        return _UNLIMITED
    return max(_FEWEST_SLOTS, memory.most // _TABLE_SHARE // slot_bytes)


class Thrift:
    """Looks at the memory now and then while a run lasts.

    What is allowed falls at once, and at most doubles from look to look: what took the memory may come again.

    Parameters
    ----------
    full
        How much is wanted.
    read
        Tells what there is.
    """

    def __init__(self, full: Ration, read: Callable[[], Memory] | None = None) -> None:
        self._full, self._read = full, read or read_memory
        self._looked = time.monotonic()
        self.allowed = ration(self._read(), full, 0)
        self.fewest_slots, self.short_sec = self.allowed.slots, 0.0

    def due(self) -> bool:
        """Return whether it is time to look again."""
        return time.monotonic() - self._looked >= _LOOK_SEC

    def look(self, running: int) -> Ration:
        """Return what is allowed from now on, while `running` workers run; without any, none is missed."""
        now = time.monotonic()
        if self.allowed.slots < self._full.slots or 0 < running < self._full.workers:
            self.short_sec += now - self._looked
        self._looked = now
        found = ration(self._read(), self._full, running)
        slots = min(found.slots, 2 * self.allowed.slots)
        batch = min(found.batch, max(1, slots // _BATCHES_UNDER_WAY))
        self.allowed = Ration(slots, batch, found.workers)
        self.fewest_slots = min(self.fewest_slots, slots)
        return self.allowed


def read_memory(root: Path = Path("/")) -> Memory:
    """Return what there is; `root` is where proc and sys are found."""
    limit, in_use = min(_groups(root), key=lambda group: group[0] - group[1], default=(None, 0))
    available, total = _machine(root)
    return Memory(available, limit, in_use, total)


def _machine(root: Path) -> tuple[int | None, int | None]:
    """Return what the machine has left, and what it has."""
    lines = (line.split() for line in _lines(root / "proc/meminfo"))
    told = {words[0]: int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}
    if "MemAvailable:" in told:
        return told["MemAvailable:"], told.get("MemTotal:")
    return _machine_elsewhere()


def _machine_elsewhere() -> tuple[int | None, int | None]:
    import psutil  # type: ignore[import-untyped]

    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError, psutil.Error):
        return None, None
    return int(memory.available), int(memory.total)


class _Names(NamedTuple):
    """The files of a memory group, and what stands before the names in its statistics."""

    limits: tuple[str, ...]
    usage: str
    prefix: str


_VERSION_2: Final = _Names(("memory.max", "memory.high"), "memory.current", "")
_VERSION_1: Final = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Iterate over (limit, in use) of the control groups above this process that have a limit."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limited(mounted, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _limited(mounted / "memory", path, _VERSION_1)


def _limited(mounted: Path, path: str, names: _Names) -> Iterator[tuple[int, int]]:
    group = mounted / path.lstrip("/")
    for place in (group, *group.parents):
        # Inside a container, the path is the host's and only its last part, or none, is mounted.
        if not place.is_relative_to(mounted):
            return
        limits = [limit for name in names.limits if (limit := _number(place / name)) is not None]
        limit, used = min(limits, default=_UNLIMITED), _number(place / names.usage)
        if used is not None and limit < _UNLIMITED:
            yield limit, max(0, used - _reclaimable(place, names.prefix))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(group: Path, prefix: str) -> int:
    """Return what a group gives back when memory is needed: page cache, and the kernel's notes on files."""
    numbers = dict(line.split() for line in _lines(group / "memory.stat") if line.count(" ") == 1)
    names = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
    return sum(int(numbers.get(name, 0)) for name in names)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
