"""Infer is killed before and after each of its steps, and the same command finishes the run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bench.synth import write_archive
from drumline.failpoints import STEPS
from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, Server, assert_equal, runs_of

ELSEWHERE = ("log.", "tree.", "report.", "repair.", "index.replace", "durable.publish")
"""Steps of rebuild, repair and bundles, and of runs that find an index of an earlier one."""

STEPS_OF_A_FIRST_RUN = [name for name in STEPS if not name.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of six sounds."""
    path = tmp_path_factory.mktemp("few") / "archive"
    write_archive(path, 6, seed=8, tiny=True, broken_fraction=0, duplicate_fraction=0, odd_fraction=0)
    return path


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, server: Server, few: Path, model: Path) -> Records:
    infer = Infer(server, few, tmp_path_factory.mktemp("wanted") / "runs", model)
    infer.counts()
    return infer.records()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_A_FIRST_RUN)
def test_a_run_that_is_killed_at_any_step_is_finished_by_the_same_command(
    server: Server, few: Path, model: Path, tmp_path: Path, wanted: Records, step: str, moment: str
) -> None:
    infer = Infer(server, few, tmp_path / "runs", model)
    running = infer.start(failpoints=f"{step}.{moment}=kill-group", frame_lines=2)
    assert running.wait().code == -signal.SIGKILL, "the step was not reached"
    running.gone()
    infer.counts()
    assert_equal(infer.records(), wanted)
    assert runs_of(infer.runs_root) == [infer.run]
