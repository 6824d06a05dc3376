from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from drumline import helpers
from drumline.errors import DrumlineError, IndexFormatError, OutputError, StageError
from drumline.helpers import Alone, Forked, helpers_for
from drumline.rebuild import collect, execution, place, undo
from tests.rebuild.archives import CLAP, KICK, SNARE, Archive

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let helpers do small work too, in small batches."""

    def two_helpers(work: Callable[[Any], Any], _: int) -> Forked[Any, Any]:
        return Forked(work, 2)

    monkeypatch.setattr(collect, "helpers_for", two_helpers)
    monkeypatch.setattr(execution, "helpers_for", two_helpers)
    monkeypatch.setattr(place.HardLinks, "batch_files", 3)
    monkeypatch.setattr(place.Copies, "batch_files", 3)


@pytest.fixture
def many(archive: Archive) -> Archive:
    for number in range(40):
        archive.add(b"%d/%d.wav" % (number % 5, number), [KICK, SNARE, CLAP][number % 3])
    archive.add(b"1/bad.wav", error="timeout", hash=None)
    return archive


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
@pytest.mark.usefixtures("helped")
def test_helpers_make_the_same_tree(many: Archive, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.remove(many.path(b"3/3.wav"))
    run = many.run()
    helped = many.rebuild(run, copy_mode=mode)
    tree = many.tree()
    many.out = many.base / "alone"
    for module in (collect, execution):
        monkeypatch.setattr(module, "helpers_for", lambda work, _: Alone(work))
    alone = many.rebuild(run, copy_mode=mode)
    assert many.tree() == tree
    assert alone.counts == helped.counts
    assert helped.counts["made"] == 39


@pytest.mark.usefixtures("helped")
def test_what_a_helper_cannot_read_ends_the_plan_with_its_error(many: Archive) -> None:
    many.records.append({**many.records[0], "size": "x"})  # type: ignore[typeddict-item]
    with pytest.raises(IndexFormatError, match="garbled record: its 'size'"):
        many.plan()


@pytest.mark.usefixtures("helped")
def test_a_full_disk_under_a_helper_ends_the_rebuild_and_the_same_command_completes_it(
    many: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = many.run()
    with monkeypatch.context() as patch:
        patch.setattr(place, "copy_bytes", full)
        with pytest.raises(OutputError, match="No space"):
            many.rebuild(run)
    assert not (many.out / "_staging").exists()
    many.rebuild(run)
    assert len(many.tree()) == 40


@pytest.mark.usefixtures("helped")
def test_the_death_of_a_helper_ends_the_rebuild_at_once_and_the_same_command_completes_it(
    many: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    run = many.run()
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(place, "copy_bytes", die)
        with pytest.raises(StageError, match="helper"):
            many.rebuild(run)
    assert time.monotonic() - began < 2
    many.rebuild(run)
    assert len(many.tree()) == 40
    assert undo(many.out).complete
    assert not many.out.exists()


def test_helpers_go_when_the_main_process_is_killed_and_nothing_is_lost(many: Archive) -> None:
    run = many.run()
    program = (
        "import sys, os, time, pathlib\n"
        "from drumline import helpers\n"
        "from drumline.rebuild import execution, place, RebuildSettings, plan_rebuild, execute\n"
        "copy = place.copy_bytes\n"
        "def slow(*what):\n"
        "    time.sleep(0.05); os.write(1, b'%d\\n' % os.getpid()); return copy(*what)\n"
        "place.copy_bytes = slow\n"
        "place.Copies.batch_files = 3\n"
        "execution.helpers_for = lambda work, _: helpers.Forked(work, 2)\n"
        "run, out = map(pathlib.Path, sys.argv[1:])\n"
        "with plan_rebuild(RebuildSettings(run, out)) as plan: execute(plan)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run.directory), str(many.out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "engine")},
    )
    assert process.stdout is not None
    with process.stdout:
        helpers: set[int] = set()
        while len(helpers) < 2:
            helpers.add(int(process.stdout.readline()))
        process.kill()
        process.wait()
        deadline = time.monotonic() + 3
        while any(map(_alive, helpers)) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not any(map(_alive, helpers))
    summary = many.rebuild(run)
    assert len(many.tree()) == 40
    assert summary.counts["occupied"] == 0
    undo(many.out)
    assert not many.out.exists()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return not os.path.isdir("/proc/1") or Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_little_work_and_few_processors_need_no_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(task: int) -> int:
        return -task

    assert isinstance(helpers_for(work, 10), Alone)
    monkeypatch.setattr(helpers, "_WORTH_HELP", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert isinstance(helpers_for(work, 10), Alone)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with helpers_for(work, 10) as pool:
        assert isinstance(pool, Forked)
        done = [pair for task in range(20) for pair in pool.give(task)] + pool.finish()
    assert sorted(done) == [(task, -task) for task in range(20)]


def test_an_error_of_a_helper_is_raised_with_all_it_says() -> None:
    def work(_: int) -> int:
        raise OutputError("what", "way out")

    with Forked(work, 1) as pool:
        pool.give(1)
        with pytest.raises(DrumlineError) as error:
            pool.finish()
    assert (error.value.what, error.value.way_out) == ("what", "way out")


def test_helpers_that_cannot_all_be_started_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = BaseProcess.start, 0

    def third_fails(process: BaseProcess) -> None:
        nonlocal started
        started += 1
        if started == 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        start(process)

    monkeypatch.setattr(BaseProcess, "start", third_fails)
    began = time.monotonic()
    with pytest.raises(BlockingIOError), Forked(len, 4):
        pass
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 2


class UnsendableError(Exception):
    def __init__(self, _: object) -> None:
        super().__init__("the cause", lambda: None)


class UnreadableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"the cause: {first}{second}")


@pytest.mark.parametrize("error", [UnsendableError(1), UnreadableError("a", "b")])
def test_the_cause_of_an_error_that_cannot_be_sent_is_told(error: Exception) -> None:
    def work(_: int) -> int:
        raise error

    with Forked(work, 1) as pool:
        pool.give(1)
        with pytest.raises(StageError, match=r"Un\w+able.*the cause"):
            pool.finish()


def test_an_answer_that_cannot_be_sent_is_told() -> None:
    def work(_: int) -> object:
        return lambda: None

    with Forked(work, 1) as pool:
        pool.give(1)
        with pytest.raises(StageError, match="pickle"):
            pool.finish()
