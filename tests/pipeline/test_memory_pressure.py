"""A run makes do with the memory there is, says so, and takes more when it comes back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pipeline.support import Server, eventually, last_run, records_of

MB = 1_000_000
PLENTY, LITTLE = 9_000 * MB, 20 * MB


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    root = tmp_path / "machine"
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("")
    set_free(root, PLENTY)
    return root


def set_free(machine: Path, free: int) -> None:
    replacement = machine / "proc/new"
    replacement.write_text(f"MemAvailable: {free // 1024} kB\n")
    replacement.replace(machine / "proc/meminfo")


def infer(pristine: Path, runs: Path, model: Path) -> tuple[str | Path, ...]:
    return ("infer", pristine, "--runs-root", runs, "--model", model, "--workers", "3", "--json", "--profile")


def test_with_little_memory_one_worker_and_a_handful_of_slots_give_the_same_records(
    server: Server, pristine: Path, model: Path, machine: Path, tmp_path: Path
) -> None:
    plenty = server.start(*infer(pristine, tmp_path / "plenty", model), memory_of=str(machine)).wait()
    assert plenty.code == 0, plenty.err
    facts = json.loads(plenty.out)["memory"]
    assert (facts["fewest_slots"], facts["short_sec"], facts["workers"]) == (facts["slots"], 0.0, 3)

    set_free(machine, LITTLE)
    little = server.start(*infer(pristine, tmp_path / "little", model), memory_of=str(machine)).wait()
    assert little.code == 0, little.err
    summary = json.loads(little.out)
    assert summary["memory"]["fewest_slots"] == 4
    assert summary["memory"]["workers"] == 1
    assert summary["profile"]["batches"]["largest"] == 1
    assert summary["memory"]["slots"] == summary["memory"]["slots_wanted"]
    assert re.search(r"Memory was short for .* 4 of \d+ slots and 1 of 3 workers", little.err)
    found, expected = (records_of(last_run(tmp_path / name)) for name in ("little", "plenty"))
    assert found.keys() == expected.keys()
    assert all(found[path]["hash"] == expected[path]["hash"] for path in found)


def set_group(machine: Path, limit: int) -> None:
    group = machine / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text("0\n")
    (machine / "proc/self/cgroup").write_text("0::/job\n")


def test_a_control_group_that_no_run_fits_in_is_refused_before_the_run_is_made(
    server: Server, pristine: Path, model: Path, machine: Path, tmp_path: Path
) -> None:
    set_group(machine, 100 * MB)
    result = server.start(*infer(pristine, tmp_path / "runs", model), memory_of=str(machine)).wait()
    assert (result.code, result.out) == (10, "")
    assert "100 MB for the control group" in result.err
    assert "at least 120 MB" in result.err
    assert not (tmp_path / "runs").exists()


def test_a_stage_that_was_killed_under_a_limit_of_memory_names_the_limit(
    server: Server, pristine: Path, model: Path, machine: Path, tmp_path: Path
) -> None:
    set_group(machine, 200 * MB)
    command = infer(pristine, tmp_path / "runs", model)
    running = server.start(*command, memory_of=str(machine), slow_reading=0.05)
    running.kill_stage("predict")
    result = running.wait()
    assert result.code == 10
    assert "the limit of the control group is 200 MB" in result.err


def test_what_is_allowed_follows_the_memory_while_the_run_lasts(
    server: Server, pristine: Path, model: Path, machine: Path, tmp_path: Path
) -> None:
    running = server.start(
        *infer(pristine, tmp_path / "runs", model),
        memory_of=str(machine),
        slow_reading=0.05,
        lines_every=0.05,
    )
    running.reach(lambda: running.stages("extract"), "the extract workers")
    set_free(machine, LITTLE)
    eventually(lambda: "memory is short" in running.err.read_text(), "a word about memory")
    set_free(machine, PLENTY)
    result = running.wait()
    assert result.code == 0, result.err
    samples = json.loads(result.out)["profile"]["queues"]
    column = samples["columns"].index("slots_allowed")
    allowed = [sample[column] for sample in samples["samples"]]
    least = allowed.index(min(allowed))
    assert allowed[least] == 4
    assert max(allowed[least:]) >= 16
