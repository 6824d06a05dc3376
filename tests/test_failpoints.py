"""Failpoints: where a command can be killed, failed or held on purpose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drumline import failpoints
from drumline.errors import UsageError
from drumline.failpoints import STEPS, VARIABLE, arm, step
from tests.pipeline.support import environment

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", {})


def steps_in_the_source() -> list[str]:
    sources = (ROOT / "engine").rglob("*.py")
    return [name for path in sources for name in re.findall(r'\bstep\("([^"]+)"\)', path.read_text())]


def test_every_step_is_listed_and_every_listed_step_is_there() -> None:
    assert set(steps_in_the_source()) == set(STEPS)


def test_the_documentation_names_each_step() -> None:
    page = (ROOT / "docs" / "torture.md").read_text().partition("| step |")[2]
    assert set(re.findall(r"^\| `([a-z.-]+)` \|", page, re.MULTILINE)) == set(STEPS)


def passed(name: str, times: int) -> list[int]:
    """Return at which of so many times a step fails."""
    failed = []
    for time in range(1, times + 1):
        try:
            with step(name):
                pass
        except OSError:
            failed.append(time)
    return failed


@pytest.mark.parametrize(
    ("when", "fails"), [("", [1]), ("@1", [1]), ("@3", [3]), ("@3+", [3, 4, 5]), ("@9", [])]
)
def test_a_failpoint_strikes_at_its_time(when: str, fails: list[int]) -> None:
    arm(f"index.write.before=errno:EIO{when}")
    assert passed("index.write", 5) == fails
    assert passed("index.sync", 5) == []


def test_what_comes_after_a_step_that_failed_is_not_reached() -> None:
    arm("index.write.after=errno:EIO@2")
    with pytest.raises(ZeroDivisionError), step("index.write"):
        raise ZeroDivisionError
    assert passed("index.write", 3) == [2]


def test_times_are_counted_over_all_processes() -> None:
    arm("index.write.before=errno:EIO@3")
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os._exit(len(passed("index.write", 1)))
        assert os.waitpid(child, 0)[1] == 0
    assert passed("index.write", 2) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "index.write=kill",
        "index.writes.before=kill",
        "index.write.before",
        "index.write.before=burn",
        "index.write.before=errno",
        "index.write.before=errno:EWHAT",
        "index.write.before=pause:soon",
        "index.write.before=kill:now",
        "index.write.before=kill@0",
        "index.write.before=kill@123456",
    ],
)
def test_what_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="which is no failpoint"):
        arm(text)


def test_the_environment_arms_the_command_line(tmp_path: Path) -> None:
    def stub(text: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "drumline", "create-stub", "--output", str(tmp_path / "stub")]
        given = {**environment(), VARIABLE: text}
        return subprocess.run(command, env=given, capture_output=True, text=True, check=False)

    killed = stub("durable.write.before=kill@2")
    assert killed.returncode == -9
    full = stub("durable.sync.before=errno:ENOSPC")
    assert full.returncode == 8
    assert "No space left" in full.stderr
    refused = stub("nonsense")
    assert refused.returncode == 2
    assert "docs/torture.md" in refused.stderr
    assert stub("durable.sync.before=pause:0.01").returncode == 0


def test_without_the_variable_a_step_does_nothing() -> None:
    assert step("index.write") is step("cache.commit")
