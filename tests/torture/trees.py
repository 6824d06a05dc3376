"""Kill rebuild, undo and repair anywhere; the same command, or undo, then does what an undisturbed one does.

After each kill: the archive is as it was, no process is left after 5 s. When the same command has come to its
end: the tree is that of an undisturbed rebuild, `drumline verify` finds it in order, and undo leaves nothing.
A run that was damaged and repaired, with repair killed on the way, goes on to exactly the records it had.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from drumline.failpoints import STEPS
from drumline.verify import verify_run, verify_tree
from tests.pipeline.support import Result, Running, assert_equal, records_of, tree
from tests.torture.attacks import Arena, Attack
from tests.torture.expected import ChangingArchive, pool_of

__all__ = ["ATTACK"]

_KILLS, _FILES = 12, 24
_TREE_STEPS = [name for name in STEPS if name.startswith(("log.", "tree.", "report."))]
_REPAIR_STEPS = [name for name in STEPS if name.startswith(("repair.", "index.", "durable.", "cache."))]


class _Siege:
    """One episode: an archive, a complete run of it, a tree."""

    def __init__(self, arena: Arena, random: Random, place: Path) -> None:
        self._arena, self._random, self._place = arena, random, place
        self._archive = ChangingArchive(place / "archive", pool_of(arena), random)
        for _ in range(_FILES):
            self._archive.add()
        self._before = tree(self._archive.root)
        self._out = place / "tree"
        self._run = self._infer()
        self.figures: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        for _ in range(_KILLS):
            work = self._random.choice((self._rebuild, self._rebuild, self._undo, self._repair))
            work()
            assert tree(self._archive.root) == self._before, "the archive was changed"
        return self.figures

    def _infer(self) -> Path:
        archive, runs_root, model = self._archive.root, self._place / "runs", self._arena.model
        options = ("--runs-root", runs_root, "--model", model, "--workers", "1", "--json")
        result = self._ended("infer", archive, *options, frame_lines=8)
        assert result.code == 0, result
        run = Path(result.json()["run_directory"])
        assert_equal(records_of(run), self._archive.expected())
        return run

    def _settings(self) -> tuple[str, ...]:
        mode = self._random.choice(("copy", "hardlink", "symlink"))
        layout = self._random.choice(("mirror", "flat"))
        threshold = self._random.choice(("0.03", "0.05", "0.5"))
        return "--copy-mode", mode, "--layout", layout, "--threshold", threshold

    def _rebuild(self) -> None:
        settings = self._settings()
        killed = self._killed(_TREE_STEPS, "rebuild", self._run, "--out", self._out, *settings)
        if killed and self._random.random() < 0.3:
            self._undo()
            return
        result = self._ended("rebuild", self._run, "--out", self._out, *settings, "--json")
        assert result.code == 0, result
        undisturbed = self._place / "undisturbed"
        assert self._ended("rebuild", self._run, "--out", undisturbed, *settings).code == 0
        assert _samples(self._out) == _samples(undisturbed)
        shutil.rmtree(undisturbed)
        report = verify_tree(self._out)
        assert report.ok, report.findings
        self.figures["trees completed"] += 1

    def _undo(self) -> None:
        if not self._out.exists():
            return
        self._killed(_TREE_STEPS, "undo", self._out)
        if self._out.exists() and any(self._out.iterdir()):
            result = self._ended("undo", self._out)
            assert result.code == 0, result
        assert not self._out.exists() or not any(self._out.iterdir()), sorted(self._out.iterdir())
        shutil.rmtree(self._out, ignore_errors=True)
        self.figures["trees undone"] += 1

    def _repair(self) -> None:
        self._damage()
        self._killed(_REPAIR_STEPS, "repair", self._run)
        result = self._ended("repair", self._run)
        assert result.code == 0, result
        report = verify_run(self._run)
        assert report.ok, report.findings
        self._run = self._infer()
        self.figures["runs repaired"] += 1

    def _damage(self) -> None:
        index, cache = self._run / "index.jsonl.zst", self._run.parent / "cache.sqlite"
        victim = self._random.choice((index, index, index, cache, self._run / "summary.json"))
        data = bytearray(victim.read_bytes())
        if self._random.random() < 0.3:
            del data[self._random.randrange(len(data)) :]
        else:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        victim.unlink()  # a repaired index may share its file with what repair kept
        victim.write_bytes(data)

    def _killed(self, steps: list[str], *argv: str | Path) -> bool:
        """Start a command and kill it, at a failpoint or at any moment; tell whether that hit it."""
        if self._random.random() < 0.7:
            step, moment = self._random.choice(steps), self._random.choice(("before", "after"))
            number = self._random.choice((1, 1, 2, 3, 5))
            place, patches = f"{moment} {step}", {"failpoints": f"{step}.{moment}=kill@{number}"}
        else:
            place, patches = "at a moment", {}
        running = self._arena.server.start(*argv, **patches)
        if not patches:
            time.sleep(self._random.uniform(0, 0.12))
            running.signal_group(signal.SIGKILL)
        code = self._wait(running).code
        assert code in (0, -signal.SIGKILL), code
        hit = code != 0
        self.figures["kills" if hit else "missed"] += 1
        self.figures[f"{argv[0]} killed {place}"] += hit
        return hit

    def _ended(self, *argv: str | Path, **patches: Any) -> Result:
        return self._wait(self._arena.server.start(*argv, **patches))

    def _wait(self, running: Running) -> Result:
        result = running.wait()
        running.gone()
        return result


def _samples(out: Path) -> dict[bytes, object]:
    """Return what a tree holds besides drumline's own reports: path → size, content or target."""
    return {path: (entry[1], entry[3]) for path, entry in tree(out).items() if not path.startswith(b"_")}


def _episode(arena: Arena, random: Random, _number: int) -> Counter[str]:
    with arena.directory() as place:
        return _Siege(arena, random, place).run()


ATTACK = Attack(
    what="kill rebuild, undo and repair at any moment and at every failpoint",
    unit="kills",
    full=500,
    short=10,
    episode=_episode,
)
