from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from drumline.errors import DrumlineError, Interrupted, OutputError
from drumline.failpoints import arm
from drumline.rebuild import undo
from drumline.rebuild.log import MappingLog, path_line
from drumline.rebuild.tree import Tree
from drumline.verify import verify_tree
from tests.rebuild.archives import Archive, snapshot
from tests.rebuild.faults import at_call, kill, small_archive

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_a_kill_at_any_call_is_completed_by_the_same_command_and_known_to_undo(
    fast_path: Path, mode: str
) -> None:
    """In a process of its own: it forks for every call."""
    path = os.pathsep.join([str(CHECKOUT / "engine"), str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.rebuild.faults", str(fast_path), mode],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rebuilds, undos = map(int, done.stdout.split())
    assert rebuilds > 30
    assert undos > 15


def same(archive: Archive, before: object) -> bool:
    """Tell whether all is as before; an empty directory may be left when making it known failed."""
    if archive.out.exists():
        archive.out.rmdir()
    return snapshot(os.fsencode(archive.base)) == before


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_write_may_fail_and_the_same_command_completes_it(fast_path: Path, mode: str, code: int) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    archive.rebuild(run, copy_mode=mode)
    wanted = archive.tree()
    undo(archive.out)
    before = snapshot(os.fsencode(fast_path))
    failed = number = 0
    while True:
        number += 1
        with at_call(number, lambda: fail(code)) as calls:
            try:
                summary = archive.rebuild(run, copy_mode=mode)
            except OutputError:
                failed += 1
            else:
                assert summary.not_placed or archive.tree() == wanted
        if len(calls) < number:
            break
        archive.rebuild(run, copy_mode=mode)
        assert archive.tree() == wanted
        undo(archive.out)
        assert same(archive, before)
    assert failed > 20


def test_undo_may_fail_anywhere_and_the_same_command_completes_it(fast_path: Path) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    before = snapshot(os.fsencode(fast_path))
    number = 0
    while True:
        number += 1
        archive.rebuild(run)
        with at_call(number, lambda: fail(errno.EIO)) as calls:
            try:
                undo(archive.out)
                failed = False
            except DrumlineError:
                failed = True
        if len(calls) < number:
            break
        if failed:
            undo(archive.out)
        assert same(archive, before)
    assert number > 15


def interrupt() -> None:
    raise KeyboardInterrupt


def goes_on(work: Callable[[], object]) -> bool:
    """Tell whether work was stopped in order."""
    try:
        work()
    except Interrupted as stop:
        return "same command" in stop.way_out
    return False


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_ctrl_c_says_that_the_same_command_goes_on_and_it_does(fast_path: Path, mode: str) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    before = snapshot(os.fsencode(fast_path))
    number, stopped, counts = 0, 0, 1
    while counts >= number:
        number += 1
        with at_call(number, interrupt) as calls:
            stopped += goes_on(lambda: archive.rebuild(run, copy_mode=mode))
        counts = len(calls)
        archive.rebuild(run, copy_mode=mode)
        assert len(archive.tree()) == 4
        undo(archive.out)
        assert same(archive, before)
    assert stopped > 20


def test_a_rebuild_from_the_command_line_stops_within_two_seconds_of_ctrl_c(fast_path: Path) -> None:
    archive = Archive(fast_path)
    for number in range(3_000):
        archive.add(b"%d/%d.wav" % (number % 30, number))
    run = archive.run()
    command = [sys.executable, "-m", "drumline", "rebuild", str(run.directory), "--out", str(archive.out)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "engine")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    log = archive.out / "_mapping.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size > 50_000):
        time.sleep(0.002)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    if process.returncode:
        assert process.returncode == 130
        assert "same command" in told
    again = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert again.returncode == 0
    assert len(archive.tree()) == 3_000


@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_the_log_and_the_data_are_on_disk_before_a_name_appears(
    fast_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    monkeypatch.setattr(Tree, "sync", lambda _: os.fsync(-1))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with at_call(0, kill) as calls:
        archive.rebuild(run, copy_mode=mode)
    appears = "symlink" if mode == "symlink" else "link"
    probed = calls.index(appears) + 1 if mode != "copy" else 0
    before = calls[: calls.index(appears, probed)]
    assert "fsync" in before[_last(before, "write") :]
    if mode == "copy":
        assert "fsync" in before[_last(before, "copy_file_range") :]


@contextmanager
def _leaving() -> Iterator[None]:
    """End this process, a child, whatever happens in it."""
    try:
        yield
    finally:
        os._exit(1)


def _assert_killed(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _last(calls: list[str], name: str) -> int:
    return len(calls) - 1 - calls[::-1].index(name)


def test_what_a_killed_rebuild_removed_is_not_missed_when_it_is_completed(fast_path: Path) -> None:
    """Files were removed, and the kill came before the log could say so."""
    archive = small_archive(fast_path)
    run = archive.run()
    archive.rebuild(run, labels=("Snare",), layout="flat")
    before = len(archive.tree())
    child = os.fork()
    if child == 0:
        with _leaving():
            arm("tree.remove.after=kill")
            archive.rebuild(run)
    _assert_killed(child)
    assert len(archive.tree()) == before - 1
    archive.rebuild(run)
    report = verify_tree(archive.out)
    assert report.ok, report.findings


@pytest.mark.parametrize("step", ["log.write.before", "log.sync.before", "tree.remove-directory.before"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_directories_that_a_killed_rebuild_emptied_go_when_it_is_completed(
    fast_path: Path, step: str, number: int
) -> None:
    """All files in them were removed before the kill; whether the log could say so or not."""
    archive = small_archive(fast_path)
    run = archive.run()
    archive.rebuild(run, layout="flat")
    wanted = archive.tree()
    folders = _folders(archive.out)
    undo(archive.out)
    archive.rebuild(run, layout="mirror")
    assert _folders(archive.out) != folders
    child = os.fork()
    if child == 0:
        with _leaving():
            arm(f"{step}=kill@{number}")
            archive.rebuild(run, layout="flat")
    _assert_killed(child)
    archive.rebuild(run, layout="flat")
    assert archive.tree() == wanted
    assert _folders(archive.out) == folders


def test_directories_that_a_killed_undo_emptied_go_with_the_next_rebuild(fast_path: Path) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    archive.rebuild(run, layout="flat")
    folders = _folders(archive.out)
    undo(archive.out)
    archive.rebuild(run, layout="mirror")
    child = os.fork()
    if child == 0:
        with _leaving():
            arm("tree.remove-directory.before=kill")
            undo(archive.out)
    _assert_killed(child)
    archive.rebuild(run, layout="flat")
    assert _folders(archive.out) == folders


@pytest.mark.parametrize("again", ["rebuild", "undo"])
def test_a_log_whose_last_write_lost_power_took_in_part_is_gone_on_with(fast_path: Path, again: str) -> None:
    """A part of it is on disk, and one before that is not: zeros, and a line that ends well after them."""
    archive = small_archive(fast_path)
    run = archive.run()
    before = snapshot(os.fsencode(fast_path))
    archive.rebuild(run)
    wanted = archive.tree()
    with open(archive.out / "_mapping.jsonl", "ab") as log:
        log.write(bytes(512) + b'rumline":"0.1.0"}\n{"action":"dir","target":"never came"}\n')
    if again == "rebuild":
        archive.rebuild(run)
        assert archive.tree() == wanted
        report = verify_tree(archive.out)
        assert report.ok, report.findings
    undo(archive.out)
    assert same(archive, before)


def test_a_log_with_zeros_before_what_was_synced_is_damaged(fast_path: Path) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    archive.rebuild(run)
    log = archive.out / "_mapping.jsonl"
    data = log.read_bytes()
    log.write_bytes(data[:100] + bytes(512) + data[612:])
    for work in (lambda: archive.rebuild(run), lambda: undo(archive.out)):
        with pytest.raises(OutputError, match="makes no sense"):
            work()


def test_a_log_with_zeros_is_gone_on_with_only_where_they_are_behind_the_last_sync(fast_path: Path) -> None:
    archive = small_archive(fast_path)
    archive.rebuild(archive.run())
    log = archive.out / "_mapping.jsonl"
    data = log.read_bytes()
    synced = data.rindex(b'{"action":"synced"}')
    first = data.index(b"\n") + 1
    refused = set()
    for place in range(first, len(data) - 8, 7):
        log.write_bytes(data[:place] + bytes(8) + data[place + 8 :])
        if "log" in verify_tree(archive.out).kinds:
            refused.add(place)
    # Zeros in the mark itself may be either.
    assert set(range(first, synced - 7, 7)) <= refused
    assert max(refused) < data.index(b"\n", synced)


@pytest.mark.parametrize("zeros", [16, 1 << 20])
def test_a_log_whose_first_line_is_zeros_is_refused_where_files_stand(fast_path: Path, zeros: int) -> None:
    archive = small_archive(fast_path)
    run = archive.run()
    archive.rebuild(run)
    log = archive.out / "_mapping.jsonl"
    data = log.read_bytes()
    log.write_bytes(bytes(min(zeros, len(data))) + data[zeros:])
    before = snapshot(os.fsencode(archive.out))
    for work in (lambda: archive.rebuild(run), lambda: undo(archive.out)):
        with pytest.raises(OutputError, match=r"makes no sense|its _mapping\.jsonl"):
            work()
    assert verify_tree(archive.out).kinds == {"log"}
    assert snapshot(os.fsencode(archive.out)) == before


def test_zeros_in_the_middle_of_a_log_of_version_1_are_damage(fast_path: Path) -> None:
    archive = small_archive(fast_path)
    archive.rebuild(archive.run())
    log = archive.out / "_mapping.jsonl"
    data = log.read_bytes().replace(b'{"action":"synced"}\n', b"").replace(b'_mapping":2', b'_mapping":1')
    log.write_bytes(data)
    assert verify_tree(archive.out).ok
    middle = len(data) // 2
    log.write_bytes(data[:middle] + bytes(16) + data[middle + 16 :])
    assert verify_tree(archive.out).kinds == {"log"}


def test_ctrl_c_during_a_sync_never_makes_the_log_say_that_it_was_synced(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with closing(Tree(fast_path)) as tree, closing(MappingLog(tree, 0)) as log:
        log.begin(made_root=True)
        written = (fast_path / "_mapping.jsonl").read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr("drumline.rebuild.log.os.fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                log.append([path_line("dir", b"lost")])
        log.append([path_line("dir", b"kept")], sync=False)
        told = (fast_path / "_mapping.jsonl").read_bytes().removeprefix(written)
    assert told == b'{"action":"synced"}\n' + path_line("dir", b"kept")


def _folders(out: Path) -> set[str]:
    return {os.fspath(path.relative_to(out)) for path in out.rglob("*") if path.is_dir()}
