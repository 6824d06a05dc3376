from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import pytest

from drumline.errors import UsageError
from drumline.rebuild import execute
from tests.rebuild.archives import HIHAT, KICK, SNARE, Archive, redecided, snapshot, stat_fields

MODES = pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])


def out(archive: Archive, path: str) -> Path:
    return archive.out / path


@MODES
def test_a_second_time_nothing_is_made(drums: Archive, mode: str) -> None:
    run = drums.run()
    drums.rebuild(run, copy_mode=mode)
    before = snapshot(os.fsencode(drums.out))
    inodes = {path: os.lstat(out(drums, os.fsdecode(path))).st_ino for path in drums.tree()}
    summary = drums.rebuild(run, copy_mode=mode)
    assert summary.counts["already_there"] == summary.counts["planned"] == 5
    assert summary.counts["made"] == 0
    after = snapshot(os.fsencode(drums.out))
    changing = (b"_rebuild_summary.json", b"_mapping.jsonl")
    assert {path: entry for path, entry in after.items() if path not in changing} == {
        path: entry for path, entry in before.items() if path not in changing
    }
    assert inodes == {path: os.lstat(out(drums, os.fsdecode(path))).st_ino for path in drums.tree()}


@MODES
def test_what_somebody_removed_is_made_again(drums: Archive, mode: str) -> None:
    run = drums.run()
    drums.rebuild(run, copy_mode=mode)
    shutil.rmtree(out(drums, "Kick"))
    summary = drums.rebuild(run, copy_mode=mode)
    assert summary.counts["made"] == 2
    assert len(drums.tree()) == 5


@MODES
def test_other_settings_turn_the_tree_into_the_new_plan(drums: Archive, mode: str) -> None:
    run = drums.run()
    drums.rebuild(run, copy_mode=mode)
    summary = drums.rebuild(run, copy_mode=mode, labels=("Kick",), layout="flat")
    fresh = Archive.__new__(Archive)
    fresh.__dict__.update({**vars(drums), "out": drums.base / "fresh"})
    fresh.rebuild(run, copy_mode=mode, labels=("Kick",), layout="flat")
    assert drums.tree() == fresh.tree()
    assert not out(drums, "Snare").exists()
    assert not out(drums, "Kick/Vendor A").exists()
    assert not out(drums, "_manifests/Snare.txt").exists()
    assert summary.counts["removed"] == 5


def test_another_copy_mode_makes_the_files_anew(drums: Archive) -> None:
    run = drums.run()
    contents = None
    for mode in ("copy", "hardlink", "symlink", "copy"):
        summary = drums.rebuild(run, copy_mode=mode)
        assert contents in (
            None,
            {path: Path(out(drums, os.fsdecode(path))).read_bytes() for path in drums.tree()},
        )
        contents = {path: Path(out(drums, os.fsdecode(path))).read_bytes() for path in drums.tree()}
    assert summary.counts["replaced"] == summary.counts["made"] == 5


def test_a_file_that_was_classified_otherwise_moves(drums: Archive) -> None:
    drums.rebuild()
    drums.records[0] = redecided(drums.records[0], "Snare")
    summary = drums.rebuild()
    assert b"Snare/Vendor A/Kicks/kick 01.wav" in drums.tree()
    assert b"Kick/Vendor A/Kicks/kick 01.wav" not in drums.tree()
    assert (summary.counts["made"], summary.counts["removed"]) == (1, 1)


