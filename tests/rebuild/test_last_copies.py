"""No sample is lost: a file of the tree goes only when what it holds stands elsewhere at that moment."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import xxhash

from drumline import failpoints
from drumline.errors import Interrupted, OutputError
from drumline.rebuild import execute, undo
from drumline.rebuild.actions import Failure
from drumline.rebuild.log import MappingLog
from drumline.rebuild.place import Copies, Staged
from drumline.rebuild.tree import Tree
from drumline.records import Record, relative_path
from tests.rebuild.archives import KICK, SNARE, Archive, redecided, snapshot, stat_fields

CONTENT = b"the only one"


OTHER_MODES = pytest.mark.parametrize(
    ("before", "now"),
    [("hardlink", "copy"), ("copy", "hardlink"), ("hardlink", "symlink"), ("copy", "symlink")],
)


@OTHER_MODES
def test_a_file_made_in_another_mode_stays_when_its_original_vanishes_before_the_execution(
    archive: Archive, before: str, now: str
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode=before)
    with archive.plan(run, copy_mode=now) as plan:
        assert plan.counts["replace"] == 1
        os.unlink(archive.path(b"kick.wav"))
        summary = execute(plan)
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}
    assert (summary.counts["replaced"], summary.counts["missing"], summary.counts["made"]) == (0, 1, 0)
    assert undo(archive.out).last_copies == 1


@OTHER_MODES
def test_a_file_made_in_another_mode_is_made_anew(archive: Archive, before: str, now: str) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode=before)
    summary = archive.rebuild(run, copy_mode=now)
    assert summary.counts["replaced"] == summary.counts["made"] == 1
    place = os.fsencode(archive.out / "Kick" / "kick.wav")
    assert os.path.islink(place) == (now == "symlink")
    assert os.path.samefile(place, archive.path(b"kick.wav")) == (now != "copy")
    assert undo(archive.out).complete
    assert not archive.out.exists()


def test_a_moved_sample_stays_where_it_was_when_its_new_place_vanishes_before_the_execution(
    archive: Archive,
) -> None:
    record = archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    _move(archive, record)
    with archive.plan() as plan:
        assert plan.counts["remove"] == 1
        os.unlink(archive.path(b"moved.wav"))
        summary = execute(plan)
        kept = [path for kind, path, _ in plan.problems() if kind == "kept"]
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}
    assert (summary.counts["removed"], summary.counts["kept"], kept) == (0, 1, [b"Kick/kick.wav"])


def test_a_moved_sample_is_removed_only_after_it_was_placed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    _move(archive, record)
    seen: list[set[bytes]] = []
    unlink = Tree.unlink

    def watched(tree: Tree, target: bytes) -> None:
        if target == b"Kick/kick.wav":
            seen.append(set(archive.tree()))
        unlink(tree, target)

    monkeypatch.setattr(Tree, "unlink", watched)
    assert archive.rebuild().counts["removed"] == 1
    assert seen == [{b"Kick/kick.wav", b"Kick/moved.wav"}]
    assert archive.tree() == {b"Kick/moved.wav": CONTENT}


def _hash(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)


def _move(archive: Archive, record: Any) -> None:
    os.rename(archive.path(b"kick.wav"), archive.path(b"moved.wav"))
    archive.records.clear()
    archive.index(b"moved.wav", KICK, hash=record["hash"], **stat_fields(archive.path(b"moved.wav")))


def test_a_sample_whose_name_became_a_directory_with_it_moves_there(archive: Archive) -> None:
    archive.add(b"x", KICK, CONTENT)
    archive.rebuild()
    os.remove(archive.path(b"x"))
    archive.records.clear()
    archive.add(b"x/y", KICK, CONTENT)
    assert archive.rebuild().not_placed == 0
    assert archive.tree() == {b"Kick/x/y": CONTENT}
    os.rename(archive.path(b"x/y"), archive.path(b"aside"))
    os.rmdir(archive.path(b"x"))
    os.rename(archive.path(b"aside"), archive.path(b"x"))
    archive.records.clear()
    archive.index(b"x", KICK, hash=_hash(CONTENT), **stat_fields(archive.path(b"x")))
    assert archive.rebuild().not_placed == 0
    assert archive.tree() == {b"Kick/x": CONTENT}
    assert undo(archive.out).complete
    assert not archive.out.exists()


def test_a_last_copy_whose_name_became_a_directory_stays_and_the_plan_says_what_that_costs(
    archive: Archive,
) -> None:
    archive.add(b"x", KICK, CONTENT)
    archive.rebuild()
    os.remove(archive.path(b"x"))
    archive.records.clear()
    archive.add(b"x/y", KICK, b"another")
    with archive.plan() as plan:
        assert (plan.counts["occupied"], plan.counts["kept"], plan.counts["make"]) == (1, 1, 0)
        assert plan.files == 0
        assert execute(plan).not_placed == 1
    assert archive.tree() == {b"Kick/x": CONTENT}


def test_what_has_no_hash_is_not_known_to_be_elsewhere(archive: Archive) -> None:
    archive.add(b"a b.wav", KICK, CONTENT, hash=None)
    archive.rebuild(layout="flat")
    os.unlink(archive.path(b"a b.wav"))
    archive.records.clear()
    archive.add(b"a-b.wav", KICK, b"quite another one", hash=None)
    assert archive.rebuild(layout="flat").counts["edited"] == 1
    assert archive.tree() == {b"Kick/a-b.wav": CONTENT}


def test_of_equal_files_the_first_that_is_still_there_is_placed(archive: Archive) -> None:
    archive.add(b"a.wav", KICK, CONTENT)
    archive.add(b"b.wav", KICK, CONTENT)
    archive.add(b"c.wav", KICK, CONTENT)
    run = archive.run()
    os.unlink(archive.path(b"a.wav"))
    summary = archive.rebuild(run, dedup="first")
    assert archive.tree() == {b"Kick/b.wav": CONTENT}
    assert (summary.counts["duplicate"], summary.counts["missing"]) == (2, 0)


def test_equal_files_that_are_all_gone_are_reported_as_missing_once(archive: Archive) -> None:
    archive.add(b"a.wav", KICK, CONTENT)
    archive.add(b"b.wav", KICK, CONTENT)
    run = archive.run()
    os.unlink(archive.path(b"a.wav"))
    os.unlink(archive.path(b"b.wav"))
    assert archive.rebuild(run, dedup="first").counts["missing"] == 1


def test_the_tree_follows_when_the_first_of_equal_files_is_gone(archive: Archive) -> None:
    archive.add(b"a.wav", KICK, CONTENT)
    archive.add(b"b.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, dedup="first")
    os.unlink(archive.path(b"a.wav"))
    archive.rebuild(run, dedup="first")
    assert archive.tree() == {b"Kick/b.wav": CONTENT}


def test_a_hard_link_to_an_original_that_was_edited_in_place_is_taken_back(archive: Archive) -> None:
    archive.add(b"kick.wav", KICK)
    archive.rebuild(copy_mode="hardlink")
    with open(archive.path(b"kick.wav"), "ab") as stream:
        stream.write(b"edited")
    summary = undo(archive.out)
    assert (summary.removed, summary.changed) == (1, 0)
    assert not archive.out.exists()
    assert os.path.exists(archive.path(b"kick.wav"))


def test_a_file_of_ours_that_does_not_give_way_is_still_known_as_ours(archive: Archive) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run)
    place = archive.out / "Kick" / "kick.wav"
    before = os.stat(place)
    with archive.plan(run, copy_mode="hardlink") as plan:
        place.write_bytes(b"trimmed by somebody")
        summary = execute(plan)
    assert (summary.counts["edited"], summary.counts["occupied"]) == (1, 0)
    place.write_bytes(CONTENT)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert undo(archive.out).removed == 1
    assert not archive.out.exists()


def _recorded(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[str]:
    """Return what `work` does, in order: "unlink NAME", "sync", "log NAME" for a line about a removal."""
    done: list[str] = []
    unlink, sync, append = os.unlink, Tree.sync, MappingLog.append

    def noted_unlink(path: Any, **more: Any) -> None:
        done.append(f"unlink {os.fsdecode(path)}")
        unlink(path, **more)

    def noted_sync(tree: Tree) -> None:
        done.append("sync")
        sync(tree)

    def noted_append(log: MappingLog, lines: list[bytes], *, sync: bool = True) -> None:
        done.extend(f"log {line.split(b'/')[-1].decode()[:-3]}" for line in lines if b'"removed"' in line)
        append(log, lines, sync=sync)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", noted_unlink)
        patch.setattr(Tree, "sync", noted_sync)
        patch.setattr(MappingLog, "append", noted_append)
        work()
    return done


def test_a_removal_is_on_disk_before_the_log_says_so(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(b"kick.wav", KICK)
    archive.add(b"snare.wav", SNARE)
    archive.rebuild()
    archive.records[0] = redecided(archive.records[0], "Snare")
    run = archive.run()
    done = _recorded(monkeypatch, lambda: archive.rebuild(run))
    assert "sync" in done[done.index("unlink kick.wav") : done.index("log kick.wav")]


def test_undo_puts_its_removals_on_disk_before_it_removes_the_log(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(b"kick.wav", KICK)
    archive.rebuild()
    done = _recorded(monkeypatch, lambda: undo(archive.out))
    assert "sync" in done[done.index("unlink kick.wav") : done.index("unlink _mapping.jsonl")]


def test_a_summary_takes_its_place_on_disk(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.add(b"kick.wav", KICK)
    run = archive.run()
    done: list[str] = []
    rename, sync_names = os.rename, Tree.sync_names

    def noted_rename(origin: Any, name: Any, **more: Any) -> None:
        done.append(os.fsdecode(name))
        rename(origin, name, **more)

    def noted_sync(tree: Tree) -> None:
        done.append("sync")
        sync_names(tree)

    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(Tree, "sync_names", noted_sync)
    archive.rebuild(run)
    assert "sync" in done[done.index("_rebuild_summary.json") :]


def test_cleaning_up_hides_no_error(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.add(b"kick.wav", KICK)
    append = MappingLog.append

    def full(log: MappingLog, lines: list[bytes], *, sync: bool = True) -> None:
        if any(b'"removed"' in line for line in lines):
            raise OutputError("cannot write the log: no space left")
        append(log, lines, sync=sync)

    def stop(*_: object) -> None:
        raise OSError(errno.EIO, "the real cause")

    monkeypatch.setattr(MappingLog, "append", full)
    monkeypatch.setattr(Tree, "sync", stop)
    with pytest.raises(OutputError, match="the real cause"):
        archive.rebuild()


def _emptied(path: bytes) -> None:
    os.truncate(path, 0)


def _other_content_of_its_size(path: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.write(bytes(len(CONTENT)))


def _link_to_nowhere(path: bytes) -> None:
    os.remove(path)
    os.symlink(b"nowhere", path)


def _directory(path: bytes) -> None:
    os.remove(path)
    os.mkdir(path)


def _pipe(path: bytes) -> None:
    os.remove(path)
    os.mkfifo(path)


DAMAGES = pytest.mark.parametrize(
    "damage", [_emptied, _other_content_of_its_size, _link_to_nowhere, _directory, _pipe]
)


@DAMAGES
def test_a_copy_stays_when_its_original_was_damaged_and_failed(
    archive: Archive, damage: Callable[[bytes], None]
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    damage(archive.path(b"kick.wav"))
    archive.records.clear()
    archive.index(b"kick.wav", error="decode_error", hash=None)
    with archive.plan() as plan:
        assert (plan.counts["remove"], plan.counts["kept"]) == (0, 1)
        assert execute(plan).counts["removed"] == 0
        kept = [path for kind, path, _ in plan.problems() if kind == "kept"]
    assert kept == [b"Kick/kick.wav"]
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}


@DAMAGES
def test_undo_keeps_a_copy_whose_original_was_damaged(
    archive: Archive, damage: Callable[[bytes], None]
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    damage(archive.path(b"kick.wav"))
    summary = undo(archive.out)
    assert (summary.removed, summary.last_copies) == (0, 1)
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}


@DAMAGES
def test_another_sample_does_not_replace_a_copy_whose_original_was_damaged(
    archive: Archive, damage: Callable[[bytes], None]
) -> None:
    archive.add(b"a b.wav", KICK, CONTENT)
    archive.rebuild(layout="flat")
    damage(archive.path(b"a b.wav"))
    archive.records.clear()
    archive.add(b"a-b.wav", KICK, b"another")
    assert archive.rebuild(layout="flat").counts["edited"] == 1
    assert archive.tree() == {b"Kick/a-b.wav": CONTENT}


def test_a_copy_stays_when_its_original_is_damaged_between_plan_and_execution(archive: Archive) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    archive.records.clear()
    with archive.plan() as plan:
        assert plan.counts["remove"] == 1
        _emptied(archive.path(b"kick.wav"))
        assert execute(plan).counts["kept"] == 1
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}


@pytest.mark.parametrize("intact", [True, False])
def test_of_an_original_that_failed_its_content_counts_not_its_size_and_time(
    archive: Archive, intact: bool
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    place = archive.path(b"kick.wav")
    before = os.stat(place)
    if not intact:
        _other_content_of_its_size(place)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    archive.records.clear()
    archive.index(b"kick.wav", error="decode_error", hash=None)
    counts = archive.rebuild().counts
    assert (counts["removed"], counts["kept"]) == ((1, 0) if intact else (0, 1))


def test_a_copy_of_an_original_that_was_only_touched_goes(archive: Archive) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    os.utime(archive.path(b"kick.wav"))
    assert undo(archive.out).removed == 1
    assert not archive.out.exists()


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_equal_files_whose_originals_are_gone_are_counted_and_kept_as_planned(
    archive: Archive, mode: str
) -> None:
    archive.add(b"x.wav", KICK, CONTENT)
    os.link(archive.path(b"x.wav"), archive.path(b"y.wav"))
    archive.index(b"y.wav", KICK, hash=_hash(CONTENT), **stat_fields(archive.path(b"y.wav")))
    archive.rebuild(copy_mode=mode)
    for name in (b"x.wav", b"y.wav"):
        os.remove(archive.path(name))
    archive.records.clear()
    with archive.plan(copy_mode=mode) as plan:
        planned = plan.counts["remove"], plan.counts["kept"]
        summary = execute(plan)
    assert planned == (summary.counts["removed"], summary.counts["kept"]) == (0, 2)
    assert archive.tree() == {b"Kick/x.wav": CONTENT, b"Kick/y.wav": CONTENT}


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_undo_takes_back_a_tree_whose_archive_moved_once_a_rebuild_knows_where_it_is(
    archive: Archive, mode: str
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode=mode)
    moved = archive.base / "moved"
    os.rename(archive.root, moved)
    assert undo(archive.out, dry_run=True).last_copies == 1
    summary = archive.rebuild(run, copy_mode=mode, archive_root=moved)
    assert (summary.counts["already_there"], summary.counts["made"]) == (1, 0)
    assert undo(archive.out).complete
    assert not archive.out.exists()


def test_the_log_keeps_the_origin_that_is_there_when_the_planned_one_is_not(archive: Archive) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run)
    other = archive.base / "other"
    other.mkdir()
    assert archive.rebuild(run, archive_root=other).counts["already_there"] == 1
    assert undo(archive.out).complete


LINKED_MODES = pytest.mark.parametrize("mode", ["copy", "hardlink"])


def _leave_only_in_tree(archive: Archive, source: bytes, target: bytes) -> None:
    """Replace a file of the archive by a link to the tree's, as programs do that remove duplicates."""
    os.unlink(archive.path(source))
    os.symlink(os.path.join(os.fsencode(archive.out), target), archive.path(source))


