"""Trainings in processes of their own: the same results, clear errors, a quick end that can be resumed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drumline.errors import OutputError, StageError
from drumline_convert.architecture import Architecture
from drumline_convert.augment import AugmentSettings
from drumline_convert.batches import SamplingSettings
from drumline_convert.side_by_side import Training, train_side_by_side
from drumline_convert.training import TrainingSettings
from drumline_convert.workbench import ModelSettings, Report, Workbench, prepare

pytest.importorskip("tensorflow", reason="tensorflow is not installed: pip install 'drumline[train]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FOLDS = 2


def bench_of(corpus: Path, build: Path, report: Report = lambda _: None, epochs: int = 10) -> Workbench:
    settings = ModelSettings(
        corpus,
        build.parent / "tiny",
        build,
        folds=FOLDS,
        augment=AugmentSettings(variants=2),
        architecture=Architecture(bands=16, stem=4, widths=(8,)),
        training=TrainingSettings(epochs=epochs, members=1, sampling=SamplingSettings(batch_size=8)),
    )
    return prepare(settings, report)


def train_folds(bench: Workbench, cores: int = 2) -> None:
    train_side_by_side([Training(bench, fold) for fold in range(FOLDS)], cores)


def epochs_told(lines: list[str]) -> list[tuple[str, int]]:
    told = (re.match(r"(.*), whole: epoch (\d+) of", line) for line in lines)
    return [(match[1], int(match[2])) for match in told if match]


@pytest.fixture(scope="module")
def alone(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Held-out logits of folds that were trained one after the other, in this process."""
    bench = bench_of(tiny_corpus, tmp_path_factory.mktemp("alone") / "build")
    train_folds(bench, cores=1)
    return bench.held_out_logits()


def test_two_processes_give_what_one_gives_and_report_as_much(
    tiny_corpus: Path, tmp_path: Path, alone: np.ndarray
) -> None:
    lines: list[str] = []
    bench = bench_of(tiny_corpus, tmp_path / "build", lines.append)
    train_folds(bench)
    assert all(bench.result(fold).exists() for fold in range(FOLDS))
    assert np.allclose(bench.held_out_logits(), alone, atol=1e-3)
    assert sorted(epochs_told(lines)) == [("fold 1", 10), ("fold 2", 10)]
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_named_ends_the_others_and_is_resumed(tiny_corpus: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def kill_at_epoch_10(line: str) -> None:
        lines.append(line)
        if "epoch 10 of" in line:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)

    bench = bench_of(tiny_corpus, tmp_path / "build", kill_at_epoch_10, epochs=400)
    with pytest.raises(StageError, match=r"the process that trained fold \d was killed"):
        train_folds(bench)
    assert not multiprocessing.active_children()
    assert not any(bench.result(fold).exists() for fold in range(FOLDS))
    (first, epoch), *_ = epochs_told(lines)
    assert epoch == 10

    again: list[str] = []

    def stop(line: str) -> None:
        again.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_folds(replace(bench, report=stop))
    assert not multiprocessing.active_children()
    assert all(epoch > 10 for name, epoch in epochs_told(again) if name == first)


def test_what_ends_a_training_reaches_the_caller_with_its_name(tiny_corpus: Path, tmp_path: Path) -> None:
    bench = bench_of(tiny_corpus, tmp_path / "build")
    (bench.directory / "fold1").write_text("in the way")
    with pytest.raises(OutputError, match=r"training fold 2: .*fold1"):
        train_folds(bench)
    assert not multiprocessing.active_children()


def test_equal_trainings_are_done_once_and_one_that_is_left_has_no_process(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drumline_convert import side_by_side

    bench = bench_of(tiny_corpus, tmp_path / "build", epochs=1)
    monkeypatch.setattr(side_by_side, "_train_in_processes", lambda *_: pytest.fail("a process for one"))
    done: list[int] = []
    train_side_by_side([Training(bench, 0), Training(bench, 0)], 2, lambda: done.append(1))
    assert done == [1]
    assert bench.result(0).exists()


def test_ctrl_c_ends_the_command_and_its_workers_within_seconds(tiny_corpus: Path, tmp_path: Path) -> None:
    words = f"train crossval --corpus {tiny_corpus} --folds 2 --epochs 4000 --build {tmp_path}".split()
    small = ["training.members=1", "architecture.widths=[8]", "architecture.bands=16", "augment.variants=2"]
    words += [word for setting in small for word in ("--set", setting)]
    command = [sys.executable, "-m", "drumline", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "epoch" in line:
                break
        asked = time.monotonic()
        # To the whole group, as a terminal does.
        os.killpg(run.pid, signal.SIGINT)
        rest = run.stderr.read()
        assert run.wait(10) == 130
    # All that shared its stderr have ended, for that was read to its end.
    assert time.monotonic() - asked < 5
    assert "Traceback" not in rest
    assert "go on" in rest
