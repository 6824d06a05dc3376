"""Rebuild, undo, and people who change archive and tree in between, in any order: what always holds."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drumline.errors import DrumlineError
from drumline.rebuild import execute, undo
from tests.conftest import MEMORY
from tests.rebuild.archives import Archive, snapshot, stat_fields
from tests.rebuild.test_properties import CONTENTS, EVIL, LABELS, NEAR, OPTIONS, PROBS

Entries = dict[bytes, tuple[str, bytes]]
PLACES = st.integers(0, 20)
EDITED = b"edited in the archive"


class Collection(RuleBasedStateMachine):
    """An archive, its tree, and a neighbour's directory that nobody may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="drumline-test-", dir=MEMORY if MEMORY.is_dir() else None))
        self.archive = Archive(self.base)
        self.victim = self.base / "victim"
        self.victim.mkdir()
        (self.victim / "precious").write_bytes(b"precious")
        self.theirs: Entries = {}
        self.samples = {b"first", EDITED}
        self.placed: dict[bytes, bytes] = {}
        self.unseen: set[bytes] = set()

    def teardown(self) -> None:
        try:
            if self.archive.out.exists():
                self._undo()
        finally:
            shutil.rmtree(self.base)

    @initialize(path=NEAR, probs=PROBS)
    def begin(self, path: bytes, probs: dict[str, float]) -> None:
        self.archive.add(path, probs, b"first")
        self.placed[path] = b"first"

    @rule(path=NEAR, probs=PROBS, content=CONTENTS)
    def index_a_file(self, path: bytes, probs: dict[str, float], content: bytes) -> None:
        with suppress(OSError):  # a file where the path needs a directory, or the other way round
            if not os.path.lexists(self.archive.path(path)):
                self.archive.add(path, probs, content)
                # What is indexed again with other content is followed: the tree's copy of the old one goes.
                old, self.placed[path] = self.placed.get(path, content), content
                self.samples.add(content)
                if old not in self.placed.values():
                    self.samples.discard(old)

    @rule(path=EVIL, label=LABELS)
    def craft_a_record(self, path: bytes, label: str) -> None:
        self.archive.index(path, assigned_label=label)

    @rule(place=PLACES, gone=st.booleans())
    def change_the_archive(self, place: int, gone: bool) -> None:
        """A person edits or removes a sample; the index does not know."""
        files = sorted(path for path, entry in snapshot(self.archive.root).items() if entry[0] == "file")
        if files:
            path = self.archive.path(files[place % len(files)])
            os.remove(path)
            if not gone:
                Path(os.fsdecode(path)).write_bytes(EDITED)

    @rule(place=PLACES)
    def a_disk_damages_a_sample(self, place: int) -> None:
        """Its content is gone, its size and time are not; the next index says that it failed."""
        files = sorted(path for path, entry in snapshot(self.archive.root).items() if entry[0] == "file")
        if files:
            name = files[place % len(files)]
            path = self.archive.path(name)
            status = os.stat(path)
            self.unseen.add(Path(os.fsdecode(path)).read_bytes())
            Path(os.fsdecode(path)).write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            self.archive.index(name, error="decode_error", **stat_fields(path))

    @precondition(lambda self: self.archive.out.exists())
    @rule(place=PLACES)
    def leave_a_link_in_the_archive(self, place: int) -> None:
        """A program that removes duplicates keeps the tree's file, and puts a link to it into the archive."""
        tree = {content: path for path, content in self.archive.tree().items()}
        files = sorted(path for path, entry in snapshot(self.archive.root).items() if entry[0] == "file")
        if not files:
            return
        path = self.archive.path(files[place % len(files)])
        content = Path(os.fsdecode(path)).read_bytes()
        if content in tree and not os.path.islink(os.path.join(os.fsencode(self.archive.out), tree[content])):
            os.remove(path)
            os.symlink(os.path.join(os.fsencode(self.archive.out), tree[content]), path)

    @rule(options=OPTIONS, correct=st.none() | st.tuples(PLACES, st.sampled_from(["Kick", "Snare", "misc"])))
    def rebuild(self, options: dict[str, Any], correct: tuple[int, str] | None) -> None:
        if correct:
            record = self.archive.records[correct[0] % len(self.archive.records)]
            line = {"hash": record["hash"], "correct_label": correct[1]}
            (self.base / "overrides.jsonl").write_text(json.dumps(line) + "\n")
            options = {**options, "overrides": self.base / "overrides.jsonl"}
        run = self.archive.run()
        before, samples = self._outside(), self._samples()
        with suppress(DrumlineError), self.archive.plan(run, **options) as plan:
            planned = {action.target for action in plan.actions() if action.state in ("make", "replace")}
            there = set(self.archive.tree()) if self.archive.out.exists() else set()
            summary = execute(plan)
            assert summary.counts["made"] == len(planned)
            assert set(self.archive.tree()) - there <= planned
            assert planned <= set(self.archive.tree())
            if options.get("copy_mode") != "none":
                self.unseen.clear()
        assert self._outside() == before
        assert samples <= self._samples()

    @precondition(lambda self: self.archive.out.exists())
    @rule(path=NEAR, label=st.sampled_from([b"Kick", b"Snare", b"misc", b"_manifests", b"_staging", b"mine"]))
    def add_to_the_tree(self, path: bytes, label: bytes) -> None:
        place = os.path.join(os.fsencode(self.archive.out), label, path)
        if label in self.theirs:
            return  # a link: to go through it is the person's own doing
        with suppress(OSError):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "xb") as stream:
                stream.write(b"added by a person")
            self.theirs[label + b"/" + path] = "file", b"added by a person"

    @precondition(lambda self: self.archive.out.exists())
    @rule(label=st.sampled_from([b"Kick", b"Snare", b"misc", b"Hihat", b"_staging"]))
    def plant_a_link(self, label: bytes) -> None:
        """A directory of the tree leads to the neighbour's."""
        place = os.path.join(os.fsencode(self.archive.out), label)
        if not os.path.lexists(place):
            os.symlink(os.fsencode(self.victim), place)
            self.theirs[label] = "link", os.fsencode(self.victim)

    @precondition(lambda self: self.archive.out.exists())
    @rule(place=PLACES, link=st.booleans())
    def replace_in_the_tree(self, place: int, link: bool) -> None:
        targets = sorted(set(self.archive.tree()) - set(self.theirs))
        if not targets:
            return
        target = targets[place % len(targets)]
        path = os.path.join(os.fsencode(self.archive.out), target)
        os.remove(path)
        if link:
            os.symlink(os.fsencode(self.victim / "precious"), path)
            self.theirs[target] = "link", os.fsencode(self.victim / "precious")
        else:
            Path(os.fsdecode(path)).write_bytes(b"edited by a person")
            self.theirs[target] = "file", b"edited by a person"

    @precondition(lambda self: self.archive.out.exists())
    @rule()
    def take_it_back(self) -> None:
        self._undo()

    def _undo(self) -> None:
        # No rebuild has been told by an index yet of what is damaged without a trace.
        before, samples = self._outside(), self._samples() - self.unseen
        with suppress(DrumlineError):  # nothing of drumline's is there
            summary = undo(self.archive.out)
            left = snapshot(os.fsencode(self.archive.out)) if self.archive.out.exists() else {}
            ours = {path for path, entry in left.items() if entry[0] != "directory"} - set(self.theirs)
            kept = {path for path in ours if not path.startswith(b"_")}
            assert len(kept) == summary.last_copies
        assert self._outside() == before
        assert samples <= self._samples()

    @invariant()
    def nothing_of_theirs_was_touched(self) -> None:
        now = snapshot(os.fsencode(self.archive.out)) if self.archive.out.exists() else {}
        assert {path: now.get(path) for path in self.theirs} == self.theirs
        assert snapshot(os.fsencode(self.victim)) == {b"precious": ("file", b"precious")}

    def _samples(self) -> set[bytes]:
        """Return the samples' contents that a regular file anywhere holds."""
        entries = snapshot(os.fsencode(self.base)).values()
        return {content for kind, content in entries if kind == "file"} & self.samples

    def _outside(self) -> Entries:
        entries = snapshot(os.fsencode(self.base))
        return {path: entry for path, entry in entries.items() if path.split(b"/")[0] != b"out"}


Collection.TestCase.settings = settings(
    max_examples=30, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCollection = Collection.TestCase
