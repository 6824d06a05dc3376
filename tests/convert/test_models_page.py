"""docs/models.md: its commands run in order, on small data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from drumline.bundle import load_bundle
from drumline.frontend import FrontEnd
from drumline_convert.manifest import write_manifest
from tests.convert.graphs import TWELVE, log_mel_cnn, onnx
from tests.convert.test_ensembles import LOG_MEL, labelled, member
from tests.making import CommandLine

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("drumline ")
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def workshop(tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with all that the page speaks of."""
    from drumline_convert import precision

    monkeypatch.setattr(precision, "_ROUNDS", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(TWELVE))
    onnx.save(log_mel_cnn(widths=(4, 8)), tmp_path / "cnn.onnx")
    (tmp_path / "models").mkdir()
    for seed, name in enumerate(("one", "two")):
        member(tmp_path / "models" / name, seed)
    member(tmp_path / "models" / "cnn2", 3, front_end=LOG_MEL)
    sides = {"kit0": "test", "kit1": "train"}
    paths = sorted((tiny_corpus / "audio").glob("*/*.wav"))
    rows = [labelled(path, sides.get(path.parent.name, "validation")) for path in paths]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    (tmp_path / "ARCHIVE").symlink_to(tiny_corpus / "audio" / "kit0")
    return tmp_path


def test_the_commands_of_the_page_run_in_order(workshop: Path, command: CommandLine) -> None:
    assert len(COMMANDS) >= 11
    for line in COMMANDS:
        outcome = command(*shlex.split(line)[1:])
        assert outcome.code == 0, f"{line}\n{outcome.err}"
    assert load_bundle("models/cnn").front_end.shape == (128, 128)
    assert not load_bundle("models/both").members
    assert len(load_bundle("models/mixed").members) == 2
    assert load_bundle("models/gated").gate is not None


def test_the_page_names_every_setting_of_the_front_end_with_its_default() -> None:
    for name, value in FrontEnd(deltas=2).to_json().items():
        row = next(line for line in PAGE.splitlines() if f"`{name}`" in line.partition(" | ")[0])
        default = FrontEnd().deltas if name == "deltas" else value
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert shown in row, name
