"""Measure drumline against what its users would use otherwise, on the same files; write one report.

    python -m bench.run --quick
    python -m bench.run

Five measures, each can be asked for alone (``--only``):

- ``infer``: classification against `bench.peers`, on recordings of the corpus (synthesised ones without it);
- ``rescan``: an unchanged archive again, against ``rsync -an`` of that tree to an equal copy, and others; and
  with a hundredth of its files changed;
- ``million``: rescan and stats of a million files;
- ``memory``: of all processes together, on a small and on a large archive;
- ``rebuild``: by hardlink and by copy, against ``cp`` and ``rsync``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bench.first_run import measure_infer
from bench.measure import Outcome, median
from bench.million import measure_million
from bench.report import Measure, write_report
from bench.trees import measure_rebuild, measure_rescan
from bench.workshop import QUICK, Sizes, Workshop, say, verdict

__all__ = ["MEASURES", "main", "run_measures"]

_PSS_EVERY_SEC = 0.2


def measure_memory(workshop: Workshop) -> list[Measure]:
    """Measure the memory of all processes on two archives, one much larger than the other.

    Peak and median are told, and neither may grow. The smaller archive is sampled more often, so that both
    peaks are of about as many samples.
    """
    few, many = workshop.sizes.memory_files
    outcomes = [_memory_of(workshop, files, _PSS_EVERY_SEC * files / many) for files in (few, many)]
    peaks = [outcome.peak_pss for outcome in outcomes]
    medians = [int(median(outcome.pss or (0,))) for outcome in outcomes]
    growth = max(large / max(small, 1) - 1 for small, large in (peaks, medians))
    details = {
        "files": [few, many],
        "peak_bytes": peaks,
        "median_bytes": medians,
        "samples": [len(outcome.pss) for outcome in outcomes],
        "seconds": [outcome.seconds for outcome in outcomes],
        "growth": growth,
    }
    memory = Measure(
        "memory",
        f"memory of all processes, {few:,} → {many:,} files: median (peak)",
        f"{medians[1] / 1e6:,.0f} MB, {growth:+.1%}",
        " → ".join(
            f"{mid / 1e6:,.0f} ({peak / 1e6:,.0f}) MB" for mid, peak in zip(medians, peaks, strict=True)
        ),
        "",
        "peak ≤ 450 MB, growth < 5 %",
        verdict(max(peaks) <= 450e6 and growth < 0.05, (few, many) >= Sizes().memory_files),
        details,
    )
    return [memory]


def _memory_of(workshop: Workshop, files: int, pss_every: float) -> Outcome:
    with workshop.room(f"memory-{files}") as room:
        workshop.tiny_archive(room / "archive", files)
        say(f"memory: {files:,} files")
        return workshop.infer(room / "archive", room / "runs", pss_every)


MEASURES: dict[str, Callable[[Workshop], list[Measure]]] = {
    "infer": measure_infer,
    "rescan": measure_rescan,
    "million": measure_million,
    "memory": measure_memory,
    "rebuild": measure_rebuild,
}
"""What can be measured, in the order of the report."""


def run_measures(workshop: Workshop, names: tuple[str, ...]) -> list[Measure]:
    """Take the measures with these names, in the order of the report."""
    taken = (measure(workshop) for name, measure in MEASURES.items() if name in names)
    return [one for measures in taken for one in measures]


def _sizes(usual: Sizes, **wanted: Any) -> Sizes:
    return replace(usual, **{name: value for name, value in wanted.items() if value is not None})


@click.command(help="Measure drumline on this machine and write REPORT.md and report.json.")
@click.option(
    "--quick", is_flag=True, help="Small archives, one repetition: about a minute, and no verdicts."
)
@click.option("--only", "names", multiple=True, type=click.Choice(list(MEASURES)), help="Measure this alone.")
@click.option("--infer-files", type=click.IntRange(min=1), help="Files for the comparison with librosa.")
@click.option("--rescan-files", type=click.IntRange(min=1), help="Files for rescan and rebuild.")
@click.option("--memory-files", type=(int, int), help="Files of the small and of the large archive.")
@click.option("--scale-files", type=(int, int), help="Files of the small and of the large archive.")
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions of every timing.")
@click.option("--option", "options", multiple=True, help="For every infer, e.g. --workers=2.")
@click.option("--work", type=click.Path(file_okay=False), help="Where archives are made (default: $TMPDIR).")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Where the report goes (default: beside this program).",
)
def main(
    quick: bool, names: tuple[str, ...], options: tuple[str, ...], work: str | None, out: Path, **sizes: Any
) -> None:
    """Measure, report, and end with 1 when a bar is missed."""
    out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m bench.run", *(["--quick"] if quick else []), *options])
    with tempfile.TemporaryDirectory(prefix="drumline-bench-", dir=work) as root:
        workshop = Workshop(Path(root), _sizes(QUICK if quick else Sizes(), **sizes), options)
        measures = run_measures(workshop, names or tuple(MEASURES))
    click.echo(write_report(out, measures, command))
    sys.exit(any(measure.met is False for measure in measures))


if __name__ == "__main__":
    main()
