"""Durable writes: whole or not at all, and nothing left beside."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from drumline.durable import draft_of, make_directories, new_directory, sync_directory, write_json
from drumline.errors import OutputError


@pytest.fixture
def directories_sync(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let syncing a directory fail with the errors in this list."""
    errors: list[int] = []
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if errors and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errors[0], os.strerror(errors[0]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    return errors


def test_a_file_system_that_cannot_sync_directories_is_written_all_the_same(
    tmp_path: Path, directories_sync: list[int]
) -> None:
    directories_sync.append(errno.EINVAL)
    sync_directory(tmp_path)
    write_json(tmp_path / "it.json", {"whole": True})
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


def test_a_directory_that_a_failing_disk_does_not_sync_is_an_error(
    tmp_path: Path, directories_sync: list[int]
) -> None:
    directories_sync.append(errno.EIO)
    with pytest.raises(OutputError, match="Input/output error"):
        write_json(tmp_path / "it.json", {})


def test_what_a_kill_left_of_a_write_the_next_write_takes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_names: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        monkeypatch.setattr(os, "replace", die)
        write_json(tmp_path / "it.json", {"first": True})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    write_json(tmp_path / "it.json", {"second": True})
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


def test_a_new_directory_has_nothing_beside_it_that_would_have_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for module, name in ((shutil, "rmtree"), (os, "rmdir"), (os, "unlink")):
        monkeypatch.setattr(module, name, failing)
    with new_directory(tmp_path / "it") as draft:
        (draft / "part").write_text("whole")
    assert [os.fspath(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["it", "it/part"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "it").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_new_directory_that_a_failing_disk_does_not_sync_is_in_nobodys_way(
    tmp_path: Path, directories_sync: list[int]
) -> None:
    directories_sync.append(errno.EIO)
    with pytest.raises(OutputError, match="Input/output error"), new_directory(tmp_path / "it"):
        pass
    assert not list(tmp_path.iterdir())
    directories_sync.clear()
    with new_directory(tmp_path / "it"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_directories_that_are_made_with_one_are_on_disk_each_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    make_directories(tmp_path / "a" / "b" / "c")
    wanted = [tmp_path.parent, tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert synced == [path.stat().st_ino for path in wanted]


@pytest.mark.parametrize("made", ["a", "a/b", "a/b/c"])
def test_a_name_that_a_kill_left_unsynced_is_synced_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    (tmp_path / made).mkdir(parents=True)
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    make_directories(tmp_path / "a" / "b" / "c")
    assert (tmp_path / made).parent.stat().st_ino in synced


def test_directories_that_a_failing_disk_does_not_sync_are_taken_back(
    tmp_path: Path, directories_sync: list[int]
) -> None:
    directories_sync.append(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        make_directories(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", ["link", "hard link", "pipe"])
def test_a_draft_is_never_written_into_what_stands_in_its_place(tmp_path: Path, make: str) -> None:
    sample, path = tmp_path / "kick.wav", tmp_path / "it.json"
    sample.write_bytes(b"RIFF of somebody")
    if make == "pipe":
        os.mkfifo(draft_of(path))
    else:
        (os.symlink if make == "link" else os.link)(sample, draft_of(path))
    write_json(path, {"whole": True})
    assert sample.read_bytes() == b"RIFF of somebody"
    assert json.loads(path.read_text()) == {"whole": True}
    assert not path.is_symlink()
