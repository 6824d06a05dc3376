"""Guard the speed: ``drumline infer`` against the plain way on 500 files, a ratio and nothing else.

    python -m bench.guard

Both classify the same archive on the same machine, in turn, and both also classify 20 files: what is compared
is what the other 480 take. The start of interpreter, libraries and model would count for more than half of so
short a run, and hide what became slower; the ratio with it is said as well. The ratio does not depend on how
fast the machine is; one below the bar is measured once more before it counts. Where 500 files take hardly
longer than 20, as with many cores, that time is noise and its ratio any number: it does not count, and the
second measurement takes four times as many. Exit code 1: neither counted and reached the bar.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.measure import interleaved, run_command
from bench.synth import iter_archive
from bench.workshop import Sizes, Workshop, say

__all__ = ["guarded"]

_ATTEMPTS, _REPEATS, _FEW = 2, 3, 20
_MORE = 4
_LEAST_SHARE = 0.25
"""Time of the other files, as a share of that of the few with the start, below which it is noise."""


def guarded(ratio: Callable[[int], float], bar: float) -> bool:
    """Return whether a ratio reaches the bar, at once or in a second measurement.

    `ratio` is given how many times as many files to take; NaN is no measurement, and more are taken after it.
    """
    times = 1
    for _ in range(_ATTEMPTS):
        measured = ratio(times)
        if math.isnan(measured):
            say("the files took hardly longer than a few do: that counts for nothing")
            times *= _MORE
            continue
        if measured >= bar:
            say(f"infer is {measured:.1f}× as fast as the plain way; not under {bar:g}× is asked for")
            return True
        say(f"infer is only {measured:.1f}× as fast as the plain way, under {bar:g}×")
    return False


def _write_archive(archive: Path, files: int) -> None:
    corpus = corpus_directory()
    for _ in iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files):
        pass


def _ours(room: Path, name: str) -> float:
    with tempfile.TemporaryDirectory(dir=room) as runs:
        return Workshop(room, Sizes()).infer(room / name, Path(runs)).seconds


def _plain(room: Path, name: str) -> float:
    return run_command((sys.executable, "-m", "bench.plain", room / name, room / "plain.jsonl")).seconds


def _ratio(room: Path, files: int) -> float:
    """Return how many times as fast drumline is, by the fastest of some short runs of each side.

    NaN when the files beyond the few took so little that it is none.
    """
    name = f"{files} files"
    if not (room / name).exists():
        _write_archive(room / name, files)
    ours, few, plain, plain_few = (
        min(times)
        for times in interleaved(
            _REPEATS,
            lambda: _ours(room, name),
            lambda: _ours(room, "few"),
            lambda: _plain(room, name),
            lambda: _plain(room, "few"),
        )
    )
    say(f"with the start of both: {plain / ours:.1f}× ({plain:.2f} s and {ours:.2f} s)")
    return math.nan if ours - few < _LEAST_SHARE * few else (plain - plain_few) / (ours - few)


@click.command(help="Fail when infer is not so many times as fast as the plain way.")
@click.option("--files", type=click.IntRange(min=2 * _FEW), default=500, show_default=True)
@click.option("--bar", type=float, default=8.0, show_default=True)
def main(files: int, bar: float) -> None:
    """Measure and judge."""
    with tempfile.TemporaryDirectory(prefix="drumline-guard-") as place:
        room = Path(place)
        say(f"{files:,} files, {_REPEATS} runs of each side in turn")
        _write_archive(room / "few", _FEW)
        _plain(room, "few")  # its compiler works at the first run on a machine
        sys.exit(0 if guarded(lambda times: _ratio(room, times * files), bar) else 1)


if __name__ == "__main__":
    main()
