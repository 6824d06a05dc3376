"""`infer --profile`: where the time went, what bounds the run, and that nothing changes by measuring it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from drumline.machine import usable_cpus
from drumline.pipeline.bound import StageTimes, name_bound, suggested_workers
from drumline.pipeline.profile import STAGES
from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records


def profile_of(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "profile.json").read_bytes())
    return report


@pytest.fixture
def profiled(calm: Infer) -> dict[str, Any]:
    """The report of a first run with two workers."""
    result = calm("--profile", workers=2)
    assert result.code == 0, result.err
    calm.run = Path(result.json()["run_directory"])
    assert "Bound:" in result.err
    return profile_of(calm.run)


def test_every_step_counts_every_file_that_it_was_for(calm: Infer, profiled: dict[str, Any]) -> None:
    counts = json.loads((calm.run / "summary.json").read_bytes())["counts"]
    steps = {stage: report["steps"] for stage, report in profiled["stages"].items()}
    found = counts["discovered"]
    assert profiled["files_read"] == found
    assert steps["walk"]["walk"]["files"] == found
    assert steps["extract"]["hash"]["files"] == found
    assert steps["write"]["encode"]["files"] == steps["write"]["cache"]["files"] == found
    predicted = counts["classified"] - counts["known_content"]
    assert steps["extract"]["features"]["files"] == steps["predict"]["model"]["files"] == predicted
    assert profiled["batches"]["mean"] * profiled["batches"]["count"] == pytest.approx(predicted, abs=0.5)


def test_each_batch_counts_once(profiled: dict[str, Any]) -> None:
    batches, steps = profiled["batches"], profiled["stages"]["predict"]["steps"]
    assert batches["count"] == steps["hand on"]["calls"] == sum(batches["up_to"].values())
    assert batches["median"] >= 1


def test_a_stage_is_busy_or_waits_and_does_nothing_else(profiled: dict[str, Any]) -> None:
    for name, stage in profiled["stages"].items():
        if name != "supervisor":
            shares = stage["busy"] + stage["waiting_for_input"] + stage["waiting_for_output"]
            assert shares == pytest.approx(1.0, abs=1e-3), name
    assert profiled["stages"]["extract"]["processes"] == 2
    assert profiled["stages"]["extract"]["cpu_sec"] > 0.0


def test_the_timeline_has_each_process_its_spans_and_the_queues(
    calm: Infer, profiled: dict[str, Any]
) -> None:
    events = json.loads((calm.run / "profile.trace.json").read_bytes())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    single = {stage for stage in STAGES if stage != "extract"}
    assert names == {"drumline", "extract 0", "extract 1", *single}
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["tid"] for event in spans} == set(range(7))
    assert all(event["dur"] >= 0.0 and event["ts"] >= 0.0 for event in spans)
    assert any(
        event["ph"] == "C" and set(event["args"]) == {"extract", "predict", "write"} for event in events
    )


def test_measuring_changes_no_record(calm: Infer, profiled: dict[str, Any], undisturbed: Records) -> None:
    assert calm.records() == undisturbed


def test_json_has_the_profile_and_the_summary_on_disk_has_not(calm: Infer) -> None:
    result = calm("--profile")
    assert result.json()["profile"]["stages"].keys() >= {"extract", "predict"}
    assert "profile" not in json.loads((Path(result.json()["run_directory"]) / "summary.json").read_bytes())


def test_without_the_option_nothing_is_measured(calm: Infer) -> None:
    result = calm()
    assert "profile" not in result.json()
    assert not list(calm.runs_root.glob("run_*/profile*"))


def test_a_rescan_says_that_nothing_had_to_be_read(calm: Infer) -> None:
    calm.counts()
    report = calm("--profile").json()["profile"]
    assert report["bound"].startswith("Nothing had to be read")
    assert report["stages"]["extract"]["processes"] == 0
    assert report["suggested_workers"] is None


def test_a_stopped_run_leaves_what_was_measured_until_then(calm: Infer) -> None:
    running = calm.start("--profile", slow=0.05)
    running.reach(lambda: running.stages("extract"), "extraction")
    running.signal(signal.SIGINT)
    assert running.wait().code == 130
    (directory,) = calm.runs_root.glob("run_*")
    assert profile_of(directory)["files_read"] < 120


def times(
    busy: float = 0.5, cpu: float = 0.5, crowded: float = 0.0, processes: int = 1, costliest: str = "decode"
) -> StageTimes:
    """Return the times of a stage as shares of 10 seconds."""
    return StageTimes(
        processes=processes,
        elapsed_sec=10.0 * processes,
        busy_sec=10.0 * busy * processes,
        cpu_sec=10.0 * cpu * processes,
        crowded_sec=10.0 * crowded * processes,
        costliest=costliest,
    )


IDLE = {stage: times(0.08, 0.08) for stage in STAGES}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({"extract": times(1.0, 0.8, processes=2)}, "The CPUs: 100% of 2 CPUs is used"),
        ({"extract": times(1.0, 0.4, 0.6, processes=2)}, "The CPUs: "),
        ({"extract": times(1.0, 0.1, processes=2, costliest="read")}, "The disk: the workers wait 90%"),
        ({"extract": times(1.0, 0.1, processes=2)}, "The disk or ffmpeg: the workers wait 90%"),
        ({"predict": times(1.0, 0.9)}, "The predict stage while CPUs are free"),
        ({}, "No stage is busy all the time"),
    ],
)
def test_the_bound_is_what_is_busy_all_the_time(stages: dict[str, StageTimes], expected: str) -> None:
    assert name_bound({**IDLE, **stages}, 2, 10.0).startswith(expected)


@pytest.mark.parametrize(
    ("stages", "workers"),
    [
        ({"extract": times(0.8, 0.8, processes=4)}, 4),
        ({"extract": times(1.0, 0.1, processes=2)}, 14),
        ({"extract": times(0.5, 0.5, processes=4), "predict": times(1.0, 1.0)}, 2),
    ],
)
def test_as_many_workers_are_suggested_as_keep_up(stages: dict[str, StageTimes], workers: int) -> None:
    assert suggested_workers({**IDLE, **stages}, 4, 1000) == workers
    assert suggested_workers(IDLE, 4, 0) is None


def test_a_mount_that_comes_while_a_run_starts_changes_nothing_in_the_middle_of_it(infer: Infer) -> None:
    options = ("--runs-root", infer.runs_root, "--model", infer.model, "--json", "--quiet", "--profile")
    result = infer.server.start("infer", infer.archive, *options, storages=["ssd"]).wait()
    assert result.code == 0, result.err
    assert result.json()["storage"] == "ssd"
    assert result.json()["profile"]["workers"] == usable_cpus()
