"""What the ways of reading win: ``infer --io`` cold and warm, from a network, and the way of a disk's head.

    python -m bench.reading

Three measures on the same archive:

- asked for beforehand (``ssd``) or not (``network`` with as many workers), in and out of the page cache;
- every file made to wait some milliseconds, as for a network's answer, with one worker for each CPU or four;
- how far a spinning disk's head travels in order of names, inodes and places. The disk that this runs on need
  not spin: where the blocks lie is asked for, and only that.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.measure import evict, interleaved, median, run_command
from bench.synth import iter_archive
from bench.workshop import say
from drumline.machine import usable_cpus
from drumline.pipeline.reading import Reading, place_of

__all__ = ["head_travel", "orders"]

_FAR = 1 << 20
_WAITING = """
import sys, time
from drumline.cli import main
from drumline.pipeline import extract

seconds, read = float(sys.argv[1]), extract._Reader.read

def late(reader, path):
    time.sleep(seconds)
    return read(reader, path)

extract._Reader.read = late
main(sys.argv[2:])
"""


def orders(archive: Path) -> dict[str, list[bytes]]:
    """Return the files of an archive by name, by inode and by place, each directory by directory."""
    by: dict[str, list[bytes]] = {"name": [], "inode": [], "place": []}
    hdd = Reading(bytes(archive), "hdd")
    for directory, below, names in os.walk(bytes(archive)):
        below.sort()
        paths = [os.path.join(directory, name) for name in sorted(names)]
        by["name"] += paths
        by["inode"] += sorted(paths, key=lambda path: os.lstat(path).st_ino)
        by["place"] += hdd.ordered(paths, lambda path: os.path.relpath(path, bytes(archive)))
    return by


def head_travel(paths: Iterable[bytes]) -> dict[str, float]:
    """Return how often the head goes further than 1 MiB between two files, and how far in all, in GB."""
    far, total, at = 0, 0, None
    for path in paths:
        place, _ = place_of(path)
        if at is not None:
            far += abs(place - at) > _FAR
            total += abs(place - at)
        at = place + os.path.getsize(path)
    return {"far": far, "gb": round(total / 1e9, 1)}


def _infer(room: Path, *options: str, wait: float = 0.0, cold: bool = False) -> float:
    archive, runs = room / "archive", room / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    if cold:
        evict(archive)
    command = ["infer", str(archive), "--runs-root", str(runs), "--quiet", *options]
    return run_command([sys.executable, "-c", _WAITING, str(wait), *command]).seconds


def _measure(room: Path, repeats: int, wait: float) -> dict[str, Any]:
    one, four = ("--io", "network", "--workers", str(usable_cpus())), ("--io", "network")

    def ways(ours: tuple[str, ...], **how: Any) -> list[list[float]]:
        return interleaved(repeats, lambda: _infer(room, *ours, **how), lambda: _infer(room, *one, **how))

    say("reading: cold, warm, and late files in turn")
    return {
        "cold": _compared("asked_for", "as_they_come", ways(("--io", "ssd"), cold=True)),
        "warm": _compared("asked_for", "as_they_come", ways(("--io", "ssd"))),
        "network": {
            "wait_ms": 1000 * wait,
            **_compared("four_for_each_cpu", "one_for_each_cpu", ways(four, wait=wait)),
        },
        "head": {name: head_travel(paths) for name, paths in orders(room / "archive").items()},
    }


def _compared(ours: str, theirs: str, times: list[list[float]]) -> dict[str, Any]:
    return {ours: times[0], theirs: times[1], "ratio": round(median(times[1]) / median(times[0]), 3)}


@click.command(help="Measure what the ways of reading win.")
@click.option("--files", type=click.IntRange(min=1), default=2_000, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--wait-ms", type=float, default=5.0, show_default=True, help="Of a file on a network.")
@click.option("--work", type=click.Path(path_type=Path), help="Where the archive is made (default: $TMPDIR).")
def main(files: int, repeats: int, wait_ms: float, work: Path | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="drumline-reading-", dir=work) as place:
        room, corpus = Path(place), corpus_directory()
        archive = room / "archive"
        for _ in iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files):
            pass
        os.sync()
        _infer(room)
        click.echo(json.dumps(_measure(room, repeats, wait_ms / 1000)))


if __name__ == "__main__":
    main()
