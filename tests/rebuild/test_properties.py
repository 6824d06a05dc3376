"""For any index, settings, and things that people do in between: what rebuild promises."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drumline.rebuild import execute, undo
from drumline.rebuild.names import collision_key
from tests.conftest import MEMORY
from tests.making import paths
from tests.rebuild.archives import CLAP, HIHAT, KICK, SNARE, Archive, snapshot

PROBS = st.sampled_from([KICK, SNARE, HIHAT, CLAP])
PARTS = st.sampled_from(
    [b"a", b"A", b"b", b"a.wav", b"A.WAV", b"\xc3\xa9", b"e\xcc\x81", b"~", b"\xff", b"\n"]
)
NEAR = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
"""Paths of few parts, so that they collide in every way."""

EVIL = st.one_of(
    st.sampled_from([b"..", b"../x", b"a/../../x", b"/x", b"/etc/passwd", b"", b".", b"a/.", b"//", b"a\0"]),
    st.binary(max_size=30),
)
LABELS = st.one_of(
    st.sampled_from(["..", "/", "_manifests", "errors", "Kick/..", "a" * 300]), st.text(max_size=8)
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "copy_mode": st.sampled_from(["copy", "hardlink", "symlink", "none"]),
        "layout": st.sampled_from(["mirror", "flat"]),
        "dedup": st.sampled_from(["keep-all", "first"]),
        "threshold": st.sampled_from([0.0, 0.55, 0.95]),
        "labels": st.sampled_from([("Kick",), ("Snare", "Hihat")]),
    },
)
CONTENTS = st.sampled_from([b"same", b"other", b"third"])
FILES = st.lists(st.tuples(st.one_of(NEAR, paths), PROBS, CONTENTS), max_size=8)
CRAFTED = st.lists(st.tuples(EVIL, LABELS), max_size=4)

quickly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def archive_of(files: Any, crafted: Any = ()) -> Iterator[Archive]:
    base = Path(tempfile.mkdtemp(prefix="drumline-test-", dir=MEMORY if MEMORY.is_dir() else None))
    archive = Archive(base)
    try:
        for path, probs, content in files:
            with suppress(OSError):  # a file where the path needs a directory, or the other way round
                if not os.path.lexists(archive.path(path)):
                    archive.add(path, probs, content)
        for path, label in crafted:
            archive.index(path, assigned_label=label)
        yield archive
    finally:
        shutil.rmtree(base)


def outside(archive: Archive) -> dict[bytes, tuple[str, bytes]]:
    """Return all that stands beside the tree."""
    entries = snapshot(os.fsencode(archive.base))
    return {path: entry for path, entry in entries.items() if path.split(b"/")[0] != b"out"}


@quickly
@given(FILES, CRAFTED, OPTIONS)
def test_nothing_outside_is_written_the_plan_is_what_is_done_and_undo_restores(
    files: Any, crafted: Any, options: dict[str, Any]
) -> None:
    with archive_of(files, crafted) as archive:
        run = archive.run()
        before = snapshot(os.fsencode(archive.base))
        with archive.plan(run, **options) as plan:
            planned = {action.target: action.source for action in plan.actions() if action.state == "make"}
            counts = dict(plan.counts)
            summary = execute(plan)
        assert outside(archive) == before
        assert summary.counts["made"] == counts.get("make", 0)
        tree = archive.tree()
        assert set(tree) == set(planned)
        assert len({collision_key(target) for target in tree}) == len(tree)
        for target, source in planned.items():
            with open(os.path.join(os.fsencode(archive.out), target), "rb") as copy:
                assert copy.read() == before[b"archive/" + source][1]
        assert undo(archive.out).complete
        assert snapshot(os.fsencode(archive.base)) == before


@quickly
@given(FILES, OPTIONS)
def test_every_indexed_file_is_in_the_tree_once(files: Any, options: dict[str, Any]) -> None:
    options = {**options, "dedup": "keep-all", "copy_mode": "hardlink"}
    with archive_of(files) as archive:
        archive.rebuild(**options)
        originals = sorted(entry[1] for entry in snapshot(archive.root).values() if entry[0] == "file")
        assert sorted(archive.tree().values()) == originals


DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("rebuild"), OPTIONS),
        st.tuples(st.just("add"), NEAR),
        st.tuples(st.just("edit"), st.integers(0, 7)),
        st.tuples(st.just("link"), st.integers(0, 7)),
        st.tuples(st.just("lose"), st.integers(0, 7)),
    ),
    max_size=6,
)


@quickly
@given(FILES, OPTIONS, DEEDS)
def test_whatever_people_do_in_between_nothing_of_theirs_and_no_sample_is_lost(
    files: Any, options: dict[str, Any], deeds: Any
) -> None:
    with archive_of(files) as archive:
        run = archive.run()
        victim = archive.base / "victim"
        victim.mkdir()
        (victim / "precious").write_bytes(b"precious")
        before = outside(archive)
        archive.rebuild(run, **options)
        theirs: dict[bytes, tuple[str, bytes]] = {}
        for deed, what in deeds:
            if deed == "rebuild":
                archive.rebuild(run, **what)
            else:
                _do(archive, deed, what, theirs, victim)
            now = snapshot(os.fsencode(archive.out))
            assert {path: now.get(path) for path in theirs} == theirs
            assert outside(archive) == before
        summary = undo(archive.out)
        assert summary.complete
        left = snapshot(os.fsencode(archive.out)) if archive.out.exists() else {}
        assert {path: entry for path, entry in left.items() if entry[0] != "directory"} == theirs
        assert outside(archive) == before


def _do(archive: Archive, deed: str, what: Any, theirs: dict[bytes, tuple[str, bytes]], victim: Path) -> None:
    """Add a file, or edit, replace by a link, or remove one of the tree, as a person would."""
    if deed == "add":
        _add(archive, b"Kick/" + what, theirs)
        return
    targets = sorted(set(archive.tree()) - set(theirs))
    if not targets:
        return
    target = targets[what % len(targets)]
    place = os.path.join(os.fsencode(archive.out), target)
    os.remove(place)  # editors write a new file
    if deed == "edit":
        with open(place, "xb") as stream:
            stream.write(b"edited by a person")
        theirs[target] = "file", b"edited by a person"
    elif deed == "link":
        os.symlink(os.fsencode(victim), place)
        theirs[target] = "link", os.fsencode(victim)


def _add(archive: Archive, path: bytes, theirs: dict[bytes, tuple[str, bytes]]) -> None:
    place = os.path.join(os.fsencode(archive.out), path)
    with suppress(OSError):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "xb") as stream:
            stream.write(b"added by a person")
        theirs[path] = "file", b"added by a person"
