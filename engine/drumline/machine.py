"""What this process may use of the machine that it runs on."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Mount",
    "address_space_limit",
    "cpu_flags",
    "cpu_name",
    "end_with_parent",
    "filesystem_type",
    "free_space",
    "give_way",
    "mount_of",
    "open_files_limit",
    "usable_cpus",
]

_PR_SET_PDEATHSIG = 1
_NICEST = 19
_CGROUP = Path("/sys/fs/cgroup")
_OCTAL = re.compile(r"\\([0-7]{3})")
_CPU_QUOTA_V1 = _CGROUP / "cpu/cpu.cfs_quota_us", _CGROUP / "cpu/cpu.cfs_period_us"


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however that is.

    Only Linux can; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(int(signal.SIGKILL)))


def trim_heap() -> None:
    """Give the system back what the C library keeps free between objects that stay; glibc alone can.

    Lines of a kilobyte and the pages of SQLite's cache come and go in one heap, which would grow by half.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))


class Mount(NamedTuple):
    """Where a file system is mounted, its kind as Linux names it, and what is mounted."""

    point: str
    kind: str
    source: str


def mount_of(path: bytes, root: Path = Path("/")) -> Mount | None:
    """Return the mount that a path is on; None where the system does not tell.

    Parameters
    ----------
    path
        Any path, which need not exist.
    root
        Where proc is found.
    """
    place = os.fsdecode(os.path.realpath(path))
    above = [mount for mount in _mounts(root) if f"{place}/".startswith(f"{mount.point.rstrip('/')}/")]
    # Of several at one point, the last hides the others: an automounter's place, and what it mounts there.
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _mounts(root: Path) -> list[Mount]:
    halves = (line.partition(" - ") for line in _lines(root / "proc/self/mountinfo"))
    return [
        Mount(_unescaped(mount.split()[4]), *map(_unescaped, details.split()[:2]))
        for mount, _, details in halves
    ]


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def filesystem_type(path: bytes) -> str:
    """Return the kind of file system that holds an existing path, as Linux names it; empty where unknown."""
    mount = mount_of(path) if os.path.exists(path) else None
    return "" if mount is None else mount.kind


def give_way() -> None:
    """Let everything else on the machine go first, as long as this process lives; for the disk, on Linux."""
    import psutil  # type: ignore[import-untyped]

    os.nice(_NICEST)
    if sys.platform == "linux":
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def usable_cpus() -> int:
    """Return the number of CPUs this process may use: its affinity, cut by a container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, affinity if quota is None else min(affinity, round(quota)))


def _cpu_quota() -> float | None:
    try:
        if (_CGROUP / "cpu.max").exists():
            quota, period = (_CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = (path.read_text().strip() for path in _CPU_QUOTA_V1)
        return float(quota) / float(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_name() -> str:
    """Return the processor's name."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the processor's features, as Linux calls them; empty where they cannot be read."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def address_space_limit() -> int | None:
    """Return the bytes of addresses that this process may use (``ulimit -v``); None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def open_files_limit() -> int | None:
    """Return how many files this process may have open (``ulimit -n``); None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit


def free_space(path: Path) -> int | None:
    """Return the free bytes where `path` is, or will be made; None where that cannot be told."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
