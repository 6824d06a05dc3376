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
from typing import Final, Literal, get_args

from drumline.machine import Mount, mount_of

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
_ANSWERED: Final = re.compile(r"fuse(\..*)?")  # by a program, for each file; most of them ask a network …
_ANSWERED_HERE: Final = frozenset(  # … but these, which ask a disk of this machine
    f"fuse.{name}"
    for name in (
        *("bindfs", "cryfs", "encfs", "exfat", "fuse-overlayfs", "gocryptfs", "mergerfs"),
        *("ntfs-3g", "squashfuse", "unionfs"),
    )
)
_VIRTUAL: Final = re.compile(r"(vd|xvd)[a-z]+\d*")  # these always say that they spin, whatever is behind them


def storage_of(path: bytes, root: Path = Path("/")) -> Storage:
    """Return the kind of storage that holds an existing path; ``"ssd"`` where nothing else is known.

    Parameters
    ----------
    path
        Where the archive is.
    root
        Where proc and sys are found.
    """
    mount = mount_of(path, root)
    if mount is not None and _asks_a_network(mount.kind):
        return "network"
    return "hdd" if _spins(path, mount, root) else "ssd"


def _asks_a_network(kind: str) -> bool:
    answered = _ANSWERED.fullmatch(kind) and kind not in _ANSWERED_HERE
    return kind in _NETWORK_TYPES or bool(answered)


def _spins(path: bytes, mount: Mount | None, root: Path) -> bool:
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
