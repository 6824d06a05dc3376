from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from drumline.errors import OutputError
from drumline.rebuild import execute, place, site, undo
from drumline.rebuild.tree import Tree
from tests.rebuild.archives import Archive, snapshot

MODES = pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink", "none"])


@MODES
@pytest.mark.parametrize("existed", [False, True])
def test_undo_leaves_what_was_there_before(drums: Archive, mode: str, existed: bool) -> None:
    run = drums.run()
    if existed:
        drums.out.mkdir()
    before = snapshot(os.fsencode(drums.base))
    drums.rebuild(run, copy_mode=mode)
    summary = undo(drums.out)
    assert snapshot(os.fsencode(drums.base)) == before
    assert summary.removed == (0 if mode == "none" else 5)
    assert summary.complete


def test_undo_after_several_rebuilds_leaves_nothing(drums: Archive) -> None:
    run = drums.run()
    for settings in (
        {"copy_mode": "symlink"},
        {"layout": "flat"},
        {"labels": ("Kick",), "copy_mode": "hardlink"},
    ):
        drums.rebuild(run, **settings)
    undo(drums.out)
    assert not drums.out.exists()


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_what_somebody_added_or_changed_stays(drums: Archive, mode: str) -> None:
    drums.rebuild(copy_mode=mode)
    mine = {
        "Kick/Vendor A/mine.wav": b"mine",
        "Hihat/Vendor B/hat.wav": b"replaced by mine",
        "_manifests/notes.txt": b"notes",
        "_stats.json": b"edited",
        "Folder/x": b"x",
    }
    for name, content in mine.items():
        path = drums.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    (drums.out / "Kick" / "Empty").mkdir()
    summary = undo(drums.out)
    left = {
        path: entry for path, entry in snapshot(os.fsencode(drums.out)).items() if entry[0] != "directory"
    }
    assert left == {os.fsencode(name): ("file", content) for name, content in mine.items()}
    assert (drums.out / "Kick" / "Empty").is_dir()
    assert not (drums.out / "Snare").exists()
    assert (summary.removed, summary.changed) == (4, 2)
    assert ("Hihat/Vendor B/hat.wav", "changed since it was made") in summary.kept
    with pytest.raises(OutputError, match="nothing to undo"):
        undo(drums.out)


def test_a_copy_that_was_only_touched_stays(drums: Archive) -> None:
    drums.rebuild()
    os.utime(drums.out / "Hihat/Vendor B/hat.wav")
    assert undo(drums.out).changed == 1


def test_what_somebody_removed_before_is_no_trouble(drums: Archive) -> None:
    drums.rebuild()
    (drums.out / "Hihat/Vendor B/hat.wav").unlink()
    os.rename(drums.out / "Kick", drums.base / "Kick")
    summary = undo(drums.out)
    assert (summary.removed, summary.gone) == (2, 3)
    assert not drums.out.exists()


def test_a_dry_run_counts_and_removes_nothing(drums: Archive) -> None:
    drums.rebuild()
    before = snapshot(os.fsencode(drums.base))
    planned = undo(drums.out, dry_run=True)
    assert snapshot(os.fsencode(drums.base)) == before
    done = undo(drums.out)
    assert planned.dry_run
    assert (planned.removed, planned.reports) == (done.removed, done.reports) == (5, 7)
    assert planned.directories >= done.directories


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_last_copies_stay_and_can_be_removed_later(drums: Archive, mode: str) -> None:
    drums.rebuild(copy_mode=mode)
    os.remove(drums.path(b"Vendor B/hat.wav"))
    summary = undo(drums.out)
    assert (summary.removed, summary.last_copies, summary.complete) == (4, 1, False)
    assert set(drums.tree()) == {b"Hihat/Vendor B/hat.wav"}
    assert undo(drums.out).last_copies == 1
    assert undo(drums.out, drop_last_copies=True).complete
    assert not drums.out.exists()


def test_undo_after_an_undo_that_kept_last_copies_takes_nothing_that_came_since(drums: Archive) -> None:
    drums.rebuild()
    os.rename(drums.path(b"Vendor B"), drums.path(b"Vendor C"))
    undo(drums.out)
    mine = drums.out / "Snare/Vendor A/snare.wav"
    mine.parent.mkdir(parents=True)
    os.link(drums.path(b"Vendor A/snare.wav"), mine)
    undo(drums.out, drop_last_copies=True)
    assert mine.exists()


