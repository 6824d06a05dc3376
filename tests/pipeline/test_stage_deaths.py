"""A stage that dies ends the run at once, or is replaced; nobody is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, assert_equal, eventually, prompt

SLOW = {"slow": 0.02, "frame_lines": 8}


@pytest.mark.parametrize("stage", ["write", "predict"])
def test_the_death_of_a_stage_ends_the_run_within_two_seconds(calm: Infer, stage: str) -> None:
    running = calm.start(workers=2, **SLOW)
    running.stage("predict")
    killed = time.monotonic()
    running.kill_stage(stage)
    result = running.wait()
    assert time.monotonic() - killed < prompt(2.0)
    assert result.code == 10
    assert result.out == ""
    assert result.err.splitlines() == [
        f"drumline: the {stage} stage was ended by SIGKILL",
        "  Nothing is lost: give the same command again to go on.",
    ]
    running.gone(2.0)


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        ("walk", "drumline.pipeline.walk:_Sender.send"),
        ("discover", "drumline.pipeline.discover:_refuse_an_empty_archive"),
    ],
)
def test_the_death_of_a_stage_that_is_soon_done_ends_the_run_within_two_seconds(
    calm: Infer, tmp_path: Path, stage: str, place: str
) -> None:
    reached = tmp_path / "reached"
    running = calm.start(mark=f"{place} {reached} 60", **SLOW)
    running.reach(reached.exists, "the place")
    killed = time.monotonic()
    running.kill_stage(stage)
    result = running.wait()
    assert time.monotonic() - killed < prompt(2.0)
    assert result.code == 10
    assert f"the {stage} stage was ended by SIGKILL" in result.err
    running.gone(2.0)


def test_workers_that_die_before_they_read_a_file_end_the_run(calm: Infer) -> None:
    result = calm(workers=2, die="before drumline.pipeline.extract:extract")
    assert result.code == 10
    assert "extract workers die before they read a file" in result.err
    assert "drumline doctor" in result.err
    assert result.seconds < prompt(10)


def test_a_stage_that_raises_is_reported_as_a_fault(calm: Infer) -> None:
    running = calm.start(broken="drumline.pipeline.predict:_start")
    result = running.wait()
    assert result.code == 10
    assert "the predict stage failed" in result.err
    assert "please report it" in result.err
    running.gone(2.0)


@pytest.mark.parametrize("moment", ["before_put", "after_put", "after_get"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_may_die_at_any_instruction(
    calm: Infer, undisturbed: Records, tmp_path: Path, moment: str, workers: int
) -> None:
    """Its files are neither lost nor done twice, nor failed."""
    marker = tmp_path / "died"
    calm.counts(workers=workers, worker_dies=f"{moment} {marker}", frame_lines=8)
    assert marker.exists()
    assert_equal(calm.records(), undisturbed)


@pytest.mark.parametrize("what", ["hang", "decoding", "predicting"])
def test_busy_orphans_are_gone_within_five_seconds(calm: Infer, tmp_path: Path, what: str) -> None:
    """Also those that would never look up from their work."""
    marker = tmp_path / "begun"
    patches = {
        "hang": {"hang": str(marker)},
        "decoding": {"slow": 0.3, "mark": f"drumline.pipeline.extract:_Reader.read {marker} 0"},
        "predicting": {"mark": f"drumline.pipeline.predict:_start {marker} 60"},
    }[what]
    running = calm.start(workers=2, **patches)
    running.reach(marker.exists, "work")
    running.signal(signal.SIGKILL)
    running.wait()
    running.gone(5.0)
    again = calm()
    assert again.code == 0, again.err


def test_orphans_hold_the_runs_root_no_longer_than_the_next_command_waits(
    calm: Infer, tmp_path: Path
) -> None:
    marker = tmp_path / "begun"
    running = calm.start(workers=2, hang=str(marker))
    running.reach(marker.exists, "work")
    running.signal(signal.SIGKILL)
    result = calm()
    assert result.code == 0, result.err


def test_a_stopped_stage_does_not_keep_the_run_from_ending(calm: Infer) -> None:
    running = calm.start(workers=2, **SLOW)
    os.kill(running.stage("extract"), signal.SIGSTOP)
    running.stage("predict")
    running.kill_stage("write")
    killed = time.monotonic()
    assert running.wait().code == 10
    assert time.monotonic() - killed < prompt(2.0)
    running.gone(2.0)


def test_a_program_that_hangs_ends_with_the_worker_that_waits_for_it(tidy: Infer, tmp_path: Path) -> None:
    """A file that needs ffmpeg: the worker is killed for the time it takes, and leaves nothing behind."""
    ffmpeg, pids = tmp_path / "bin" / "ffmpeg", tmp_path / "pids"
    ffmpeg.parent.mkdir()
    ffmpeg.write_text(f"#!/bin/sh\necho $$ >> '{pids}'\nexec sleep 60\n")
    ffmpeg.chmod(0o755)
    (tidy.archive / "new.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(range(200)))
    counts = tidy.counts("--file-timeout", "0.5", path=str(ffmpeg.parent))
    assert counts["failed"] == 1
    started = pids.read_text().split()
    assert len(started) == 2
    eventually(lambda: not any(map(is_running, started)), "end of ffmpeg", prompt(5.0))


def is_running(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
