"""Let every system call fail that writes, once each, for each command that writes.

After each: the exit code and the message say what happened; what existed before is intact; the same command,
once the fault is gone, does what an undisturbed one does.
"""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from drumline.bundle import load_bundle
from drumline.verify import verify_run, verify_tree
from tests.pipeline.support import Result, assert_equal, copy, records_of, tree
from tests.torture.attacks import Arena, Attack
from tests.torture.expected import ChangingArchive, pool_of
from tests.torture.faultlayer import ERRORS, fault_layer, impossible

__all__ = ["ATTACK", "SUBJECTS", "case_of"]

_CALLS = 8
"""Calls that fail in one episode, one after the other."""

_CANNOT_READ, _NOT_AS_IT_SHOULD_BE = 7, 11
_SPARE = 24
"""How far beyond the last call of an undisturbed command to go: how many there are depends on timing."""


class Subject:
    """A command that writes, in a place that can be brought back.

    Parameters
    ----------
    arena
        Where it is started.
    place
        An empty directory: archive, runs root and output are made in it.
    """

    below = "runs"
    """The directory in which calls fail."""

    codes: frozenset[int] = frozenset({0, 8})
    """What it may end with."""

    def __init__(self, arena: Arena, place: Path) -> None:
        self.arena, self.place = arena, place
        self.layer = fault_layer(arena)
        self.archive = ChangingArchive(place / "archive", pool_of(arena), Random(5))
        for _ in range(6):
            self.archive.add()
        (place / "runs").mkdir()
        self.prepare()
        self._saved = copy(place, place.with_name(place.name + " saved"))
        with self.layer.armed(place / self.below):
            result = self.start()
        assert result.code == 0, result
        self.check(result)
        self.calls = self.layer.calls

    def restore(self) -> None:
        """Bring back what was prepared."""
        shutil.rmtree(self.place)
        copy(self._saved, self.place)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.place)
        shutil.rmtree(self._saved)

    def prepare(self) -> None:
        """Make what stands there before the command."""

    @abstractmethod
    def start(self) -> Result:
        """Do the command."""

    @abstractmethod
    def check(self, result: Result) -> None:
        """See that it did what it should."""

    def intact(self) -> None:
        """See that what existed before is as it was."""

    def run(self, *argv: str | Path, **patches: Any) -> Result:
        running = self.layer.server.start(*argv, **patches)
        result = running.wait()
        running.gone()
        return result

    def infer(self) -> Result:
        options = ("--runs-root", self.place / "runs", "--model", self.arena.model, "--workers", "1")
        return self.run("infer", self.archive.root, *options, "--accept-missing", "--json", frame_lines=3)

    def check_run(self, result: Result) -> None:
        run = Path(result.json()["run_directory"])
        assert_equal(records_of(run), self.archive.expected())
        report = verify_run(run)
        assert report.ok, report.findings
        assert report.complete


class FirstRun(Subject):
    """Infer, with nothing there before."""

    def start(self) -> Result:
        return self.infer()

    def check(self, result: Result) -> None:
        self.check_run(result)


class LaterRun(FirstRun):
    """Infer of an archive that has changed since the last run."""

    def prepare(self) -> None:
        result = self.infer()
        assert result.code == 0, result
        self.earlier = Path(result.json()["run_directory"])
        self.content = tree(self.earlier)
        self.archive.change(4)

    def intact(self) -> None:
        assert tree(self.earlier) == self.content


class LostCache(LaterRun):
    """Infer without the cache, which is made anew from the indexes."""

    def prepare(self) -> None:
        super().prepare()
        (self.place / "runs" / "cache.sqlite").unlink()


class Superseded(LaterRun):
    """The end of a run that was interrupted before the archive changed: its index is written anew."""

    def prepare(self) -> None:
        super().prepare()
        options = ("--runs-root", self.place / "runs", "--model", self.arena.model, "--workers", "1")
        argv = ("infer", self.archive.root, *options, "--accept-missing")
        result = self.run(*argv, frame_lines=3, flush=0.01, failpoints="durable.write.before=kill@2")
        assert result.code == -9, result
        self.archive.edit()
        self.archive.delete()


class Rebuild(Subject):
    """Rebuild over an earlier tree that is otherwise."""

    below = "tree"
    settings: tuple[str, ...] = ("--copy-mode", "copy", "--threshold", "0.05")

    def prepare(self) -> None:
        result = self.infer()
        assert result.code == 0, result
        self.source = Path(result.json()["run_directory"])
        earlier = ("--copy-mode", "symlink", "--threshold", "0.5", "--layout", "flat")
        wanted = self.place.with_name(self.place.name + " wanted")
        for out, settings in ((wanted, self.settings), (self.place / "tree", earlier)):
            result = self.run("rebuild", self.source, "--out", out, *settings)
            assert result.code == 0, result
        self.wanted = _samples(wanted)
        shutil.rmtree(wanted)

    def start(self) -> Result:
        return self.run("rebuild", self.source, "--out", self.place / "tree", *self.settings)

    def check(self, result: Result) -> None:
        assert _samples(self.place / "tree") == self.wanted
        report = verify_tree(self.place / "tree")
        assert report.ok, report.findings


