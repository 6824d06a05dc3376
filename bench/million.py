"""A million files against a hundred thousand: rescans of both, and `stats` of the large one.

The files are empty and were never read: their records come from `bench.alone`, so that a million of them are
made in minutes. Walk, cache, index and all that a rescan does are the real ones.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from bench.alone import make_empty_files
from bench.measure import interleaved, median, run_command, seconds_text
from bench.report import Measure
from bench.workshop import Sizes, Workshop, say, verdict

__all__ = ["measure_million"]


def measure_million(workshop: Workshop) -> list[Measure]:
    """Measure how rescans grow, and how long `stats` of the larger archive takes."""
    with workshop.room("million") as room:
        few, many = workshop.sizes.scale_files
        for files in (few, many):
            _classify(room / str(files), files)
        say("million: rescans")
        sides = [partial(_rescan, workshop, room / str(files), files) for files in (few, many)]
        small, large = interleaved(workshop.sizes.repeats, *sides)
        return [_growth(workshop, small, large), *_stats(workshop, room / str(many), many)]


def _classify(place: Path, files: int) -> None:
    say(f"million: {files:,} empty files, and records for them")
    make_empty_files(place / "archive", files)
    command = (sys.executable, "-m", "bench.alone", "--archive", place / "archive")
    run_command((*command, "--runs-root", place / "runs"))


def _rescan(workshop: Workshop, place: Path, files: int) -> float:
    outcome = workshop.infer(place / "archive", place / "runs")
    counts = json.loads(outcome.stdout)["counts"]
    if counts["carried_over"] != files:
        raise RuntimeError(f"not an unchanged rescan: {counts}")
    return outcome.seconds


def _growth(workshop: Workshop, small: list[float], large: list[float]) -> Measure:
    few, many = workshop.sizes.scale_files
    found = [more / less / (many / few) for less, more in zip(small, large, strict=True)]
    growth = median(found)
    return Measure(
        "million-rescan",
        f"rescan of {many:,} unchanged files against {few:,}: growth against linear",
        f"{growth:.2f} ({min(found):.2f}–{max(found):.2f})",
        seconds_text(large),
        seconds_text(small),
        "≤ 1.1",
        verdict(growth <= 1.1, (few, many) >= Sizes().scale_files),
        {"files": [few, many], "small_sec": small, "large_sec": large, "growth": found},
    )


def _stats(workshop: Workshop, place: Path, files: int) -> list[Measure]:
    """Measure `stats` of a run, whose summary knows, and of an index alone, which is counted."""
    say("million: stats")
    (run, *_) = sorted((place / "runs").glob("run_*"))
    alone = place / "alone.jsonl.zst"
    alone.hardlink_to(run / "index.jsonl.zst")
    sides = [partial(_seconds_of_stats, workshop, path, files) for path in (run, alone)]
    of_run, of_index = interleaved(workshop.sizes.repeats, *sides)
    kinds = (("run", "a complete run", of_run), ("index", "an index alone", of_index))
    return [
        Measure(
            f"million-stats-{name}",
            f"stats over {files:,} records of {what}",
            f"{median(seconds):.2f} s",
            seconds_text(seconds),
            "",
            "≤ 4 s",
            verdict(median(seconds) <= 4.0, files >= Sizes().scale_files[1]),
            {"files": files, "seconds": seconds},
        )
        for name, what, seconds in kinds
    ]


def _seconds_of_stats(workshop: Workshop, path: Path, files: int) -> float:
    outcome = run_command((*workshop.engine, "stats", path, "--json"))
    if json.loads(outcome.stdout)["records"] != files:
        raise RuntimeError(f"stats of {path.name} counts {outcome.stdout[:200]!r}")
    return outcome.seconds