@LINKED_MODES
def test_a_file_that_the_archive_has_only_as_a_link_to_it_stays(archive: Archive, mode: str) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode=mode)
    _leave_only_in_tree(archive, b"kick.wav", b"Kick/kick.wav")
    assert undo(archive.out).last_copies == 1
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}
    archive.rebuild(run, copy_mode=mode, labels=("Snare",))
    assert CONTENT in archive.tree().values()


@LINKED_MODES
def test_a_file_that_the_archive_has_only_through_a_linked_directory_stays(
    archive: Archive, mode: str
) -> None:
    archive.add(b"pack/kick.wav", KICK, CONTENT)
    archive.rebuild(copy_mode=mode)
    os.unlink(archive.path(b"pack/kick.wav"))
    os.rmdir(archive.path(b"pack"))
    os.symlink(archive.out / "Kick" / "pack", archive.path(b"pack"))
    assert undo(archive.out).last_copies == 1
    assert archive.tree() == {b"Kick/pack/kick.wav": CONTENT}


@LINKED_MODES
def test_two_files_do_not_go_because_each_has_the_others_original_as_a_link_to_it(
    archive: Archive, mode: str
) -> None:
    for name in (b"a", b"b"):
        archive.add(name, KICK, CONTENT)
        os.utime(archive.path(name), ns=(10**18, 10**18))
        archive.records[-1]["mtime_ns"] = 10**18
    archive.rebuild(copy_mode=mode)
    _leave_only_in_tree(archive, b"a", b"Kick/b")
    _leave_only_in_tree(archive, b"b", b"Kick/a")
    assert undo(archive.out).last_copies == 2
    assert archive.tree() == {b"Kick/a": CONTENT, b"Kick/b": CONTENT}


