"""One writer at a time: a lock that dies with its holder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drumline.errors import BusyError, OutputError
from drumline.lock import exclusive
from tests.pipeline.support import environment, prompt

HOLDER = """
import os, sys, time
from pathlib import Path
from drumline.lock import exclusive
with exclusive(Path(sys.argv[1]), "it", "a test"):
    if sys.argv[3] == "child" and os.fork():
        os._exit(0)
    os.write(1, b"held\\n")
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def hold(lock: Path, seconds: float = 60, who: str = "itself") -> subprocess.Popen[str]:
    """Hold the lock in another process, or in a child that is left of it."""
    command = [sys.executable, "-c", HOLDER, str(lock), str(seconds), who]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_is_held_and_given_back(lock: Path) -> None:
    for _ in range(2):
        with exclusive(lock, "it", "a test", patience_sec=0):
            assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_who_comes_second_is_told_who_is_first(lock: Path) -> None:
    with hold(lock) as holder:
        begun = time.monotonic()
        with pytest.raises(BusyError) as caught, exclusive(lock, "it", "a test", patience_sec=0.2):
            pass
        assert 0.2 <= time.monotonic() - begun < prompt(1.5)
        holder.kill()
    said = rf"it is in use by process {holder.pid} \(a test\) since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(said, caught.value.what)
    assert "Wait until it has ended" in caught.value.way_out


def test_who_comes_second_gets_it_when_the_first_ends_soon(lock: Path) -> None:
    with hold(lock, 0.2), exclusive(lock, "it", "a test", patience_sec=30):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_lock_left_by_a_killed_process_is_no_lock(lock: Path) -> None:
    with hold(lock) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with exclusive(lock, "it", "a test", patience_sec=prompt(1.0)):
        pass


def test_a_file_that_says_something_else_is_no_lock(lock: Path) -> None:
    lock.write_bytes(b"\xff" * 100)
    with exclusive(lock, "it", "a test", patience_sec=0):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_the_lock_is_given_back_when_its_body_raises(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(lock, "it", "a test"):
        raise ZeroDivisionError
    with exclusive(lock, "it", "a test", patience_sec=0):
        pass


def test_only_one_of_many_holds_it_at_a_time(lock: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with exclusive(lock, "it", "a test", patience_sec=60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_place_that_cannot_be_written_is_an_error_with_a_name(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"nowhere/\.lock"),
        exclusive(tmp_path / "nowhere" / ".lock", "it", "a test"),
    ):
        pass


def test_a_full_disk_is_an_error_with_a_way_out(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left") as caught, exclusive(lock, "it", "a test"):
        pass
    assert "space" in caught.value.way_out


def test_who_comes_second_is_told_when_only_a_child_of_the_first_is_left(lock: Path) -> None:
    with hold(lock, 1.0, "child") as holder:
        holder.wait()
        message = rf"process {holder.pid} \(a test\) since .*, or rather by what is left of it"
        with pytest.raises(BusyError, match=message), exclusive(lock, "it", "a test", patience_sec=0):
            pass


def test_a_lock_that_was_given_back_names_nobody(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(lock, "it", "a test"):
        raise ZeroDivisionError
    assert lock.read_bytes() == b""


def test_who_comes_while_the_next_writes_its_name_is_not_told_of_the_one_before(lock: Path) -> None:
    with exclusive(lock, "it", "an earlier test"):
        pass
    with open(lock, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # it has not written its name yet
        message = "it is in use by another process"
        with pytest.raises(BusyError, match=message), exclusive(lock, "it", "a test", patience_sec=0):
            pass


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_somebodys_file_in_the_locks_place_is_refused(
    lock: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    sample = tmp_path / "kick.wav"
    sample.write_bytes(b"RIFF of somebody")
    link(sample, lock)
    with pytest.raises(OutputError, match=re.escape(str(lock))) as refused, exclusive(lock, "it", "a test"):
        pass
    assert "circle of links" in str(refused.value) or "is no lock" in str(refused.value)
    assert sample.read_bytes() == b"RIFF of somebody"
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(OutputError, match="is no lock"), exclusive(lock, "it", "a test"):
        pass
