"""What `drumline infer --profile` costs: the same run with and without it, in pairs.

    python -m bench.overhead --pairs 8

Within a pair the order changes from one to the next, so that what drifts on the machine meets both alike. The
median of the pairs' ratios is told for the CPU time of the whole command, and for the time of the run itself
(`elapsed_sec`), in which the report that is written once at the end has no part.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.engine import ENGINE
from bench.measure import run_command
from bench.synth import iter_archive

__all__ = ["measure_overhead"]


def measure_overhead(files: int, pairs: int) -> dict[str, Any]:
    """Run `pairs` pairs over `files` files and return what the profile adds, as shares."""
    with tempfile.TemporaryDirectory(prefix="drumline-overhead-") as name:
        place, corpus = Path(name), corpus_directory()
        archive = place / "archive"
        for _ in iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files):
            pass
        _run(place, archive, profile=True)  # not counted: it fills the page cache
        taken: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for pair in range(pairs):
            for profile in (False, True) if pair % 2 else (True, False):
                taken[profile].append(_run(place, archive, profile=profile))
    added = {name: _added(taken, name) for name in ("cpu_sec", "elapsed_sec", "command_sec")}
    return {"files": files, "pairs": pairs, **{f"{name}_added": share for name, share in added.items()}}


def _run(place: Path, archive: Path, *, profile: bool) -> dict[str, float]:
    runs = place / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    options = ("--runs-root", runs, "--quiet", "--json", *(("--profile",) if profile else ()))
    outcome = run_command((*ENGINE, "infer", archive, *options))
    elapsed = float(json.loads(outcome.stdout)["elapsed_sec"])
    return {"cpu_sec": outcome.cpu_sec, "elapsed_sec": elapsed, "command_sec": outcome.seconds}


def _added(taken: dict[bool, list[dict[str, float]]], name: str) -> float:
    pairs = zip(taken[True], taken[False], strict=True)
    return round(median(with_it[name] / without[name] for with_it, without in pairs) - 1.0, 4)


@click.command(help="Measure what --profile adds to a run.")
@click.option("--files", type=click.IntRange(min=1), default=2_000, show_default=True)
@click.option("--pairs", type=click.IntRange(min=1), default=8, show_default=True)
def main(files: int, pairs: int) -> None:
    """Measure and print as JSON."""
    click.echo(json.dumps(measure_overhead(files, pairs)))


if __name__ == "__main__":
    main()
