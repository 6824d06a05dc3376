"""Directories by descriptor, so that no name, and no link that somebody plants, leads elsewhere.

Every operation in the tree is relative to the descriptor of its directory, and every directory is opened
from its parent's descriptor with O_NOFOLLOW, one part of the path at a time. The descriptors of the
directories opened last are kept; the plan is in depth-first order, so nearly every file finds its directory
open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from drumline.durable import output_errors
from drumline.errors import BusyError, OutputError
from drumline.failpoints import step
from drumline.lock import holder_in_kernel
from drumline.machine import open_files_limit
from drumline.rebuild.actions import Refused
from drumline.walk import listing_kernel, mtime_of

__all__ = [
    "STAGING",
    "Directories",
    "Sources",
    "Tree",
    "check_unchanged",
    "not_a_tree",
    "source_refusal",
    "staged_name",
    "write_all",
]

STAGING = b"_staging"
"""Where copies grow before they are linked to their name; a directory at the top of the tree."""

_STAGED = STAGING + b"/drumline-"
"""How the paths of staged files begin; whatever else lies in that directory is not ours."""

_LONGEST_PATH = 1_024
"""What F_GETPATH asks for."""

_KEPT_OPEN = 64
_FOR_ALL_ELSE = 32
"""Files that a rebuild has open besides the directories that it keeps open, with some to spare."""

_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
_STAYS = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EBUSY}
_ABSENT = {errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}


class Directories:
    """Descriptors of the directories below one root.

    Parameters
    ----------
    root
        Descriptor of the root; closed by `close`.
    follow
        Whether a directory may be a symbolic link.
    """

    def __init__(self, root: int, *, follow: bool) -> None:
        self.root = root
        self._flags = _SEARCH if follow else _SEARCH | os.O_NOFOLLOW
        self._open: dict[bytes, int] = {b"": root}
        limit = open_files_limit()
        # Half for the tree, half for the archive; a directory is entered from its parent, beside the root.
        spare = _KEPT_OPEN if limit is None else (limit - _FOR_ALL_ELSE) // 2
        self._kept_open = max(2, min(_KEPT_OPEN, spare))

    def locate(self, path: bytes, *, make: bool = False) -> tuple[int, bytes]:
        """Return (descriptor of the directory, name in it); the descriptor is good until the next call."""
        directory, _, name = path.rpartition(b"/")
        descriptor = self._open.get(directory)
        return (self._walk(directory, make) if descriptor is None else descriptor), name

    def _walk(self, directory: bytes, make: bool) -> int:
        known = directory
        while known not in self._open:
            known = known.rpartition(b"/")[0]
        descriptor, path = self._open[known], known
        for name in directory[len(known) :].strip(b"/").split(b"/"):
            descriptor = self._enter(descriptor, name, make)
            path = path + b"/" + name if path else name
            self._keep(path, descriptor)
        return descriptor

    def _enter(self, parent: int, name: bytes, make: bool) -> int:
        try:
            return os.open(name, self._flags, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        with suppress(FileExistsError), step("tree.make-directory"):
            os.mkdir(name, dir_fd=parent)
        return os.open(name, self._flags, dir_fd=parent)

    def _keep(self, path: bytes, descriptor: int) -> None:
        self._open[path] = descriptor
        if len(self._open) > self._kept_open:
            oldest = next(key for key in self._open if key)
            os.close(self._open.pop(oldest))

    def forget(self) -> None:
        """Close all but the root's descriptor: directories below may have been removed."""
        for path in list(self._open):
            if path:
                os.close(self._open.pop(path))

    def close(self) -> None:
        """Close all descriptors; more than once does no harm."""
        self.forget()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1


class Indexed(Protocol):
    """A file as it was indexed: its path in the archive, in exact bytes, its size and its time."""

    @property
    def source(self) -> bytes:
        """Its path in the archive, exact bytes."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def mtime_ns(self) -> int:
        """Modification time, ns."""


class Sources(Directories):
    """The archive; only read. Where a path of the index leads over a link, `infer` was told to follow it."""

    def __init__(self, root: bytes) -> None:
        super().__init__(os.open(root, _SEARCH), follow=True)
        self._prefix = root.rstrip(b"/") + b"/"
        self._kernel = listing_kernel()

    def find(self, file: Indexed) -> tuple[int, bytes, int]:
        """Return (directory, name, device) of a file's source; raise as `stat` does."""
        directory, name = self._located(file)
        if self._kernel is not None:
            device = self._kernel.unchanged(directory, name, file.size, file.mtime_ns)
            if device is not None:
                return directory, name, device
        return directory, name, _unchanged(directory, name, file).st_dev

    def stat(self, file: Indexed) -> os.stat_result:
        """Return the stat of a file's source.

        Raises
        ------
        Refused
            When it is missing, unreadable, or not the file that was indexed.
        """
        return _unchanged(*self._located(file), file)

    def _located(self, file: Indexed) -> tuple[int, bytes]:
        try:
            return self.locate(file.source)
        except OSError as error:
            raise source_refusal(error) from error

    def absolute(self, file: Indexed) -> bytes:
        """Return the absolute path of a file's source."""
        return self._prefix + file.source


def _unchanged(directory: int, name: bytes, file: Indexed) -> os.stat_result:
    try:
        status = os.stat(name, dir_fd=directory)
    except OSError as error:
        raise source_refusal(error) from error
    check_unchanged(status, file)
    return status


