"""In what order files are queued to be read, and what the system is told of them beforehand.

Discover is the one process that knows which files come next, so it says so (``POSIX_FADV_WILLNEED``) when it
queues them: the disk is at work on the files in flight while the workers decode. For a spinning disk, the
files of a directory are queued in the order in which they lie on it, and one process that asks for them in
that order is the one reader that such a disk wants. On a network, opening a file waits for an answer, and
discover, which is one process, would wait for all of them: there, more workers ask instead.

An open may never return (a disk that fails, a file that a program answers for), and no clock watches
discover as one watches the workers. So files are opened here in threads that nobody waits for longer than
for a worker: what comes too late is left out, and when discover ends they end with it.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Final, TypeVar

from drumline.storage import Storage

__all__ = ["Reading", "place_of"]

T = TypeVar("T")

_HINTED: Final = 1 << 20
"""Bytes of a file that are asked for beforehand; of a longer one the system reads ahead by itself."""

_ANNOUNCED_AT_MOST: Final = 1_024
"""Files that wait to be announced; a longer list would lag behind the workers."""

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
    patience_sec
        Longest that an answer about one file is waited for.
    """

    def __init__(self, archive: bytes, storage: Storage, patience_sec: float = 30.0) -> None:
        self._archive, self._storage, self._patience_sec = archive, storage, patience_sec
        self._to_announce = deque[bytes](maxlen=_ANNOUNCED_AT_MOST)
        self._announcer, self._locator = Thread(), Thread()

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
        directory, waiting = b"", list[tuple[bytes, T]]()
        for finding in findings:
            path = path_of(finding)
            if path is None:
                yield finding
                continue
            if waiting and (os.path.dirname(path) != directory or len(waiting) == _SORTED_AT_ONCE):
                yield from self._in_order(waiting)
                waiting.clear()
            directory = os.path.dirname(path)
            waiting.append((path, finding))
        yield from self._in_order(waiting)

    def _in_order(self, waiting: list[tuple[bytes, T]]) -> Iterator[T]:
        places = self._places([os.path.join(self._archive, path) for path, _ in waiting])
        by_place = sorted(zip(places, waiting, strict=True), key=lambda item: item[0])
        return (finding for _, (_, finding) in by_place)

    def _places(self, paths: list[bytes]) -> list[tuple[int, int]]:
        """Return the place of each file; (0, 0) for those of which none is told in time."""
        places, told = list[tuple[int, int]](), -1

        def locate() -> None:
            for path in paths:
                places.append(place_of(path))

        if not self._locator.is_alive():  # it may still be at a file that does not open
            self._locator = _started(locate)
            while self._locator.is_alive() and told < len(places):
                told = len(places)
                self._locator.join(self._patience_sec)
        in_time = places[:]
        return in_time + [(0, 0)] * (len(paths) - len(in_time))

    def announce(self, paths: Iterable[bytes]) -> None:
        """Have the system told that files are going to be read soon."""
        if self._storage == "network" or not hasattr(os, "posix_fadvise"):
            return
        self._to_announce.extend(os.path.join(self._archive, path) for path in paths)
        if not self._announcer.is_alive():
            self._announcer = _started(self._announce_all)

    def _announce_all(self) -> None:
        with suppress(IndexError):  # none is left
            while True:
                _announce(self._to_announce.popleft())


def _started(task: Callable[[], None]) -> Thread:
    thread = Thread(target=task, daemon=True)
    with suppress(RuntimeError):  # no more threads: it is read as it comes
        thread.start()
    return thread


def _announce(path: bytes) -> None:
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        return  # who reads it will say why it cannot be read
    try:
        os.posix_fadvise(descriptor, 0, _HINTED, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass  # no regular file
    finally:
        os.close(descriptor)


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
