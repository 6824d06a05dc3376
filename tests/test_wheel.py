"""The wheel works alone: installed into an empty environment, away from any checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.synth import write_archive

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("drumline-*.whl"))


def test_the_wheel_carries_the_default_bundle_and_no_audio(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "drumline/bundles/mfcc-cnn/model.onnx" in names
    assert "drumline/bundles/mfcc-cnn/MODEL_CARD.md" in names
    assert "drumline/py.typed" in names
    assert not [name for name in names if name.endswith((".wav", ".flac"))]
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]


@pytest.mark.parametrize("source_root", ["engine", "convert"])
def test_the_wheel_carries_every_source_file(wheel: Path, source_root: str) -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT / source_root, check=True, capture_output=True, text=True
    ).stdout.split()
    assert set(files) <= set(zipfile.ZipFile(wheel).namelist())
    assert len(files) > 10


def test_the_wheel_alone_classifies_an_archive(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    # The tests' own environment lends its libraries; drumline itself can only come from the wheel.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    site = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    write_archive(tmp_path / "samples", 20, seed=3)
    libraries = _libraries_without_drumline(tmp_path / "libraries")
    command = [environment / "bin" / "python", "-m", "drumline", "infer", "samples", "--json", "--quiet"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(libraries)},
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode()
    summary = json.loads(run.stdout)
    assert summary["counts"]["indexed"] == 20
    assert str(site) in summary["model"]["path"]


def _libraries_without_drumline(directory: Path) -> Path:
    """Return a directory of links to what is installed here, less drumline."""
    import numpy as np

    directory.mkdir()
    for entry in Path(np.__file__).parents[1].iterdir():
        if "drumline" not in entry.name.lower():
            (directory / entry.name).symlink_to(entry)
    return directory
