"""Ctrl-C and its kin: the run stops in order, soon, and the same command goes on."""

from __future__ import annotations

import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import Infer
from tests.pipeline.support import (
    LIMIT_SEC,
    Records,
    Result,
    Running,
    assert_equal,
    environment,
    eventually,
    members,
    prompt,
    runs_of,
)

SLOW = {"slow": 0.015, "frame_lines": 8}
WAY_OUT = "  Nothing is lost: give the same command again to go on."


def half_way(infer: Infer, **options: Any) -> Running:
    """Start a run, and wait until it writes its first records."""
    running = infer.start(workers=2, **SLOW, **options)
    running.reach(
        lambda: any(path.stat().st_size for path in infer.runs_root.glob("run_*/index*")), "records"
    )
    return running


def stopped(running: Running, within: float = 2.0) -> Result:
    """Wait for the end of a run that was just sent a signal; it must come soon."""
    sent = time.monotonic()
    result = running.wait()
    assert time.monotonic() - sent < prompt(within)
    assert result.code == 130, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    running.gone(1.0)
    return result


def goes_on(infer: Infer, undisturbed: Records) -> None:
    """Give the same command again: it finishes the same run."""
    counts = infer.counts(workers=2)
    assert counts["discovered"] == len(undisturbed)
    assert_equal(infer.records(), undisturbed)
    assert runs_of(infer.runs_root) == [infer.run]


def known(infer: Infer) -> int:
    """Return how many records are committed."""
    cache = sqlite3.connect(f"file:{infer.runs_root / 'cache.sqlite'}?mode=ro", uri=True)
    ((count,),) = cache.execute("SELECT count(*) FROM file")
    cache.close()
    return int(count)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to", ["group", "supervisor"])
def test_a_signal_stops_the_run_in_order(
    calm: Infer, undisturbed: Records, number: signal.Signals, to: str
) -> None:
    running = half_way(calm)
    running.signal_group(number) if to == "group" else running.signal(number)
    result = stopped(running)
    note, what, way_out = result.err.splitlines()
    assert note == "drumline: stopping; press Ctrl-C again to stop at once"
    done, found = map(int, re.fullmatch(r"drumline: stopped: (\d+) of (\d+) files .* done", what).groups())
    assert way_out == WAY_OUT
    assert found == len(undisturbed)
    assert 0 < done == known(calm) < found
    goes_on(calm, undisturbed)


def test_stopping_again_and_again_gets_there_in_the_end(calm: Infer, undisturbed: Records) -> None:
    before = 0
    for _ in range(3):
        running = half_way(calm) if not before else calm.start(workers=2, **SLOW)
        running.stage("predict")
        time.sleep(0.05)
        running.signal_group(signal.SIGINT)
        stopped(running)
        assert known(calm) >= before
        before = known(calm)
    goes_on(calm, undisturbed)


def test_workers_that_do_not_return_cannot_delay_the_end(
    calm: Infer, undisturbed: Records, tmp_path: Path
) -> None:
    running = calm.start(workers=2, hang=str(tmp_path / "begun"))
    running.reach((tmp_path / "begun").exists, "work")
    running.signal_group(signal.SIGINT)
    stopped(running)
    goes_on(calm, undisturbed)


def test_a_second_signal_stops_at_once(calm: Infer, undisturbed: Records, tmp_path: Path) -> None:
    running = calm.start(workers=2, hang=str(tmp_path / "begun"))
    running.reach((tmp_path / "begun").exists, "work")
    running.signal_group(signal.SIGINT)
    running.reach(lambda: "stopping" in running.err.read_text(), "note")
    running.signal_group(signal.SIGINT)
    stopped(running, within=0.9)
    goes_on(calm, undisturbed)


def test_a_storm_of_signals_does_no_harm(calm: Infer, undisturbed: Records) -> None:
    running = half_way(calm)
    for number in 10 * (signal.SIGINT, signal.SIGTERM):
        running.signal(number)
    stopped(running)
    goes_on(calm, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "place",
    [
        "drumline.pipeline.run:make_runs_root",
        "drumline.pipeline.run:make_job",
        "drumline.pipeline.finish:write_json",
    ],
)
def test_a_signal_before_and_after_the_stages_run(
    calm: Infer, undisturbed: Records, tmp_path: Path, place: str, number: signal.Signals
) -> None:
    marker = tmp_path / "there"
    running = calm.start(mark=f"{place} {marker} 30")
    running.reach(marker.exists, place)
    running.signal_group(number)
    result = stopped(running)
    assert result.err.splitlines() == ["drumline: stopped", WAY_OUT]
    goes_on(calm, undisturbed)


def test_a_run_under_nohup_ignores_sighup(calm: Infer, undisturbed: Records) -> None:
    running = calm.start(workers=2, ignore="SIGHUP", **SLOW)
    running.stage("predict")
    running.signal_group(signal.SIGHUP)
    result = running.wait()
    assert result.code == 0, result.err
    calm.run = Path(result.json()["run_directory"])
    assert_equal(calm.records(), undisturbed)


