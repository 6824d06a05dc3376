"""The training commands: thin, light to import, and clear where the extra is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from drumline.cli import TRAINING_COMMANDS, cli
from drumline.errors import ConfigError, RuntimeMissingError
from drumline_convert import cli_common, cli_train


def test_importing_the_package_and_its_commands_is_light() -> None:
    modules = ", ".join(place.partition(":")[0] for place in TRAINING_COMMANDS.values())
    code = f"import sys, {modules}; print({{'tensorflow', 'keras', 'onnx', 'scipy'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def training_commands() -> Iterator[click.Command]:
    """Iterate over the commands, those of groups in place of the groups."""
    context = click.Context(cli)
    for name in TRAINING_COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield from command.commands.values() if isinstance(command, click.Group) else [command]


def test_trainings_are_exposed_by_name() -> None:
    assert sorted(cli_train.train.commands) == ["crossval", "model", "recipe", "retrain", "sweep"]


@pytest.mark.parametrize("command", [*training_commands()], ids=lambda command: str(command.name))
def test_every_command_shows_an_example(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert "drumline " in result.output.partition("Examples")[2]


def test_without_the_extra_a_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_common, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match=r"pip install 'path/to/drumline\[train,cpu\]'"):
        cli_train.train(["crossval"], standalone_mode=False)


def test_a_missing_corpus_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_common, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"manifest\.jsonl"):
        cli_train.train(
            ["crossval", "--corpus", str(tmp_path), "--build", str(tmp_path / "build")], standalone_mode=False
        )
