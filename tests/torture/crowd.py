"""Put very many files into one directory: through infer, a rescan, a rebuild and its undo, killed on the way.

Every entry has its record, also after the kill; the rescan reads none again; a tree with as many entries in
one directory is whole, also after a kill that left the helpers of its rebuild alone, and undo leaves nothing
of it, also after a kill.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.making import write_tone
from tests.pipeline.support import Result, records_of
from tests.torture.attacks import Arena, Attack

__all__ = ["ATTACK"]

_ENTRIES = (5_000, 200_000)
_SOUNDS = 10
"""Some file systems let a file have 65,000 names; archive and tree together give each no more."""

_LIMIT_SEC = 600.0


class _Crowd:
    """One episode: a directory of so many entries."""

    def __init__(self, arena: Arena, random: Random, place: Path, entries: int) -> None:
        self._arena, self._random, self._place, self._entries = arena, random, place, entries
        self._archive, self._runs_root, self._tree = place / "archive", place / "runs", place / "tree"
        self._write()

    def _write(self) -> None:
        self._archive.mkdir()
        for number in range(_SOUNDS):
            write_tone(self._archive / f"{number:06}.wav", hertz=100 + 50 * number)
        folder = os.fspath(self._archive)
        for number in range(_SOUNDS, self._entries):
            os.link(f"{folder}/{number % _SOUNDS:06}.wav", f"{folder}/{number:06}.wav")

    def run(self) -> Counter[str]:
        self._kill(self._argv(), self._is_indexing)
        first = self._infer()
        assert first.counts["discovered"] == first.counts["classified"] == self._entries, first
        run = Path(first.json()["run_directory"])
        assert sorted(records_of(run)) == [b"%06d.wav" % number for number in range(self._entries)]
        assert self._infer().counts["carried_over"] == self._entries
        self._rebuild()
        return Counter({"entries": self._entries, "commands": 5, "commands killed": 3})

    def _argv(self) -> tuple[str | Path, ...]:
        options = ("--runs-root", self._runs_root, "--model", self._arena.model, "--workers", "2", "--json")
        return "infer", self._archive, *options

    def _is_indexing(self) -> bool:
        return any(index.stat().st_size for index in self._runs_root.glob("run_*/index*"))

    def _infer(self) -> Result:
        return self._done(*self._argv())

    def _rebuild(self) -> None:
        """All files in one directory: those of which nothing is believed are misc."""
        settings = ("--copy-mode", "hardlink", "--layout", "flat", "--threshold", "1")
        rebuild = ("rebuild", self._runs_root, "--out", self._tree, *settings)
        self._kill(rebuild, lambda: self._placed() > self._entries // 10, alone=True)
        self._done(*rebuild)
        assert self._placed() == self._entries
        self._done("verify", self._tree)
        self._kill(("undo", self._tree), lambda: self._placed() < self._entries * 9 // 10)
        self._done("undo", self._tree)
        assert not self._tree.exists()

    def _placed(self) -> int:
        misc = self._tree / "misc"
        return len(os.listdir(misc)) if misc.exists() else 0

    def _kill(self, argv: tuple[str | Path, ...], when: Callable[[], bool], *, alone: bool = False) -> None:
        """Kill a command, or its main process alone, at some point of its work."""
        running = self._arena.server.start(*argv)
        running.reach(when, "point of its work")
        running.signal(signal.SIGKILL) if alone else running.signal_group(signal.SIGKILL)
        assert running.wait(_LIMIT_SEC).code == -signal.SIGKILL
        running.gone()

    def _done(self, *argv: str | Path) -> Result:
        result = self._arena.server.start(*argv).wait(_LIMIT_SEC)
        assert result.code == 0, result
        return result


def _episode(arena: Arena, random: Random, number: int) -> Counter[str]:
    with arena.directory() as place:
        return _Crowd(arena, random, place, _ENTRIES[number]).run()


ATTACK = Attack(
    what="200,000 entries in one directory, in an archive and in a tree",
    unit="entries",
    full=sum(_ENTRIES),
    short=_ENTRIES[0],
    episode=_episode,
    episodes=lambda _arena: len(_ENTRIES),
)