@LINKED_MODES
def test_no_link_takes_the_place_of_a_file_that_the_archive_has_only_as_a_link_to_it(
    archive: Archive, mode: str
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode=mode)
    _leave_only_in_tree(archive, b"kick.wav", b"Kick/kick.wav")
    with archive.plan(run, copy_mode="symlink") as plan:
        assert plan.counts["changed"] == 1
        assert execute(plan).counts["changed"] == 1
    archive.rebuild(run, copy_mode="symlink", labels=("Snare",))
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}


def test_no_link_takes_the_place_of_a_file_whose_original_becomes_a_link_to_it_before_the_execution(
    archive: Archive,
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run)
    with archive.plan(run, copy_mode="symlink") as plan:
        assert plan.counts["replace"] == 1
        _leave_only_in_tree(archive, b"kick.wav", b"Kick/kick.wav")
        assert execute(plan).counts["changed"] == 1
    assert archive.tree() == {b"Kick/kick.wav": CONTENT}


class LostError(Exception):
    """The archive is gone, and the rebuild with it."""


def _replace_until(archive: Archive, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Replace the tree's only file; when it has been taken away, lose the archive and raise an error."""
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode="hardlink")

    def lose(*_: object) -> None:
        assert archive.tree() == {}
        os.unlink(archive.path(b"kick.wav"))
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("drumline.rebuild.place.Copies.publish", lose)
        with suppress(error, Interrupted):
            archive.rebuild(run, copy_mode="copy")