def test_a_paused_run_goes_on_and_blames_no_file(tidy: Infer) -> None:
    """The pause is longer than any file may take."""
    running = tidy.start("--fresh", "--file-timeout", "0.6", workers=2, slow=0.1)
    running.stage("predict")
    time.sleep(0.15)
    running.signal_group(signal.SIGSTOP)
    time.sleep(1.6)
    assert set(running.members().values()) == {"T"}
    running.signal_group(signal.SIGCONT)
    result = running.wait()
    assert result.code == 0, result.err
    assert (result.counts["classified"], result.counts["failed"]) == (40, 0)
    assert len(running.stages("extract")) == 2


@pytest.mark.parametrize("stage", ["write", "discover", "extract", "predict"])
def test_a_stage_that_stayed_stopped_goes_on_with_the_run(
    calm: Infer, undisturbed: Records, stage: str
) -> None:
    """It was forked between SIGSTOP and SIGCONT, and Linux told it of the first alone."""
    running = calm.start(workers=2, **SLOW)
    os.kill(running.stage(stage), signal.SIGSTOP)
    running.signal(signal.SIGCONT)
    result = running.wait()
    assert result.code == 0, result.err
    calm.run = Path(result.json()["run_directory"])
    assert_equal(calm.records(), undisturbed)


def test_a_terminal_that_is_closed_stops_the_run_in_order(calm: Infer, undisturbed: Records) -> None:
    ours, theirs = pty.openpty()
    running = half_way(calm, terminal=os.ttyname(theirs))
    os.close(theirs)
    os.close(ours)
    stopped(running)
    goes_on(calm, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "place",
    [
        "drumline.pipeline.discover:Cache",
        "drumline.pipeline.write:IndexAppender",
        "drumline.pipeline.extract:_Worker",
        "drumline.pipeline.predict:open_session",
    ],
)
def test_a_stage_that_hangs_while_it_begins_cannot_delay_the_end(
    calm: Infer, undisturbed: Records, tmp_path: Path, place: str, number: signal.Signals
) -> None:
    """A library that is loaded, a model that is opened: C code, which hears no signal."""
    marker = tmp_path / "there"
    running = calm.start(mark=f"{place} {marker} 30")
    running.reach(marker.exists, place)
    running.signal_group(number)
    stopped(running, within=3.0)
    goes_on(calm, undisturbed)


LOADED_SLOWLY = """
import os, signal, sys, time
from importlib.machinery import ExtensionFileLoader

wanted, marker, *sys.argv[1:] = sys.argv[1:]
create, requests = ExtensionFileLoader.create_module, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

def create_module(loader, spec):
    if spec.name.startswith(wanted):
        signal.pthread_sigmask(signal.SIG_BLOCK, requests)  # as C code, which does not return meanwhile
        os.close(os.open(marker, os.O_CREAT))
        time.sleep(0.5)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, requests)
    return create(loader, spec)

ExtensionFileLoader.create_module = create_module
from drumline.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("library", ["orjson", "numpy.", "soxr.", "onnxruntime."])
def test_a_signal_while_a_library_is_loaded_stops_the_command(
    sounds: list[Path], tidy: Infer, tmp_path: Path, library: str, number: signal.Signals
) -> None:
    marker, argv = tmp_path / "there", ("infer", tidy.archive, "--runs-root", tidy.runs_root)
    sounds[0].unlink()
    running = subprocess.Popen(
        [sys.executable, "-c", LOADED_SLOWLY, library, marker, *argv, "--model", tidy.model, "--fresh"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    eventually(marker.exists, library)
    os.killpg(running.pid, number)
    sent = time.monotonic()
    _, said = running.communicate(timeout=LIMIT_SEC)
    assert time.monotonic() - sent < prompt(3.5)
    assert running.returncode == 130, said
    assert said.splitlines()[-1] == WAY_OUT
    assert "Traceback" not in said
    eventually(lambda: not members(running.pid), "end of all processes", prompt(1.0))
    assert tidy.counts()["discovered"] == 39


STOPPED_IN_A_FORK = """
import os, signal
from drumline.cli.stopping import stoppable
from drumline.pipeline.process import Reports, StageProcess
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    with stoppable():
        StageProcess.start("walk", lambda: None, Reports())
except KeyboardInterrupt:
    os._exit(7)
"""


STOPPED_IN_A_CALLBACK = """
import os, signal, time, weakref
from drumline.cli.stopping import stoppable
class Module:
    pass
try:
    with stoppable():
        module = Module()
        held = weakref.ref(module, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del module
        time.sleep(60)
except KeyboardInterrupt:
    os._exit(7)
"""


@pytest.mark.parametrize(
    "program", [STOPPED_IN_A_FORK, STOPPED_IN_A_CALLBACK], ids=["in a fork", "in a callback"]
)
def test_a_signal_is_heeded_where_python_ignores_exceptions(program: str) -> None:
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_SEC)
    assert (result.returncode, result.stderr) == (7, "")


STOPPED_AT_ONCE = """
import os, signal
from drumline.cli.stopping import stoppable
with stoppable():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        signal.pause()
"""

STOPPED_WHILE_IMPORTING = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from drumline.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (STOPPED_AT_ONCE, f"drumline: stopped at once\n{WAY_OUT}\n"),
        (STOPPED_WHILE_IMPORTING, "drumline: stopped\n"),
    ],
    ids=["the second signal", "while it is imported"],
)
def test_a_command_that_is_stopped_says_so_with_its_exit_code(program: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, said)
