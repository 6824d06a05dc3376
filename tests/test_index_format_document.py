"""docs/index-format.md names all that a real run writes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from drumline.index import read_index
from drumline.records import json_schema
from drumline.runs import Run, open_run
from tests.making import CommandLine, write_tone

DOCUMENT = (Path(__file__).parents[1] / "docs/index-format.md").read_text()


@pytest.fixture
def run(tmp_path: Path, command: CommandLine) -> Run:
    (tmp_path / "archive").mkdir()
    write_tone(tmp_path / "archive/kick.wav")
    (tmp_path / "archive/bad.wav").write_bytes(b"RIFF")
    outcome = command(
        "infer", tmp_path / "archive", "--runs-root", tmp_path / "runs", "--workers", "1", "--quiet"
    )
    assert outcome.code == 0, outcome.err
    return open_run(tmp_path / "runs")


def section(title: str) -> str:
    return DOCUMENT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_document_names_what_a_real_run_writes_and_commands_read_it(
    run: Run, command: CommandLine
) -> None:
    summary = run.summary()
    assert not [key for key in run.info if f"`{key}`" not in section("run.json")]
    assert not [key for key in summary if f"`{key}`" not in section("summary.json")]
    assert not [key for key in summary["counts"] if f"`{key}`" not in section("summary.json")]
    assert not [key for key in summary["model"] if f"`{key}`" not in section("run.json")]
    for record in read_index(run.index_path):
        jsonschema.validate(record, json_schema())

    stats = command("stats", run.directory, "--json").json()
    run.summary_path.unlink()
    assert {**stats, "complete": False} == command("stats", run.directory, "--json").json()
    assert (stats["records"], stats["failed"], stats["labels"]) == (2, 1, summary["labels"])
    diff = command("diff", run.directory, run.index_path, "--json").json()
    assert diff["counts"]["common"] == 2
    assert json.loads(json.dumps(diff["a"]["model"]))["name"] == "mfcc-cnn"