def _staged(archive: Archive) -> dict[bytes, bytes]:
    entries = snapshot(os.fsencode(archive.out)).items()
    return {path: entry[1] for path, entry in entries if path.startswith(b"_staging/")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, LostError])
def test_what_was_to_replace_a_file_stays_when_the_rebuild_ends_between_the_two_and_the_archive_is_lost(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    _replace_until(archive, monkeypatch, error)
    assert list(_staged(archive).values()) == [CONTENT]
    for _ in range(2):
        assert archive.rebuild().counts["kept"] == 1
    assert undo(archive.out).last_copies == 1
    assert list(_staged(archive).values()) == [CONTENT]
    assert undo(archive.out, drop_last_copies=True).complete
    assert not archive.out.exists()


def test_what_could_not_take_the_place_of_a_file_stays_where_the_archive_is_lost(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run, copy_mode="hardlink")
    publish = Copies.publish

    def occupied(placer: Copies, staged: Sequence[Staged]) -> list[Failure]:
        os.unlink(archive.path(b"kick.wav"))
        (archive.out / "Kick" / "kick.wav").write_bytes(b"of somebody")
        return publish(placer, staged)

    monkeypatch.setattr(Copies, "publish", occupied)
    counts = archive.rebuild(run, copy_mode="copy").counts
    assert (counts["occupied"], counts["kept"], counts["replaced"]) == (1, 1, 0)
    assert archive.tree() == {b"Kick/kick.wav": b"of somebody"}
    assert list(_staged(archive).values()) == [CONTENT]


def _make_a_directory_of(archive: Archive) -> Path:
    """Place two files in a directory whose name becomes a file's; return where the directory stands."""
    archive.add(b"x/y", KICK, CONTENT)
    archive.add(b"x/z", KICK, b"another")
    archive.rebuild()
    for name in (b"x/y", b"x/z"):
        os.unlink(archive.path(name))
    os.rmdir(archive.path(b"x"))
    archive.records.clear()
    archive.add(b"x", KICK, CONTENT)
    return archive.out / "Kick" / "x"


@pytest.mark.parametrize("name", ["mine.txt", "y", "z"])
def test_a_directory_with_something_of_somebodys_does_not_become_a_file_and_the_plan_says_so(
    archive: Archive, name: str
) -> None:
    directory = _make_a_directory_of(archive)
    archive.add(b"w", KICK, b"another")
    (directory / name).write_bytes(b"of somebody")
    before = archive.tree()
    with archive.plan() as plan:
        assert (plan.counts["occupied"], plan.counts["make"]) == (1, 1)
        planned = plan.files
        summary = execute(plan)
    assert (summary.not_placed, summary.counts["made"], summary.counts["occupied"]) == (1, 1, 1)
    after = archive.tree()
    assert summary.labels["Kick"]["files"] == planned == 1
    assert after[b"Kick/x/" + name.encode()] == b"of somebody"
    assert set(before.values()) <= set(after.values())


def test_a_directory_that_somebody_puts_something_into_before_the_execution_keeps_its_last_copies(
    archive: Archive,
) -> None:
    directory = _make_a_directory_of(archive)
    archive.add(b"w", KICK, b"another")
    with archive.plan() as plan:
        assert plan.counts["replace"] == 1
        (directory / "mine.txt").write_bytes(b"of somebody")
        summary = execute(plan)
    assert summary.counts["occupied"] == 1
    assert archive.tree()[b"Kick/x/y"] == CONTENT


def test_a_file_in_the_staging_directory_that_has_only_digits_is_somebodys(archive: Archive) -> None:
    archive.add(b"kick.wav", KICK, CONTENT)
    archive.rebuild()
    (archive.out / "_staging").mkdir()
    (archive.out / "_staging" / "20240101120000").write_bytes(b"of somebody")
    archive.rebuild(copy_mode="hardlink")
    assert list(_staged(archive).values()) == [b"of somebody"]


def _damage_unseen(archive: Archive, record: Record) -> None:
    """Destroy a file's content, but neither its size nor its time; it fails when it is indexed again."""
    path = archive.path(relative_path(record))
    status = os.stat(path)
    with open(path, "r+b") as stream:
        stream.write(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    archive.records.remove(record)
    archive.index(relative_path(record), error="decode_error", **stat_fields(path))


def test_the_last_copy_of_a_damaged_original_is_not_overwritten_by_what_takes_its_name(
    archive: Archive,
) -> None:
    lost = archive.add(b"p/x y.wav", KICK, CONTENT)
    archive.add(b"p/x-y.wav", KICK, b"another")
    archive.rebuild(layout="flat")
    _damage_unseen(archive, lost)
    with archive.plan(layout="flat") as plan:
        counts = dict(plan.counts)
        assert execute(plan).counts["edited"] == counts["edited"] == 1
    assert CONTENT in archive.tree().values()


def test_undo_and_a_rebuild_of_an_older_run_know_that_an_original_was_damaged(archive: Archive) -> None:
    lost = archive.add(b"x.wav", KICK, CONTENT)
    archive.add(b"y.wav", KICK, b"another")
    older = archive.run()
    archive.rebuild(older)
    _damage_unseen(archive, lost)
    assert archive.rebuild(layout="flat").counts["kept"] == 1
    archive.rebuild(older, labels=("Snare",))
    assert CONTENT in archive.tree().values()
    assert undo(archive.out).last_copies == 1
    assert archive.tree() == {b"Kick/x.wav": CONTENT}


@pytest.mark.parametrize("link", [True, False])
def test_a_damaged_original_is_known_where_the_archive_was_moved(archive: Archive, link: bool) -> None:
    lost = archive.add(b"x.wav", KICK, CONTENT)
    archive.add(b"y.wav", KICK, b"another")
    archive.rebuild()
    moved = archive.root + b"-moved"
    os.rename(archive.root, moved)
    if link:
        os.symlink(moved, archive.root)
    else:
        os.mkdir(archive.root)
        for name in (b"x.wav", b"y.wav"):
            os.link(os.path.join(moved, name), archive.path(name))
    archive.root = moved
    _damage_unseen(archive, lost)
    run = archive.run()
    assert archive.rebuild(run, archive_root=os.fsdecode(moved)).counts["kept"] == 1
    assert archive.tree()[b"Kick/x.wav"] == CONTENT


def _killed_before_it_has_its_name(archive: Archive) -> None:
    """Rebuild by copies, and be killed when a copy is complete and has no name yet."""
    run = archive.run()
    child = os.fork()
    if child == 0:
        failpoints.arm("tree.publish.before=kill")
        archive.rebuild(run)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(_staged(archive).values()) == [CONTENT]


@pytest.mark.parametrize("work", ["undo", "rebuild"])
def test_a_staged_copy_of_what_the_archive_has_lost_stays(archive: Archive, work: str) -> None:
    archive.add(b"x.wav", KICK, CONTENT)
    _killed_before_it_has_its_name(archive)
    os.unlink(archive.path(b"x.wav"))
    for _ in range(2):
        if work == "undo":
            assert undo(archive.out).last_copies == 1
        else:
            assert archive.rebuild().counts["kept"] == 1
        assert list(_staged(archive).values()) == [CONTENT]
    undo(archive.out, drop_last_copies=True)
    assert not archive.out.exists()


def test_a_staged_copy_that_the_archive_has_a_link_to_is_placed_before_it_goes(archive: Archive) -> None:
    archive.add(b"x.wav", KICK, CONTENT)
    _killed_before_it_has_its_name(archive)
    (staged,) = _staged(archive)
    _leave_only_in_tree(archive, b"x.wav", staged)
    with archive.plan() as plan:
        assert (plan.counts["make"], plan.counts["remove"]) == (1, 1)
        summary = execute(plan)
    assert (summary.counts["made"], summary.counts["removed"]) == (1, 1)
    assert archive.tree() == {b"Kick/x.wav": CONTENT}
    assert _staged(archive) == {}


def test_a_staged_copy_of_what_the_archive_has_goes(archive: Archive) -> None:
    archive.add(b"x.wav", KICK, CONTENT)
    _killed_before_it_has_its_name(archive)
    assert undo(archive.out).complete
    assert not archive.out.exists()


def test_a_file_that_the_archive_has_only_by_a_mount_stays(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount is a second path to the very file, which the kernel does not call a path of the tree."""
    archive.add(b"kick.wav", KICK, CONTENT)
    run = archive.run()
    archive.rebuild(run)
    _leave_only_in_tree(archive, b"kick.wav", b"Kick/kick.wav")
    monkeypatch.setattr(Tree, "holds", lambda *_: False)
    for settings in ({"copy_mode": "symlink"}, {"copy_mode": "symlink", "labels": ("Snare",)}):
        archive.rebuild(run, **settings)
        assert archive.tree()[b"Kick/kick.wav"] == CONTENT
    assert undo(archive.out).last_copies == 1
    assert archive.tree()[b"Kick/kick.wav"] == CONTENT


def test_a_moved_archive_does_not_make_a_doubted_copy_trusted(archive: Archive) -> None:
    lost = archive.add(b"x.wav", KICK, CONTENT)
    archive.add(b"y.wav", KICK, b"another")
    older = archive.run()
    archive.rebuild(older)
    _damage_unseen(archive, lost)
    assert archive.rebuild().counts["kept"] == 1
    moved = archive.root + b"-moved"
    os.rename(archive.root, moved)
    archive.rebuild(older, archive_root=os.fsdecode(moved))
    os.symlink(moved, archive.root)
    assert undo(archive.out).last_copies == 1
    assert archive.tree() == {b"Kick/x.wav": CONTENT}


def test_a_staged_copy_is_known_among_many_files_of_its_size_and_time(archive: Archive) -> None:
    for number in range(150):
        archive.add(b"%03d.wav" % number, KICK, b"%012d" % number)
        os.utime(archive.path(b"%03d.wav" % number), ns=(10**18, 10**18))
        archive.records[-1].update(mtime_ns=10**18, mtime=1e9)
    archive.rebuild()
    archive.add(b"zzz.wav", KICK, CONTENT)
    os.utime(archive.path(b"zzz.wav"), ns=(10**18, 10**18))
    archive.records[-1].update(mtime_ns=10**18, mtime=1e9)
    _killed_before_it_has_its_name(archive)
    os.unlink(archive.path(b"zzz.wav"))
    assert archive.rebuild().counts["kept"] == 1
    assert list(_staged(archive).values()) == [CONTENT]


def test_a_staged_copy_whose_original_is_lost_after_the_plan_stays(archive: Archive) -> None:
    archive.add(b"x.wav", KICK, CONTENT)
    _killed_before_it_has_its_name(archive)
    with archive.plan() as plan:
        os.unlink(archive.path(b"x.wav"))
        execute(plan)
    assert list(_staged(archive).values()) == [CONTENT]
