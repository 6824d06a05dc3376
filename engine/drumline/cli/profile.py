"""What a person sees of a profile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from drumline.cli.common import safe_text, short_path
from drumline.cli.report import memory_text

__all__ = ["show_profile"]


def show_profile(report: dict[str, Any], directory: Path | None) -> None:
    """Print the report of a `drumline.pipeline.profile.Profile` to stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(_stages(report))
    console.print(_steps(report))
    for line in _sentences(report):
        console.print(Text(line), soft_wrap=True)
    if directory:
        trace = safe_text(short_path(os.fspath(directory / "profile.trace.json")))
        console.print(Text(f"Timeline, for https://ui.perfetto.dev: {trace}"), soft_wrap=True)


def _stages(report: dict[str, Any]) -> Any:
    table = _table(
        "stage", "processes", "busy", "waits for input", "waits for output", "CPU s", "waits for CPU s"
    )
    for name, stage in report["stages"].items():
        if stage["processes"]:
            shares = (stage[key] for key in ("busy", "waiting_for_input", "waiting_for_output"))
            seconds = (f"{stage[key]:.2f}" for key in ("cpu_sec", "waiting_for_cpu_sec"))
            table.add_row(name, str(stage["processes"]), *(f"{share:.0%}" for share in shares), *seconds)
    return table


def _steps(report: dict[str, Any]) -> Any:
    table = _table("step", "of", "ms a file", "s", "files", "calls")
    for name, stage in report["stages"].items():
        for step, cost in stage["steps"].items():
            each = "" if cost["ms_per_file"] is None else f"{cost['ms_per_file']:.4f}"
            table.add_row(step, name, each, f"{cost['sec']:.3f}", f"{cost['files']:,}", f"{cost['calls']:,}")
    return table


def _table(*titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, title in enumerate(titles):
        table.add_column(title, justify="left" if place == 0 or title == "of" else "right")
    return table


def _sentences(report: dict[str, Any]) -> list[str]:
    lines = [f"Bound: {report['bound']}"]
    if batches := report["batches"]:
        sizes = f"mean {batches['mean']:.1f}, median {batches['median']:g}, largest {batches['largest']}"
        lines.append(f"Batches: {batches['count']:,}, {sizes} files")
    if short := memory_text(report["memory"]):
        lines.append(short)
    if report["first_record_sec"] is not None:
        lines.append(f"First records on disk: {report['first_record_sec']:.2f} s after the start")
    if report["suggested_workers"]:
        lines.append(f"Workers: {report['workers']} ran, {report['suggested_workers']} would do")
    return lines
