"""`drumline stats`: what a run holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import (
    Command,
    echo_json,
    echo_json_list,
    json_option,
    misc_note,
    path_type,
    safe_text,
    stdout_console,
)
from drumline.progress import duration_text
from drumline.wording import counted, size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from drumline.stats import FailedFile, LabelledFile, Stats

__all__ = ["stats_command"]

_SHORT_SEC = 360
"""Sound of less than a tenth of an hour is told in minutes and seconds."""


@click.command(
    "stats",
    cls=Command,
    short_help="Show labels, confidences, durations and errors.",
    examples=(
        "drumline stats",
        "drumline stats ClassifiedArchive/run_20261121T101500Z",
        "drumline stats ClassifiedArchive --failures",
        "drumline stats ClassifiedArchive --label Kick | sort -k2 -n | head",
        "drumline stats index.jsonl.zst --json | jq .labels",
    ),
)
@click.argument("run", type=path_type(), default=Path("ClassifiedArchive"), required=False)
@click.option("--failures", is_flag=True, help="List the files that failed, each with its reason.")
@click.option(
    "--label",
    "labels",
    metavar="NAME",
    multiple=True,
    help="List the files with this label: content hash, confidence in the likeliest label, path. Repeatable.",
)
@json_option
def stats_command(run: Path, failures: bool, labels: tuple[str, ...], as_json: bool) -> None:
    """Show labels, confidences, durations, formats and errors of a run.

    RUN is a run directory, an index file, or a runs root, which stands for its newest complete run
    (default: ClassifiedArchive). The hashes that --label lists are those that the corrections of
    'drumline rebuild --overrides' name. Exits with 7 when the run cannot be understood.
    """
    from drumline.runs import open_run
    from drumline.stats import read_failures, read_labelled, read_stats

    if failures and labels:
        raise click.UsageError("--failures and --label are two lists: ask for one of them.")
    if labels:
        if not _list_labelled(read_labelled(open_run(run), labels), as_json):
            _say_none(labels, read_stats(open_run(run)))
        return
    if failures:
        _list(read_failures(open_run(run)), as_json)
        return
    stats = read_stats(open_run(run))
    if as_json:
        echo_json(stats.to_json())
    else:
        _print(stats, open_run(run).misc_label())


def _list(failures: Iterator[FailedFile], as_json: bool) -> None:
    if as_json:
        echo_json_list(failure._asdict() for failure in failures)
        return
    first = next(failures, None)
    if first is None:
        click.echo("No file failed.", err=True)
        return
    for path, kind, message in chain([first], failures):
        click.echo(f"{kind}: {safe_text(path)}: {safe_text(message)}")


def _list_labelled(files: Iterator[LabelledFile], as_json: bool) -> bool:
    """Print the files, each as soon as it is read, and tell whether there is one."""
    first = next(files, None)
    found = files if first is None else chain([first], files)
    if as_json:
        echo_json_list(file._asdict() for file in found)
    else:
        for file in found:
            sys.stdout.write(f"{file.hash}  {file.confidence:.4f}  {safe_text(file.relative_path)}\n")
        sys.stdout.flush()
    return first is not None


def _say_none(labels: tuple[str, ...], stats: Stats) -> None:
    there = ", ".join(safe_text(label) for label in stats.report["labels"]) or "none"
    click.echo(
        f"No file has the label {safe_text(' or '.join(labels))}; labels of this run: {there}.", err=True
    )


def _print(stats: Stats, misc: str) -> None:
    from rich.text import Text

    console = stdout_console()
    _print_head(console, stats)
    if stats.report["labels"]:
        console.print("\n[bold]Labels[/bold]")
        console.print(_label_table(stats))
    if misc in stats.report["labels"]:
        console.print(Text(misc_note(misc), "dim"))
    for title, table in (
        ("Duration", _duration_table(stats)),
        ("Reasons", _count_table(stats.report["reasons"], stats.records)),
        ("Formats", _count_table(stats.report["formats"], stats.records)),
        ("Errors", _count_table(stats.report["errors"], stats.records, "red")),
    ):
        if table.row_count:
            console.print(f"\n[bold]{title}[/bold]")
            console.print(table)


def _print_head(console: Console, stats: Stats) -> None:
    from rich.text import Text

    archive = f" of {safe_text(stats.archive_root)}" if stats.archive_root else ""
    console.print(Text(f"{safe_text(stats.run)}{archive}", "bold"))
    size, seconds = stats.report["size_bytes"], stats.report["total_duration_sec"]
    console.print(
        f"{counted(stats.records, 'file')}, {size_text(size)}, {_sound_text(seconds)} of sound; "
        f"{stats.records - stats.failed:,} classified, {stats.failed:,} failed"
    )
    if stats.complete is False:
        console.print("This run is not complete: give the same 'drumline infer' command to finish it.")
    if stats.torn_bytes:
        console.print(f"The last {stats.torn_bytes:,} bytes of the index are torn and were not counted.")


def _sound_text(seconds: float) -> str:
    return duration_text(seconds) if seconds < _SHORT_SEC else f"{seconds / 3600:,.2f} h"


def _table(*columns: tuple[str, bool]) -> Table:
    """Return a table whose last column, for bars, takes what is left; a column is (title, is a number)."""
    from rich.table import Table

    has_titles = any(title for title, _ in columns)
    table = Table(box=None, pad_edge=False, show_header=has_titles, header_style="dim")
    for title, is_number in columns:
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True, overflow="crop")
    table.add_column()
    return table


def _label_table(stats: Stats) -> Table:
    from rich.text import Text

    from drumline.charts import Bar, Sparkline

    report, classified = stats.report, stats.records - stats.failed
    table = _table(
        ("label", False), ("files", True), ("share", True), ("mean", True), ("confidence 0 to 1", False)
    )
    largest = max(report["labels"].values(), default=1)
    for label, count in report["labels"].items():
        table.add_row(
            Text(safe_text(label)),
            f"{count:,}",
            f"{100 * count / classified:.1f} %",
            f"{report['mean_confidence'][label]:.2f}",
            Sparkline(report["confidence_histogram"][label]),
            Bar(count / largest),
        )
    return table


def _duration_table(stats: Stats) -> Table:
    histogram: dict[str, Any] = stats.report["duration_histogram"]
    edges: list[float] = histogram["edges_sec"]
    names = [f"up to {edge:g} s" for edge in edges] + [f"over {edges[-1]:g} s"]
    counts = dict(zip(names, histogram["counts"], strict=True))
    used = [place for place, count in enumerate(counts.values()) if count]
    shown = names[used[0] : used[-1] + 1] if used else []
    return _count_table({name: counts[name] for name in shown}, sum(counts.values()))


def _count_table(counts: Mapping[str, int], total: int, style: str = "cyan") -> Table:
    from rich.text import Text

    from drumline.charts import Bar

    table = _table(("", False), ("", True), ("", True))
    largest = max(counts.values(), default=0) or 1
    for name, count in counts.items():
        share = f"{100 * count / max(total, 1):.1f} %"
        table.add_row(Text(safe_text(name)), f"{count:,}", share, Bar(count / largest, style))
    return table
