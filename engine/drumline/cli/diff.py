"""`drumline diff`: two runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, safe_text, stdout_console
from drumline.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from drumline.diff import Diff

__all__ = ["diff_command"]

_NO_LABEL = "(failed)"
_MATRIX_ROWS = 20


@click.command(
    "diff",
    cls=Command,
    short_help="Show what changed from one run to another.",
    examples=(
        "drumline diff ClassifiedArchive/run_20261101T080000Z ClassifiedArchive/run_20261121T101500Z",
        "drumline diff old/index.jsonl.zst new/index.jsonl.zst --json --limit 1000 | jq .changed",
    ),
)
@click.argument("run_a", type=path_type())
@click.argument("run_b", type=path_type())
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many added, gone and changed files to name, of each.",
)
@json_option
def diff_command(run_a: Path, run_b: Path, limit: int, as_json: bool) -> None:
    """Show what changed from RUN_A to RUN_B: files added, gone, and with another label.

    Two runs of one archive with different models show which labels the new model changes and how its
    confidences moved. Files are matched by their path below the archive. A RUN is a run directory or an
    index file. Exits with 7 when one cannot be understood.
    """
    from drumline.diff import describe_run, diff_runs
    from drumline.runs import open_run

    runs = open_run(run_a), open_run(run_b)
    about = [describe_run(run) for run in runs]
    diff = diff_runs(*runs, limit)
    if as_json:
        echo_json({"a": about[0], "b": about[1], **diff.to_json()})
    else:
        _print(stdout_console(), about, diff, {run.misc_label() for run in runs})


def _print(console: Console, about: list[dict[str, Any]], diff: Diff, misc: set[str]) -> None:
    from rich.text import Text

    for side, run in zip("AB", about, strict=True):
        console.print(Text(f"{side}  {_described(run)}"))
    counts = diff.counts
    console.print(
        f"\n{counted(counts['common'], 'file')} in both, {counts['added']:,} added, {counts['gone']:,} gone, "
        f"{counts['edited']:,} with other content, [bold]{counts['changed']:,} with another label[/bold]"
    )
    _print_transitions(console, diff)
    _print_confidence(console, diff)
    for title, entries, total in (
        ("Added", diff.added, counts["added"]),
        ("Gone", diff.gone, counts["gone"]),
        ("Another label", diff.changed, counts["changed"]),
    ):
        _print_files(console, title, [(entry["path"], _change(entry, misc)) for entry in entries], total)


def _described(run: dict[str, Any]) -> str:
    model = run["model"] if isinstance(run["model"], dict) else {}
    name = " ".join(str(model[key]) for key in ("name", "version") if key in model)
    archive = f" of {run['archive_root']}" if run["archive_root"] else ""
    unfinished = ", not complete" if run["complete"] is False else ""
    return safe_text(f"{run['run']}{archive}" + (f", model {name}" if name else "") + unfinished)


def _label(label: str | None) -> str:
    return _NO_LABEL if label is None else safe_text(label)


def _print_transitions(console: Console, diff: Diff) -> None:
    from rich.text import Text

    from drumline.charts import Bar

    if not diff.transitions:
        return
    table = _table("from", "to", "files")
    table.add_column()
    largest = max(diff.transitions.values())
    for (before, after), files in diff.transitions.most_common(_MATRIX_ROWS):
        table.add_row(Text(_label(before)), Text(_label(after)), f"{files:,}", Bar(files / largest))
    console.print("\n[bold]Labels[/bold]")
    console.print(table)
    if len(diff.transitions) > _MATRIX_ROWS:
        console.print(f"… and {len(diff.transitions) - _MATRIX_ROWS} rarer changes (--json shows all)")


def _print_confidence(console: Console, diff: Diff) -> None:
    confidence = diff.confidence()
    if not confidence["files"]:
        return
    percentiles = confidence["percentiles"]
    table = _table("mean", "mean size", *(f"{percent} %" for percent in percentiles))
    changes = (f"{value:+.3f}" for value in percentiles.values())
    table.add_row(f"{confidence['mean']:+.3f}", f"{confidence['mean_magnitude']:.3f}", *changes)
    console.print("\n[bold]Change of confidence[/bold] (B - A), with percentiles")
    console.print(table)


def _print_files(console: Console, title: str, entries: list[tuple[str, str]], total: int) -> None:
    from rich.text import Text

    if not entries:
        return
    console.print(f"\n[bold]{title}[/bold]")
    for path, change in entries:
        console.print(Text(f"  {safe_text(path)}  {change}"), soft_wrap=True)
    if total > len(entries):
        console.print(f"  … and {total - len(entries):,} more (--limit)")


def _change(entry: dict[str, Any], misc: set[str]) -> str:
    """Return labels and confidences; misc's is that of the label that it was preferred to, and left out."""
    if "to" not in entry:
        return _label(entry["label"])
    sides = ((entry["from"], entry["confidence_from"]), (entry["to"], entry["confidence_to"]))
    return " → ".join(
        _label(label) if confidence is None or label in misc else f"{_label(label)} {confidence:.2f}"
        for label, confidence in sides
    )


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        is_text = title in ("from", "to")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True, overflow="crop")
    return table
