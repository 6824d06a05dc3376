"""Measure drumline against what its users would use otherwise, on the same files; write one report.

    python -m bench.run --quick
    python -m bench.run

Four measures, each can be asked for alone (``--only``):

- ``infer``: classification against `bench.plain`, on recordings of the corpus (synthesised ones without it);
- ``rescan``: an unchanged archive again, against ``rsync -an`` of that tree to a copy that is equal;
- ``memory``: of all processes together, on a small and on a large archive;
- ``rebuild``: by hardlink, against ``cp -al``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.engine import ENGINE
from bench.measure import Outcome, interleaved, median, run_command
from bench.report import Measure, write_report
from bench.synth import Mess, iter_archive, with_progress
from drumline.index import read_index
from drumline.runs import open_run

__all__ = ["MEASURES", "Sizes", "Workshop", "agreement", "main", "run_measures"]

_PSS_EVERY_SEC = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    infer_files
        Files of the comparison with the plain way.
    rescan_files
        Files of the rescan and of the rebuild.
    memory_files
        Files of the small and of the large archive.
    repeats
        Repetitions of every timing.
    """

    infer_files: int = 2_000
    rescan_files: int = 100_000
    memory_files: tuple[int, int] = (20_000, 200_000)
    repeats: int = 5


QUICK = Sizes(infer_files=1_500, rescan_files=20_000, memory_files=(4_000, 40_000), repeats=3)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where things are measured.

    Parameters
    ----------
    root
        A directory for archives and runs.
    sizes
        How much is measured.
    options
        Options for every ``drumline infer``.
    engine
        How drumline is started.
    """

    root: Path
    sizes: Sizes
    options: tuple[str, ...] = ()
    engine: tuple[str, ...] = ENGINE

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """Give a directory that is removed at the end."""
        room = self.root / name
        room.mkdir(parents=True)
        try:
            yield room
        finally:
            shutil.rmtree(room)

    def tiny_archive(self, archive: Path, files: int) -> None:
        """Write an archive of very short sounds."""
        _say(f"synthesising {files:,} files")
        for _ in with_progress(iter_archive(archive, files, 1, Mess(tiny=True)), files):
            pass

    def infer(self, archive: Path, runs: Path, pss_every: float | None = None) -> Outcome:
        """Classify an archive."""
        options = ("--runs-root", os.fspath(runs), "--quiet", "--json", *self.options)
        return run_command((*self.engine, "infer", os.fspath(archive), *options), pss_every=pss_every)

    def rebuild(self, run: Path, out: Path) -> Outcome:
        """Rebuild by hardlink."""
        options = ("--out", os.fspath(out), "--copy-mode", "hardlink", "--json")
        return run_command((*self.engine, "rebuild", os.fspath(run), *options))


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def _verdict(met: bool, large_enough: bool) -> bool | None:
    """Return whether a bar is met, or None for fewer files than the bar is meant for."""
    return met if large_enough else None


def measure_infer(workshop: Workshop) -> Measure:
    """Compare ``drumline infer`` with the plain way: speed, and whether the labels are the same."""
    files, corpus = workshop.sizes.infer_files, corpus_directory()
    with workshop.room("infer") as room:
        archive, index = room / "archive", room / "plain.jsonl"
        entries = iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files)
        kinds = sum(1 for _ in entries)
        _say(f"infer: {files:,} files, {'corpus' if corpus else 'synthesised'}")

        def ours() -> float:
            shutil.rmtree(room / "runs", ignore_errors=True)
            return workshop.infer(archive, room / "runs").seconds

        def plain() -> float:
            return run_command((sys.executable, "-m", "bench.plain", archive, index)).seconds

        _warm_up(workshop, room)
        fast, slow = interleaved(workshop.sizes.repeats, ours, plain)
        same = agreement(room / "runs", index, archive)
    ratio = median(slow) / median(fast)
    details = {"files": kinds, "ours_sec": fast, "plain_sec": slow, "ratio": ratio, **same}
    title = f"first run, {files:,} {'real recordings' if corpus else 'synthesised files'} against librosa"
    share = same["same_label"]
    return Measure(
        "infer",
        f"{title}, same label for {share:.2%}",
        f"{ratio:.1f}× as fast",
        f"{files / median(fast):,.0f} files/s",
        f"{files / median(slow):,.0f} files/s",
        "≥ 8×",
        _verdict(ratio >= 8, files >= QUICK.infer_files),
        details,
    )


def _warm_up(workshop: Workshop, room: Path) -> None:
    """Let both sides compile and load what they do once on a machine."""
    archive = room / "warm-up"
    for _ in iter_archive(archive, 40):
        pass
    workshop.infer(archive, room / "warm-up-runs")
    run_command((sys.executable, "-m", "bench.plain", archive, room / "warm-up.jsonl"))


def agreement(runs: Path, plain_index: Path, archive: Path) -> dict[str, Any]:
    """Return the share of files with equal labels, and the largest difference of confidences."""
    with plain_index.open(encoding="utf-8") as stream:
        plain = {os.path.relpath(line["path"], archive): line for line in map(json.loads, stream)}
    records = list(read_index(open_run(runs).index_path))
    both = [(record, plain.get(record["relative_path"], {})) for record in records]
    told = [(record, other) for record, other in both if record["errors"] is None and "label" in other]
    equal = sum(record["assigned_label"] == other["label"] for record, other in told)
    equal += sum(record["errors"] is not None and "error" in other for record, other in both)
    gaps = [abs((record["assigned_conf"] or 0.0) - other["confidence"]) for record, other in told]
    return {
        "same_label": equal / max(len(records), len(plain), 1),
        "largest_confidence_difference": max(gaps, default=0.0),
        "compared": len(both),
    }


def measure_rescan(workshop: Workshop) -> Measure:
    """Compare the rescan of an unchanged archive with ``rsync -an``."""
    files = workshop.sizes.rescan_files
    with workshop.room("rescan") as room:
        archive, same, runs = room / "archive", room / "same", room / "runs"
        workshop.tiny_archive(archive, files)
        run_command(("cp", "-al", archive, same))
        _say("rescan: first run")
        workshop.infer(archive, runs)
        carried: list[int] = []

        def ours() -> float:
            outcome = workshop.infer(archive, runs)
            carried.append(json.loads(outcome.stdout)["counts"]["carried_over"])
            return outcome.seconds

        def rsync() -> float:
            return run_command(("rsync", "-an", f"{archive}/", f"{same}/")).seconds

        _say("rescan: repetitions")
        rescans, rsyncs = interleaved(workshop.sizes.repeats, ours, rsync)
    ratio = median(rescans) / median(rsyncs)
    details = {"files": files, "ours_sec": rescans, "rsync_sec": rsyncs, "ratio": ratio, "carried": carried}
    return Measure(
        "rescan",
        f"rescan of {files:,} unchanged files against rsync -an",
        f"{ratio:.2f}× its time",
        f"{median(rescans):.2f} s",
        f"{median(rsyncs):.2f} s",
        "≤ 3×",
        _verdict(ratio <= 3, files >= Sizes().rescan_files),
        details,
    )


def measure_memory(workshop: Workshop) -> Measure:
    """Measure the memory of all processes on two archives, one much larger than the other.

    The smaller one is sampled more often, so that both peaks are of about as many samples: ffmpeg, which
    takes 40 MB for some 0.1 s, would else be met less often in the shorter run.
    """
    few, many = workshop.sizes.memory_files
    outcomes = [_memory_of(workshop, files, _PSS_EVERY_SEC * files / many) for files in (few, many)]
    small, large = (outcome.peak_pss for outcome in outcomes)
    growth = large / max(small, 1) - 1
    details = {
        "files": [few, many],
        "peak_bytes": [small, large],
        "samples": [len(outcome.pss) for outcome in outcomes],
        "median_bytes": [int(median(outcome.pss or (0,))) for outcome in outcomes],
        "seconds": [outcome.seconds for outcome in outcomes],
        "growth": growth,
    }
    return Measure(
        "memory",
        f"peak memory of all processes, {few:,} → {many:,} files",
        f"{large / 1e6:,.0f} MB, {growth:+.1%}",
        f"{small / 1e6:,.0f} → {large / 1e6:,.0f} MB",
        "",
        "≤ 500 MB, growth < 5 %",
        _verdict(large <= 500e6 and growth < 0.05, (few, many) >= Sizes().memory_files),
        details,
    )


def _memory_of(workshop: Workshop, files: int, pss_every: float) -> Outcome:
    with workshop.room(f"memory-{files}") as room:
        workshop.tiny_archive(room / "archive", files)
        _say(f"memory: {files:,} files")
        return workshop.infer(room / "archive", room / "runs", pss_every)


def measure_rebuild(workshop: Workshop) -> Measure:
    """Compare ``drumline rebuild`` by hardlink with ``cp -al``."""
    files = workshop.sizes.rescan_files
    with workshop.room("rebuild") as room:
        archive, runs, out = room / "archive", room / "runs", room / "out"
        workshop.tiny_archive(archive, files)
        _say("rebuild: first run")
        workshop.infer(archive, runs)
        _say("rebuild: repetitions")
        ours, copies = interleaved(
            workshop.sizes.repeats,
            lambda: _into_nothing(out, lambda: workshop.rebuild(runs, out)),
            lambda: _into_nothing(out, lambda: run_command(("cp", "-al", archive, out))),
        )
    ratio = median(ours) / median(copies)
    return Measure(
        "rebuild",
        f"rebuild of {files:,} files by hardlink against cp -al",
        f"{ratio:.1f}× its time",
        f"{median(ours):.2f} s",
        f"{median(copies):.2f} s",
        "",
        None,
        {"files": files, "ours_sec": ours, "cp_sec": copies, "ratio": ratio},
    )


def _into_nothing(out: Path, action: Callable[[], Outcome]) -> float:
    """Run what makes `out`, which is removed before and after, and return its time."""
    shutil.rmtree(out, ignore_errors=True)
    seconds = action().seconds
    shutil.rmtree(out)
    return seconds


MEASURES: dict[str, Callable[[Workshop], Measure]] = {
    "infer": measure_infer,
    "rescan": measure_rescan,
    "memory": measure_memory,
    "rebuild": measure_rebuild,
}
"""What can be measured, in the order of the report."""


def run_measures(workshop: Workshop, names: tuple[str, ...]) -> list[Measure]:
    """Take the measures with these names, in the order of the report."""
    return [measure(workshop) for name, measure in MEASURES.items() if name in names]


def _sizes(usual: Sizes, **wanted: Any) -> Sizes:
    return replace(usual, **{name: value for name, value in wanted.items() if value is not None})


@click.command(help="Measure drumline on this machine and write REPORT.md and report.json.")
@click.option("--quick", is_flag=True, help="Smaller archives, fewer repetitions: some minutes.")
@click.option("--only", "names", multiple=True, type=click.Choice(list(MEASURES)), help="Measure this alone.")
@click.option("--infer-files", type=click.IntRange(min=1), help="Files for the comparison with librosa.")
@click.option("--rescan-files", type=click.IntRange(min=1), help="Files for rescan and rebuild.")
@click.option("--memory-files", type=(int, int), help="Files of the small and of the large archive.")
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
