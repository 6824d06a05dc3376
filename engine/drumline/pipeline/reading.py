"""In what order files are queued to be read, and what the system is told of them beforehand.

Discover is the one process that knows which files come next, so it says so (``POSIX_FADV_WILLNEED``) when it
queues them: the disk is at work on the files in flight while the workers decode. For a spinning disk, the
files of a directory are queued in the order in which they lie on it, and one process that asks for them in
that order is the one reader that such a disk wants. On a network, opening a file waits for an answer, and
discover, which is one process, would wait for all of them: there, more workers ask instead.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from drumline.storage import Storage

__all__ = ["Reading", "place_of"]

T = TypeVar("T")

_HINTED: Final = 1 << 20
"""Bytes of a file that are asked for beforehand; of a longer one the system reads ahead by itself."""

_SORTED_AT_ONCE: Final = 1_024
_FIEMAP: Final = 0xC020_660B
_REQUEST: Final = struct.Struct("=QQLLLL")
_EXTENT: Final = struct.Struct("=QQQ32x")
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class Reading:
    """How the files of an archive are read.

    Parameters
    ----------
    archive
        Its root.
    storage
        What it lies on.
    """

    def __init__(self, archive: bytes, storage: Storage) -> None:
        self._archive, self._storage = archive, storage

    def ordered(self, findings: Iterable[T], path_of: Callable[[T], bytes | None]) -> Iterator[T]:
        """Pass on findings, those of files in the order in which they are best read.

        Parameters
        ----------
        findings
            Whatever is found, directory after directory.
        path_of
            Path of a finding's file below the archive's root; None for what is not read.
        """
        if self._storage != "hdd":
            yield from findings
            return
        directory, waiting = b"", list[tuple[tuple[int, int], T]]()
        for finding in findings:
            path = path_of(finding)
            if path is None:
                yield finding
                continue
            if waiting and (os.path.dirname(path) != directory or len(waiting) == _SORTED_AT_ONCE):
                yield from _in_order(waiting)
                waiting.clear()
            directory = os.path.dirname(path)
            waiting.append((place_of(os.path.join(self._archive, path)), finding))
        yield from _in_order(waiting)

    def announce(self, path: bytes) -> None:
        """Say that a file is going to be read soon."""
        if self._storage == "network" or not hasattr(os, "posix_fadvise"):
            return
        try:
            descriptor = os.open(os.path.join(self._archive, path), _OPEN)
        except OSError:
            return  # who reads it will say why it cannot be read
        try:
            os.posix_fadvise(descriptor, 0, _HINTED, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # no regular file
        finally:
            os.close(descriptor)


def _in_order(waiting: list[tuple[tuple[int, int], T]]) -> Iterator[T]:
    return (finding for _, finding in sorted(waiting, key=lambda item: item[0]))


def place_of(path: bytes) -> tuple[int, int]:
    """Return where a file begins on its disk, and its inode, which is near it where the first is not told."""
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        return (0, 0)
    try:
        return (_first_extent(descriptor), os.fstat(descriptor).st_ino)
    except OSError:
        return (0, os.fstat(descriptor).st_ino)
    finally:
        os.close(descriptor)


def _first_extent(descriptor: int) -> int:
    """Ask Linux where the first block of a file lies, in bytes from the start of the disk; 0 where untold."""
    if sys.platform != "linux":
        return 0
    import fcntl

    answer = bytearray(_REQUEST.size + _EXTENT.size)
    _REQUEST.pack_into(answer, 0, 0, 2**64 - 1, 0, 0, 1, 0)
    fcntl.ioctl(descriptor, _FIEMAP, answer)
    extents = _REQUEST.unpack_from(answer)[3]
    return int(_EXTENT.unpack_from(answer, _REQUEST.size)[1]) if extents else 0
