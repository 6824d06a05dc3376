"""What a run costs by files, bytes and records, and what that says of runs nobody has made yet.

    python -m bench.scaling measure
    python -m bench.scaling check build/soak/soak.json
    python -m bench.scaling predict --files 100000000 --mean-kb 170 --cores 16

``measure`` classifies small archives, some of very short sounds and some of real recordings (synthesised ones
without the corpus), each twice, and fits the faster runs by least squares::

    CPU time of a stage = start + files × per file + gigabytes × per gigabyte

Sizes of index and cache go by the record, elapsed time like CPU time. ``check`` holds the fit against a run
of `bench.soak`; ``predict`` scales it to other numbers of files, bytes and cores: the time is that of the
stage, or of all the CPUs, that needs most.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import nnls

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.engine import ENGINE
from bench.measure import run_command
from bench.soak import MESS
from bench.synth import Mess, iter_archive, with_progress
from bench.workshop import say
from drumline.machine import cpu_name, usable_cpus

__all__ = ["Cost", "Model", "Prediction", "fit_cost", "predict"]

_STAGES = ("walk", "discover", "extract", "predict", "write", "supervisor")
_SINGLE = ("walk", "discover", "predict", "write")
_TINY, _REAL = (500, 2_000, 6_000, 10_000), (300, 900, 1_800)
_ROUNDS = 2
_TOLERANCE = 0.2
_CPUS_PER_MODEL_THREAD = 4  # as predict opens its session
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds at the start, for each file, and for each gigabyte."""

    start: float
    per_file: float
    per_gb: float

    def of(self, files: float, size: float) -> float:
        """Return the cost of so many files of so many bytes together."""
        return self.start + files * self.per_file + size / _GB * self.per_gb


@dataclass(frozen=True, slots=True)
class Model:
    """What was measured.

    Parameters
    ----------
    cpu
        CPU seconds by stage.
    elapsed
        Seconds on the machine that measured, with all its CPUs.
    cpus
        How many those are.
    index_bytes, cache_bytes
        For each record.
    tiny_bytes
        Mean size of the very short sounds.
    """

    cpu: dict[str, Cost]
    elapsed: Cost
    cpus: int
    index_bytes: float
    cache_bytes: float
    tiny_bytes: float

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Model:
        """Make it from what `dataclasses.asdict` made of it."""
        cpu = {stage: Cost(**cost) for stage, cost in values["cpu"].items()}
        return cls(**{**values, "cpu": cpu, "elapsed": Cost(**values["elapsed"])})


@dataclass(frozen=True, slots=True)
class Prediction:
    """A run that nobody has made: its time, its bound, what it leaves on disk."""

    seconds: float
    bound: str
    cpu_seconds: float
    index_bytes: float
    cache_bytes: float


def fit_cost(files: Iterable[float], sizes: Iterable[float], seconds: Iterable[float]) -> Cost:
    """Fit a cost by least squares of the relative errors; no part of it is less than nothing.

    Parameters
    ----------
    files, sizes, seconds
        Of each run: files, bytes, what it took; at least three runs.
    """
    took = np.asarray(list(seconds), np.float64)
    rows = np.stack([np.ones(len(took)), np.asarray(list(files)), np.asarray(list(sizes)) / _GB], axis=1)
    weights = 1.0 / np.maximum(took, 1e-6)
    parts, _ = nnls(rows * weights[:, None], took * weights)
    return Cost(*map(float, parts))


def fit_model(runs: list[dict[str, Any]]) -> Model:
    """Fit everything to what `measure` has seen."""
    files, sizes = ([run[name] for run in runs] for name in ("files", "bytes"))
    largest = max(runs, key=lambda run: int(run["files"]))
    return Model(
        cpu={stage: fit_cost(files, sizes, [run["cpu"][stage] for run in runs]) for stage in _STAGES},
        elapsed=fit_cost(files, sizes, [run["elapsed"] for run in runs]),
        cpus=usable_cpus(),
        index_bytes=largest["index_bytes"] / largest["files"],
        cache_bytes=largest["cache_bytes"] / largest["files"],
        tiny_bytes=largest["bytes"] / largest["files"],
    )


