"""The commands of docs/training.md run, in their order, on synthesised drums."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from drumline.stub import create_stub
from drumline_convert.content import hash_file
from drumline_convert.manifest import Row, read_manifest
from tests.convert.drums import write_corpus

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if line.startswith("drumline ")]


def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path) -> None:
    for module in ("onnxruntime", "matplotlib", "tensorflow", "tf2onnx"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'drumline[train,cpu]'")
    write_corpus(tmp_path / "Samples")
    (tmp_path / "Samples" / "manifest.jsonl").unlink()
    create_stub(tmp_path / "models" / "mine")
    sweep = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (tmp_path / "sweep.yml").write_text(sweep)
    kick = tmp_path / "Samples" / "audio" / "kit2" / "Kick_1.wav"
    (tmp_path / "corrections.jsonl").write_text(json.dumps({"hash": hash_file(kick), "correct_label": "Tom"}))
    for line in commands():
        words = [word.replace("~", str(tmp_path)) for word in shlex.split(line, comments=True)]
        run = subprocess.run(
            [sys.executable, "-m", "drumline", *words[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{line}\n{run.stderr}"
    labels = {row.path: row.label for row in read_manifest(tmp_path / "next.jsonl")}
    assert labels[kick] == "Tom"
    assert len(read_manifest(tmp_path / "test-set" / "manifest.jsonl")) > 0


def test_every_field_of_a_manifest_is_explained() -> None:
    section = PAGE.read_text().partition("## 2.")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert set(Row.__slots__) <= explained
