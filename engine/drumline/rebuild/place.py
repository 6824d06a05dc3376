"""How one file gets into the tree: one placer for each copy mode.

Hard and symbolic links are made at their name at once: `link` and `symlink` are atomic and never replace
what is there. A copy grows in ``_staging`` under a name of its own; when a batch of copies is complete it is
flushed to disk in one go (`syncfs`: an fsync for each of a million small files would cost more than the
copying), and only then is each linked to its name, again without replacing anything. So a name in the tree
never stands for data that a power failure could take back, and a kill leaves its files in one place, which
the next rebuild clears.

What is made anew, links too, stands complete in ``_staging``, and in the mapping log, before the old one is
taken away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias

from drumline.errors import OutputError
from drumline.failpoints import step
from drumline.rebuild.actions import Action, Failure, Refused, refusal
from drumline.rebuild.settings import CopyMode
from drumline.rebuild.tree import Sources, Tree, check_unchanged, source_refusal, staged_name, write_all

__all__ = ["Placer", "Staged", "placer_for"]

FICLONE = 0x40049409
_CHUNK = 1 << 20
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_MODE = _UNSUPPORTED | {errno.EXDEV}
_NO_CLONES = _NO_MODE | {errno.EINVAL, errno.ENOTTY}
_NO_HARD_LINKS = _UNSUPPORTED | {errno.EPERM}
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

Staged: TypeAlias = tuple[Action, bytes]
"""An action, and where its file stands in the staging directory."""


class Placer(Protocol):
    """Places batches of files."""

    batch_files: int
    batch_bytes: int

    def probe(self, action: Action) -> None:
        """Try the mode with one file in the staging directory; raise `OutputError` when it does not work."""

    def place(self, batch: Sequence[Action]) -> list[Failure]:
        """Place a batch; return what could not be placed. Other errors than a file's own are raised."""

    def stage(self, batch: Sequence[Action]) -> tuple[list[Staged], list[Failure]]:
        """Make a batch in the staging directory; return what stands there, and what could not be made."""

    def publish(self, staged: Sequence[Staged]) -> list[Failure]:
        """Give what `stage` made its names; return what could not get its own, and stays where it is."""


def placer_for(mode: CopyMode, tree: Tree, sources: Sources) -> Placer:
    """Return the placer of a copy mode."""
    if mode == "hardlink":
        return HardLinks(tree, sources)
    if mode == "symlink":
        return SymbolicLinks(tree, sources)
    return Reflinks(tree, sources) if mode == "reflink" else Copies(tree, sources)


class _Stages:
    """What all placers have in common; `make` says how one file is made."""

    kind: str
    instead: str

    def __init__(self, tree: Tree, sources: Sources) -> None:
        self._tree, self._sources = tree, sources
        # What an earlier rebuild left in the staging directory can have the same process number.
        self._began_ns, self._number = time.time_ns(), 0

    def make(self, action: Action, target: bytes) -> None:
        """Make a file at a target where nothing is; raise `Refused` when it cannot be."""
        raise NotImplementedError

    def probe(self, action: Action) -> None:
        """See `Placer`."""
        try:
            self._tree.unlink(self._stage(action))
        except Refused as refused:
            cause = refused.__cause__
            if isinstance(cause, OSError) and refused.problem == "refused" and self.cannot(cause):
                raise OutputError(
                    f"the file system of {str(self._tree.path)!r} makes no {self.kind}: {cause.strerror}",
                    f"Use --copy-mode {self.instead}. Nothing in the tree was changed.",
                ) from refused

    def cannot(self, error: OSError) -> bool:
        """Tell whether an error speaks of the file system, not of one file, which placing will name."""
        return error.errno in _NO_MODE

    def stage(self, batch: Sequence[Action]) -> tuple[list[Staged], list[Failure]]:
        """See `Placer`."""
        staged, failures = [], []
        for action in batch:
            try:
                staged.append((action, self._stage(action)))
            except Refused as refused:
                failures.append(Failure(action, refused.problem, refused.message))
        if staged:
            self._tree.sync()
        return staged, failures

    def publish(self, staged: Sequence[Staged]) -> list[Failure]:
        """See `Placer`."""
        failures = []
        for action, place in staged:
            try:
                self._publish(place, action.target)
            except Refused as refused:
                failures.append(Failure(action, refused.problem, refused.message))
        return failures

    def _stage(self, action: Action) -> bytes:
        self._number += 1
        place = staged_name(f"{self._began_ns}-{os.getpid()}-{self._number}")
        self.make(action, place)
        return place

    def _publish(self, place: bytes, target: bytes) -> None:
        """Give what is staged its name, unless the name is taken."""
        staging, number = self._tree.locate(place)
        staging = os.dup(staging)  # it must outlive the next `locate`
        try:
            directory, name = self._tree.locate(target, make=True)
            with step("tree.publish"):
                _move(staging, number, directory, name)
        except OSError as error:
            raise refusal(error) from error
        else:
            with suppress(FileNotFoundError):
                os.unlink(number, dir_fd=staging)
        finally:
            os.close(staging)


class _Links(_Stages):
    """What makes its name at once."""

    batch_files = 2_048
    batch_bytes = 1 << 62

    def place(self, batch: Sequence[Action]) -> list[Failure]:
        """See `Placer`."""
        failures = []
        for action in batch:
            try:
                self.make(action, action.target)
            except Refused as refused:
                failures.append(Failure(action, refused.problem, refused.message))
        return failures


