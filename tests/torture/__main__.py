"""Attack drumline, and see whether it keeps its promises.

    python -m tests.torture                                    all attacks in full: an hour or more
    python -m tests.torture --minutes 10                       as much of all as fits in ten minutes
    python -m tests.torture --attack kills --count 1000        so much of one
    python -m tests.torture --attack writes --part 2/4         every fourth episode, from the second on
    python -m tests.torture --attack kills --seed 7 --episode 12     one episode again

What has failed is told with the command that repeats it, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

from tests.torture.attacks import ATTACKS, Arena, Attack, arena, load

_SAY_EVERY_SEC = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Run attacks and return the exit code."""
    asked = _parser().parse_args(arguments)
    names = asked.attack or list(ATTACKS)
    figures, failed = {}, 0
    with arena(asked.keep) as ground:
        for name in names:
            attack = load(name)
            if reason := attack.impossible():
                print(f"{name}: skipped: {reason}", flush=True)
                continue
            until = time.monotonic() + asked.minutes * 60 / len(names) if asked.minutes else None
            campaign = Campaign(name, attack, ground, asked.seed)
            if asked.episode is not None:
                campaign.episode(asked.episode)
            else:
                campaign.run(asked.count or (sys.maxsize if until else attack.full), until, asked.part)
            figures[name] = {**campaign.figures, "failed": len(campaign.failures)}
            failed += len(campaign.failures)
            print(f"{name}: {campaign.said()}\n  {campaign.listed()}", flush=True)
    if asked.report:
        asked.report.parent.mkdir(parents=True, exist_ok=True)
        asked.report.write_text(json.dumps({"seed": asked.seed, "attacks": figures}, indent=2) + "\n")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--attack", action="append", choices=list(ATTACKS), help="only this; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is left to chance [1]")
    parser.add_argument("--count", type=int, help="how much: kills, files, …")
    parser.add_argument("--minutes", type=float, help="how long, for all attacks together")
    parser.add_argument("--part", type=_part, default=(1, 1), help="only this part of all episodes: 2/4")
    parser.add_argument("--episode", type=int, help="only this episode")
    parser.add_argument(
        "--keep", type=Path, help="work in this directory, and leave what is there at the end"
    )
    parser.add_argument("--report", type=Path, help="write the figures to this file, as JSON")
    return parser


def _part(text: str) -> tuple[int, int]:
    """Parse ``2/4``."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


class Campaign:
    """Episodes of one attack, one after the other."""

    def __init__(self, name: str, attack: Attack, ground: Arena, seed: int) -> None:
        self._name, self._attack, self._ground, self._seed = name, attack, ground, seed
        self._begun = self._told = time.monotonic()
        self.figures: Counter[str] = Counter()
        self.failures: list[int] = []

    def run(self, count: int, until: float | None = None, part: tuple[int, int] = (1, 1)) -> None:
        """Do episodes until there were `count` units, or the time is up; `part` of how many parts of them."""
        last = self._attack.episodes(self._ground) if self._attack.episodes else sys.maxsize
        for number in range(part[0] - 1, last, part[1]):
            late = until is not None and time.monotonic() > until
            if late or self.figures[self._attack.unit] >= count:
                return
            self.episode(number)
            if time.monotonic() - self._told > _SAY_EVERY_SEC:
                self._told = time.monotonic()
                print(f"{self._name}: {self.said()}", flush=True)

    def episode(self, number: int) -> None:
        """Do one episode."""
        self.figures["episodes"] += 1
        try:
            random = Random(f"{self._name} {self._seed} {number}")
            self.figures += self._attack.episode(self._ground, random, number)
        except Exception:
            self.failures.append(number)
            self.figures[self._attack.unit] += 1
            print(f"{self._name}: episode {number} of seed {self._seed} FAILED:\n{traceback.format_exc()}")
            print(
                f"  again: python -m tests.torture --attack {self._name} --seed {self._seed} "
                f"--episode {number} --keep DIRECTORY",
                flush=True,
            )

    def said(self) -> str:
        """Say what was done so far."""
        units, episodes = self.figures[self._attack.unit], self.figures["episodes"]
        seconds = time.monotonic() - self._begun
        done = f"{units:,} {self._attack.unit} in {episodes:,} episodes"
        return f"{done}, {len(self.failures)} failed, {seconds:,.0f} s"

    def listed(self) -> str:
        """List the figures."""
        return ", ".join(f"{what}: {count:,}" for what, count in sorted(self.figures.items()))


if __name__ == "__main__":
    sys.exit(main())
