"""On what kind of storage an archive lies, and so how its files are best read.

A solid-state disk is read in the order of names. A spinning one is read in the order in which the files lie
on it: moving its head costs more than reading a file. On a network every file waits for an answer, so more
of them are asked for at once. The kernel says whether a disk spins; network file systems are known by name.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

__all__ = ["STORAGES", "Io", "Storage", "storage_of"]

Storage = Literal["ssd", "hdd", "network"]
Io = Literal["auto", "ssd", "hdd", "network"]
STORAGES: Final[tuple[Storage, ...]] = get_args(Storage)

_NETWORK_TYPES: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "9p"),
        *("davfs", "afpfs", "webdav"),
    }
)
_ANSWERED: Final = "fuse."  # by a program, for each file; most of them ask a network
_VIRTUAL: Final = re.compile(r"(vd|xvd)[a-z]+\d*")  # these always say that they spin, whatever is behind them
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class _Mount(NamedTuple):
    point: str
    kind: str
    source: str


def storage_of(path: bytes, root: Path = Path("/")) -> Storage:
    """Return the kind of storage that holds an existing path; ``"ssd"`` where nothing else is known.

    Parameters
    ----------
    path
        Where the archive is.
    root
        Where proc and sys are found.
    """
    mount = _mount_of(os.fsdecode(os.path.realpath(path)), root)
    if mount is not None and (mount.kind in _NETWORK_TYPES or mount.kind.startswith(_ANSWERED)):
        return "network"
    return "hdd" if _spins(path, mount, root) else "ssd"


def _mount_of(path: str, root: Path) -> _Mount | None:
    """Return the mount with the longest point above a path."""
    above = [mount for mount in _mounts(root) if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    return max(above, key=lambda mount: len(mount.point), default=None)


def _mounts(root: Path) -> list[_Mount]:
    try:
        lines = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    halves = (line.partition(" - ") for line in lines)
    return [
        _Mount(_unescaped(mount.split()[4]), *map(_unescaped, details.split()[:2]))
        for mount, _, details in halves
    ]


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _spins(path: bytes, mount: _Mount | None, root: Path) -> bool:
    if sys.platform != "linux":
        return False
    try:
        device = os.stat(path).st_dev
    except OSError:
        return False
    if not os.major(device) and mount is not None:  # Btrfs and others show a number of their own
        try:
            device = os.stat(mount.source).st_rdev
        except (OSError, ValueError):
            return False
    disk = os.path.realpath(root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for place in (Path(disk), Path(disk).parent):  # of a partition, the disk is the directory above
        if (place / "queue/rotational").exists() and not _VIRTUAL.fullmatch(place.name):
            return (place / "queue/rotational").read_text().strip() == "1"
    return False
