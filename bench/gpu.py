"""Measure drumline on a GPU, and write the tables of docs/gpu.md.

    python -m bench.gpu
    python -m bench.gpu --device cpu --quick

The model alone over batch sizes (run, copy, both), as CUDA graphs and not; whole runs with the front end on
the workers and in the graph, with 1 to 16 workers; how nearly the GPU says what the CPU says; energy, where
the driver tells. Where there is no GPU it says so and ends with exit code 5. With ``--device cpu`` it
measures the same things there and prints them, and writes no page.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bench.corpus import corpus_directory
from bench.engine import ENGINE
from bench.gpu_model import Parity, Speed, bundles, measure_parity, measure_speed, worker_costs
from bench.measure import run_command
from bench.nvml import Gpu, find_gpu
from bench.report import describe_machine
from bench.synth import Mess, iter_archive, render, with_progress
from bench.workshop import say
from drumline.audio import Decoder
from drumline.bundle import load_bundle
from drumline.durable import write_bytes
from drumline.errors import DrumlineError
from drumline.inference import open_session
from drumline.machine import usable_cpus
from drumline.settings import Device

__all__ = ["BEGIN", "END", "PARTS", "insert", "measure", "tables"]

BEGIN, END = "<!-- bench.gpu: begin -->", "<!-- bench.gpu: end -->"
PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
AIMS = {"model": 1_000_000, "engine": 60_000}
"""Files/s that an H200 with 16 cores is to reach."""

Floats = NDArray[np.float32]

PARTS = ("parity", "workers", "model", "engine")
"""What can be measured, in the order of the tables."""

_LENGTHS = (0.1, 1.2)
"""Seconds of short one-shots, and of those that are longer than what is analysed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    files
        Of the archive that whole runs classify.
    batches
        Batch sizes of the model alone; the last one is that of whole runs.
    workers
        Of whole runs, as far as there are CPUs.
    seconds
        For each figure of the model alone.
    sounds, recordings
        Synthesised, and of the corpus: for parity and for what a worker costs.
    """

    files: int = 200_000
    batches: tuple[int, ...] = (1, 16, 64, 256, 1024)
    workers: tuple[int, ...] = (1, 2, 4, 8, 12, 16)
    seconds: float = 1.0
    sounds: int = 300
    recordings: int | None = None


QUICK = Sizes(files=60, batches=(1, 8), workers=(1,), seconds=0.02, sounds=8, recordings=8)


@dataclass(frozen=True)
class Run:
    """One whole run.

    Parameters
    ----------
    model, statistics, workers
        What ran, and whether the workers computed level, centroid and rolloff.
    files_per_sec
        Over the whole run, the opening of the model included.
    bound
        What held it up, in a sentence.
    joules
        Energy of the GPU for 1,000 files; None where it is not told.
    """

    model: str
    statistics: bool
    workers: int
    files_per_sec: float
    bound: str
    joules: float | None


def measure(
    sizes: Sizes, device: Device, gpu: Gpu | None, place: Path, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Measure some parts, or all; `place` is an empty directory for bundles, archive and runs."""
    say("making the bundles")
    paths = bundles(place)

    def workers() -> dict[str, tuple[float, ...]]:
        in_graph = load_bundle(paths["front end in the graph"]).front_end
        groups = [_synthesised(sizes.sounds, seconds) for seconds in _LENGTHS]
        return worker_costs(in_graph, groups, sizes.seconds)

    measures: dict[str, Callable[[], Any]] = {
        "parity": lambda: measure_parity(paths, device, lambda: _sounds(sizes)),
        "workers": workers,
        "model": lambda: list(_speeds(sizes, device, gpu, paths)),
        "engine": lambda: list(_runs(sizes, device, gpu, paths, place)),
    }
    described = gpu and f"{gpu.name}, {gpu.memory_gb} GB, driver {gpu.driver}"
    found = {"machine": describe_machine() | {"gpu": described}}
    for part in parts:
        say(part)
        found[part] = measures[part]()
    return found


