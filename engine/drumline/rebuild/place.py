"""How one file gets into the tree: one placer for each copy mode.

Hard and symbolic links are made at their name at once: `link` and `symlink` are atomic and never replace
what is there. A copy grows in ``_staging`` under a number; when a batch of copies is complete it is flushed
to disk in one go (`syncfs`: an fsync for each of a million small files would cost more than the copying), and
only then is each linked to its name, again without replacing anything. So a name in the tree never stands for
data that a power failure could take back, and a kill leaves numbered files in one place, which the next
rebuild clears.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Protocol

from drumline.errors import OutputError
from drumline.failpoints import step
from drumline.rebuild.actions import Action, Failure, Refused, refusal
from drumline.rebuild.settings import CopyMode
from drumline.rebuild.tree import STAGING, Sources, Tree, check_unchanged, source_refusal, write_all

__all__ = ["Placer", "placer_for"]

FICLONE = 0x40049409
_CHUNK = 1 << 20
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_RANGE_COPY = _UNSUPPORTED | {errno.EXDEV, errno.EINVAL, errno.EBADF, errno.ETXTBSY}
_NO_HARD_LINKS = _UNSUPPORTED | {errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


class Placer(Protocol):
    """Places batches of files."""

    batch_files: int
    batch_bytes: int

    def probe(self, action: Action) -> None:
        """Try the mode with one file in the staging directory; raise `OutputError` when it does not work."""

    def place(self, batch: list[Action]) -> list[Failure]:
        """Place a batch; return what could not be placed. Other errors than a file's own are raised."""


def placer_for(mode: CopyMode, tree: Tree, sources: Sources) -> Placer:
    """Return the placer of a copy mode."""
    if mode == "hardlink":
        return HardLinks(tree, sources)
    if mode == "symlink":
        return SymbolicLinks(tree, sources)
    return Copies(tree, sources, clone=mode == "reflink")


def _cannot(tree: Tree, what: str, instead: str, error: OSError) -> OutputError:
    return OutputError(
        f"the file system of {str(tree.path)!r} makes no {what}: {error.strerror}",
        f"Use --copy-mode {instead}. Nothing was made.",
    )


class _Links:
    """What makes its name at once; `link` says how."""

    batch_files = 2_048
    batch_bytes = 1 << 62
    kind: str
    instead: str

    def __init__(self, tree: Tree, sources: Sources) -> None:
        self._tree, self._sources = tree, sources

    def link(self, action: Action, target: bytes) -> None:
        raise NotImplementedError

    def probe(self, action: Action) -> None:
        """See `Placer`."""
        target = STAGING + b"/0"
        try:
            self.link(action, target)
        except Refused as verdict:
            if isinstance(verdict.__cause__, OSError) and verdict.problem == "refused":
                raise _cannot(self._tree, self.kind, self.instead, verdict.__cause__) from verdict
        self._tree.unlink(target)

    def place(self, batch: list[Action]) -> list[Failure]:
        """See `Placer`."""
        failures = []
        for action in batch:
            try:
                self.link(action, action.target)
            except Refused as verdict:
                if action.state != "adopt":
                    failures.append(Failure(action, verdict.problem, verdict.message))
        return failures


class HardLinks(_Links):
    """Another name for the archive's file."""

    kind = "hard links to it"
    instead = "copy or symlink"

    def link(self, action: Action, target: bytes) -> None:
        """Make one link."""
        origin, name, _ = self._sources.find(action)
        try:
            directory, target_name = self._tree.locate(target, make=True)
            with step("tree.publish"):
                os.link(name, target_name, src_dir_fd=origin, dst_dir_fd=directory, follow_symlinks=True)
        except OSError as error:
            raise refusal(error) from error


class SymbolicLinks(_Links):
    """A link to the archive's file, by its absolute path."""

    kind = "symbolic links"
    instead = "copy"

    def link(self, action: Action, target: bytes) -> None:
        """Make one link."""
        self._sources.find(action)
        try:
            directory, name = self._tree.locate(target, make=True)
            with step("tree.publish"):
                os.symlink(self._sources.absolute(action), name, dir_fd=directory)
        except OSError as error:
            raise refusal(error) from error


