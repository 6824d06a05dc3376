"""What the harness found, as a table for people and as JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]

from drumline.machine import usable_cpus

__all__ = ["Measure", "describe_machine", "write_report"]

_PACKAGES = (
    "drumline",
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
    "onnxruntime",
    "librosa",
    *("tensorflow", "audioflux", "spdl"),
)
_PLOT = "speed.svg"


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing measured.

    Parameters
    ----------
    name
        ``"infer"``, ``"rescan"`` …
    title
        What it is, for people.
    result
        What came out first and foremost: ``"11.2×"``.
    ours, theirs
        The two sides that the result comes from, with units; `theirs` is empty where there is no other side.
    bar
        What was promised: ``"≥ 8×"``.
    met
        Whether the bar is met; None where there is none.
    details
        Everything measured: all repetitions, sizes, checks.
    label
        The other side's name in the plot of first runs; empty: it is not in there.
    """

    name: str
    title: str
    result: str
    ours: str
    theirs: str
    bar: str
    met: bool | None
    details: dict[str, Any] = field(default_factory=dict)
    label: str = ""


def describe_machine() -> dict[str, Any]:
    """Return what a reader has to know about the machine to compare figures; no name and no path."""
    return {
        "cpu": _cpu_name(),
        "usable_cpus": usable_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_report(directory: Path, measures: list[Measure], command: str) -> str:
    """Write ``REPORT.md`` and ``report.json``; returns the text of the first."""
    machine = describe_machine()
    values = {"command": command, "machine": machine, "measures": [asdict(measure) for measure in measures]}
    _draw_plot(directory, measures)
    (directory / "report.json").write_text(json.dumps(values, indent=2) + os.linesep, encoding="utf-8")
    text = _markdown(machine, measures, command, plot=(directory / _PLOT).exists())
    (directory / "REPORT.md").write_text(text, encoding="utf-8")
    return text


def _draw_plot(directory: Path, measures: list[Measure]) -> None:
    """Draw ``speed.svg``: files/s of first runs, drumline and its peers."""
    with_rates = [measure for measure in measures if "theirs_sec" in measure.details and measure.label]
    if not with_rates or find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    first = with_rates[0].details
    rates = {"drumline": first["files"] / median(first["ours_sec"])}
    rates |= {one.label: one.details["files"] / median(one.details["theirs_sec"]) for one in with_rates}
    figure = Figure(figsize=(7.5, 0.4 * len(rates) + 0.9), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(rates), list(rates.values()), color=["#2a7f62", *["#9aa5b1"] * (len(rates) - 1)])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("files/s, first run, files in the page cache")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / _PLOT, metadata={"Date": None})


def _markdown(machine: dict[str, Any], measures: list[Measure], command: str, plot: bool) -> str:
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    lines = [
        "# Measured",
        "",
        f"`{command}` on {machine['cpu']}, {machine['usable_cpus']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}, Python {machine['python']} ({packages}).",
        "",
        "| what | result | drumline | the other side | bar | |",
        "|---|---|---|---|---|---|",
        *(_row(measure) for measure in measures),
        "",
        "Medians of interleaved repetitions (A B A B …), smallest and largest in brackets; every repetition "
        "is in `report.json`. Times are of whole commands, the interpreter's start included, but for the "
        "floor's, which are of its work alone. Memory is the proportional set size of all processes "
        "together. A bar counts only with as many files as it is meant for.",
        "",
        *([f"![files/s of first runs]({_PLOT})", ""] if plot else []),
    ]
    return "\n".join(lines)


def _row(measure: Measure) -> str:
    mark = {True: "met", False: "**missed**", None: ""}[measure.met]
    cells = (measure.title, f"**{measure.result}**", measure.ours, measure.theirs, measure.bar, mark)
    return f"| {' | '.join(cells)} |"
