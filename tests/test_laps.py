"""The stopwatch of a process: laps add up, and the first and latest are kept as they were."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from drumline.laps import LapTable, Recorder, Step, no_lap


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its one element."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def lap_after(clock: list[float], recorder: Recorder, seconds: float, step: Step, files: int = 1) -> None:
    clock[0] += seconds
    recorder(step, files)


def test_time_belongs_to_the_step_that_ends_it(clock: list[float]) -> None:
    table = LapTable(2)
    recorder = table.recorder(1)
    lap_after(clock, recorder, 2.0, Step.READ)
    lap_after(clock, recorder, 0.5, Step.MODEL, 64)
    lap_after(clock, recorder, 1.0, Step.READ)
    recorder.finish()
    row = table.row(1)
    assert (row.seconds(Step.READ), row.files(Step.READ), row.laps(Step.READ)) == (3.0, 2, 2)
    assert (row.seconds(Step.MODEL), row.files(Step.MODEL), row.laps(Step.MODEL)) == (0.5, 64, 1)
    assert row.ended - row.started == 3.5
    assert not table.row(0).started


def test_the_first_and_the_latest_laps_are_kept_in_order(clock: list[float]) -> None:
    table = LapTable(1)
    recorder = table.recorder(0)
    for _ in range(50_000):
        lap_after(clock, recorder, 0.25, Step.HASH)
    recorder.finish()
    row, spans = table.row(0), list(table.row(0).spans())
    assert row.laps(Step.HASH) == 50_000
    assert row.seconds(Step.HASH) == 12_500.0
    assert spans[0].start == 100.0
    assert spans[-1].end == row.ended == 12_600.0
    assert spans == sorted(spans, key=lambda span: span.start)
    assert 10_000 < len(spans) < 13_000


def test_a_process_that_takes_the_place_of_a_dead_one_adds_to_its_row(clock: list[float]) -> None:
    table = LapTable(1)
    for _ in range(2):
        recorder = table.recorder(0)
        lap_after(clock, recorder, 1.5, Step.DECODE)
        recorder.finish()
    row = table.row(0)
    assert (row.started, row.seconds(Step.DECODE), row.laps(Step.DECODE)) == (100.0, 3.0, 2)
    assert len(list(row.spans())) == 2


def test_cpu_time_is_that_between_begin_and_finish() -> None:
    table = LapTable(1)
    recorder = table.recorder(0)
    begun = time.process_time()
    while time.process_time() - begun < 0.05:
        pass
    recorder.finish()
    assert 0.05 <= table.row(0).cpu_sec <= time.process_time() - begun + 0.01


def test_the_cpu_time_of_called_programs_counts_where_it_is_asked_for() -> None:
    table = LapTable(2)
    alone, with_helpers = table.recorder(0), table.recorder(1)
    subprocess.run([sys.executable, "-c", "sum(range(1_000_000))"], check=True)
    alone.finish()
    with_helpers.finish(helpers=True)
    assert table.row(1).cpu_sec > table.row(0).cpu_sec + 0.005


def test_without_a_profile_a_lap_is_nothing() -> None:
    no_lap(Step.READ)
    no_lap(Step.MODEL, 64)