class Copies:
    """A file of its own with the same bytes, permissions and modification time.

    Parameters
    ----------
    clone
        Share the blocks (FICLONE: Btrfs, XFS, …) instead of copying them.
    """

    batch_files = 1_024
    batch_bytes = 512 << 20

    def __init__(self, tree: Tree, sources: Sources, *, clone: bool) -> None:
        self._tree, self._sources = tree, sources
        self._fill = clone_bytes if clone else copy_bytes
        self._clone = clone
        self._number = 0

    def probe(self, action: Action) -> None:
        """See `Placer`."""
        if not self._clone:
            return
        try:
            self._tree.unlink(self._stage(action))
        except Refused as verdict:
            if isinstance(verdict.__cause__, OSError):
                raise _cannot(self._tree, "reflinks", "copy or hardlink", verdict.__cause__) from verdict

    def place(self, batch: list[Action]) -> list[Failure]:
        """See `Placer`."""
        failures, staged = [], []
        for action in batch:
            try:
                staged.append((action, self._stage(action)))
            except Refused as verdict:
                failures.append(Failure(action, verdict.problem, verdict.message))
        if staged:
            self._tree.sync()
        for action, copy in staged:
            try:
                self._publish(copy, action.target)
            except Refused as verdict:
                failures.append(Failure(action, verdict.problem, verdict.message))
        return failures

    def _stage(self, action: Action) -> bytes:
        """Copy a source into the staging directory; return where."""
        origin = self._open(action)
        try:
            self._number += 1
            copy = STAGING + b"/%d%09d" % (os.getpid(), self._number)
            descriptor = self._tree.open_file(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                self._copy(origin, descriptor, action)
            except BaseException:
                self._tree.unlink(copy)
                raise
            finally:
                os.close(descriptor)
        finally:
            os.close(origin)
        return copy

    def _open(self, action: Action) -> int:
        try:
            directory, name = self._sources.locate(action.source)
            return os.open(name, _READ, dir_fd=directory)
        except OSError as error:
            raise source_refusal(error) from error

    def _copy(self, origin: int, descriptor: int, action: Action) -> None:
        status = os.fstat(origin)
        check_unchanged(status, action)
        try:
            with step("tree.copy"):
                copied = self._fill(origin, descriptor, action.size)
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise Refused("unreadable", error.strerror or str(error)) from error
        check_unchanged(os.fstat(origin), action)
        if copied != action.size:
            raise Refused("changed", "changed while it was copied")
        with suppress(PermissionError):  # FAT has no permissions
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _publish(self, copy: bytes, target: bytes) -> None:
        """Give a staged copy its name, unless the name is taken."""
        staging, number = self._tree.locate(copy)
        staging = os.dup(staging)  # it must outlive the next `locate`
        try:
            directory, name = self._tree.locate(target, make=True)
            with step("tree.publish"):
                _move(staging, number, directory, name)
        except OSError as error:
            raise refusal(error) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(number, dir_fd=staging)
            os.close(staging)


def _move(staging: int, number: bytes, directory: int, name: bytes) -> None:
    try:
        os.link(number, name, src_dir_fd=staging, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _move_without_links(staging, number, directory, name)


def _move_without_links(staging: int, number: bytes, directory: int, name: bytes) -> None:
    """On file systems without hard links (FAT, exFAT) a check comes before the rename."""
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=directory, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(number, name, src_dir_fd=staging, dst_dir_fd=directory)


def copy_bytes(origin: int, descriptor: int, size: int) -> int:
    """Copy a file's bytes from one descriptor to another; return how many there were.

    In the kernel where it can (`copy_file_range`, which shares blocks on file systems that do so). Of a file
    that grows meanwhile, not much more than `size` bytes are copied.
    """
    copied = _copy_in_kernel(origin, descriptor, size) if hasattr(os, "copy_file_range") else 0
    while copied <= size and (data := os.read(origin, _CHUNK)):  # mostly none is left
        write_all(descriptor, data)
        copied += len(data)
    return copied


def _copy_in_kernel(origin: int, descriptor: int, size: int) -> int:
    copied = 0
    try:
        while copied <= size and (count := os.copy_file_range(origin, descriptor, size - copied + 1)):
            copied += count
    except OSError as error:
        if copied or error.errno not in _NO_RANGE_COPY:
            raise
    return copied


def clone_bytes(origin: int, descriptor: int, _size: int) -> int:
    """Let a file share another's blocks; return its size in bytes."""
    fcntl.ioctl(descriptor, FICLONE, origin)
    return os.fstat(descriptor).st_size
