"""Lose power at any moment: of what was not yet synced, anything may be on the disk, in any order.

A command is recorded, call by call. A moment is chosen; what was synced before it is there, and of the rest
anything (see `tests.torture.disk`). From there, the same command does what an undisturbed one does, what
existed before is as it was, and what was reported as done needed nothing unsynced: for `infer`, the records
that must come out and the runs that were complete; for `rebuild` and `undo`, the tree with every content, the
last copies of what the archive does not have any more, and nothing left that drumline made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from drumline.bundle import load_bundle
from drumline.rebuild.log import LOG_NAME
from drumline.verify import Finding, verify_run, verify_tree
from tests.pipeline.support import Result, assert_equal, records_of, tree
from tests.torture.attacks import Arena, Attack
from tests.torture.disk import Call, Disk, Left, put, recorded_calls
from tests.torture.expected import ChangingArchive, pool_of
from tests.torture.faultlayer import fault_layer, impossible

__all__ = ["ATTACK"]

_LOSSES = 8


class _Blackout:
    """One episode: a command is recorded, and power is lost at several of its moments."""

    below = "runs"
    """The directory that lies on the disk that loses power."""

    def __init__(self, arena: Arena, random: Random, place: Path) -> None:
        self.arena, self.random, self.place = arena, random, place
        self._layer = fault_layer(arena)
        self.archive = ChangingArchive(place / "archive", pool_of(arena), random)
        for _ in range(random.randrange(6, 16)):
            self.archive.add()
        self.root, self.runs_root = place / self.below, place / "runs"
        self.root.mkdir()
        self.figures: Counter[str] = Counter()

    def prepare(self) -> None:
        """Make what stands there before."""
        raise NotImplementedError

    def record(self) -> None:
        """Do what is recorded."""
        raise NotImplementedError

    def judge(self) -> None:
        """Give the same command again after power was lost, and see what comes out."""
        raise NotImplementedError

    def judge_what_was_done(self) -> None:
        """See, before anything is done, that what was reported as done is on disk."""
        raise NotImplementedError

    def run(self) -> Counter[str]:
        self.prepare()
        disk = Disk(self.root, self.archive.root)
        with self._layer.armed(self.root, record=True):
            self.record()
        calls = list(recorded_calls(self._layer.record_path))
        for content in self._losses(disk, calls):
            put(self.root, content)
            self.judge()
            self.figures["power losses"] += 1
        put(self.root, disk.lose_power(None))
        self.judge_what_was_done()
        self.figures["recorded calls"] += len(calls)
        self.figures[f"power losses of {type(self).__name__[1:].lower()}"] = self.figures["power losses"]
        return self.figures

    def _losses(self, disk: Disk, calls: list[Call]) -> Iterator[dict[str, Left]]:
        moments = sorted(self.random.randrange(len(calls)) for _ in range(_LOSSES))
        for number, call in enumerate(calls):
            while moments and moments[0] == number:
                moments.pop(0)
                yield disk.lose_power(self.random)
            disk.replay(call)
        yield disk.lose_power(self.random)

    def ended(self, *argv: str | Path, **patches: Any) -> Result:
        """Run a command to its end, whatever that is."""
        running = self._layer.server.start(*argv, **patches)
        result = running.wait()
        running.gone()
        return result

    def infer(self, **patches: Any) -> Path:
        """Run infer to its good end; return its run."""
        options = ("--runs-root", self.runs_root, "--model", self.arena.model, "--workers", "1", "--json")
        argv = ("infer", self.archive.root, *options, "--accept-missing")
        result = self.ended(*argv, frame_lines=3, flush=0.02, **patches)
        assert patches or result.code == 0, result
        return Path(result.json()["run_directory"]) if result.code == 0 else Path()


class _Infer(_Blackout):
    """A run, sometimes one that was killed and the one that goes on with it."""

    def prepare(self) -> None:
        self.runs_root = self.root / "made" / "with it"
        self._complete: dict[Path, object] = {}
        for _ in range(self.random.randrange(3)):
            self._finish()
            self.archive.change(self.random.randrange(1, 5))

    def record(self) -> None:
        if failpoints := self.random.choice(("", "", "index.sync.after=kill-group@2")):
            self.infer(failpoints=failpoints)
        self._finish()

    def _finish(self) -> None:
        self._last = self.infer()
        self._check(self._last)
        self._complete[self._last] = tree(self._last)

    def _check(self, run: Path) -> None:
        assert_equal(records_of(run), self.archive.expected())
        report = verify_run(run)
        assert report.ok, report.findings

    def judge(self) -> None:
        for run in self._complete:
            assert run == self._last or self._stands(run), f"the complete run {run.name} is not as it was"
        self._check(self.infer())

    def judge_what_was_done(self) -> None:
        assert self._stands(self._last), "a run was reported as complete and was not on disk"
        self.judge()

    def _stands(self, run: Path) -> bool:
        before = self._complete[run]
        assert isinstance(before, dict)
        return _contents(run) == {path: entry[3] for path, entry in before.items()}


class _Rebuild(_Blackout):
    """A rebuild, mostly over an earlier tree that is otherwise and may hold last copies."""

    below = "out"

    def prepare(self) -> None:
        self._tree, self._settings = self.root / "made" / "with it" / "tree", self._chosen()
        self._run = self.infer()
        self._is_first = self.random.random() < 0.3
        if not self._is_first:
            self._rebuild(self._chosen())
            self.archive.change(self.random.randrange(1, 6))
            self._run = self.infer()
        self._source, self._kept = tree(self.archive.root), self._held()

    def _chosen(self) -> tuple[str, ...]:
        mode = self.random.choice(("copy", "copy", "copy", "hardlink", "symlink"))
        layout = self.random.choice(("mirror", "flat"))
        threshold = self.random.choice(("0.03", "0.05", "0.5"))
        return "--copy-mode", mode, "--layout", layout, "--threshold", threshold

    def _held(self) -> set[object]:
        """Return the contents that archive and tree hold."""
        held = [*_contents(self.archive.root).values(), *self._samples().values()]
        return {content for content in held if isinstance(content, str)}

    def _samples(self) -> dict[bytes, object]:
        return _samples(self._tree) if self._tree.exists() else {}

    def record(self) -> None:
        self._rebuild(self._settings)
        # A hard link whose original was written to: an undisturbed rebuild leaves it, and verify tells.
        self._edited = {found for found in self._findings() if found.kind == "changed"}
        self._wanted, self._whole = self._samples(), _contents(self._tree)
        self._kept &= self._held()

    def _rebuild(self, settings: tuple[str, ...]) -> None:
        result = self.ended("rebuild", self._run, "--out", self._tree, *settings)
        assert result.code == 0, result

    def judge(self) -> None:
        if self.random.random() < 0.25:
            self._undo()
        else:
            self._rebuild(self._settings)
            assert self._samples() == self._wanted
            self._check()
        self._assert_nothing_lost()

    def _undo(self) -> None:
        if self._tree.exists() and any(self._tree.iterdir()):
            result = self.ended("undo", self._tree)
            # Power may be lost before the directory is drumline's.
            assert result.code == 0 or "nothing to undo" in result.err, result
        assert not self._is_first or not self._samples(), self._samples()

    def _check(self) -> None:
        assert not self._findings() - self._edited, self._findings()

    def _findings(self) -> set[Finding]:
        return set(verify_tree(self._tree, content=True).findings)

    def _assert_nothing_lost(self) -> None:
        assert tree(self.archive.root) == self._source, "the archive was changed"
        assert self._kept <= self._held(), "a last copy was lost"

    def judge_what_was_done(self) -> None:
        # The log may lack its last lines, which tell of removals.
        lost = dict(self._whole.items() - _contents(self._tree).items())
        assert not lost.keys() - {LOG_NAME}, f"reported as made, and not on disk as it was: {lost}"
        self._check()


class _Undo(_Rebuild):
    """An undo of a tree."""

    def prepare(self) -> None:
        super().prepare()
        self._rebuild(self._settings)
        self._kept = self._held()

    def record(self) -> None:
        self._undo()
        self._left = self._samples()
        self._kept &= self._held()

    def judge(self) -> None:
        self._undo()
        assert self._samples() == self._left
        self._assert_nothing_lost()

    def judge_what_was_done(self) -> None:
        assert self._samples() == self._left
        self._assert_nothing_lost()


class _Bundle(_Blackout):
    """A bundle that is made."""

    below = "bundles"

    def prepare(self) -> None:
        self._bundle = self.root / "made" / "with it" / "stub"

    def record(self) -> None:
        result = self.ended("create-stub", "--output", self._bundle)
        assert result.code == 0, result
        self._whole = _contents(self._bundle)

    def judge(self) -> None:
        if not self._bundle.exists():
            self.record()
        assert load_bundle(self._bundle).name == "stub"
        assert _contents(self._bundle) == self._whole

    def judge_what_was_done(self) -> None:
        assert _contents(self._bundle) == self._whole, "a bundle was reported as made and was not on disk"


def _contents(root: Path) -> dict[bytes, object]:
    return {path: entry[3] for path, entry in tree(root).items()}


def _samples(out: Path) -> dict[bytes, object]:
    """Return the content, or the target, of what a tree holds besides drumline's own reports."""
    found = _contents(out).items()
    return {path: content for path, content in found if content and not path.startswith(b"_")}


_SUBJECTS = (_Infer, _Rebuild, _Undo, _Bundle, _Infer, _Rebuild)


def _episode(arena: Arena, random: Random, number: int) -> Counter[str]:
    with arena.directory() as place:
        return _SUBJECTS[number % len(_SUBJECTS)](arena, random, place).run()


ATTACK = Attack(
    what="lose power at any moment of any command that writes, with any part of what was not synced",
    unit="power losses",
    full=1_000,
    short=20,
    episode=_episode,
    impossible=impossible,
)
