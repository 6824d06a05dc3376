from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from drumline.errors import ConfigError, OutputError, UsageError
from drumline.machine import filesystem_type
from drumline.rebuild import Action, RebuildSettings, execute, guard, plan_rebuild
from drumline.rebuild.place import FICLONE
from drumline.rebuild.tree import Sources
from tests.rebuild.archives import Archive, snapshot

TREE = {
    b"Kick/Vendor A/Kicks/kick 01.wav": b"Vendor A/Kicks/kick 01.wav",
    b"Kick/Vendor A/Kicks/kick 02.wav": b"Vendor A/Kicks/kick 02.wav",
    b"Snare/Vendor A/snare.wav": b"Vendor A/snare.wav",
    b"Hihat/Vendor B/hat.wav": b"Vendor B/hat.wav",
    b"misc/Vendor B/clap.wav": b"Vendor B/clap.wav",
}


def read(path: bytes) -> bytes:
    return Path(os.fsdecode(path)).read_bytes()


def target(archive: Archive, path: bytes) -> bytes:
    return os.path.join(os.fsencode(archive.out), path)


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_every_file_stands_under_its_label_and_the_archive_stays_as_it_was(drums: Archive, mode: str) -> None:
    before = snapshot(drums.root)
    summary = drums.rebuild(copy_mode=mode)
    assert set(drums.tree()) == set(TREE)
    assert all(read(target(drums, to)) == read(drums.path(origin)) for to, origin in TREE.items())
    assert snapshot(drums.root) == before
    assert summary.counts["made"] == summary.counts["planned"] == 5
    assert summary.counts["failed"] == 1


def test_a_copy_has_the_time_and_permissions_of_its_original(drums: Archive) -> None:
    place = drums.path(b"Vendor B/hat.wav")
    os.chmod(place, 0o640)
    drums.rebuild()
    origin, copy = os.stat(place), os.stat(target(drums, b"Hihat/Vendor B/hat.wav"))
    assert copy.st_mtime_ns == origin.st_mtime_ns
    assert stat.S_IMODE(copy.st_mode) == 0o640
    assert copy.st_ino != origin.st_ino


def test_a_hard_link_is_the_same_file(drums: Archive) -> None:
    drums.rebuild(copy_mode="hardlink")
    for to, origin in TREE.items():
        assert os.path.samefile(target(drums, to), drums.path(origin))


def test_a_symbolic_link_is_absolute_and_warned_about(drums: Archive) -> None:
    with drums.plan(copy_mode="symlink") as plan:
        assert "break" in plan.warnings[0]
        execute(plan)
    assert all(os.readlink(target(drums, to)) == drums.path(origin) for to, origin in TREE.items())


def test_mode_none_writes_reports_only(drums: Archive) -> None:
    summary = drums.rebuild(copy_mode="none")
    assert drums.tree() == {}
    assert summary.counts["listed"] == 5
    assert (drums.out / "_manifests" / "Kick.txt").read_text().count("\n") == 2


