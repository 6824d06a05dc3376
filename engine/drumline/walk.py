"""The archive as directories of audio files, in a fixed order, from bytes to bytes."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType
from typing import Final, Literal, NamedTuple

from drumline.kernels import compiled
from drumline.steps import Step

__all__ = ["Directory", "Entry", "FollowLinks", "Walk", "WalkSettings", "listing_kernel", "mtime_of"]

FollowLinks = Literal["all", "inside", "none"]

_APPLE_DOUBLE = b"._"  # macOS keeps resource forks in files of this prefix: never audio, whatever the suffix

_KERNEL_VERSION = 2
_NUMBER_BYTES = 8
_LAST_NS = 2**63 - 1
_BY_NAME = attrgetter("name")


class Entry(NamedTuple):
    """An audio file as its directory shows it; `error` says why it cannot be looked at, or is empty."""

    name: bytes
    size: int
    mtime_ns: int
    error: str = ""


class Directory(NamedTuple):
    """A directory with its audio files, packed: as it is sent, and compared with what is known, as a whole.

    Parameters
    ----------
    path
        Its path below the archive root, empty for the root.
    names
        The files' names in order, with a NUL behind each.
    numbers
        Their sizes, then their modification times, 8 bytes each.
    errors
        Place and reason of each file that cannot be looked at; its numbers are 0.
    """

    path: bytes
    names: bytes
    numbers: bytes
    errors: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, path: bytes, names: Sequence[bytes], sizes: Sequence[int], times: Sequence[int]) -> Directory:
        """Pack the names, sizes and modification times of a directory's files.

        Raises
        ------
        OverflowError
            When a number has more than 63 bits.
        """
        return cls(path, b"".join([name + b"\0" for name in names]), _packed(sizes) + _packed(times))

    @property
    def file_count(self) -> int:
        """How many files there are."""
        return len(self.numbers) // (2 * _NUMBER_BYTES)

    @property
    def size(self) -> int:
        """What they measure together, in bytes."""
        return sum(array("q", self.numbers[: self.file_count * _NUMBER_BYTES]))

    @property
    def files(self) -> list[Entry]:
        """The files one by one."""
        count, numbers = self.file_count, array("q", self.numbers)
        entries = list(map(Entry, self.names.split(b"\0")[:count], numbers[:count], numbers[count:]))
        for place, error in self.errors:
            entries[place] = entries[place]._replace(error=error)
        return entries


def _packed(numbers: Sequence[int]) -> bytes:
    return array("q", numbers).tobytes()


@dataclass(frozen=True)
class WalkSettings:
    """What of an archive is met.

    Parameters
    ----------
    root
        Archive root.
    formats
        Extensions that count as audio, lower case without dot.
    skip
        (device, inode) of directories to leave out: our own output.
    links
        Which links to files are followed: all, those that lead to a place inside of the archive, or none.
    one_file_system
        Whether directories on another device than the root are left out.
    """

    root: bytes
    formats: frozenset[bytes]
    skip: frozenset[tuple[int, int]] = frozenset()
    links: FollowLinks = "all"
    one_file_system: bool = False

    def is_wanted(self, name: bytes) -> bool:
        """Return whether a file of this name counts as audio."""
        _, dot, suffix = name.rpartition(b".")
        return bool(dot) and suffix.lower() in self.formats and not name.startswith(_APPLE_DOUBLE)


def listing_kernel() -> ModuleType | None:
    """Return the compiled kernel, or None."""
    return compiled("listing", _KERNEL_VERSION)


class Walk(Iterator[Directory]):
    """One pass over the directories of an archive, each once, depth first, sorted by name.

    Links to files may be followed, links to directories never are: so no loop exists and every file is met
    once by its own path. What is no regular file is passed over and counted.

    Parameters
    ----------
    settings
        What of the archive is met.
    enter
        Whether the process may change its working directory, to the one that is being listed: then the system
        need not follow the whole path to each file, which saves a tenth of the time.
    pending
        Where it begins: directories below the root, the first one last, as another walk left them.
    use_kernel
        Whether the compiled kernel may be used, where there is one: it lists a directory in which nothing is
        out of the ordinary in a third of the time.

    Attributes
    ----------
    pending
        Directories that are still to be listed, with all below them; the next one last.
    skipped_links, skipped_special
        Links that were not followed, and what is neither file, link nor directory, so far.
    unreadable
        Directories that could not be listed so far, by their path below the root, and why.
    """

    step: Final = Step.WALK
    """What the time until the next directory goes to."""

    def __init__(
        self,
        settings: WalkSettings,
        *,
        enter: bool = False,
        pending: Sequence[bytes] = (b"",),
        use_kernel: bool = True,
    ) -> None:
        self.settings, self._enter = settings, enter
        self.pending = list(pending)
        self.skipped_links = self.skipped_special = 0
        self.unreadable: list[tuple[bytes, str]] = []
        self._real_root = os.path.realpath(settings.root)
        self._device = _device(settings.root) if settings.one_file_system else None
        self._kernel = listing_kernel() if use_kernel else None
        self._formats = b"".join([name + b"\0" for name in sorted(settings.formats)])
        self._directories = self._walk()

    def __next__(self) -> Directory:
        return next(self._directories)

    def _walk(self) -> Iterator[Directory]:
        while self.pending:
            path = self.pending.pop()
            directory = self._listed_at_once(path) or self._listed_singly(path)
            if directory is not None:
                yield directory

    def _listed_at_once(self, path: bytes) -> Directory | None:
        """Return what the kernel finds in a directory; None where it is out of the ordinary."""
        if self._kernel is None:
            return None
        place = self._place(os.path.join(self.settings.root, path))
        found: tuple[bytes, bytes, bytes] | None = self._kernel.listed(place, self._formats)
        if found is None:
            return None
        names, below, numbers = found
        entered = [name for name in below.split(b"\0")[:-1] if self._is_entered(os.path.join(place, name))]
        self.pending.extend(os.path.join(path, name) for name in reversed(entered))
        return Directory(path, names, numbers)

    def _listed_singly(self, path: bytes) -> Directory | None:
        entries = self._listed(path)
        if entries is None:
            return None
        wanted = [entry for entry in entries if self.settings.is_wanted(entry.name)]
        files = list(filter(None, map(self._look, wanted)))
        columns = ([getattr(file, name) for file in files] for name in ("name", "size", "mtime_ns"))
        errors = tuple((place, file.error) for place, file in enumerate(files) if file.error)
        return Directory.of(path, *columns)._replace(errors=errors)

    def counts(self) -> Iterator[int]:
        """Make the pass counting the files of each directory by their names alone, several times faster."""
        while self.pending:
            entries = self._listed(self.pending.pop())
            if entries is not None:
                yield sum(self.settings.is_wanted(entry.name) for entry in entries)

    def _listed(self, path: bytes) -> list[os.DirEntry[bytes]] | None:
        """List a directory, and note those in it as pending."""
        entries = self._entries(path)
        if entries is not None:
            below = self._directories_of(path, entries)
            self.pending.extend(os.path.join(path, entry.name) for entry in reversed(below))
        return entries

    def _entries(self, path: bytes) -> list[os.DirEntry[bytes]] | None:
        try:
            with os.scandir(self._place(os.path.join(self.settings.root, path))) as listing:
                return sorted(listing, key=_BY_NAME)
        except OSError as error:
            self.unreadable.append((path, error.strerror or str(error)))
            return None

    def _place(self, directory: bytes) -> bytes:
        if self._enter:
            with suppress(OSError):  # it may be listed all the same
                os.chdir(directory)
                return b"."
        return directory

    def _directories_of(self, path: bytes, entries: list[os.DirEntry[bytes]]) -> list[os.DirEntry[bytes]]:
        try:  # nearly all entries are files, and nearly always the listing itself says so
            found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            found = [entry for entry in entries if self._is_directory(path, entry)]
        return [entry for entry in found if self._is_entered(entry.path)]

    def _is_directory(self, parent: bytes, entry: os.DirEntry[bytes]) -> bool:
        try:
            return entry.is_dir(follow_symlinks=False)
        except OSError as error:  # the file system does not say what it is, nor lets us look
            if not self.settings.is_wanted(entry.name):
                path = os.path.join(parent, entry.name)
                self.unreadable.append((path, error.strerror or str(error)))
            return False

    def _is_entered(self, directory: bytes) -> bool:
        if not self.settings.skip and self._device is None:
            return True
        identity = _identity(directory)
        if self._device is not None and identity is not None and identity[0] != self._device:
            return False
        return identity not in self.settings.skip

    def _look(self, entry: os.DirEntry[bytes]) -> Entry | None:
        try:
            if not entry.is_file(follow_symlinks=False) and not self._is_followed(entry):
                return None
            found = entry.stat()
        except OSError as error:  # also where it cannot even be told what it is: it gets its record
            return Entry(entry.name, 0, 0, error.strerror or str(error))
        return Entry(entry.name, found.st_size, mtime_of(found))

    def _is_followed(self, entry: os.DirEntry[bytes]) -> bool:
        if entry.is_symlink():
            return self._is_wanted_link(entry)
        self.skipped_special += not entry.is_dir(follow_symlinks=False)
        return False

    def _is_wanted_link(self, entry: os.DirEntry[bytes]) -> bool:
        links = self.settings.links
        if links == "none" or (links == "inside" and not self._leads_inside(entry.path)):
            self.skipped_links += 1
            return False
        try:
            mode = entry.stat().st_mode
        except OSError:
            return True  # a dangling link is a file that cannot be read: it gets its record
        if stat.S_ISREG(mode):
            return True
        self.skipped_links += 1
        return False

    def _leads_inside(self, path: bytes) -> bool:
        return os.path.realpath(path).startswith(os.path.join(self._real_root, b""))


def _identity(directory: bytes) -> tuple[int, int] | None:
    try:
        found = os.lstat(directory)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def _device(path: bytes) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def mtime_of(found: os.stat_result) -> int:
    """Return a file's modification time in nanoseconds since the epoch.

    File systems know years that 63 bits do not hold, after 2262; those count as the last that they hold.
    """
    mtime_ns = found.st_mtime_ns
    return mtime_ns if -_LAST_NS <= mtime_ns <= _LAST_NS else max(-_LAST_NS, min(mtime_ns, _LAST_NS))