def source_refusal(error: OSError) -> Refused:
    """Return what an `OSError` says about a source; raise it again when it stops everything."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return Refused("missing" if gone else "unreadable", error.strerror or str(error))


def check_unchanged(status: os.stat_result, file: Indexed) -> None:
    """Raise `Refused` when a source is not the file that was indexed."""
    if not stat.S_ISREG(status.st_mode):
        raise Refused("changed", "no regular file any more")
    if status.st_size != file.size:
        raise Refused("changed", f"{status.st_size} bytes now, {file.size} when it was indexed")
    if mtime_of(status) != file.mtime_ns:
        raise Refused("changed", "modified since it was indexed")


class Tree(Directories):
    """The output directory, opened and locked.

    Parameters
    ----------
    path
        The directory.
    shared
        Whether it is only looked at: any number may do that at the same time, while nobody changes it.

    Raises
    ------
    OutputError
        When it cannot be opened.
    BusyError
        When another process holds it; the message says which.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        with output_errors(path):
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        super().__init__(root, follow=False)
        self.path = path
        try:
            fcntl.flock(root, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = holder_in_kernel(root)
            self.close()
            raise BusyError(
                f"{str(path)!r} is in use by {holder}", "Wait until it has ended, then try again."
            ) from error
        except OSError:
            pass  # a file system without locks: one writer at a time is then up to the user

    def lstat(self, target: bytes) -> os.stat_result | None:
        """Return what stands at `target`, not following a link; None when nothing does.

        Raises
        ------
        Refused
            When a link or a file stands where a directory on the way should be.
        """
        try:
            descriptor, name = self.locate(target)
            return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise Refused("occupied", "a link or a file stands where a directory should be") from error
            raise

    def has(self, target: bytes) -> bool:
        """Tell whether something stands at `target`, or in its way."""
        try:
            return self.lstat(target) is not None
        except Refused:
            return True

    def readlink(self, target: bytes) -> bytes:
        """Return where a symbolic link points."""
        descriptor, name = self.locate(target)
        return os.readlink(name, dir_fd=descriptor)

    def unlink(self, target: bytes) -> None:
        """Remove a file or link; nothing there is fine."""
        with suppress(FileNotFoundError):
            descriptor, name = self.locate(target)
            with step("tree.remove"):
                os.unlink(name, dir_fd=descriptor)

    def rmdir(self, target: bytes) -> bool:
        """Remove a directory if it is empty; tell whether it is gone. Call `forget` afterwards."""
        try:
            descriptor, name = self.locate(target)
            with step("tree.remove-directory"):
                os.rmdir(name, dir_fd=descriptor)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _STAYS:
                raise
            return False
        return True

    def names(self, directory: bytes = b"") -> list[bytes]:
        """Return the names in a directory; none when it is not there, or no directory.

        Raises
        ------
        Refused
            When a link or a file stands where a directory on the way should be.
        """
        status = self.lstat(directory) if directory else None
        if directory and (status is None or not stat.S_ISDIR(status.st_mode)):
            return []
        parent, name = self.locate(directory)
        descriptor = os.open(name or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            return [os.fsencode(entry) for entry in os.listdir(descriptor)]
        finally:
            os.close(descriptor)

    def open_file(self, target: bytes, flags: int) -> int:
        """Open a file, never through a link; directories on the way must be there."""
        descriptor, name = self.locate(target)
        return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=descriptor)

    def holds(self, descriptor: int) -> bool:
        """Tell whether an open file lies in the tree, whatever path and links led to it."""
        return _place_of(descriptor).startswith(_place_of(self.root) + b"/")

    def staged(self) -> list[bytes]:
        """Return what stands in the staging directory of ours, sorted."""
        targets = (STAGING + b"/" + name for name in sorted(self.names(STAGING)))
        return [target for target in targets if target.startswith(_STAGED)]

    def clear_staging(self, is_announced: Callable[[bytes], bool] = lambda _: False) -> None:
        """Remove what a killed rebuild left in the staging directory, but for what is known to be needed."""
        for target in self.staged():
            if not is_announced(target):
                self.unlink(target)

    def sync(self) -> None:
        """Put everything written to the tree's file system on disk, data and names."""
        from drumline.rebuild.syncfs import syncfs

        with step("tree.sync"):
            syncfs(self.root)

    def sync_names(self) -> None:
        """Put the names at the top of the tree on disk, where the file system has a way to do that."""
        with step("durable.sync-directory"):
            try:
                os.fsync(self.root)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise


def staged_name(name: str) -> bytes:
    """Return a path in the staging directory."""
    return _STAGED + name.encode()


def _place_of(descriptor: int) -> bytes:
    """Return the path of an open file or directory as the kernel knows it, free of links."""
    if sys.platform == "darwin":
        return fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(_LONGEST_PATH)).rstrip(b"\0")
    return os.readlink(b"/proc/self/fd/%d" % descriptor)


def not_a_tree(
    path: Path, why: str, instead: str = "Give a new or empty directory with --out"
) -> OutputError:
    """Return the error for a directory that drumline did not make; `instead` is what to give in its place."""
    return OutputError(f"{str(path)!r} {why}", f"{instead}; nothing in this one was touched.")


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
