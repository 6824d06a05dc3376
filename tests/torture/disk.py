"""A disk that loses power: what is on it, and what only the kernel knows, call by call.

Of what was not synced, anything may be there afterwards, in any order: of each file any of its writes (also
parts of one, in sectors of 512 bytes), its time or not, and of each directory any of its new, changed and
removed names. A name that was moved to another directory may be in both, or in none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal, TypeVar

__all__ = ["Call", "Disk", "Left", "put", "recorded_calls"]

T = TypeVar("T")

_SECTOR = 512


@dataclass(frozen=True)
class Call:
    """A recorded call: its name, file (by inode), offset, length or time, bytes, and paths."""

    name: str
    inode: int
    offset: int
    data: bytes
    path: str
    target: str


def recorded_calls(record: Path) -> Iterator[Call]:
    """Read what the fault layer recorded."""
    with open(record, "rb") as stream:
        for head in stream:
            name, inode, offset, *sizes = head.split()
            data, target, path = (stream.read(int(size)) for size in sizes)
            yield Call(name.decode(), int(inode), int(offset), data, os.fsdecode(path), os.fsdecode(target))


@dataclass(frozen=True)
class _Write:
    offset: int
    data: bytes


@dataclass(frozen=True)
class _Cut:
    length: int


@dataclass(frozen=True)
class _Time:
    mtime_ns: int


_Touch = _Write | _Cut | _Time

_Kind = Literal["file", "directory", "symlink", "original"]


@dataclass(frozen=True)
class Left:
    """What stands at a path after power was lost.

    Parameters
    ----------
    kind
        ``"original"``: a hard link to a file that is not on the disk that lost power.
    data
        A file's content; where a link leads, or what it is a hard link to.
    mtime_ns
        A file's time; None where it was never synced.
    """

    kind: _Kind
    data: bytes = b""
    mtime_ns: int | None = None


@dataclass
class _File:
    """A file's bytes and time on disk, and what was done to it since."""

    disk: bytearray = field(default_factory=bytearray)
    mtime_ns: int | None = None
    kind: _Kind = "file"
    pending: list[_Touch] = field(default_factory=list)

    def apply(self, touch: _Touch) -> None:
        if isinstance(touch, _Time):
            self.mtime_ns = touch.mtime_ns
        elif isinstance(touch, _Cut):
            del self.disk[touch.length :]
            self.disk.extend(bytes(touch.length - len(self.disk)))
        else:
            self.disk.extend(bytes(max(0, touch.offset - len(self.disk))))
            self.disk[touch.offset : touch.offset + len(touch.data)] = touch.data

    def sync(self) -> None:
        for touch in self.pending:
            self.apply(touch)
        self.pending.clear()

    def after(self, random: Random | None) -> Left:
        left = _File(bytearray(self.disk), self.mtime_ns)
        for touch in _some(self.pending, random):
            for part in _sectors(touch, random) if isinstance(touch, _Write) else [touch]:
                left.apply(part)
        return Left(self.kind, bytes(left.disk), left.mtime_ns)


_Names = dict[str, int | None]
"""Path → number of a file, None for a directory."""

_Change = dict[str, int | str | None]
"""What one call does to the names of one directory: path → number, None for a new directory, "gone"."""


