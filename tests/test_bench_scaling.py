"""The cost model finds what went into it, and runs without audio leave what real ones do."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.scaling import Cost, Model, fit_cost, main, predict
from bench.simulated import simulate

FILES, SIZES = (500, 2_000, 10_000, 300, 1_800), (5e6, 2e7, 1e8, 5e7, 3e8)
STAGES = ("walk", "discover", "extract", "predict", "write", "supervisor")


@given(
    start=st.floats(0.01, 5.0),
    per_file=st.floats(1e-5, 1e-2),
    per_gb=st.floats(0.1, 100.0),
    more=st.floats(1, 9),
)
def test_a_cost_is_found_again(start: float, per_file: float, per_gb: float, more: float) -> None:
    cost = Cost(start, per_file, per_gb)
    found = fit_cost(FILES, SIZES, [cost.of(*run) for run in zip(FILES, SIZES, strict=True)])
    assert found.of(1e6 * more, 1e11) == pytest.approx(cost.of(1e6 * more, 1e11), rel=1e-3)


def model(write: float = 1e-5) -> Model:
    each = {
        "walk": 0.0,
        "discover": 1e-5,
        "extract": 1e-3,
        "predict": 1e-4,
        "write": write,
        "supervisor": 0.0,
    }
    cpu = {stage: Cost(0.0, each[stage], 0.0) for stage in STAGES}
    return Model(cpu, Cost(1.0, 6e-4, 1.0), cpus=2, index_bytes=200.0, cache_bytes=100.0, tiny_bytes=1e4)


def test_more_cores_help_until_a_stage_of_which_there_is_one_is_the_bound() -> None:
    two, four, many = (predict(model(write=5e-5), 1e6, 1e10, cpus) for cpus in (2, 4, 64))
    assert (two.seconds, two.bound) == (pytest.approx(611.0), "the CPUs")
    assert four.seconds == pytest.approx(two.seconds / 2)
    assert (many.seconds, many.bound) == (pytest.approx(50.0), "the write stage")
    assert (two.index_bytes, two.cache_bytes) == (2e8, 1e8)


def test_a_check_fails_when_a_run_took_another_time(tmp_path: Path) -> None:
    constants, soak = tmp_path / "scaling.json", tmp_path / "soak.json"
    constants.write_text(json.dumps({"model": asdict(model())}))
    for seconds, code in ((611.0, 0), (720.0, 0), (800.0, 1), (400.0, 1)):
        soak.write_text(json.dumps({"files": 1_000_000, "first": {"seconds": seconds}}))
        outcome = CliRunner().invoke(main, ["check", str(soak), "--constants", str(constants)])
        assert outcome.exit_code == code, outcome.output
        assert "1,000,000 files" in outcome.output


def test_a_check_makes_a_run_of_its_own_and_compares_cpu_time_too(tmp_path: Path) -> None:
    constants = tmp_path / "scaling.json"
    constants.write_text(json.dumps({"model": asdict(model())}))
    asked = ["check", "--files", "40", "--work", str(tmp_path), "--constants", str(constants)]
    outcome = CliRunner().invoke(main, asked)
    assert re.search(r"40 files: elapsed .* predicted .* CPU .* predicted", outcome.output), outcome.output
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.json"]


def test_a_prediction_without_constants_names_what_makes_them(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["predict", "--constants", str(tmp_path / "none.json")])
    assert outcome.exit_code == 1
    assert "'measure' writes it" in outcome.output


def test_invented_records_go_through_writer_cache_statistics_and_plan(tmp_path: Path) -> None:
    figures = simulate(tmp_path, 700)
    assert figures["records"] == 700
    assert figures["index_bytes"] > 700 * 50
    assert set(figures["steps"]) == {
        *("write", "finish", "cache by directory", "stats of the index", "plan of a rebuild"),
    }
    for command in ("stats of the index", "plan of a rebuild"):
        assert figures["steps"][command]["cpu_sec"] > 0.01, "an interpreter was started for it"