def test_what_somebody_added_is_never_touched(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    out(drums, "Snare/mine.wav").write_bytes(b"mine")
    out(drums, "Notes").mkdir()
    drums.rebuild(run, labels=("Kick",))
    assert out(drums, "Snare/mine.wav").read_bytes() == b"mine"
    assert out(drums, "Notes").is_dir()
    assert not out(drums, "Snare/Vendor A").exists()


def test_what_somebody_changed_stays_and_is_reported(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    out(drums, "Snare/Vendor A/snare.wav").write_bytes(b"trimmed")
    out(drums, "Kick/Vendor A/Kicks/kick 01.wav").write_bytes(b"louder")
    with drums.plan(run, labels=("Kick",)) as plan:
        summary = execute(plan)
        problems = [(kind, path) for kind, path, _ in plan.problems()]
    assert problems == [
        ("edited", b"Kick/Vendor A/Kicks/kick 01.wav"),
        ("kept", b"Snare/Vendor A/snare.wav"),
    ]
    assert (summary.counts["edited"], summary.counts["kept"]) == (1, 1)
    assert out(drums, "Snare/Vendor A/snare.wav").read_bytes() == b"trimmed"
    assert out(drums, "Kick/Vendor A/Kicks/kick 01.wav").read_bytes() == b"louder"


def test_a_file_in_the_way_is_not_overwritten(drums: Archive) -> None:
    drums.rebuild(labels=("Kick",))
    out(drums, "Snare/Vendor A").mkdir(parents=True)
    out(drums, "Snare/Vendor A/snare.wav").write_bytes(b"mine")
    summary = drums.rebuild()
    assert summary.counts["occupied"] == 1
    assert out(drums, "Snare/Vendor A/snare.wav").read_bytes() == b"mine"


def test_a_file_that_appears_between_plan_and_execution_is_not_overwritten(drums: Archive) -> None:
    drums.rebuild(labels=("Kick",))
    for mode in ("copy", "hardlink", "symlink"):
        with drums.plan(copy_mode=mode) as plan:
            out(drums, "Snare/Vendor A").mkdir(parents=True, exist_ok=True)
            out(drums, "Snare/Vendor A/snare.wav").write_bytes(b"mine")
            summary = execute(plan)
        assert summary.counts["occupied"] == 1
        assert out(drums, "Snare/Vendor A/snare.wav").read_bytes() == b"mine"


def test_missing_and_changed_originals_are_reported_and_not_placed(drums: Archive) -> None:
    os.remove(drums.path(b"Vendor B/hat.wav"))
    Path(os.fsdecode(drums.path(b"Vendor A/snare.wav"))).write_bytes(b"other length")
    os.utime(drums.path(b"Vendor B/clap.wav"), ns=(1, 1))
    with drums.plan() as plan:
        summary = execute(plan)
        problems = {(kind, path) for kind, path, _ in plan.problems()}
    assert problems == {
        ("missing", b"Hihat/Vendor B/hat.wav"),
        ("changed", b"Snare/Vendor A/snare.wav"),
        ("changed", b"misc/Vendor B/clap.wav"),
    }
    assert summary.not_placed == 3
    assert len(drums.tree()) == 2


@MODES
def test_an_original_that_changes_between_plan_and_execution_is_not_placed(drums: Archive, mode: str) -> None:
    with drums.plan(copy_mode=mode) as plan:
        os.remove(drums.path(b"Vendor B/hat.wav"))
        os.utime(drums.path(b"Vendor B/clap.wav"), ns=(1, 1))
        summary = execute(plan)
    assert (summary.counts["missing"], summary.counts["changed"]) == (1, 1)
    assert len(drums.tree()) == 3
    assert not out(drums, "_manifests/misc.txt").exists()


def test_an_original_that_changes_while_it_is_copied_is_not_placed(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drumline.rebuild import place

    def grow(origin: int, descriptor: int, size: int) -> int:
        count = copy(origin, descriptor, size)
        with open(drums.path(b"Vendor B/hat.wav"), "ab") as stream:
            stream.write(b"more")
        return count

    copy = place.copy_bytes
    monkeypatch.setattr(place, "copy_bytes", grow)
    summary = drums.rebuild()
    assert summary.counts["changed"] == 1
    assert b"Hihat/Vendor B/hat.wav" not in drums.tree()


def test_a_missing_original_takes_nothing_away(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    os.remove(drums.path(b"Vendor B/hat.wav"))
    summary = drums.rebuild(run)
    assert summary.counts["already_there"] == 5
    assert b"Hihat/Vendor B/hat.wav" in drums.tree()


@MODES
def test_an_edited_original_is_followed_after_it_was_indexed_again(drums: Archive, mode: str) -> None:
    drums.rebuild(copy_mode=mode)
    place = drums.path(b"Vendor B/hat.wav")
    with open(place, "r+b") as stream:
        stream.write(b"edited in place")
        stream.truncate()
    drums.records[3] = {**drums.records[3], **stat_fields(place), "hash": "ffff"}  # type: ignore[typeddict-item]
    summary = drums.rebuild(copy_mode=mode)
    assert out(drums, "Hihat/Vendor B/hat.wav").read_bytes() == b"edited in place"
    assert summary.not_placed == 0
    again = drums.rebuild(copy_mode=mode)
    assert again.counts["already_there"] == 5


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_the_last_copy_of_a_sample_stays_until_it_is_asked_to_go(drums: Archive, mode: str) -> None:
    drums.rebuild(copy_mode=mode)
    os.remove(drums.path(b"Vendor B/hat.wav"))
    del drums.records[3]
    run = drums.run()
    summary = drums.rebuild(run, copy_mode=mode)
    assert (summary.counts["kept"], summary.counts["removed"]) == (1, 0)
    assert b"Hihat/Vendor B/hat.wav" in drums.tree()
    summary = drums.rebuild(run, copy_mode=mode, drop_last_copies=True)
    assert (summary.counts["kept"], summary.counts["removed"]) == (0, 1)
    assert not out(drums, "Hihat").exists()


def test_a_last_copy_does_not_give_way_to_another_sample_of_its_name(archive: Archive) -> None:
    archive.add(b"a b.wav", KICK, b"the only one")
    archive.rebuild(layout="flat")
    os.remove(archive.path(b"a b.wav"))
    archive.records.clear()
    archive.add(b"a-b.wav", KICK, b"another")
    summary = archive.rebuild(layout="flat")
    assert summary.counts["edited"] == 1
    assert archive.tree() == {b"Kick/a-b.wav": b"the only one"}
    archive.rebuild(layout="flat", drop_last_copies=True)
    assert archive.tree() == {b"Kick/a-b.wav": b"another"}


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_a_sample_that_moved_in_the_archive_moves_in_the_tree(drums: Archive, mode: str) -> None:
    drums.rebuild(copy_mode=mode)
    os.rename(drums.path(b"Vendor B"), drums.path(b"Vendor C"))
    for place in (3, 4):
        drums.records[place]["relative_path"] = drums.records[place]["relative_path"].replace("B/", "C/")
    summary = drums.rebuild(copy_mode=mode)
    assert (summary.counts["made"], summary.counts["removed"], summary.counts["kept"]) == (2, 2, 0)
    assert {b"Hihat/Vendor C/hat.wav", b"misc/Vendor C/clap.wav"} < set(drums.tree())
    assert len(drums.tree()) == 5


def test_a_directory_can_take_the_place_of_a_file_and_back(archive: Archive) -> None:
    first = archive.add(b"x", KICK)
    archive.add(b"y/z", SNARE)
    archive.rebuild()
    os.remove(archive.path(b"x"))
    second = archive.add(b"x/deep/er", KICK, content=b"new")
    archive.records.remove(first)
    archive.rebuild(drop_last_copies=True)
    assert set(archive.tree()) == {b"Kick/x/deep/er", b"Snare/y/z"}
    shutil.rmtree(archive.path(b"x"))
    archive.records.remove(second)
    archive.add(b"x", HIHAT)
    archive.add(b"x2", KICK)
    archive.rebuild(drop_last_copies=True)
    assert set(archive.tree()) == {b"Hihat/x", b"Kick/x2", b"Snare/y/z"}


def test_a_plan_is_executed_once(drums: Archive) -> None:
    with drums.plan() as plan:
        execute(plan)
        with pytest.raises(UsageError):
            execute(plan)


def test_the_mapping_log_says_where_every_file_came_from(archive: Archive) -> None:
    record = archive.add(b"a\xff.wav", KICK)
    archive.rebuild(copy_mode="hardlink")
    lines = [orjson.loads(line) for line in out(archive, "_mapping.jsonl").read_bytes().splitlines()]
    assert lines[0] == {"action": "created", "drumline_mapping": 2, "made_root": True}
    (made,) = (line for line in lines if line["action"] == "make")
    assert made["hash"] == record["hash"]
    assert made["size"] == record["size"]
    assert made["mode"] == "hardlink"
    assert made["source"].startswith(os.fsdecode(archive.root))
    assert {"target_b64", "source_b64"} <= set(made)
    folders = [line["target"] for line in lines if line["action"] == "dir"]
    assert folders == ["_manifests", "_staging", "Kick"]


def test_a_log_that_was_torn_by_a_kill_is_continued(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    with open(out(drums, "_mapping.jsonl"), "ab") as stream:
        stream.write(b'{"action":"make","target":"Kick/ne')
    shutil.rmtree(out(drums, "Kick"))
    drums.rebuild(run)
    lines = out(drums, "_mapping.jsonl").read_bytes().splitlines()
    assert all(orjson.loads(line) for line in lines)
    assert len(drums.tree()) == 5


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_what_becomes_the_last_copy_between_plan_and_execution_stays(drums: Archive, mode: str) -> None:
    drums.rebuild(copy_mode=mode)
    del drums.records[3]
    with drums.plan(copy_mode=mode) as plan:
        assert plan.counts["remove"] == 1
        os.remove(drums.path(b"Vendor B/hat.wav"))
        summary = execute(plan)
    assert summary.counts["removed"] == 0
    assert b"Hihat/Vendor B/hat.wav" in drums.tree()


def test_of_a_file_that_never_ends_only_a_little_too_much_is_copied(tmp_path: Path) -> None:
    from drumline.rebuild.place import copy_bytes

    with open("/dev/zero", "rb") as endless, open(tmp_path / "copy", "wb") as copy:
        assert 10 < copy_bytes(endless.fileno(), copy.fileno(), 10) < 3_000_000