class Disk:
    """What is on disk and what is not yet, below one root.

    Files are numbered as they come: the kernel gives the inode of a removed file to the next one.

    Parameters
    ----------
    root
        What it holds.
    originals
        A directory elsewhere to whose files there may be hard links.
    """

    def __init__(self, root: Path, originals: Path) -> None:
        self._root = os.path.realpath(root)
        self._originals = {os.lstat(path).st_ino: path for path in _files_below(os.fsencode(originals))}
        self._files: dict[int, _File] = {}
        self._numbers: dict[int, int] = {}
        self._next = count()
        self._names: _Names = {self._root: None}
        self._pending: dict[str, list[_Change]] = {}
        for folder, folders, names in os.walk(self._root):
            for name in (*folders, *names):
                self._find(os.path.join(folder, name))
        self._seen = dict(self._names)

    def _find(self, path: str) -> None:
        status = os.lstat(path)
        if os.path.islink(path):
            self._names[path] = self._new(0, _File(bytearray(os.fsencode(os.readlink(path))), kind="symlink"))
        elif os.path.isdir(path):
            self._names[path] = None
        elif status.st_ino in self._originals:
            self._names[path] = self._original(self._originals[status.st_ino])
        else:
            content = bytearray(Path(path).read_bytes())
            self._names[path] = self._new(status.st_ino, _File(content, status.st_mtime_ns))

    def _new(self, inode: int, file: _File) -> int:
        number = next(self._next)
        self._files[number] = file
        self._numbers[inode] = number
        return number

    def _original(self, path: bytes) -> int:
        return self._new(0, _File(bytearray(path), kind="original"))

    def replay(self, call: Call) -> None:
        """Take one more call to have happened."""
        name, path = call.name, call.path
        if name in ("write", "truncate", "utime"):
            self._file(call).pending.append(_touch(call))
        elif name == "sync":
            self._sync(call)
        elif name == "syncfs":
            self._sync_all()
        elif name == "create":
            self._change(path, self._new(call.inode, _File()))
        elif name == "mkdir":
            self._change(path, None)
        elif name == "unlink":
            self._change(path, "gone")
        elif name == "symlink":
            self._change(path, self._new(0, _File(bytearray(call.data), kind="symlink")))
        elif name == "link":
            self._change(call.target, self._linked(path))
        elif name == "rename":
            self._rename(path, call.target)

    def _linked(self, path: str) -> int | None:
        if path in self._seen:
            return self._seen[path]
        return self._original(os.fsencode(path))

    def _rename(self, path: str, target: str) -> None:
        moved = self._seen[path]
        if moved is None:
            self._rename_directory(path, target)
        elif os.path.dirname(path) == os.path.dirname(target):
            self._note(os.path.dirname(path), {path: "gone", target: moved})
        else:
            self._change(path, "gone")
            self._change(target, moved)

    def _rename_directory(self, path: str, target: str) -> None:
        """Move a directory with what is in it, which must be on disk, within the directory it is in."""
        assert os.path.dirname(path) == os.path.dirname(target)
        assert not self._pending.get(path)
        change: _Change = {path: "gone", target: None}
        for name, number in self._seen.items():
            if name.startswith(path + "/"):
                change |= {name: "gone", target + name[len(path) :]: number}
        self._note(os.path.dirname(path), change)

    def _file(self, call: Call) -> _File:
        if call.inode not in self._numbers:
            self._new(call.inode, _File())
        return self._files[self._numbers[call.inode]]

    def _sync(self, call: Call) -> None:
        if call.path in self._seen and self._seen[call.path] is None:
            for change in self._pending.pop(call.path, []):
                _alter(self._names, change)
        else:
            self._file(call).sync()

    def _sync_all(self) -> None:
        for file in self._files.values():
            file.sync()
        self._names, self._pending = dict(self._seen), {}

    def _change(self, path: str, what: int | str | None) -> None:
        self._note(os.path.dirname(path), {path: what})

    def _note(self, directory: str, change: _Change) -> None:
        self._pending.setdefault(directory, []).append(change)
        _alter(self._seen, change)

    def lose_power(self, random: Random | None) -> dict[str, Left]:
        """Return what the disk holds afterwards, by path, each directory before what is in it.

        Parameters
        ----------
        random
            What of the unsynced is there; None: nothing.
        """
        names = dict(self._names)
        for changes in self._pending.values():
            for change in _some(changes, random):
                _alter(names, change)
        files = {number: file.after(random) for number, file in self._files.items()}
        found: dict[str, Left] = {}
        for path, number in sorted(names.items()):
            parent = found.get(os.path.dirname(path))
            if path == self._root or (parent is not None and parent.kind == "directory"):
                found[path] = Left("directory") if number is None else files[number]
        # SQLite's shared memory is mapped, not written: whatever it says there is not believed.
        return {path: left for path, left in found.items() if not path.endswith("-shm")}


def _files_below(root: bytes) -> Iterator[bytes]:
    for folder, _, names in os.walk(root):
        yield from (os.path.join(folder, name) for name in names)


def _touch(call: Call) -> _Touch:
    if call.name == "write":
        return _Write(call.offset, call.data)
    return _Cut(call.offset) if call.name == "truncate" else _Time(call.offset)


def _alter(names: _Names, change: _Change) -> None:
    for path, what in change.items():
        if isinstance(what, str):
            names.pop(path, None)
        else:
            names[path] = what


def _some(changes: list[T], random: Random | None) -> list[T]:
    """Return what of the unsynced changes is there: nothing, all, the first ones, or any."""
    if random is None:
        return []
    way = random.randrange(4)
    if way < 2:
        return changes if way else []
    if way == 2:
        return changes[: random.randrange(len(changes) + 1)]
    return [change for change in changes if random.random() < 0.5]


def _sectors(write: _Write, random: Random | None) -> list[_Write]:
    """Return what of one write is there: mostly all of it."""
    if random is None or random.random() < 0.7:
        return [write]
    cuts = range(0, len(write.data), _SECTOR)
    return [
        _Write(write.offset + cut, write.data[cut : cut + _SECTOR]) for cut in cuts if random.random() < 0.5
    ]


def put(root: Path, content: dict[str, Left]) -> None:
    """Make a directory what a disk holds after power was lost."""
    shutil.rmtree(root)
    for path, left in content.items():
        if left.kind == "directory":
            os.mkdir(path)
        elif left.kind == "symlink":
            os.symlink(left.data, os.fsencode(path))
        elif left.kind == "original":
            os.link(left.data, os.fsencode(path), follow_symlinks=False)
        else:
            Path(path).write_bytes(left.data)
            if left.mtime_ns is not None:
                os.utime(path, ns=(left.mtime_ns, left.mtime_ns))
