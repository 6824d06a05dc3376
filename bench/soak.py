"""A long run, and many runs in a row: what grows with the number of files, or with that of runs.

    python -m bench.soak --files 1000000 --rescans 50 --out build/soak

One classification of a synthesised archive (one file in a hundred is broken), watched all the time; then
rescans of a smaller one, each after some files were added, edited, touched, moved and deleted. Memory, open
files, threads and what lies in /dev/shm are fitted with straight lines: their slopes are to be nothing but
noise.
Writes ``soak.json`` and ``soak.svg``; ``--again soak.json`` fits and draws what an earlier soak has sampled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import IO, Any, NamedTuple

import click
import numpy as np
import psutil  # type: ignore[import-untyped]

from bench.engine import ENGINE
from bench.measure import tree_pss
from bench.synth import Mess, iter_archive, with_progress

__all__ = ["MESS", "Fit", "Sample", "fit_line", "main", "soak"]

MESS = Mess(tiny=True, broken_fraction=0.01)
_SHARED_MEMORY = Path("/dev/shm")
_SAMPLE_SEC = 0.5
_WARM_UP = 0.1
"""Share of a run's samples that is left out of the fits: caches and heaps fill."""
_CHANGED = 0.0005
"""Share of the files that each kind of change meets before a rescan."""
_BLOCKS = 20
_WATCHED = ("pss", "descriptors", "threads", "shared_memory")


class Sample(NamedTuple):
    """One look at all processes of a command: memory in bytes, and files that were done by then."""

    seconds: float
    done: int
    pss: int
    descriptors: int
    threads: int
    shared_memory: int


@dataclass(frozen=True)
class Fit:
    """A straight line through samples: its slope, and half the width of the slope's 95 % interval."""

    slope: float
    interval: float

    @property
    def is_flat(self) -> bool:
        """Whether no growth can be told from noise."""
        return self.slope <= self.interval


