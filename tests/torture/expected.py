"""An archive that changes, and the records that must come out of it.

What is said of a content was learnt once, from an undisturbed run. What the records of the changing archive
must be follows from the changes that were made, and not from any run over it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from bench.broken import BROKEN
from bench.synth import write_archive
from drumline.records import path_fields
from tests.pipeline.support import Records, audio_files, path_of, records_of
from tests.torture.attacks import Arena

__all__ = ["ChangingArchive", "Pool", "pool_of"]

_SOUNDS = 120
_WAYS = ("empty", "claims-gigabytes", "truncated-header", "text")
_FOLDERS = (b"kicks", b"snares", b"kicks/808", "h\u00e4nde".encode(), b"__to sort \xfc")
_TICK_NS = 1_000_000_007


@dataclass(frozen=True)
class Pool:
    """Contents, and what an undisturbed run says of each."""

    contents: tuple[bytes, ...]
    records: tuple[dict[str, Any], ...]


def pool_of(arena: Arena) -> Pool:
    """Return the arena's pool."""
    pool: Pool = arena.shared("pool", lambda place: _make_pool(arena, place))
    return pool


def _make_pool(arena: Arena, place: Path) -> Pool:
    archive, runs_root = place / "archive", place / "runs"
    write_archive(
        archive, _SOUNDS, seed=3, tiny=True, broken_fraction=0, duplicate_fraction=0, odd_fraction=0
    )
    for number, way in enumerate(_WAYS):
        (archive / f"broken {number}.wav").write_bytes(BROKEN[way](Random(number)))
    argv = ("infer", archive, "--runs-root", runs_root, "--model", arena.model, "--workers", "1", "--json")
    result = arena.server.start(*argv).wait()
    assert result.code == 0, result.err
    records = records_of(Path(result.json()["run_directory"]))
    paths = audio_files(archive)
    contents = tuple(
        Path(os.fsdecode(os.path.join(os.fsencode(archive), path))).read_bytes() for path in paths
    )
    return Pool(contents, tuple(records[path] for path in paths))


@dataclass
class ChangingArchive:
    """A small archive below `root`.

    Attributes
    ----------
    files
        Path → number of its content, time of change.
    history
        (path, time of change) → the record of what was there then.
    """

    root: Path
    pool: Pool
    random: Random
    files: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    history: dict[tuple[bytes, int], dict[str, Any]] = field(default_factory=dict)
    _clock: int = 1_600_000_000 * 10**9
    _made: int = 0

    def expected(self) -> Records:
        """Return the records that a complete run must have."""
        return {path: self.history[path, mtime_ns] for path, (_, mtime_ns) in self.files.items()}

    def is_true(self, record: dict[str, Any]) -> bool:
        """Tell whether a record says what was there at some time."""
        return self.history.get((path_of(record), record["mtime_ns"])) == record

    def change(self, times: int) -> None:
        """Add, edit, move, touch and delete files."""
        for _ in range(times):
            kinds = (
                self.add,
                self.add,
                self.edit,
                self.edit,
                self.move,
                self.touch,
                self.delete,
                self.rename,
            )
            self.random.choice(kinds)()

    def add(self) -> None:
        """Add a file; sometimes with a content that another one has."""
        self._made += 1
        folder = self.random.choice(_FOLDERS)
        self._write(b"%s/%d.wav" % (folder, self._made), self.random.randrange(len(self.pool.contents)))

    def edit(self) -> None:
        """Give a file another content."""
        if path := self._any():
            self._write(path, self.random.randrange(len(self.pool.contents)))

    def touch(self) -> None:
        """Give a file another time."""
        if path := self._any():
            self._write(path, self.files[path][0])

    def delete(self) -> None:
        """Remove a file, unless few are left."""
        if len(self.files) > 8 and (path := self._any()):
            del self.files[path]
            os.unlink(self._place(path))

    def move(self) -> None:
        """Move a file; its time stays."""
        if path := self._any():
            self._made += 1
            self._move(path, b"%s/moved %d.wav" % (self.random.choice(_FOLDERS), self._made))

    def rename(self) -> None:
        """Move all files of a directory to another."""
        folder = self.random.choice(_FOLDERS)
        self._made += 1
        for path in [path for path in self.files if path.startswith(folder + b"/")]:
            self._move(path, b"renamed %d/" % self._made + os.path.basename(path))

    def _any(self) -> bytes | None:
        return self.random.choice(sorted(self.files)) if self.files else None

    def _move(self, path: bytes, target: bytes) -> None:
        os.makedirs(os.path.dirname(self._place(target)), exist_ok=True)
        os.rename(self._place(path), self._place(target))
        content, mtime_ns = self.files.pop(path)
        self._note(target, content, mtime_ns)

    def _write(self, path: bytes, content: int) -> None:
        place = self._place(path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        self._clock += _TICK_NS
        with open(place, "wb") as stream:
            stream.write(self.pool.contents[content])
        os.utime(place, ns=(self._clock, self._clock))
        self._note(path, content, self._clock)

    def _note(self, path: bytes, content: int, mtime_ns: int) -> None:
        self.files[path] = content, mtime_ns
        (relative, relative_b64), (absolute, absolute_b64) = map(path_fields, (path, self._place(path)))
        self.history[path, mtime_ns] = {
            **self.pool.records[content],
            "relative_path": relative,
            "relative_path_b64": relative_b64,
            "abs_path": absolute,
            "abs_path_b64": absolute_b64,
            "mtime": mtime_ns / 1e9,
            "mtime_ns": mtime_ns,
        }

    def _place(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.root), path)