def predict(model: Model, files: float, size: float, cpus: int) -> Prediction:
    """Say what a run of so many files of so many bytes takes on so many CPUs.

    On as many CPUs as were measured that is the fit itself; on others, the time of all CPUs is scaled, and no
    stage of which there is one goes faster than its own CPU time, shared by its threads.
    """
    stages = {stage: cost.of(files, size) for stage, cost in model.cpu.items()}
    limits = {"the CPUs": model.elapsed.of(files, size) * model.cpus / cpus}
    threads = {"predict": max(1, cpus // _CPUS_PER_MODEL_THREAD)}
    limits |= {f"the {stage} stage": stages[stage] / threads.get(stage, 1) for stage in _SINGLE}
    bound = max(limits, key=lambda name: limits[name])
    return Prediction(
        limits[bound], bound, sum(stages.values()), files * model.index_bytes, files * model.cache_bytes
    )


def _run(room: Path, name: str) -> dict[str, Any]:
    runs = room / f"runs-{name}"
    shutil.rmtree(runs, ignore_errors=True)
    options = ("--runs-root", str(runs), "--quiet", "--profile", "--json")
    summary = json.loads(run_command((*ENGINE, "infer", str(room / name), *options)).stdout)
    stages = summary["profile"]["stages"]
    return {
        "what": name,
        "files": summary["counts"]["discovered"],
        "bytes": summary["size_bytes"],
        "elapsed": summary["elapsed_sec"],
        "cpu": {stage: stages[stage]["cpu_sec"] for stage in _STAGES},
        "index_bytes": Path(summary["index"]).stat().st_size,
        "cache_bytes": (runs / "cache.sqlite").stat().st_size,
    }


def _measure(room: Path, tiny: tuple[int, ...], real: tuple[int, ...]) -> list[dict[str, Any]]:
    corpus = corpus_directory()
    archives = [(f"tiny-{files}", iter_archive(room / f"tiny-{files}", files, 1, MESS)) for files in tiny]
    for files in real:
        place = room / f"real-{files}"
        made = iter_corpus_archive(corpus, place, files) if corpus else iter_archive(place, files, 1, Mess())
        archives.append((f"real-{files}", made))
    for name, entries in archives:
        for _ in with_progress(entries, int(name.partition("-")[2])):
            pass
    names = [name for name, _ in archives]
    _run(room, names[0])
    rounds = [_round(room, names) for _ in range(_ROUNDS)]
    return [min(runs, key=lambda run: float(run["elapsed"])) for runs in zip(*rounds, strict=True)]


def _round(room: Path, names: list[str]) -> list[dict[str, Any]]:
    say("scaling: a round")
    return [_run(room, name) for name in names]


@click.group(help="Measure what a run costs, check it, and predict what others cost.")
def main() -> None:
    """Choose what to do."""


_CONSTANTS = click.option(
    "--constants",
    type=click.Path(path_type=Path),
    default=Path("build/scaling/scaling.json"),
    show_default=True,
    help="What measure wrote.",
)


@main.command("measure", help="Measure the constants, in about two minutes.")
@_CONSTANTS
@click.option("--work", type=click.Path(path_type=Path), help="Where archives are made (default: $TMPDIR).")
def measure_command(constants: Path, work: Path | None) -> None:
    """Measure, fit and write."""
    with tempfile.TemporaryDirectory(prefix="drumline-scaling-", dir=work) as place:
        runs = _measure(Path(place), _TINY, _REAL)
    model = fit_model(runs)
    figures = {"machine": f"{cpu_name()}, {usable_cpus()} CPUs", "model": asdict(model), "runs": runs}
    constants.parent.mkdir(parents=True, exist_ok=True)
    constants.write_text(json.dumps(figures, indent=1) + "\n")
    for stage, cost in {**model.cpu, "elapsed": model.elapsed}.items():
        click.echo(
            f"{stage:<11} {cost.start:6.2f} s + {1e6 * cost.per_file:7.1f} µs a file"
            f" + {cost.per_gb:6.2f} s a GB"
        )
    click.echo(f"a record: {model.index_bytes:.0f} bytes of index, {model.cache_bytes:.0f} of cache")


def _model(constants: Path) -> Model:
    try:
        return Model.from_json(json.loads(constants.read_text())["model"])
    except OSError as error:
        raise click.ClickException(f"{constants}: {error.strerror}; 'measure' writes it") from error


@main.command("check", help="Hold the fit against runs of bench.soak, given by soak.json, and runs made now.")
@click.argument("soaks", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--files", type=click.IntRange(1), multiple=True, help="Make and classify so many short sounds."
)
@click.option("--work", type=click.Path(path_type=Path), help="Where archives are made (default: $TMPDIR).")
@_CONSTANTS
def check_command(
    soaks: tuple[Path, ...], files: tuple[int, ...], work: Path | None, constants: Path
) -> None:
    """Compare and print; exit code 1 when the time of a run is more than 20 % off."""
    model, worst = _model(constants), 0.0
    for run in (*_made(files, work), *map(_of_soak, soaks)):
        said = predict(model, run["files"], run["files"] * model.tiny_bytes, model.cpus)
        worst = max(worst, abs(said.seconds / run["elapsed"] - 1))
        parts = [_said("elapsed", said.seconds, run["elapsed"])]
        if "cpu" in run:
            parts.append(_said("CPU", said.cpu_seconds, sum(run["cpu"].values())))
        click.echo(f"{run['files']:>11,} files: {', '.join(parts)}")
    raise SystemExit(worst > _TOLERANCE)


def _made(files: tuple[int, ...], work: Path | None) -> Iterator[dict[str, Any]]:
    for count in files:
        with tempfile.TemporaryDirectory(prefix="drumline-scaling-", dir=work) as place:
            for _ in with_progress(iter_archive(Path(place) / "archive", count, 2, MESS), count):
                pass
            yield _run(Path(place), "archive")


def _of_soak(path: Path) -> dict[str, Any]:
    figures = json.loads(path.read_text())
    return {"files": figures["files"], "elapsed": figures["first"]["seconds"]}


def _said(what: str, predicted: float, took: float) -> str:
    return f"{what} {took:,.1f} s, predicted {predicted:,.1f} s ({predicted / took - 1:+.1%})"


@main.command("predict", help="Say what a run takes, on machines like the one that was measured.")
@click.option("--files", type=click.IntRange(1), default=100_000_000, show_default=True)
@click.option("--mean-kb", type=float, default=170.0, show_default=True, help="Mean size of a file.")
@click.option("--cores", type=click.IntRange(1), multiple=True, default=(2, 16, 64), show_default=True)
@_CONSTANTS
def predict_command(files: int, mean_kb: float, cores: tuple[int, ...], constants: Path) -> None:
    """Predict and print."""
    model = _model(constants)
    for count in cores:
        said = predict(model, files, files * mean_kb * 1e3, count)
        click.echo(
            f"{files:,} files of {mean_kb:g} kB on {count} cores: {said.seconds / 3600:,.1f} h, bound by"
            f" {said.bound}; index {said.index_bytes / 1e9:,.1f} GB, cache {said.cache_bytes / 1e9:,.1f} GB"
        )


if __name__ == "__main__":
    main()