def test_mode_none_needs_no_archive_and_leaves_an_earlier_tree_alone(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    os.rename(drums.root, drums.root + b".offline")
    drums.rebuild(run, copy_mode="none")
    assert set(drums.tree()) == set(TREE)


def test_a_link_in_the_archive_is_linked_to_what_it_points_at(archive: Archive) -> None:
    record = archive.add(b"real.wav")
    os.symlink(b"real.wav", archive.path(b"link.wav"))
    archive.index(b"link.wav", **{name: record[name] for name in ("size", "mtime_ns", "hash")})
    archive.rebuild(copy_mode="hardlink")
    assert os.path.samefile(target(archive, b"Kick/link.wav"), archive.path(b"real.wav"))
    assert not os.path.islink(target(archive, b"Kick/link.wav"))


def supports_reflinks(base: Path) -> bool:
    (base / "a").write_bytes(b"x" * 4096)
    with open(base / "a", "rb") as origin, open(base / "b", "wb") as clone:
        try:
            fcntl.ioctl(clone.fileno(), FICLONE, origin.fileno())
        except OSError:
            return False
    return True


def test_reflink_shares_blocks_or_says_before_anything_is_written_that_it_cannot(drums: Archive) -> None:
    if supports_reflinks(drums.base):
        drums.rebuild(copy_mode="reflink")
        assert set(drums.tree()) == set(TREE)
        return
    with pytest.raises(OutputError, match="reflinks") as refusal:
        drums.rebuild(copy_mode="reflink")
    assert "copy or hardlink" in refusal.value.way_out
    assert not drums.out.exists()


def test_a_refused_mode_leaves_an_empty_directory_empty(drums: Archive) -> None:
    drums.out.mkdir()
    if supports_reflinks(drums.base):
        pytest.skip("reflinks work here")
    with pytest.raises(OutputError):
        drums.rebuild(copy_mode="reflink")
    assert list(drums.out.iterdir()) == []


def test_reflinks_are_placed_like_copies(drums: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(descriptor: int, request: int, origin: int) -> int:
        assert request == FICLONE
        return os.sendfile(descriptor, origin, 0, 1 << 20)

    monkeypatch.setattr(fcntl, "ioctl", clone)
    drums.rebuild(copy_mode="reflink")
    assert all(read(target(drums, to)) == read(drums.path(origin)) for to, origin in TREE.items())


def test_hard_links_across_devices_are_refused_before_anything_is_written(
    drums: Archive, tmp_path: Path
) -> None:
    if os.stat(tmp_path).st_dev == os.stat(drums.base).st_dev:
        pytest.skip("one file system only")
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="one file system") as refusal:
        plan_rebuild(RebuildSettings(drums.run().directory, out, copy_mode="hardlink"))
    assert "copy or symlink" in refusal.value.way_out
    assert not out.exists()


@pytest.mark.parametrize("mode", ["hardlink", "symlink", "reflink"])
def test_links_on_a_file_system_without_them_are_refused_before_anything_is_written(
    drums: Archive, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "filesystem_type", lambda _: "exfat")
    with pytest.raises(OutputError, match=f"exfat.* knows no {mode}s") as refusal:
        drums.rebuild(copy_mode=mode)
    assert "--copy-mode copy" in refusal.value.way_out
    assert not drums.out.exists()
    drums.rebuild(copy_mode="copy")


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="Linux tells kinds of file systems")
def test_the_kind_of_a_file_system_is_told() -> None:
    assert filesystem_type(b"/proc") == "proc"
    assert filesystem_type(b"/no such place") == ""


def test_copies_work_across_devices_and_without_copy_file_range(
    drums: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    drums.out = tmp_path / "out"
    drums.rebuild()
    assert all(read(target(drums, to)) == read(drums.path(origin)) for to, origin in TREE.items())


def test_copies_land_on_file_systems_without_hard_links(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    drums.rebuild()
    assert set(drums.tree()) == set(TREE)
    with pytest.raises(OutputError, match="makes no hard links"):
        drums.rebuild(copy_mode="hardlink", out=drums.base / "other")
    assert not (drums.base / "other").exists()


def test_an_original_that_vanishes_just_before_its_hard_link_costs_only_itself(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Sources.find

    def found_too_early(sources: Sources, action: Action) -> tuple[int, bytes, os.stat_result]:
        found = find(sources, action)
        if action.source == b"Vendor B/hat.wav":
            os.unlink(drums.path(action.source))
        return found

    with drums.plan(copy_mode="hardlink") as plan:
        monkeypatch.setattr(Sources, "find", found_too_early)
        summary = execute(plan)
    assert (summary.counts["missing"], summary.counts["made"]) == (1, 4)


def test_what_a_mode_is_tried_with_may_be_gone_by_then(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fcntl, "ioctl", lambda descriptor, _, origin: os.sendfile(descriptor, origin, 0, 1 << 20)
    )
    for mode in ("reflink", "hardlink", "symlink"):
        with drums.plan(copy_mode=mode, out=drums.base / mode) as plan:
            first = next(plan.batches(1, 1))[0].source
            os.rename(drums.path(first), drums.path(b"aside"))
            summary = execute(plan)
            os.rename(drums.path(b"aside"), drums.path(first))
        assert (summary.counts["missing"], summary.counts["made"]) == (1, 4)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EACCES])
def test_one_original_that_may_not_be_linked_costs_only_itself(
    drums: Archive, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def refuse(origin: Any, name: Any, **more: Any) -> None:
        if origin == b"hat.wav":
            raise OSError(code, os.strerror(code))
        link(origin, name, **more)

    with drums.plan(copy_mode="hardlink") as plan:
        assert next(plan.batches(1, 1))[0].source == b"Vendor B/hat.wav"
        monkeypatch.setattr(os, "link", refuse)
        summary = execute(plan)
    assert (summary.counts["refused"], summary.counts["made"]) == (1, 4)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for wrong in (
        {"copy_mode": "move"},
        {"layout": "x"},
        {"labels": ()},
        {"labels": ("A",), "allow_all": True},
    ):
        with pytest.raises(UsageError):
            RebuildSettings(Path("run"), Path("out"), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"threshold": 7.0}, {"gate_threshold": -0.1}, {"gate_threshold": 1.5}])
def test_impossible_thresholds_are_refused_when_they_are_set(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        RebuildSettings(Path("run"), Path("out"), **wrong)  # type: ignore[arg-type]
