"""A whole run with the GPU's stage: two batches under way, the same records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.synth import write_archive
from drumline import inference
from drumline.index import read_index
from drumline.pipeline.infer import infer
from drumline.runs import open_run
from drumline.settings import InferSettings
from tests.fake_cuda import LIMITED, FakeRuntime

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def records(archive: Path, runs_root: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
    summary = infer(InferSettings(archive=archive, runs_root=runs_root, workers=2, **settings))
    index = open_run(Path(summary["run_directory"])).index_path
    return summary["device"], {record["relative_path"]: record for record in read_index(index)}


@pytest.mark.parametrize("graphs", [False, True])
def test_a_run_on_a_gpu_that_runs_out_of_memory_gives_the_records_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    write_archive(tmp_path / "archive", 60, seed=4, tiny=True)
    on_cpu, expected = records(tmp_path / "archive", tmp_path / "cpu", device="cpu")

    def crowded(size: int) -> None:
        if size > 6:
            raise RuntimeError(LIMITED)

    runtime = FakeRuntime(fault=crowded)
    monkeypatch.setattr(inference, "import_runtime", lambda: runtime)
    on_gpu, found = records(
        tmp_path / "archive", tmp_path / "gpu", device="cuda", batch_size=16, cuda_graphs=graphs
    )
    assert (on_cpu, on_gpu) == ("cpu", "cuda")
    assert found.keys() == expected.keys()
    for path, record in expected.items():
        assert found[path]["assigned_label"] == record["assigned_label"]
        assert found[path]["assigned_conf"] == pytest.approx(record["assigned_conf"], abs=1e-4)