class HardLinks(_Links):
    """Another name for the archive's file."""

    kind = "hard links to it"
    instead = "copy or symlink"

    def make(self, action: Action, target: bytes) -> None:
        """Make one link."""
        origin, name, _ = self._sources.find(action)
        try:
            directory, target_name = self._tree.locate(target, make=True)
            with step("tree.publish"):
                os.link(name, target_name, src_dir_fd=origin, dst_dir_fd=directory, follow_symlinks=True)
        except FileNotFoundError:
            self._sources.find(action)  # says so when it is the source that vanished
            raise
        except OSError as error:
            raise refusal(error) from error

    def cannot(self, error: OSError) -> bool:
        """See `_Stages`; EPERM may be said of the archive's file too, so a file of our own is tried."""
        return super().cannot(error) or (error.errno == errno.EPERM and not self._can_link_own())

    def _can_link_own(self) -> bool:
        own, link = staged_name("own"), staged_name("link")
        try:
            os.close(self._tree.open_file(own, os.O_WRONLY | os.O_CREAT))
            directory, name = self._tree.locate(own)
            other = os.path.basename(link)
            os.link(name, other, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except PermissionError:
            return False
        finally:
            self._tree.unlink(own)
            self._tree.unlink(link)
        return True


class SymbolicLinks(_Links):
    """A link to the archive's file, by its absolute path."""

    kind = "symbolic links"
    instead = "copy"

    def make(self, action: Action, target: bytes) -> None:
        """Make one link."""
        self._sources.find(action)
        try:
            directory, name = self._tree.locate(target, make=True)
            with step("tree.publish"):
                os.symlink(self._sources.absolute(action), name, dir_fd=directory)
        except OSError as error:
            raise refusal(error) from error

    def cannot(self, error: OSError) -> bool:
        """See `_Stages`; a symbolic link asks nothing of the archive's file, so EPERM is not said of that."""
        return super().cannot(error) or error.errno == errno.EPERM


class Copies(_Stages):
    """A file of its own with the same bytes, permissions and modification time."""

    batch_files = 1_024
    batch_bytes = 512 << 20
    kind = "copies"
    instead = "hardlink"

    def probe(self, action: Action) -> None:
        """Copying works wherever the directory could be made."""

    def place(self, batch: Sequence[Action]) -> list[Failure]:
        """See `Placer`."""
        staged, failures = self.stage(batch)
        unpublished = self.publish(staged)
        places = {action.number: place for action, place in staged}
        for failure in unpublished:
            self._tree.unlink(places[failure.action.number])
        return failures + unpublished

    def fill(self, origin: int, descriptor: int, size: int) -> int:
        """Give a file the content of another; return its size in bytes."""
        return copy_bytes(origin, descriptor, size)

    def make(self, action: Action, target: bytes) -> None:
        """Make one copy."""
        origin = self._open(action)
        try:
            descriptor = self._tree.open_file(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                self._copy(origin, descriptor, action)
            except BaseException:
                self._tree.unlink(target)
                raise
            finally:
                os.close(descriptor)
        finally:
            os.close(origin)

    def _open(self, action: Action) -> int:
        try:
            directory, name = self._sources.locate(action.source)
            return os.open(name, _READ, dir_fd=directory)
        except OSError as error:
            raise source_refusal(error) from error

    def _copy(self, origin: int, descriptor: int, action: Action) -> None:
        status = os.fstat(origin)
        check_unchanged(status, action)
        with step("tree.copy"):
            copied = self.fill(origin, descriptor, action.size)
        check_unchanged(os.fstat(origin), action)
        if copied != action.size:
            raise Refused("changed", "changed while it was copied")
        with suppress(PermissionError):  # FAT has no permissions
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


class Reflinks(Copies):
    """A copy that shares the blocks of the archive's file (FICLONE: Btrfs, XFS, …)."""

    kind = "reflinks"
    instead = "copy or hardlink"

    def probe(self, action: Action) -> None:
        """See `Placer`."""
        _Stages.probe(self, action)

    def cannot(self, error: OSError) -> bool:
        """See `_Stages`."""
        return error.errno in _NO_CLONES

    def fill(self, origin: int, descriptor: int, size: int) -> int:
        """See `Copies`."""
        try:
            fcntl.ioctl(descriptor, FICLONE, origin)
        except OSError as error:
            if error.errno not in _NO_CLONES:
                raise
            raise Refused("refused", error.strerror or str(error)) from error
        return os.fstat(descriptor).st_size


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

    Raises
    ------
    Refused
        When the origin cannot be read. Errors of writing are raised as they are.
    """
    copied = _copy_in_kernel(origin, descriptor, size) if hasattr(os, "copy_file_range") else 0
    while copied <= size and (data := _read(origin)):  # mostly none is left
        write_all(descriptor, data)
        copied += len(data)
    return copied


def _copy_in_kernel(origin: int, descriptor: int, size: int) -> int:
    copied = 0
    with suppress(OSError):  # whose fault it is shows when the rest is read and written
        while copied <= size and (count := os.copy_file_range(origin, descriptor, size - copied + 1)):
            copied += count
    return copied


def _read(origin: int) -> bytes:
    try:
        return os.read(origin, _CHUNK)
    except OSError as error:
        raise source_refusal(error) from error
