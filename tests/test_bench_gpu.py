"""The GPU's benchmark: what it does where there is no GPU, and that all of it works on the CPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import nvml
from bench.gpu import BEGIN, END, PAGE, Run, insert, tables
from bench.gpu_model import Parity, Speed
from drumline.inference import import_runtime
from tests.pipeline.support import ROOT, environment


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    variables = environment()
    variables["PYTHONPATH"] += os.pathsep + str(ROOT / "convert")
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT, check=False)


def test_without_a_gpu_it_says_so_and_leaves_the_page_alone() -> None:
    if "CUDAExecutionProvider" in import_runtime().get_available_providers():
        pytest.skip("this ONNX Runtime knows CUDA")
    before = PAGE.read_bytes()
    done = bench()
    assert done.returncode == 5
    assert "cannot use CUDA" in done.stderr
    assert PAGE.read_bytes() == before


def test_on_the_cpu_all_of_it_works_and_the_tables_go_between_the_markers(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'drumline[train]'")
    page = tmp_path / "gpu.md"
    shutil.copy(PAGE, page)
    done = bench("--device", "cpu", "--quick", "--page", str(page))
    assert done.returncode == 0, done.stderr
    head, _, rest = page.read_text().partition(BEGIN)
    inside, _, tail = rest.partition(END)
    assert PAGE.read_text().startswith(head)
    assert PAGE.read_text().endswith(tail)
    assert inside.strip() == done.stdout.strip()
    assert "no GPU: the CPU alone" in inside
    for name in ("front end on the workers", "front end in the graph, fp16"):
        assert f"| {name} | 8 | 100.00 % |" in inside
        assert f"| {name} | 8 | no | " in inside
        assert f"| {name} | no | 1 | " in inside
    assert str(tmp_path) not in inside


def test_a_page_without_the_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"{END} {BEGIN}")
    with pytest.raises(ValueError, match="no place between"):
        insert(tmp_path / "page.md", "text")
    assert (tmp_path / "page.md").read_text() == f"{END} {BEGIN}"


def test_the_tables_show_copies_and_energy_where_they_were_told() -> None:
    machine = {"gpu": "H200, 141.0 GB, driver 1", "usable_cpus": 16, "cpu": "a CPU", "memory_gb": 128.0}
    found: dict[str, Any] = {
        "machine": machine | {"system": "Linux", "python": "3.11", "packages": {"numpy": "2"}},
        "parity": [Parity("plain", 300, 0.995, 1.5e-4)],
        "workers": {"statistics": (81.4, 310.0)},
        "model": [Speed("plain", 1024, True, 1_234_567.0, 2e6, 3e6, 45.67, 0.123, True)],
        "engine": [Run("plain", True, 16, 61_000.4, "The CPUs.", None)],
    }
    text = tables(found, "python -m bench.gpu")
    assert "H200, 141.0 GB, driver 1; 16 cores of a CPU" in text
    assert "| plain | 1,024 | yes | 1,234,567 | 2,000,000 | 3,000,000 | 45.7 GB/s | yes | 0.12 |" in text
    assert "| plain | yes | 16 | 61,000 | The CPUs. | – |" in text
    assert "| statistics | 81 | 310 |" in text


class Library:
    """NVIDIA's management library, with one GPU."""

    def __init__(self, counts: bool = True) -> None:
        self._counts = counts

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, place: ctypes.c_uint, handle: Any) -> int:
        return 0 if place.value == 0 else 6

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total = 141_000_000_000
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, size: int) -> int:
        text.value = b"NVIDIA H200"
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"600.1"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, millijoules: Any) -> int:
        millijoules._obj.value = 12_345
        return 0 if self._counts else 3


def test_the_gpu_is_described_as_its_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml, "_library", Library)
    gpu = nvml.find_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.driver, gpu.memory_gb, gpu.joules()) == ("NVIDIA H200", "600.1", 141.0, 12.345)
    monkeypatch.setattr(nvml, "_library", lambda: Library(counts=False))
    counting_nothing = nvml.find_gpu()
    assert counting_nothing is not None
    assert counting_nothing.joules() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert nvml.find_gpu() is None


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(nvml, "_library", missing)
    assert nvml.find_gpu() is None