def _sounds(sizes: Sizes) -> Iterator[Floats]:
    """Yield the corpus's recordings where there is a corpus, else synthesised one-shots."""
    corpus = corpus_directory()
    if corpus is None:
        yield from _synthesised(sizes.sounds)
        return
    decoder = Decoder(load_bundle().front_end)
    items = (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[: sizes.recordings]
    for item in items:
        yield decoder.decode_path(os.fsencode(corpus / json.loads(item)["path"])).samples


def _synthesised(count: int, seconds: float = _LENGTHS[-1]) -> list[Floats]:
    """Return one-shots at the default model's sample rate, at most so long."""
    labels = ("Kick", "Snare", "HihatClosed", "TomMid", "Crash")
    return [
        render(labels[number % len(labels)], np.random.default_rng(number), 44_100, seconds)
        for number in range(count)
    ]


def _speeds(sizes: Sizes, device: Device, gpu: Gpu | None, paths: dict[str, Path]) -> Iterator[Speed]:
    for name, path in paths.items():
        for batch in sizes.batches:
            for graphs in (False, True) if device == "cuda" else (False,):
                say(f"model alone: {name}, batches of {batch}{', CUDA graphs' if graphs else ''}")
                yield measure_speed(name, load_bundle(path), device, batch, graphs, sizes.seconds, gpu)


def _runs(
    sizes: Sizes, device: Device, gpu: Gpu | None, paths: dict[str, Path], place: Path
) -> Iterator[Run]:
    archive = place / "archive"
    say(f"synthesising {sizes.files:,} files")
    mess = Mess(broken_fraction=0.0, duplicate_fraction=0.0, tiny=True, flat_per_dir=1000)
    for _ in with_progress(iter_archive(archive, sizes.files, 1, mess), sizes.files):
        pass
    usable = [count for count in sizes.workers if count <= usable_cpus()] or [1]
    for name, path in paths.items():
        for workers in usable:
            yield _run(name, path, archive, workers, sizes.batches[-1], device, gpu, statistics=True)
        yield _run(name, path, archive, usable[-1], sizes.batches[-1], device, gpu, statistics=False)


def _run(
    name: str,
    path: Path,
    archive: Path,
    workers: int,
    batch: int,
    device: Device,
    gpu: Gpu | None,
    *,
    statistics: bool,
) -> Run:
    say(f"whole run: {name}, {workers} workers{'' if statistics else ', no statistics'}")
    before = gpu.joules() if gpu else None
    with tempfile.TemporaryDirectory(dir=archive.parent) as runs:
        command = (
            *(*ENGINE, "infer", archive, "--runs-root", runs, "--model", path, "--device", device),
            *("--workers", str(workers), "--batch-size", str(batch), "--no-dedup-hash"),
            *("--profile", "--quiet", "--json", *(() if statistics else ("--no-audio-stats",))),
        )
        summary = json.loads(run_command(command).stdout)
    after = gpu.joules() if gpu else None
    files = summary["counts"]["classified"]
    joules = None if before is None or after is None else 1000.0 * (after - before) / files
    bound = summary["profile"]["bound"]
    return Run(name, statistics, workers, summary["files_per_sec"], bound, joules)


def tables(found: dict[str, Any], command: str) -> str:
    """Return what was measured as Markdown."""
    machine = found["machine"]
    gpu = machine["gpu"] or "no GPU: the CPU alone"
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"`{command}` on {today}: {gpu}; {machine['usable_cpus']} cores of {machine['cpu']}, "
        f"{machine['memory_gb']} GB; {machine['system']}, Python {machine['python']}, {packages}."
    ]
    for part, (title, table) in _TABLES.items():
        if part in found:
            lines += ["", title, "", *table(found[part])]
    return "\n".join(lines) + "\n"


def _parity_table(found: list[Parity]) -> Iterator[str]:
    yield "| model | sounds | same label | largest difference of a confidence |"
    yield "|---|---|---|---|"
    for row in found:
        yield f"| {row.model} | {row.sounds:,} | {100 * row.labels:.2f} % | {row.largest_difference:.1e} |"


