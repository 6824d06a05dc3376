"""Lose power at any moment: of what was not yet synced, anything may be on the disk, in any order.

A run is recorded, call by call. A moment is chosen; what was synced before it is there; of the rest, for each
file any of its writes (also parts of one, in sectors of 512 bytes), and for each directory any of its new,
changed and removed names. From there, the same command comes to its end with exactly the records that must
come out, runs that were complete are as they were, and what was reported as done needed nothing unsynced.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

from drumline.verify import verify_run
from tests.pipeline.support import assert_equal, records_of, tree
from tests.torture.attacks import Arena, Attack
from tests.torture.expected import ChangingArchive, pool_of
from tests.torture.faultlayer import fault_layer, impossible

__all__ = ["ATTACK"]

T = TypeVar("T")

_LOSSES = 8
_SECTOR = 512


@dataclass(frozen=True)
class _Call:
    """A recorded call: its name, file (by inode), offset or length, bytes, and paths."""

    name: str
    inode: int
    offset: int
    data: bytes
    path: str
    target: str


def _calls(record: Path) -> Iterator[_Call]:
    with open(record, "rb") as stream:
        for head in stream:
            name, inode, offset, *sizes = head.split()
            data, target, path = (stream.read(int(size)) for size in sizes)
            yield _Call(name.decode(), int(inode), int(offset), data, os.fsdecode(path), os.fsdecode(target))


@dataclass
class _File:
    """A file's bytes on disk, and what was done to it since: (offset, bytes), or (length, None) for a cut."""

    disk: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def apply(self, changes: list[tuple[int, bytes | None]]) -> None:
        for offset, data in changes:
            if data is None:
                del self.disk[offset:]
                self.disk.extend(bytes(offset - len(self.disk)))
            else:
                self.disk.extend(bytes(max(0, offset - len(self.disk))))
                self.disk[offset : offset + len(data)] = data


_Names = dict[str, int | None]
"""Path → inode of a file, None for a directory."""

_Change = dict[str, int | str | None]
"""What one call does to names: path → inode, None for a new directory, "gone"."""


