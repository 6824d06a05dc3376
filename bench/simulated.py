"""Runs without audio: as many records as wanted through writer, cache, statistics and the plan of a rebuild.

    python -m bench.simulated --records 1000000

Slots are filled with invented files, as extract and predict would leave them, and given to the real writer.
What follows reads what a run of so many files leaves: the cache directory by directory, as a rescan does; the
index for ``stats``; the index for a rebuild's plan. Prints time, CPU time and memory of each step as JSON;
making up the slots does not count.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bench.engine import ENGINE
from bench.measure import run_command
from drumline.cache import Cache
from drumline.laps import no_lap
from drumline.pipeline.assemble import assigned_labels
from drumline.pipeline.finish import finish
from drumline.pipeline.job import Job
from drumline.pipeline.prepare import check_request, make_job, make_runs_root
from drumline.pipeline.slots import Kind, SlotTable, State
from drumline.pipeline.supervisor import Outcome
from drumline.pipeline.write import _Writer
from drumline.settings import InferSettings

__all__ = ["simulate"]

_AT_ONCE = 256
_FILES_PER_DIRECTORY = 200
_POOL = 4_096
_PSS_EVERY_SEC = 0.25
_HASH_STEP = 0x9E37_79B9_7F4A_7C15
_COUNTERS = (
    *("discovered", "written", "carried", "resumed", "gone", "twins", "device"),
    *("skipped_links", "skipped_special", "unreadable_directories"),
)


class _Invention:
    """Fills slots with files that nobody has."""

    def __init__(self, job: Job, seed: int) -> None:
        random = np.random.default_rng(seed)
        logits = random.normal(0.0, 2.0, (_POOL, len(job.bundle.labels)))
        logits[np.arange(_POOL), random.integers(0, logits.shape[1], _POOL)] += 6.0
        powers = np.exp(logits)
        self._probs: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        self._durations = random.gamma(2.0, 0.3, _POOL)

    def fill(self, table: SlotTable, first: int, count: int) -> None:
        """Make the first slots of the table `count` files, numbered from `first` on."""
        slots, numbers = table.slots[:count], np.arange(first, first + count)
        places = numbers * 31 % _POOL
        for slot, number in enumerate(numbers.tolist()):
            table.set_path(slot, _path(number))
        slots["hash"] = [b"%016x" % (number * _HASH_STEP % 2**64) for number in numbers.tolist()]
        slots["size"], slots["mtime_ns"] = 40_000 + places * 37, 1_600_000_000_123_456_789 + numbers
        slots["format"], slots["sample_rate"], slots["channels"] = b"wav", 44_100, 1 + places % 2
        slots["duration_sec"], slots["rms_db"] = self._durations[places], -12.0 - places / 100
        slots["spectral_centroid"], slots["spectral_rolloff"] = 900.0 + places / 3, 2_000.0 + places
        slots["probs"], slots["gate"], slots["kind"] = self._probs[places], np.nan, Kind.FILE
        slots["state"] = State.DONE


def _path(number: int) -> bytes:
    pack = number // _FILES_PER_DIRECTORY
    return b"Vendor %03d/Pack %06d/Drum Shot %08d.wav" % (pack // 50, pack, number)


class _Steps:
    """Time, CPU time and memory of what is done one after the other."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, float]]:
        """Time what is enclosed; figures that it adds stand with its own."""
        began, cpu = time.perf_counter(), time.process_time()
        figures = self.figures[name] = {}
        yield figures
        figures["sec"] = time.perf_counter() - began - figures.pop("aside_sec", 0.0)
        figures["cpu_sec"] = time.process_time() - cpu - figures.pop("aside_cpu_sec", 0.0)
        figures["rss_mb"] = psutil.Process().memory_info().rss / 1e6

    def command(self, name: str, *arguments: str | Path) -> None:
        """Run and time a command of the engine."""
        outcome = run_command([*ENGINE, *arguments], pss_every=_PSS_EVERY_SEC)
        self.figures[name] = {
            "sec": outcome.seconds,
            "cpu_sec": outcome.cpu_sec,
            "peak_pss_mb": outcome.peak_pss / 1e6,
        }


def simulate(room: Path, records: int, seed: int = 1, tell: Callable[[int], None] = lambda _n: None) -> Any:
    """Write, read and plan `records` invented files below the empty directory `room`; return all figures."""
    steps = _Steps()
    job = _job(room)
    with steps.step("write") as figures:
        _write(job, records, seed, figures, tell)
    with steps.step("finish"), closing(Cache(job.cache_path)) as cache:
        counters = dict.fromkeys(_COUNTERS, 0) | {"discovered": records, "written": records}
        finish(job, cache, Outcome(counters, 1.0, {}))
    with steps.step("cache by directory"), closing(Cache(job.cache_path, "read")) as cache:
        known = sum(len(cache.files(number)) for number in cache.directories(job.scope).values())
    assert known == records
    index = job.run.index_path
    (room / "alone").mkdir()
    alone = room / "alone" / index.name
    os.link(index, alone)  # beside no summary, which would spare the reading
    steps.command("stats of the index", "stats", alone, "--json")
    steps.command(
        "plan of a rebuild",
        *("rebuild", job.run.directory, "--out", room / "out", "--copy-mode", "none", "--dry-run", "--json"),
    )
    return {
        "records": records,
        "index_bytes": index.stat().st_size,
        "cache_bytes": job.cache_path.stat().st_size,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "steps": steps.figures,
    }


def _job(room: Path) -> Job:
    (room / "archive").mkdir()
    request = check_request(InferSettings(archive=room / "archive", runs_root=room / "runs"))
    make_runs_root(request.settings)
    with closing(Cache(request.cache_path)) as cache:
        return make_job(request, cache)


def _write(job: Job, records: int, seed: int, figures: dict[str, float], tell: Callable[[int], None]) -> None:
    table = SlotTable.create(
        _AT_ONCE, 1, job.bundle.row_shape, len(job.bundle.labels), len(assigned_labels(job))
    )
    invention, writer = _Invention(job, seed), _Writer(job, table, no_lap)
    figures["aside_sec"] = figures["aside_cpu_sec"] = 0.0
    for first in range(0, records, _AT_ONCE):
        count = min(_AT_ONCE, records - first)
        began, cpu = time.perf_counter(), time.process_time()
        invention.fill(table, first, count)
        figures["aside_sec"] += time.perf_counter() - began
        figures["aside_cpu_sec"] += time.process_time() - cpu
        writer.accept(list(range(count)))
        if writer.due():
            writer.flush(partly=True)
        tell(first + count)
    writer.flush()
    writer.close()


@click.command(help="Put invented records through writer, cache, statistics and plan.")
@click.option("--records", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where the run is made (default: $TMPDIR).")
def main(records: int, work: Path | None) -> None:
    """Simulate and print."""
    said = 0

    def tell(done: int) -> None:
        nonlocal said
        if done * 20 // records > said:
            said = done * 20 // records
            print(f"· {done:,} of {records:,} records", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="drumline-simulated-", dir=work) as place:
        click.echo(json.dumps(simulate(Path(os.path.realpath(place)), records, tell=tell)))


if __name__ == "__main__":
    main()