def _worker_table(costs: dict[str, tuple[float, ...]]) -> Iterator[str]:
    yield f"| µs a file | {' | '.join(f'{seconds:g} s long' for seconds in _LENGTHS)} |"
    yield f"|{'---|' * (1 + len(_LENGTHS))}"
    for name, microseconds in costs.items():
        yield f"| {name} | {' | '.join(f'{value:.0f}' for value in microseconds)} |"


def _model_table(found: list[Speed]) -> Iterator[str]:
    yield (
        "| model | batch | CUDA graphs | files/s | run alone | copy alone | copy | page-locked "
        "| J per 1,000 files |"
    )
    yield f"|{'---|' * 9}"
    for row in found:
        yield (
            f"| {row.model} | {row.batch:,} | {'yes' if row.graphs else 'no'} | {row.files_per_sec:,.0f} "
            f"| {_shown(row.run_alone, ',.0f')} | {_shown(row.copy_alone, ',.0f')} "
            f"| {_shown(row.copied_gb_per_sec, '.1f', ' GB/s')} | {'yes' if row.pinned else 'no'} "
            f"| {_shown(row.joules, '.2f')} |"
        )


def _engine_table(found: list[Run]) -> Iterator[str]:
    yield "| model | statistics | workers | files/s | bound | J per 1,000 files |"
    yield "|---|---|---|---|---|---|"
    for row in found:
        yield (
            f"| {row.model} | {'yes' if row.statistics else 'no'} | {row.workers} "
            f"| {row.files_per_sec:,.0f} | {row.bound} | {_shown(row.joules, '.2f')} |"
        )


_TABLES: dict[str, tuple[str, Callable[[Any], Iterator[str]]]] = {
    "parity": ("What the device says against the plain model on the CPU:", _parity_table),
    "workers": ("What a worker computes for a file after decoding it, on one core:", _worker_table),
    "model": (f"The model alone (aim: {AIMS['model']:,} files/s):", _model_table),
    "engine": (
        f"Whole runs over short one-shots in the page cache (aim: {AIMS['engine']:,} files/s):",
        _engine_table,
    ),
}


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def insert(page: Path, text: str) -> None:
    """Put `text` between the markers of a page; everything else stays.

    Raises
    ------
    ValueError
        When the page has not both markers, in their order.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page.name} has no place between {BEGIN} and {END}")
    write_bytes(page, f"{before}{BEGIN}\n{text}{END}{after}".encode())


@click.command(help="Measure drumline on a GPU, and write the tables of docs/gpu.md.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="A few files and batches, to see that it works.")
@click.option("--only", "parts", multiple=True, type=click.Choice(PARTS), help="Measure this alone.")
@click.option("--work", type=click.Path(file_okay=False), help="Where archives are made (default: $TMPDIR).")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page to write the tables into (default: docs/gpu.md with a GPU, none without).",
)
def main(device: Device, quick: bool, parts: tuple[str, ...], work: str | None, page: Path | None) -> None:
    """Measure, print, and write the page; end with 5 when there is no such device."""
    try:
        open_session(load_bundle(), device)
    except DrumlineError as error:
        click.echo(f"bench.gpu: {error}", err=True)
        sys.exit(error.exit_code)
    gpu = find_gpu() if device == "cuda" else None
    with tempfile.TemporaryDirectory(prefix="drumline-gpu-", dir=work) as place:
        found = measure(QUICK if quick else Sizes(), device, gpu, Path(place), parts or PARTS)
    text = tables(found, _command(device, quick, parts))
    click.echo(text, nl=False)
    if page is None and device == "cuda" and not (quick or parts):
        page = PAGE
    if page is not None:
        insert(page, text)


def _command(device: Device, quick: bool, parts: tuple[str, ...]) -> str:
    options = (
        ["--device cpu"] * (device == "cpu") + ["--quick"] * quick + [f"--only {part}" for part in parts]
    )
    return " ".join(["python -m bench.gpu", *options])


if __name__ == "__main__":
    main()
