"""Run the micro-benchmarks and say what has become slower since the last time.

    python -m bench.compare

Compared are the shortest times, which other programs disturb least, each divided by the yardstick's: work
that is none of drumline's. So a slower machine is not taken for slower code. The figures are saved in
``.benchmarks/micro.json`` for the next time, unless something became slower.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

__all__ = ["Change", "changes", "main", "measured"]

SAVED = Path(".benchmarks/micro.json")
YARDSTICK = "test_yardstick"
Times = dict[str, float]


class Change:
    """A step's time now by its time before, both in yardsticks.

    Parameters
    ----------
    name
        The benchmark's.
    seconds
        Its shortest time now.
    ratio
        More than 1: slower. None: there was no such step before.
    """

    def __init__(self, name: str, seconds: float, ratio: float | None) -> None:
        self.name, self.seconds, self.ratio = name, seconds, ratio

    def __str__(self) -> str:
        ratio = "     new" if self.ratio is None else f"{self.ratio:7.2f}×"
        return f"{ratio}  {self.seconds * 1e6:10.1f} µs  {self.name.removeprefix('test_')}"


def measured(select: str = "") -> Times:
    """Run the micro-benchmarks and return the shortest time of each by name, in seconds."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = [sys.executable, "-m", "pytest", "-q", "bench/test_micro.py", "--benchmark-enable"]
        command += ["--benchmark-max-time=0.5", "--benchmark-quiet", f"--benchmark-json={result}"]
        subprocess.run([*command, *(["-k", f"{YARDSTICK} or {select}"] if select else [])], check=True)
        found = json.loads(result.read_bytes())["benchmarks"]
    return {entry["name"]: entry["stats"]["min"] for entry in found}


def changes(before: Times, now: Times) -> list[Change]:
    """Compare two measurements, the slower first."""
    scale = now[YARDSTICK] / before.get(YARDSTICK, now[YARDSTICK])
    found = [
        Change(name, seconds, seconds / (before[name] * scale) if name in before else None)
        for name, seconds in now.items()
        if name != YARDSTICK
    ]
    return sorted(found, key=lambda change: -(change.ratio or 0.0))


@click.command(help="Run the micro-benchmarks and say what has become slower since the last time.")
@click.option("--tolerance", default=0.15, show_default=True, help="How much slower is told.")
@click.option("--keep", is_flag=True, help="Save the figures although something became slower.")
@click.option("-k", "select", default="", help="Only these, as pytest takes them; saved ones stay.")
def main(tolerance: float, keep: bool, select: str) -> None:
    """Measure, compare, save; end with 1 when something became slower."""
    before: Times = json.loads(SAVED.read_bytes()) if SAVED.exists() else {}
    now = measured(select)
    found = changes(before, now)
    click.echo("\n".join(map(str, found)))
    slower = [change.name for change in found if (change.ratio or 0.0) > 1.0 + tolerance]
    click.echo(f"slower: {', '.join(slower)}" if slower else "nothing became slower")
    if keep or not slower:
        SAVED.parent.mkdir(exist_ok=True)
        SAVED.write_text(json.dumps({**(before if select else {}), **now}, indent=2))
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