def fit_line(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fit ``y = a + slope · x`` by least squares.

    Parameters
    ----------
    x, y
        At least three points.

    Returns
    -------
    The slope, and 1.96 times its standard error, which takes the points for independent.
    """
    across, up = np.asarray(x, np.float64), np.asarray(y, np.float64)
    across = across - across.mean()
    spread = float(across @ across)
    if len(across) < 3 or spread == 0.0:
        return Fit(0.0, float("inf"))
    slope = float(across @ (up - up.mean())) / spread
    residuals = up - up.mean() - slope * across
    return Fit(slope, 1.96 * float(np.sqrt(residuals @ residuals / (len(across) - 2) / spread)))


def fit_samples(samples: Sequence[Sample], name: str) -> Fit:
    """Fit what a long run holds against the files that were done, in units per million files.

    The samples after the warm-up are cut into 20 blocks in a row, and the blocks are fitted: neighbouring
    samples are anything but independent (batch means; Law, "Simulation modeling and analysis", 9.5.3). A
    block stands for its mean in memory, and for its smallest count in all else: the file that a worker is
    reading is open at one sample and closed at the next, and what leaks is what is never given back.
    """
    settled = np.asarray(samples[int(len(samples) * _WARM_UP) :], np.float64)
    blocks = np.array_split(settled, min(_BLOCKS, max(1, len(settled))))
    column = Sample._fields.index(name)
    level = np.mean if name == "pss" else np.min
    levels = [float(level(block[:, column])) for block in blocks]
    return fit_line([float(block[:, 1].mean()) / 1e6 for block in blocks], levels)


class _Watch:
    """Runs a command and samples it and its descendants until it ends."""

    def __init__(self, command: Sequence[str], every: float) -> None:
        self.samples: list[Sample] = []
        self._done, self._every = 0, every
        self._started = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._said: list[str] = []

    def summary(self) -> dict[str, Any]:
        """Wait for the end and return what was printed as JSON."""
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        listener = threading.Thread(target=self._listen, args=(stderr,))
        sampler = threading.Thread(target=self._sample)
        with self._process:
            listener.start()
            sampler.start()
            printed = stdout.read()
            code = self._process.wait()
            listener.join()
            sampler.join()
        if code:
            raise RuntimeError(f"exit code {code}\n{''.join(self._said)[-2000:]}")
        value: dict[str, Any] = json.loads(printed)
        return value

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._said = [*self._said[-9:], line]
            count = line.removeprefix("drumline: ").split(" of ")[0].replace(",", "")
            if count.isdigit():
                self._done = int(count)
                print(f"  {line.rstrip()}", file=sys.stderr, flush=True)

    def _sample(self) -> None:
        while self._process.poll() is None:
            self.samples.append(self._look())
            time.sleep(self._every)

    def _look(self) -> Sample:
        seconds = time.perf_counter() - self._started
        descriptors = threads = 0
        for process in _tree(self._process.pid):
            try:
                descriptors += process.num_fds()
                threads += process.num_threads()
            except psutil.Error:
                continue
        segments = len(os.listdir(_SHARED_MEMORY)) if _SHARED_MEMORY.is_dir() else 0
        return Sample(seconds, self._done, tree_pss(self._process.pid), descriptors, threads, segments)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _infer(archive: Path, runs: Path, every: float) -> tuple[dict[str, Any], list[Sample]]:
    command = [*map(str, ENGINE), "infer", str(archive), "--runs-root", str(runs), "--json", "--yes"]
    watch = _Watch(command, every)
    return watch.summary(), watch.samples


def _first_run(archive: Path, runs: Path) -> dict[str, Any]:
    summary, samples = _infer(archive, runs, _SAMPLE_SEC)
    _check(summary)
    return {
        "counts": summary["counts"],
        "seconds": summary["elapsed_sec"],
        "files_per_sec_by_tenth": _speed_by_tenth(samples, summary),
        "per_million_files": _fits(samples),
        "samples": samples,
    }


def _fits(samples: Sequence[Sample]) -> dict[str, Any]:
    return {name: asdict(fit_samples(samples, name)) for name in _WATCHED}


def _speed_by_tenth(samples: list[Sample], summary: dict[str, Any]) -> list[float]:
    """Return files/s in each tenth of the files."""
    total, elapsed = summary["counts"]["discovered"], summary["elapsed_sec"]
    points = {0: 0.0, **{s.done: s.seconds for s in reversed(samples) if s.done}, total: elapsed}
    done = sorted(points)
    edges = np.linspace(0, total, 11)
    seconds = np.interp(edges, done, [points[count] for count in done])
    return [
        float(files / max(took, 1e-9)) for files, took in zip(np.diff(edges), np.diff(seconds), strict=True)
    ]


def _rescans(archive: Path, runs: Path, count: int, seed: int) -> dict[str, Any]:
    random = Random(seed)
    rows = []
    for number in range(count):
        changed = _change(archive, random, number)
        summary, samples = _infer(archive, runs, _SAMPLE_SEC / 10)
        _check(summary)
        peaks = {name: max(getattr(sample, name) for sample in samples) for name in _WATCHED}
        rows.append({"changed": changed, "seconds": summary["elapsed_sec"], **peaks, **summary["counts"]})
        print(f"  rescan {number + 1}: {summary['elapsed_sec']:.1f} s", file=sys.stderr, flush=True)
    fits = {
        name: asdict(fit_line(range(len(rows)), [float(row[name]) for row in rows]))
        for name in (*_WATCHED, "seconds")
    }
    return {"runs": rows, "per_rescan": fits}


def _change(archive: Path, random: Random, number: int) -> int:
    """Add, edit, touch, move and delete some files; return how many were met."""
    files = sorted(path for path in archive.rglob("*.wav") if path.is_file())
    each = max(1, int(len(files) * _CHANGED))
    ways: tuple[Callable[[Path], object], ...] = (
        lambda path: shutil.copy(path, path.with_name(f"added {number} {path.name}")),
        lambda path: path.write_bytes(path.read_bytes() + number.to_bytes(4, "big")),
        lambda path: path.touch(),
        lambda path: path.rename(path.with_name(f"moved {number} {path.name}")),
        lambda path: path.unlink(),
    )
    chosen = random.sample(files, each * len(ways))
    for place, path in enumerate(chosen):
        ways[place % len(ways)](path)
    return len(chosen)


def _check(summary: dict[str, Any]) -> None:
    counts = summary["counts"]
    parts = counts["carried_over"] + counts["classified"] + counts["failed"]
    assert counts["discovered"] == counts["indexed"] == parts, counts


def soak(root: Path, files: int, rescans: int, rescan_files: int, seed: int = 1) -> dict[str, Any]:
    """Synthesise archives in `root`, classify and rescan them; return every figure.

    Parameters
    ----------
    root
        An empty directory.
    files
        How large the archive of the long run is.
    rescans, rescan_files
        How many runs in a row, and how large their archive is.
    seed
        Of the archives and of their changes.

    Raises
    ------
    RuntimeError
        When a command fails; a run or a count that is not right fails too.
    """
    with _archive(root / "long", files, seed) as (archive, runs):
        first = _first_run(archive, runs)
        _verify(runs)
    with _archive(root / "often", rescan_files, seed) as (archive, runs):
        _infer(archive, runs, _SAMPLE_SEC)
        later = _rescans(archive, runs, rescans, seed)
        _verify(runs)
    return {"files": files, "rescan_files": rescan_files, "seed": seed, "first": first, "rescans": later}


@contextmanager
def _archive(room: Path, files: int, seed: int) -> Iterator[tuple[Path, Path]]:
    """Synthesise an archive; give it and a place for its runs, and remove both."""
    for _ in with_progress(iter_archive(room / "archive", files, seed, MESS), files):
        pass
    yield room / "archive", room / "runs"
    shutil.rmtree(room)


def _verify(runs: Path) -> None:
    subprocess.run([*ENGINE, "verify", str(runs), "--json"], check=True, stdout=subprocess.DEVNULL)


def _draw(figures: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    first, rows = figures["first"], figures["rescans"]["runs"]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.5), layout="constrained")
    samples = [Sample(*sample) for sample in first["samples"]]
    axes[0, 0].plot([s.done / 1e3 for s in samples], [s.pss / 1e6 for s in samples], linewidth=0.6)
    axes[0, 0].set(xlabel="thousand files done", ylabel="memory (PSS), MB", ylim=(0, None))
    axes[0, 1].bar(range(1, 11), first["files_per_sec_by_tenth"])
    axes[0, 1].set(xlabel="tenth of the files", ylabel="files/s")
    axes[1, 0].plot([row["pss"] / 1e6 for row in rows], ".-")
    axes[1, 0].set(xlabel="rescan", ylabel="peak memory (PSS), MB", ylim=(0, None))
    axes[1, 1].plot([row["seconds"] for row in rows], ".-")
    axes[1, 1].set(xlabel="rescan", ylabel="seconds", ylim=(0, None))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _tell(figures: dict[str, Any]) -> None:
    first, rescans = figures["first"], figures["rescans"]
    speed = first["files_per_sec_by_tenth"]
    click.echo(f"{figures['files']:,} files in {first['seconds']:,.0f} s")
    click.echo(f"  files/s in the last tenth are {speed[-1] / speed[0]:.2f} of those in the first")
    fits = (("a million files", first["per_million_files"]), ("a rescan", rescans["per_rescan"]))
    for unit, lines in fits:
        for name, values in lines.items():
            fit = Fit(**values)
            verdict = "flat" if fit.is_flat else "grows"
            click.echo(f"  {name}: {verdict}, {fit.slope:,.3g} ± {fit.interval:,.3g} for {unit}")


@click.command()
@click.option("--files", type=click.IntRange(10), default=1_000_000, show_default=True)
@click.option("--rescans", type=click.IntRange(0), default=50, show_default=True)
@click.option("--rescan-files", type=click.IntRange(10), default=20_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where the archive is made (default: $TMPDIR).")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/soak"), show_default=True)
@click.option("--again", type=click.Path(exists=True, path_type=Path), help="soak.json to fit and draw anew.")
def main(
    files: int, rescans: int, rescan_files: int, seed: int, work: Path | None, out: Path, again: Path | None
) -> None:
    """Classify a large archive, rescan another many times; fit what should not grow."""
    out.mkdir(parents=True, exist_ok=True)
    if again is not None:
        figures = json.loads(again.read_bytes())
        first = figures["first"]
        first["per_million_files"] = _fits([Sample(*sample) for sample in first["samples"]])
    else:
        with tempfile.TemporaryDirectory(dir=work) as directory:
            figures = soak(Path(directory), files, rescans, rescan_files, seed)
    (out / "soak.json").write_text(json.dumps(figures) + "\n")
    _draw(figures, out / "soak.svg")
    _tell(figures)


if __name__ == "__main__":
    main()
