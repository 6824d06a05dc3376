from __future__ import annotations

import errno
import fcntl
import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drumline.errors import ArchiveError, BusyError, DrumlineError, IndexFormatError, OutputError
from drumline.rebuild import execute, undo
from drumline.rebuild.tree import Sources, Tree
from drumline.verify import verify_tree
from tests.rebuild.archives import KICK, Archive, snapshot


def test_a_directory_that_drumline_did_not_make_is_refused(drums: Archive) -> None:
    drums.out.mkdir()
    (drums.out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not made by drumline") as refusal:
        drums.rebuild()
    assert "--out" in refusal.value.way_out
    assert [path.name for path in drums.out.iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_taken(drums: Archive) -> None:
    drums.out.mkdir()
    (drums.out / ".DS_Store").write_text("")
    drums.rebuild()
    assert len(drums.tree()) == 6


def test_a_log_that_was_never_begun_makes_no_directory_ours(drums: Archive) -> None:
    drums.out.mkdir()
    (drums.out / "_mapping.jsonl").write_text("")
    (drums.out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not made by drumline"):
        drums.rebuild()
    (drums.out / "thesis.txt").unlink()
    drums.rebuild()
    assert len(drums.tree()) == 5


@pytest.mark.parametrize(
    "log",
    [
        b"my own notes\n",
        b'{"drumline_mapping":3}\n',
        b"[]\n",
        b'{"drumline_mapping":1}\n{"action":"make"}\n',
        b'{"drumline_mapping":1}\n{"action":"make","target":"../x","source":"/x","mode":"copy","size":1,'
        b'"mtime_ns":1,"hash":null}\n',
        b'{"drumline_mapping":1}\n{"action":"dir","target":"/etc"}\n',
        b'{"drumline_mapping":1}\n{"action":"dir","target":"a","target_b64":"Li4="}\n',
        b'{"drumline_mapping":1}\n{"action":"dance","target":"x"}\n',
        b'{"drumline_mapping":1}\n' + b"x" * 200_000,
    ],
)
def test_a_log_that_makes_no_sense_is_named_and_left_alone(drums: Archive, log: bytes) -> None:
    drums.out.mkdir()
    (drums.out / "_mapping.jsonl").write_bytes(log)
    for order in (drums.rebuild, lambda: undo(drums.out)):
        with pytest.raises(OutputError):
            order()
    assert (drums.out / "_mapping.jsonl").read_bytes() == log


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_a_log_that_is_no_file_is_refused(drums: Archive, kind: str) -> None:
    drums.out.mkdir()
    log = drums.out / "_mapping.jsonl"
    if kind == "directory":
        log.mkdir()
    elif kind == "fifo":
        os.mkfifo(log)
    else:
        (drums.base / "elsewhere").write_text('{"drumline_mapping":1}\n')
        log.symlink_to(drums.base / "elsewhere")
    with pytest.raises(OutputError):
        drums.rebuild()
    with pytest.raises(OutputError):
        undo(drums.out)


def test_output_that_is_a_file_is_refused(drums: Archive) -> None:
    drums.out.write_text("x")
    with pytest.raises(OutputError, match="no directory"):
        drums.rebuild()


@pytest.mark.parametrize("place", ["archive", "archive/new", "archive/Vendor A", ".", "link"])
def test_tree_and_archive_may_not_lie_in_one_another(drums: Archive, place: str) -> None:
    (drums.base / "link").symlink_to("archive")
    run = drums.run()
    before = snapshot(drums.root)
    with pytest.raises(OutputError, match="archive"):
        drums.rebuild(run, out=drums.base / place)
    assert snapshot(drums.root) == before


def test_the_tree_may_not_lie_in_the_run_or_on_the_runs_root(drums: Archive) -> None:
    run = drums.run()
    for place in (run.directory / "tree", run.directory, run.directory.parent):
        with pytest.raises(OutputError):
            drums.rebuild(run, out=place)


def test_an_archive_that_is_not_mounted_is_named(drums: Archive) -> None:
    run = drums.run()
    os.rename(drums.root, drums.root + b".unmounted")
    with pytest.raises(ArchiveError) as error:
        drums.rebuild(run)
    assert "--archive-root" in error.value.way_out
    assert not drums.out.exists()


def test_a_missing_run_is_named(drums: Archive) -> None:
    with pytest.raises(IndexFormatError):
        drums.rebuild(SimpleNamespace(directory=drums.base / "nowhere"))  # type: ignore[arg-type]


def test_two_at_a_time_in_one_tree_are_refused(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    with drums.plan(run), pytest.raises(BusyError):
        drums.plan(run)
    descriptor = os.open(drums.out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for order in (lambda: drums.rebuild(run), lambda: undo(drums.out)):
        with pytest.raises(BusyError):
            order()
    os.close(descriptor)
    drums.rebuild(run)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="Linux tells who holds a lock")
def test_who_works_in_a_tree_is_named(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    with drums.plan(run), pytest.raises(BusyError, match=rf"in use by process {os.getpid()} \(.*python"):
        undo(drums.out)


def test_a_tree_may_be_verified_twice_at_a_time_but_not_changed_meanwhile(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    with closing(Tree(drums.out, shared=True)):
        assert verify_tree(drums.out).ok
        with pytest.raises(BusyError):
            undo(drums.out)
    with drums.plan(run), pytest.raises(BusyError):
        verify_tree(drums.out)


def test_a_tree_that_another_rebuild_began_meanwhile_is_refused(drums: Archive) -> None:
    run = drums.run()
    with drums.plan(run) as plan:
        drums.rebuild(run)
        with pytest.raises(OutputError, match="appeared"):
            execute(plan)
    assert len(drums.tree()) == 5


@pytest.mark.parametrize(("space", "files"), [(10_000, 10**6), (10**12, 3)])
def test_copies_that_do_not_fit_are_refused_before_anything_is_written(
    drums: Archive, monkeypatch: pytest.MonkeyPatch, space: int, files: int
) -> None:
    room = SimpleNamespace(f_frsize=4096, f_bavail=space // 4096, f_files=10**6, f_favail=files)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    with pytest.raises(OutputError, match="needs"):
        drums.rebuild()
    assert not drums.out.exists()


def test_what_is_there_already_needs_no_room(drums: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    run = drums.run()
    drums.add(b"huge.wav", size=10**15)
    drums.rebuild(run)
    room = SimpleNamespace(f_frsize=4096, f_bavail=10**5, f_files=10, f_favail=1)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    assert drums.rebuild(run).counts["already_there"] == 5


CRAFTED = [b"../evil", b"/etc/passwd", b"a/../../evil", b"", b".", b"a//b", b"nul\0", b"x" * 300]


@pytest.mark.parametrize("layout", ["mirror", "flat"])
def test_a_crafted_path_is_left_out_and_listed(drums: Archive, layout: str) -> None:
    (drums.base / "evil").write_bytes(b"secret")
    for path in CRAFTED:
        drums.index(path)
    drums.index(b"ok", relative_path_b64="not base64!")
    before = snapshot(os.fsencode(drums.base))
    with drums.plan(layout=layout) as plan:
        summary = execute(plan)
        kinds = {kind for kind, _, _ in plan.problems()}
    assert summary.counts["unsafe_path"] == len(CRAFTED) + 1
    assert kinds == {"unsafe_path"}
    assert len(drums.tree()) == 5
    after = snapshot(os.fsencode(drums.base))
    assert all(after[path] == entry for path, entry in before.items())


def test_a_crafted_label_is_left_out(archive: Archive) -> None:
    for number, label in enumerate(["../up", "/abs", "..", "a/b", "nul\0", "_mapping.jsonl", "_manifests"]):
        archive.add(b"%d.wav" % number, assigned_label=label)
    summary = archive.rebuild()
    assert summary.counts["unsafe_label"] == 5
    assert set(archive.tree()) == {b"label_mapping.jsonl/5.wav", b"label_manifests/6.wav"}


def test_two_labels_of_one_directory_name_share_it(archive: Archive) -> None:
    archive.add(b"a.wav", assigned_label="_x")
    archive.add(b"b.wav", assigned_label="label_x")
    archive.rebuild()
    assert set(archive.tree()) == {b"label_x/a.wav", b"label_x/b.wav"}
    assert (archive.out / "_manifests" / "label_x.txt").read_text() == "label_x/a.wav\nlabel_x/b.wav\n"


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
@pytest.mark.parametrize("planted", ["Kick", "Kick/Vendor A", "Kick/Vendor A/Kicks"])
def test_a_planted_link_leads_nowhere(drums: Archive, mode: str, planted: str) -> None:
    run = drums.run()
    drums.rebuild(run, labels=("Snare",), copy_mode=mode)
    outside = drums.base / "outside"
    outside.mkdir()
    place = drums.out / planted
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    summary = drums.rebuild(run, copy_mode=mode)
    assert list(outside.iterdir()) == []
    assert summary.counts["occupied"] == 2
    undo(drums.out)
    assert place.is_symlink()


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_a_link_planted_between_plan_and_execution_leads_nowhere(drums: Archive, mode: str) -> None:
    drums.rebuild(labels=("Snare",), copy_mode=mode)
    outside = drums.base / "outside"
    outside.mkdir()
    with drums.plan(copy_mode=mode) as plan:
        (drums.out / "Kick").symlink_to(outside)
        summary = execute(plan)
    assert list(outside.iterdir()) == []
    assert summary.counts["occupied"] == 2
    assert summary.counts["made"] > 0


@pytest.mark.parametrize("name", ["_staging", "_manifests"])
def test_a_link_planted_at_rebuilds_own_directories_ends_it(drums: Archive, name: str) -> None:
    drums.rebuild(labels=("Snare",))
    outside = drums.base / "outside"
    outside.mkdir()
    (outside / "0").write_bytes(b"precious")
    (outside / "1").write_bytes(b"precious")
    if (drums.out / name).exists():
        os.rename(drums.out / name, drums.base / "moved")
    (drums.out / name).symlink_to(outside)
    with pytest.raises(DrumlineError):
        drums.rebuild()
    assert sorted(path.name for path in outside.iterdir()) == ["0", "1"]


def test_links_planted_at_staged_names_and_reports_are_not_followed(drums: Archive) -> None:
    drums.rebuild(labels=("Snare",))
    victim = drums.base / "victim"
    victim.write_bytes(b"precious")
    (drums.out / "_staging").mkdir()
    for name in ("0", "1", "2"):
        (drums.out / "_staging" / name).symlink_to(victim)
    for name in ("_stats.json", "_rebuild_summary.json", "_manifests/misc.txt"):
        (drums.out / name).unlink()
        (drums.out / name).symlink_to(victim)
    summary = drums.rebuild()
    assert victim.read_bytes() == b"precious"
    assert summary.counts["reports_left"] >= 2
    assert (drums.out / "_stats.json").is_symlink()


def test_a_link_that_replaced_a_file_of_ours_is_not_followed(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    victim = drums.base / "victim"
    place = drums.out / "Hihat/Vendor B/hat.wav"
    os.rename(place, victim)
    place.symlink_to(victim)
    drums.rebuild(run, labels=("Kick",))
    undo(drums.out)
    assert victim.stat().st_size == 200
    assert place.is_symlink()


def test_names_that_the_file_system_refuses_cost_only_themselves(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.symlink

    def symlink(source: bytes, name: bytes, **where: int) -> None:
        if name == b"hat.wav":
            raise OSError(36, "File name too long")
        real(source, name, **where)

    monkeypatch.setattr(os, "symlink", symlink)
    summary = drums.rebuild(copy_mode="symlink")
    assert summary.counts["bad_name"] == 1
    assert len(drums.tree()) == 4


def _broken_disk(patch: pytest.MonkeyPatch, call: str, broken: bytes) -> None:
    """Let reading, or writing, the bytes of one sample fail, in the kernel's copying as well."""
    real = {name: getattr(os, name) for name in ("read", "write", "copy_file_range")}

    def is_broken(descriptor: int) -> bool:
        return os.pread(descriptor, len(broken), 0) == broken

    def copy_file_range(origin: int, descriptor: int, count: int) -> int:
        if is_broken(origin):
            raise OSError(errno.EIO, "Input/output error")
        return int(real["copy_file_range"](origin, descriptor, count))

    def read(descriptor: int, count: int) -> bytes:
        if call == "read" and is_broken(descriptor):
            raise OSError(errno.EIO, "Input/output error")
        return bytes(real["read"](descriptor, count))

    def write(descriptor: int, data: bytes) -> int:
        if call == "write" and bytes(data) == broken:
            raise OSError(errno.EIO, "Input/output error")
        return int(real["write"](descriptor, data))

    for function in (copy_file_range, read, write):
        patch.setattr(os, function.__name__, function, raising=False)


def test_a_sample_that_cannot_be_read_costs_only_itself(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    drums.add(b"bad.wav", KICK, b"on a bad sector")
    _broken_disk(monkeypatch, "read", b"on a bad sector")
    summary = drums.rebuild()
    assert summary.counts["unreadable"] == 1
    assert len(drums.tree()) == 5
    assert not (drums.out / "_staging").exists()


def test_a_sample_that_cannot_be_written_ends_the_rebuild(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    drums.add(b"bad.wav", KICK, b"to a bad sector")
    run = drums.run()
    with monkeypatch.context() as patch:
        _broken_disk(patch, "write", b"to a bad sector")
        with pytest.raises(OutputError, match="Input/output error"):
            drums.rebuild(run)
    drums.rebuild(run)
    assert len(drums.tree()) == 6


def test_a_tree_that_cannot_be_looked_at_is_named(drums: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    run = drums.run()
    drums.rebuild(run)
    stat = os.stat

    def refuse(path: Any, **more: Any) -> os.stat_result:
        if more.get("follow_symlinks") is False and path == b"hat.wav":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(OutputError, match=r"cannot look at .*hat\.wav.*Permission denied"):
        drums.plan(run)


def test_too_many_open_files_say_what_helps(drums: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    run = drums.run()

    def refuse(*_: Any, **__: Any) -> os.stat_result:
        raise OSError(errno.EMFILE, "Too many open files", b"Vendor A")

    monkeypatch.setattr(Sources, "find", refuse)
    with pytest.raises(OutputError, match="Too many open files") as error:
        drums.plan(run)
    assert "ulimit -n" in error.value.way_out


def test_a_full_disk_says_what_helps_in_this_mode(drums: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs(drums.base)
    full = os.statvfs_result((*room[:4], 0, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    for mode, helps in (("copy", True), ("hardlink", False)):
        with pytest.raises(OutputError) as error:
            drums.plan(copy_mode=mode)
        assert ("hardlink" in error.value.way_out) == helps


def test_an_index_bigger_than_the_temporary_directory_is_named(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    from drumline.rebuild.store import Store

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    archive.add(b"a.wav", KICK)
    run = archive.run()
    monkeypatch.setattr(Store, "flush", full)
    with pytest.raises(OutputError, match="temporary directory") as error:
        archive.plan(run)
    assert "TMPDIR" in error.value.way_out


def test_missing_parents_of_the_tree_are_made(drums: Archive) -> None:
    drums.rebuild(out=drums.base / "a" / "b")
    assert Path(drums.base / "a" / "b" / "Kick").is_dir()
