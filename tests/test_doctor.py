"""`drumline doctor`: says what is missing and how to get it, and never fails itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drumline import doctor, inference, machine
from drumline.doctor import Finding, examine
from drumline.errors import RuntimeMissingError
from drumline.memory import Memory
from tests.making import CommandLine, make_bundle

SHELLS = ["bash", "zsh", "fish"]


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting ffmpeg costs more than everything else."""
    monkeypatch.setattr(doctor, "_ffmpeg", lambda: Finding("ffmpeg", "ok", "ffmpeg version 7"))


def test_this_machine_is_ready(command: CommandLine, tmp_path: Path) -> None:
    outcome = command("doctor", "--runs-root", tmp_path / "runs", "--json")
    assert (outcome.code, outcome.json()["ready"]) == (0, True)
    topics = {finding["topic"] for finding in outcome.json()["findings"]}
    assert topics >= {
        *("drumline", "python", "numpy", "processor", "cpu features", "cores", "free memory", "runs root"),
        *("open files", "libsndfile", "ffmpeg", "onnxruntime", "providers", "model", "device", "training"),
    }
    assert not (tmp_path / "runs").exists()


def test_people_get_a_table_and_a_verdict(command: CommandLine) -> None:
    outcome = command("doctor")
    assert outcome.code == 0
    assert "infer can run here." in outcome.out
    assert "mfcc-cnn" in outcome.out


def test_without_onnx_runtime_infer_cannot_run_and_the_way_out_is_shown(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    outcome = command("doctor")
    assert outcome.code == RuntimeMissingError.exit_code
    assert "infer cannot run here yet." in outcome.out
    assert 'pip install "path/to/drumline[cpu]"' in " ".join(outcome.out.split())


def test_a_broken_bundle_is_found(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", b"rubbish")
    finding = by_topic(examine(tmp_path, str(bundle.path)))["model"]
    assert finding.status == "missing"
    assert "model.onnx" in finding.value
    assert finding.way_out


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ("soxr", "tensorflow", "tensorflow-cpu")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else "1")
    findings = by_topic(examine(tmp_path))
    assert (findings["soxr"].status, findings["soxr"].way_out) == ("missing", "pip install soxr")
    assert findings["training"].status == "note"
    assert "drumline[train]" in findings["training"].way_out


def test_little_memory_few_files_and_little_space_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "read_memory", lambda: Memory(10 << 20))
    monkeypatch.setattr(machine, "free_space", lambda _path: 1 << 20)
    monkeypatch.setattr(machine, "open_files_limit", lambda: 64)
    findings = examine(tmp_path)
    noted = {finding.topic for finding in findings if finding.status == "note"}
    assert {"free memory", "runs root", "open files"} <= noted
    assert all(finding.way_out for finding in findings if finding.topic in ("free memory", "open files"))


def test_a_runs_root_that_is_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    findings = [finding for finding in examine(tmp_path / "file") if finding.topic == "runs root"]
    assert findings[-1].status == "missing"


def test_a_gpu_that_is_not_used_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_has_nvidia", lambda: True)
    opened = inference.open_session
    if opened(make_bundle(tmp_path / "b"), "auto").device == "cuda":
        pytest.skip("this machine has a GPU that works")
    finding = by_topic(examine(tmp_path))["device"]
    assert finding.status == "note"
    assert "although there is an NVIDIA GPU" in finding.value


def test_ffmpeg_that_is_missing_or_broken_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._ffmpeg().status == "note"
    assert "apt install ffmpeg" in doctor._ffmpeg().way_out
    (tmp_path / "ffmpeg").write_text("no program")
    (tmp_path / "ffmpeg").chmod(0o755)
    assert doctor._ffmpeg().status == "note"


def test_the_machine_tells_something_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cpu_name()
    assert (machine.free_space(tmp_path / "not/yet/there") or 0) > 0
    monkeypatch.setattr(machine, "_lines", lambda _path: [])
    assert machine.cpu_flags() == frozenset()
    assert machine.cpu_name()


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_a_script_for_each_shell(command: CommandLine, shell: str) -> None:
    outcome = command("completion", shell)
    assert outcome.code == 0
    assert "_DRUMLINE_COMPLETE" in outcome.out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=outcome.out, text=True, check=True)


def test_an_unknown_shell_is_a_usage_error(command: CommandLine) -> None:
    assert command("completion", "tcsh").code == 2
