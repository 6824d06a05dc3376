"""``drumline dataset stats`` and ``check``: what a data set holds, and what is wrong with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, quiet_option, safe_text
from drumline.wording import counted
from drumline_convert.cli_common import (
    manifest_argument,
    meter,
    recordings_of_manifest,
    require,
    table,
    taxonomy_of,
    taxonomy_option,
    workers_option,
)

if TYPE_CHECKING:
    from drumline_convert.check import CheckReport

__all__ = ["check_command", "stats_command"]

_SHOWN = 5
"""Findings of one kind that are printed; --json has all."""


@click.command(
    "stats",
    cls=Command,
    short_help="Count what a manifest holds.",
    examples=(
        "drumline dataset stats manifest.jsonl",
        "drumline dataset stats manifest.jsonl --plots plots --json",
    ),
)
@manifest_argument
@click.option("--plots", type=path_type(), help="Directory for labels.png, families.png and durations.png.")
@taxonomy_option
@workers_option
@quiet_option
@json_option
def stats_command(
    manifest: Path, plots: Path | None, taxonomy: Path | None, workers: int, quiet: bool, as_json: bool
) -> None:
    """Count a MANIFEST's recordings by class, kit, family, source and licence, and measure durations.

    `worth` is the effective number: so many recordings of equal weight, or families of equal size, are worth
    as much.
    """
    from drumline_convert.dataset_stats import dataset_statistics, plot_statistics
    from drumline_convert.examine import examine

    if plots:
        require("matplotlib")
    labels = taxonomy_of(taxonomy)
    rows = recordings_of_manifest(manifest, labels)
    durations = []
    with meter(quiet) as tell:
        for _, found in examine(rows, workers):
            durations.append(float("nan") if found.fault else found.duration_sec)
            tell("decoding", len(durations), len(rows))
    statistics = dataset_statistics(rows, durations, labels)
    drawn = plot_statistics(statistics, plots) if plots else []
    if as_json:
        echo_json({**statistics, "plots": [safe_text(str(path)) for path in drawn]})
    elif not quiet:
        _print_statistics(statistics)


def _print_statistics(statistics: dict[str, Any]) -> None:
    from drumline.cli.common import stdout_console

    console, durations = stdout_console(), statistics["durations"]
    console.print(
        f"{counted(statistics['recordings'], 'recording')}, {statistics['kits']:,} kits, "
        f"{statistics['families']:,} families worth {statistics['effective_families']:,} of equal size; "
        f"{durations['total_sec'] / 60:,.1f} min of sound"
    )
    if durations["known"]:
        console.print(
            f"durations: shortest {durations['shortest_sec']:g} s, median {durations['median_sec']:g} s, "
            f"95 % below {durations['percentile95_sec']:g} s, longest {durations['longest_sec']:g} s"
        )
    for title in ("canonical", "labels"):
        console.print()
        console.print(_class_table(title, statistics[title]))
    for title in ("split", "licence", "source"):
        console.print()
        console.print(_count_table(title, statistics[title]))


def _class_table(title: str, classes: dict[str, dict[str, Any]]) -> Any:
    shown = table(title, "recordings", "worth", "kits", "families", "worth")
    for name, entry in classes.items():
        values = ("recordings", "effective_recordings", "kits", "families", "effective_families")
        shown.add_row(name, *(f"{entry[value]:,}" for value in values))
    return shown


def _count_table(title: str, counts: dict[str, int]) -> Any:
    from rich.text import Text

    shown = table(title, "recordings")
    for name, count in counts.items():
        shown.add_row(Text(name), f"{count:,}")
    return shown


@click.command(
    "check",
    cls=Command,
    short_help="Say whether a manifest is fit to be trained on.",
    examples=(
        "drumline dataset check manifest.jsonl",
        "drumline dataset check manifest.jsonl --minimum 25 --json | jq .counts",
    ),
)
@manifest_argument
@click.option(
    "--minimum", type=click.IntRange(1), default=10, show_default=True, help="Fewest recordings of a label."
)
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
@taxonomy_option
@workers_option
@quiet_option
@json_option
def check_command(
    manifest: Path,
    minimum: int,
    strict: bool,
    taxonomy: Path | None,
    workers: int,
    quiet: bool,
    as_json: bool,
) -> int:
    """Look at a MANIFEST and at every recording in it.

    Errors: files that are missing, unreadable or changed since, silent files, labels outside the taxonomy,
    one content with two labels, a family or a content on two sides, labels with too few recordings.
    Warnings: labels without any recording or of one family alone, contents that are there twice, clipped
    files, unknown licences.

    Exit codes: 0 no error, 3 the manifest cannot be read, 12 there are errors.
    """
    from drumline.errors import DatasetError
    from drumline_convert.check import CheckSettings, check_manifest
    from drumline_convert.manifest import read_manifest

    rows = read_manifest(manifest / "manifest.jsonl" if manifest.is_dir() else manifest)
    settings = CheckSettings(taxonomy_of(taxonomy), minimum, workers)
    with meter(quiet) as tell:
        report = check_manifest(rows, settings, partial(tell, "decoding"))
    if as_json:
        echo_json(report.to_json())
    else:
        _print_check(report, quiet)
    failed = report.errors or (strict and report.findings)
    return DatasetError.exit_code if failed else 0


def _print_check(report: CheckReport, quiet: bool) -> None:
    from itertools import groupby

    for kind, same in groupby(report.findings, key=lambda finding: finding.kind):
        entries = list(same)
        noun = "warning" if entries[0].is_warning else "error"
        click.echo(f"{kind}: {counted(len(entries), noun)}")
        for entry in entries[:_SHOWN]:
            click.echo(f"  {safe_text(entry.what)}: {safe_text(entry.message)}")
        if len(entries) > _SHOWN:
            click.echo(f"  … and {len(entries) - _SHOWN:,} more; --json lists them all")
    if quiet:
        return
    warnings = len(report.findings) - report.errors
    click.echo(
        f"{counted(report.recordings, 'recording')}: "
        f"{counted(report.errors, 'error')}, {counted(warnings, 'warning')}"
    )