class Undo(Rebuild):
    """Undo of a tree."""

    def start(self) -> Result:
        return self.run("undo", self.place / "tree") if self._left() else Result(0, "", "", 0.0)

    def check(self, result: Result) -> None:
        assert not self._left(), self._left()

    def _left(self) -> list[Path]:
        """Return what is in the tree; an empty directory is nobody's."""
        return list((self.place / "tree").iterdir()) if (self.place / "tree").exists() else []


class Repair(Subject):
    """Repair of a run whose index and summary are damaged; it looks at the end whether all is in order."""

    codes = frozenset({0, 8, _NOT_AS_IT_SHOULD_BE})

    def prepare(self) -> None:
        result = self.infer()
        assert result.code == 0, result
        self.source = Path(result.json()["run_directory"])
        index = self.source / "index.jsonl.zst"
        index.write_bytes(index.read_bytes() + b"torn")
        (self.source / "summary.json").write_text("{")

    def start(self) -> Result:
        return self.run("repair", self.source)

    def check(self, result: Result) -> None:
        """See that the run is in order, and goes on to exactly its records: what was torn off is nobody's."""
        report = verify_run(self.source)
        assert report.ok, report.findings
        again = self.infer()
        assert Path(again.json()["run_directory"]) == self.source
        self.check_run(again)


class Bundle(Subject):
    """Writing a bundle."""

    below = "bundles"

    def prepare(self) -> None:
        (self.place / "bundles").mkdir()
        self._made = False

    def start(self) -> Result:
        """Write it anew. What failed before must not be in the way; what was made would be."""
        if self._made:
            shutil.rmtree(self.place / "bundles" / "stub", ignore_errors=True)
        result = self.run("create-stub", "--output", self.place / "bundles" / "stub")
        self._made = result.code == 0
        return result

    def check(self, result: Result) -> None:
        assert load_bundle(self.place / "bundles" / "stub").name == "stub"
        assert os.listdir(self.place / "bundles") == ["stub"]

    def intact(self) -> None:
        if (self.place / "bundles" / "stub").exists():
            self.check(Result(0, "", "", 0.0))


SUBJECTS: dict[str, Callable[[Arena, Path], Subject]] = {
    "first run": FirstRun,
    "later run": LaterRun,
    "lost cache": LostCache,
    "superseded records": Superseded,
    "rebuild": Rebuild,
    "undo": Undo,
    "repair": Repair,
    "bundle": Bundle,
}


_BLOCKS = 64
_PLACES = _BLOCKS * len(SUBJECTS)
_HOP = 317  # about the golden section, and coprime to the number of places


def _samples(out: Path) -> dict[bytes, object]:
    return {path: (entry[1], entry[3]) for path, entry in tree(out).items() if not path.startswith(b"_")}


def _subject(arena: Arena, name: str) -> Subject:
    subject: Subject = arena.shared(f"subject {name}", lambda place: SUBJECTS[name](arena, place / "place"))
    return subject


def case_of(number: int) -> tuple[str, int, int]:
    """Return an episode's subject, first call and shift of the errors, which depend on its number alone.

    All calls come once with some error before any comes with another, and soon some from everywhere, also
    when only every second or fourth number comes.
    """
    shift, place = divmod(number, _PLACES)
    block, turn = divmod(place * _HOP % _PLACES, len(SUBJECTS))
    return list(SUBJECTS)[(turn + block) % len(SUBJECTS)], 1 + block * _CALLS, shift


def _episode(arena: Arena, _random: Random, number: int) -> Counter[str]:
    name, first, shift = case_of(number)
    subject, figures = _subject(arena, name), Counter[str]()
    assert subject.calls + _SPARE < _BLOCKS * _CALLS, f"{name} makes {subject.calls} calls"
    errors = list(ERRORS)
    for call in range(first, min(first + _CALLS, subject.calls + _SPARE)):
        _fail(subject, call, errors[(call + shift) % len(errors)], figures)
    return figures


def _fail(subject: Subject, call: int, error: str, figures: Counter[str]) -> None:
    subject.restore()
    layer = subject.layer
    with layer.armed(subject.place / subject.below, call, ERRORS[error]):
        result = subject.start()
    if not layer.struck:
        figures["beyond the last call"] += 1
        return
    figures["failing calls"] += 1
    figures[f"{error}, exit code {result.code}"] += 1
    try:
        cannot_read = result.code == _CANNOT_READ and "cannot read" in result.err
        assert result.code in subject.codes or cannot_read, result
        assert "Traceback" not in result.err
        assert "please report" not in result.err, result.err
        said = result.out if result.code == _NOT_AS_IT_SHOULD_BE else result.err
        assert result.code == 0 or len(said.splitlines()) >= 2, result
        subject.intact()
        again = subject.start()
        assert again.code == 0, again
        subject.check(again)
    except Exception as failure:
        failure.add_note(f"{type(subject).__name__}: call {call} ({layer.where}) got {error}: {result}")
        raise


ATTACK = Attack(
    what="let every call that writes fail, once each, with every error",
    unit="failing calls",
    full=1_000_000,
    short=16,
    episode=_episode,
    impossible=impossible,
    episodes=lambda _arena: len(ERRORS) * _PLACES,
)
