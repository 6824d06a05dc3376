"""The training commands: thin, light to import, and clear where the extra is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from drumline.errors import ConfigError, RuntimeMissingError
from drumline_convert import cli


def test_importing_the_package_and_its_commands_is_light() -> None:
    code = (
        "import sys, drumline_convert.cli; print({'tensorflow', 'keras', 'onnx', 'scipy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_commands_are_exposed_by_name() -> None:
    assert [command.name for command in cli.commands] == ["train", "convert"]
    assert sorted(cli.train.commands) == ["crossval", "model", "recipe", "retrain", "sweep"]


@pytest.mark.parametrize("command", [*cli.train.commands.values(), cli.convert], ids=lambda c: str(c.name))
def test_every_command_shows_an_example(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert "drumline " in result.output.partition("Examples")[2]


def test_without_the_extra_a_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'path/to/drumline\[train,cpu\]'"):
        cli.train(["crossval"], standalone_mode=False)


def test_a_missing_corpus_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"manifest\.jsonl"):
        cli.train(
            ["crossval", "--corpus", str(tmp_path), "--build", str(tmp_path / "build")], standalone_mode=False
        )