class _Disk:
    """What is on disk and what is not yet, below one root."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self.files: dict[int, _File] = {}
        self._names: _Names = {self._root: None}
        self._seen: _Names = {self._root: None}
        self._pending: dict[str, list[_Change]] = {}
        for folder, folders, names in os.walk(self._root):
            for name in folders:
                self._names[os.path.join(folder, name)] = None
            for name in names:
                path = os.path.join(folder, name)
                inode = os.stat(path).st_ino
                with open(path, "rb") as stream:
                    self.files[inode] = _File(bytearray(stream.read()))
                self._names[path] = inode
        self._seen = dict(self._names)

    def replay(self, call: _Call) -> None:
        """Take one more call to have happened."""
        if call.name == "write":
            self._file(call).pending.append((call.offset, call.data))
        elif call.name == "truncate":
            self._file(call).pending.append((call.offset, None))
        elif call.name == "sync":
            self._sync(call)
        elif call.name == "create":
            self.files[call.inode] = _File()
            self._change(call.path, {call.path: call.inode})
        elif call.name == "mkdir":
            self._change(call.path, {call.path: None})
        elif call.name == "unlink":
            self._change(call.path, {call.path: "gone"})
        elif call.name == "rename":
            assert os.path.dirname(call.path) == os.path.dirname(call.target), call
            self._change(call.path, {call.path: "gone", call.target: self._seen[call.path]})

    def _file(self, call: _Call) -> _File:
        return self.files.setdefault(call.inode, _File())

    def _sync(self, call: _Call) -> None:
        if call.path in self._seen and self._seen[call.path] is None:
            for change in self._pending.pop(call.path, []):
                _alter(self._names, change)
            return
        file = self._file(call)
        file.apply(file.pending)
        file.pending.clear()

    def _change(self, path: str, change: _Change) -> None:
        self._pending.setdefault(os.path.dirname(path), []).append(change)
        _alter(self._seen, change)

    def lose_power(self, random: Random | None) -> dict[str, bytes | None]:
        """Return what the disk holds afterwards: path → content, None for a directory.

        Parameters
        ----------
        random
            What of the unsynced is there; None: nothing.
        """
        names = dict(self._names)
        for changes in self._pending.values():
            for change in _some(changes, random):
                _alter(names, change)
        contents = {}
        for inode, file in self.files.items():
            left = _File(bytearray(file.disk))
            for offset, data in _some(file.pending, random):
                left.apply([(offset, data)] if data is None else _sectors(offset, data, random))
            contents[inode] = bytes(left.disk)
        found: dict[str, bytes | None] = {}
        for path, inode_or_none in sorted(names.items()):
            parent = os.path.dirname(path)
            if path == self._root or (parent in found and found[parent] is None):
                found[path] = None if inode_or_none is None else contents.get(inode_or_none, b"")
        # SQLite's shared memory is mapped, not written: whatever it says there is not believed.
        return {path: content for path, content in found.items() if not path.endswith("-shm")}


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


def _sectors(offset: int, data: bytes, random: Random | None) -> list[tuple[int, bytes | None]]:
    """Return what of one write is there: mostly all of it."""
    whole: list[tuple[int, bytes | None]] = [(offset, data)]
    if random is None or random.random() < 0.7:
        return whole
    cuts = range(0, len(data), _SECTOR)
    return [(offset + cut, data[cut : cut + _SECTOR]) for cut in cuts if random.random() < 0.5]


class _Blackout:
    """One episode: a run is recorded, and power is lost at several of its moments."""

    def __init__(self, arena: Arena, random: Random, place: Path) -> None:
        self._arena, self._random, self._place = arena, random, place
        self._layer = fault_layer(arena)
        self._archive = ChangingArchive(place / "archive", pool_of(arena), random)
        for _ in range(random.randrange(6, 16)):
            self._archive.add()
        self._runs_root = place / "runs"
        self._runs_root.mkdir()
        self._complete: dict[Path, object] = {}
        self.figures: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        for _ in range(self._random.randrange(3)):
            self._finish()
            self._archive.change(self._random.randrange(1, 5))
        disk, calls = _Disk(self._runs_root), self._recorded()
        moments = sorted(self._random.randrange(len(calls)) for _ in range(_LOSSES))
        for number, call in enumerate(calls):
            while moments and moments[0] == number:
                moments.pop(0)
                self._judge(disk.lose_power(self._random))
            disk.replay(call)
        self._judge_the_end(disk.lose_power(None))
        self.figures["recorded calls"] += len(calls)
        return self.figures

    def _recorded(self) -> list[_Call]:
        """Record a run; sometimes one that is killed, and the one that goes on with it."""
        failpoints = self._random.choice(("", "", "index.sync.after=kill-group@2"))
        with self._layer.armed(self._runs_root, record=True):
            if failpoints:
                self._infer(failpoints=failpoints)
            self._finish()
            return list(_calls(self._layer.record_path))

    def _infer(self, **patches: str) -> tuple[int, Path]:
        options = ("--runs-root", self._runs_root, "--model", self._arena.model, "--workers", "1", "--json")
        running = self._layer.server.start(
            *("infer", self._archive.root, *options, "--accept-missing"), frame_lines=3, flush=0.02, **patches
        )
        result = running.wait()
        running.gone()
        assert patches or result.code == 0, result
        return result.code, Path(result.json()["run_directory"]) if result.code == 0 else Path()

    def _finish(self) -> None:
        _, run = self._infer()
        self._check(run)
        self._complete[run] = tree(run)
        self._last = run

    def _check(self, run: Path) -> None:
        assert_equal(records_of(run), self._archive.expected())
        report = verify_run(run)
        assert report.ok, report.findings

    def _put(self, content: dict[str, bytes | None]) -> None:
        shutil.rmtree(self._runs_root)
        for path, data in content.items():
            if data is None:
                os.mkdir(path)
            else:
                Path(path).write_bytes(data)

    def _judge(self, content: dict[str, bytes | None]) -> None:
        self._put(content)
        for run in self._complete:
            assert run == self._last or self._stands(run), f"the complete run {run.name} is not as it was"
        _, run = self._infer()
        self._check(run)
        self.figures["power losses"] += 1

    def _judge_the_end(self, content: dict[str, bytes | None]) -> None:
        """What was reported as done is on disk, without anything that was not synced."""
        self._put(content)
        assert self._stands(self._last), "a run was reported as complete and was not on disk"
        self._judge(content)

    def _stands(self, run: Path) -> bool:
        found = tree(run) if run.is_dir() else {}
        before = self._complete[run]
        assert isinstance(before, dict)
        return {path: entry[3] for path, entry in found.items()} == {
            path: entry[3] for path, entry in before.items()
        }


def _episode(arena: Arena, random: Random, _number: int) -> Counter[str]:
    with arena.directory() as place:
        return _Blackout(arena, random, place).run()


ATTACK = Attack(
    what="lose power at any moment of a run, with any part of what was not synced",
    unit="power losses",
    full=1_000,
    short=9,
    episode=_episode,
    impossible=impossible,
)
