"""The command line itself: its help pages, and what it says to what it does not understand."""

from __future__ import annotations

import re

import pytest

from drumline.cli import COMMANDS, TRAINING_COMMANDS
from drumline.cli.reference import reference
from tests.making import CommandLine


@pytest.mark.parametrize("group", [(), ("train",), ("dataset",)])
def test_no_line_of_a_list_of_commands_is_cut(
    group: tuple[str, ...], command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = command(*group, "--help").out.partition("Commands:\n")[2].splitlines()
    assert len(listed) >= 5
    assert [line for line in listed if not re.fullmatch(r"  [a-z-]+  +[A-Z].*[a-z]\.", line)] == []


def test_quiet_means_one_thing_in_every_command() -> None:
    said = re.findall(r"-q, --quiet +(.*)", reference())
    assert len(said) >= 10
    assert set(said) == {"Print warnings only."}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("infr", "infer"), ("rebuld", "rebuild"), ("stat", "stats"), ("calibrat", "calibrate")],
)
def test_a_misspelt_command_gets_the_name_that_comes_nearest(
    typed: str, meant: str, command: CommandLine
) -> None:
    assert meant in {*COMMANDS, *TRAINING_COMMANDS}
    outcome = command(typed)
    assert outcome.code == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'?" in outcome.err


def test_a_command_that_comes_near_none_gets_no_suggestion(command: CommandLine) -> None:
    outcome = command("xyzzy")
    assert (outcome.code, "Did you mean" in outcome.err) == (2, False)
    assert "No such command 'xyzzy'." in outcome.err


def test_an_unknown_option_is_no_misspelt_command(command: CommandLine) -> None:
    outcome = command("--infer")
    assert (outcome.code, "No such option" in outcome.err) == (2, True)


def test_completion_without_a_shell_lists_the_shells(command: CommandLine) -> None:
    outcome = command("completion")
    assert outcome.code == 2
    assert "\\t" not in outcome.err
    for shell in ("bash", "zsh", "fish"):
        assert re.search(rf"^  {shell}\b", outcome.err, re.MULTILINE)
