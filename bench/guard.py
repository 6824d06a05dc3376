"""Guard the speed: ``drumline infer`` against the plain way on 500 files, a ratio and nothing else.

    python -m bench.guard

Both classify the same archive on the same machine, each once to warm up and then in turn. The ratio of their
times does not depend on how fast the machine is, and hardly on what else it does; a ratio below the bar is
measured once more before it counts. Exit code 1: it was below the bar both times.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.measure import run_command
from bench.synth import iter_archive
from bench.workshop import Sizes, Workshop, say

__all__ = ["guarded"]

_ATTEMPTS = 2


def guarded(ratio: Callable[[], float], bar: float) -> bool:
    """Return whether a ratio reaches the bar, at once or in a second measurement."""
    for _ in range(_ATTEMPTS):
        measured = ratio()
        if measured >= bar:
            say(f"infer is {measured:.1f}× as fast as the plain way; not under {bar:g}× is asked for")
            return True
        say(f"infer is only {measured:.1f}× as fast as the plain way, under {bar:g}×")
    return False


def _write_archive(archive: Path, files: int) -> None:
    corpus = corpus_directory()
    for _ in iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files):
        pass


def _times(room: Path, archive: Path) -> tuple[float, float]:
    """Return the seconds that drumline and the plain way take."""
    with tempfile.TemporaryDirectory(dir=room) as runs:
        ours = Workshop(room, Sizes()).infer(archive, Path(runs)).seconds
    plain = run_command((sys.executable, "-m", "bench.plain", archive, room / "plain.jsonl")).seconds
    return ours, plain


@click.command(help="Fail when infer is not so many times as fast as the plain way.")
@click.option("--files", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--bar", type=float, default=8.0, show_default=True)
def main(files: int, bar: float) -> None:
    """Measure and judge."""
    with tempfile.TemporaryDirectory(prefix="drumline-guard-") as place:
        room = Path(place)
        say(f"{files:,} files, after a short run of each to warm up")
        _write_archive(room / "few", 20)
        _write_archive(room / "archive", files)
        _times(room, room / "few")

        def ratio() -> float:
            ours, plain = _times(room, room / "archive")
            return plain / ours

        sys.exit(0 if guarded(ratio, bar) else 1)


if __name__ == "__main__":
    main()