@pytest.mark.parametrize("place", ["nowhere", "archive"])
def test_a_directory_that_is_not_ours_is_refused(drums: Archive, place: str) -> None:
    before = snapshot(drums.root)
    with pytest.raises(OutputError):
        undo(drums.base / place)
    assert snapshot(drums.root) == before


def test_a_crafted_log_removes_nothing_through_a_link(drums: Archive) -> None:
    drums.rebuild()
    outside = drums.base / "outside"
    os.rename(drums.out / "Kick", outside)
    (drums.out / "Kick").symlink_to(outside)
    before = snapshot(os.fsencode(outside))
    summary = undo(drums.out)
    assert snapshot(os.fsencode(outside)) == before
    assert summary.changed == 2


def test_a_rebuild_after_an_undo_is_a_fresh_one(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    before = drums.tree()
    undo(drums.out)
    assert drums.rebuild(run).counts["made"] == 5
    assert drums.tree() == before


def test_staged_leftovers_of_a_killed_rebuild_go_too(drums: Archive) -> None:
    drums.rebuild()
    with open(drums.out / "_mapping.jsonl", "ab") as log:
        log.write(b'{"action":"dir","target":"_staging"}\n')
    staging = Path(drums.out / "_staging")
    staging.mkdir()
    (staging / "drumline-17-4-1").write_bytes(b"half a co")
    undo(drums.out)
    assert not drums.out.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_somebody_put_into_the_tree_is_counted_and_named(drums: Archive, dry_run: bool) -> None:
    drums.rebuild()
    (drums.out / "Kick" / "mine.txt").write_text("mine")
    (drums.out / "Mine").mkdir()
    summary = undo(drums.out, dry_run=dry_run)
    assert summary.others == 2
    assert set(summary.kept) == {("Kick/mine.txt", "not made by rebuild"), ("Mine", "not made by rebuild")}


def test_a_directory_that_stood_in_the_way_of_a_file_is_still_known(archive: Archive) -> None:
    archive.add(b"x.wav/1.wav")
    archive.rebuild()
    content = (archive.out / "Kick/x.wav/1.wav").read_bytes()
    archive.records.clear()
    os.remove(archive.path(b"x.wav/1.wav"))
    os.rmdir(archive.path(b"x.wav"))
    archive.add(b"x.wav")
    archive.add(b"kept.wav", content=content)
    theirs = archive.out / "Kick/x.wav/theirs.txt"
    with archive.plan(drop_last_copies=True) as plan:
        theirs.write_text("put there between plan and execution")
        assert execute(plan).counts["occupied"] == 1
    theirs.unlink()
    assert undo(archive.out).kept == ()
    assert not archive.out.exists()


def test_directories_that_are_one_where_case_does_not_count_go_too(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmdir = Tree.rmdir
    archive.add(b"a/sub/y.wav")
    archive.add(b"A/other/z.wav")
    archive.rebuild()

    def rmdir_of_one(tree: Tree, target: bytes) -> bool:
        return not (target == b"Kick/a" and (archive.out / "Kick/A/other").exists()) and rmdir(tree, target)

    monkeypatch.setattr(Tree, "rmdir", rmdir_of_one)
    undone = undo(archive.out)
    assert (undone.kept, undone.directories) == ((), 6)
    assert not archive.out.exists()


@pytest.mark.parametrize("remembered", [0, 1, 3])
def test_directories_are_announced_whatever_is_remembered_of_them(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(site, "_REMEMBERED", remembered)
    monkeypatch.setattr(place.Copies, "batch_files", 2)
    for path in (b"a/b/1.wav", b"a/b/2.wav", b"A/b/3.wav", b"a/B/4.wav", b"a/b/c/5.wav", b"d/6.wav"):
        archive.add(path)
    archive.rebuild()
    lines = [orjson.loads(line) for line in (archive.out / "_mapping.jsonl").read_bytes().splitlines()]
    told = [line["target"] for line in lines if line["action"] == "dir"]
    stand = [path.relative_to(archive.out) for path in archive.out.rglob("*") if path.is_dir()]
    assert len(told) == len(set(told))
    assert set(map(str, stand)) <= set(told)
    assert undo(archive.out).kept == ()
    assert not archive.out.exists()
