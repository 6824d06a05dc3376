"""The short form of `make torture`: as much of each attack as a minute allows, with a seed of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.torture import __main__ as frame
from tests.torture import attacks, writes
from tests.torture.attacks import ATTACKS, Arena, Attack, arena, load

SEED = 6


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("torture")) as ground:
        yield ground


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(ground: Arena, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    attack = load(name)
    if reason := attack.impossible():
        pytest.skip(reason)
    campaign = frame.Campaign(name, attack, ground, SEED)
    campaign.run(attack.short)
    assert not campaign.failures, capsys.readouterr().out
    assert campaign.figures[attack.unit] >= attack.short


def failing(_arena: Arena, random: Random, _number: int) -> Counter[str]:
    number = random.randrange(1_000_000)
    assert not number % 3, f"number {number}"
    return Counter(blows=1)


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch) -> None:
    shaky = Attack(what="fails at times", unit="blows", full=20, short=1, episode=failing)
    monkeypatch.setattr(frame, "load", lambda _name: shaky)
    monkeypatch.setattr(attacks, "Server", None)


@pytest.mark.usefixtures("shaky")
def test_a_failure_is_told_with_the_command_that_repeats_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And that command fails in the same way, whatever went before."""
    report = tmp_path / "report.json"
    assert frame.main(["--attack", "kills", "--seed", "5", "--report", str(report)]) == 1
    told = capsys.readouterr().out
    first = re.search(r"AssertionError: (number \d+)", told)
    again = re.search(r"again: python -m tests\.torture (.*) --keep DIRECTORY", told)
    assert first
    assert again
    assert frame.main(again[1].split()) == 1
    assert first[1] in capsys.readouterr().out
    assert '"failed": ' in report.read_text()


def test_each_part_of_the_failing_writes_takes_calls_from_every_command(ground: Arena) -> None:
    assert writes.ATTACK.episodes is not None
    cases = [writes.case_of(number) for number in range(writes.ATTACK.episodes(ground))]
    assert len(set(cases)) == len(cases)
    for parts in (2, 3, 4, 8):
        for part in range(parts):
            assert {subject for subject, _first, _shift in cases[part::parts]} == set(writes.SUBJECTS)


def test_the_parts_of_an_attack_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def episode(_arena: Arena, _random: Random, number: int) -> Counter[str]:
        done.append(number)
        return Counter(blows=1)

    few = Attack("", "blows", 7, 1, episode, episodes=lambda _arena: 7)
    monkeypatch.setattr(frame, "load", lambda _name: few)
    for part, numbers in (("1/3", [0, 3, 6]), ("2/3", [1, 4]), ("3/3", [2, 5])):
        done.clear()
        frame.main(["--attack", "kills", "--part", part])
        assert done == numbers
    with pytest.raises(SystemExit):
        frame.main(["--attack", "kills", "--part", "4/3"])


@pytest.mark.usefixtures("shaky")
def test_an_attack_ends_when_its_time_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    frame.main(["--attack", "kills", "--minutes", "0.001"])
    assert "blows in" in capsys.readouterr().out


@pytest.mark.usefixtures("shaky")
def test_what_is_impossible_here_is_said_and_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        frame, "load", lambda _name: Attack("", "blows", 1, 1, failing, impossible=lambda: "no hammer")
    )
    assert frame.main(["--attack", "kills"]) == 0
    assert "kills: skipped: no hammer" in capsys.readouterr().out


def test_the_documentation_names_each_attack() -> None:
    page = (Path(__file__).parents[2] / "docs" / "torture.md").read_text()
    table = page.partition("| attack |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE)) == set(ATTACKS)
