"""``drumline dataset clean``: labels that held-out networks disagree with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, safe_text
from drumline.wording import counted
from drumline_convert.cli_common import manifest_argument, out_option, taxonomy_of, taxonomy_option

if TYPE_CHECKING:
    from drumline_convert.cleaning import Cleaning, CleaningSettings
    from drumline_convert.manifest import Row

__all__ = ["clean_command"]

_SHOWN = 10


@click.command(
    "clean",
    cls=Command,
    short_help="Find labels that held-out networks doubt.",
    examples=(
        "drumline dataset clean manifest.jsonl --held-out build/model/held_out.npz --dry-run",
        "drumline dataset clean manifest.jsonl --held-out build/model/held_out.npz --out cleaned.jsonl",
        "drumline dataset clean manifest.jsonl --held-out one.npz --second two.npz --relabel 0.98 "
        "--overrides doubts.jsonl",
    ),
)
@manifest_argument
@click.option(
    "--held-out",
    type=path_type(),
    required=True,
    help="Held-out logits of a cross-validation: each recording by a network that did not see its family.",
)
@click.option("--second", type=path_type(), help="Those of other networks, which have to say the same.")
@out_option("Manifest to write.", "cleaned.jsonl")
@click.option(
    "--report",
    type=path_type(),
    default=Path("cleaning"),
    show_default=True,
    help="Directory of cleaning.html, to listen by, and cleaning.json.",
)
@click.option("--overrides", type=path_type(), help="New file for what is relabelled: corrections by hash.")
@click.option(
    "--doubt",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Probability of another label from which on the stated one is doubtful.",
)
@click.option(
    "--relabel",
    type=click.FloatRange(0, 1, min_open=True),
    help="Probability from which on it replaces the stated one. [default: never]",
)
@click.option(
    "--weight",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="What the weight of the other doubtful recordings is multiplied by; 0 leaves them out.",
)
@click.option("--dry-run", is_flag=True, help="Say what is doubtful, and write nothing.")
@taxonomy_option
@json_option
def clean_command(
    manifest: Path,
    held_out: Path,
    second: Path | None,
    out: Path,
    report: Path,
    overrides: Path | None,
    dry_run: bool,
    taxonomy: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find the labels of a MANIFEST that networks doubt which have not heard them, and write a cleaned one.

    MANIFEST itself is not changed, nor are recordings on its test side. 'drumline train crossval' leaves the
    held-out logits. The report says what happens to each doubtful recording and why, with links to listen.
    """
    from drumline_convert.cleaning import CleaningSettings, cleaned_rows, find_doubts
    from drumline_convert.corpus import open_manifest, recordings_of

    labels, how = taxonomy_of(taxonomy), CleaningSettings(**settings)
    _check_usage(manifest, out, overrides, how)
    rows = open_manifest(manifest, labels).rows
    cleaning = find_doubts(recordings_of(rows, labels), labels, held_out, how, second)
    names = {"manifest": safe_text(str(manifest)), "held_out": safe_text(str(held_out))}
    value = {**names, **cleaning.to_json(how)}
    if not dry_run:
        _write(out, report, overrides, cleaned_rows(rows, cleaning, how), cleaning, value)
    if as_json:
        echo_json(value)
    else:
        _print(cleaning, value, None if dry_run else out)


def _check_usage(manifest: Path, out: Path, overrides: Path | None, settings: CleaningSettings) -> None:
    from drumline.errors import UsageError

    if out.exists() and manifest.exists() and out.samefile(manifest):
        raise UsageError(
            f"--out {str(out)!r} is the manifest itself",
            "Give another path: the labels that it states are kept.",
        )
    if overrides is not None and settings.relabel is None:
        raise UsageError(
            "--overrides takes what is relabelled, and without --relabel nothing is",
            "Give --relabel 0.98, or leave --overrides out.",
        )


def _write(
    out: Path,
    report: Path,
    overrides: Path | None,
    rows: list[Row],
    cleaning: Cleaning,
    value: dict[str, Any],
) -> None:
    """Write all that was asked for, once nothing is in the way of any of it."""
    from drumline_convert.cleaning_report import check_cleaning_output, write_cleaning_report
    from drumline_convert.manifest import check_manifest_output, write_manifest
    from drumline_convert.overrides import check_overrides_output, write_overrides

    check_manifest_output(out)
    check_cleaning_output(report)
    if overrides is not None:
        check_overrides_output(overrides)
    write_cleaning_report(value, report)
    if overrides is not None:
        changed = [doubt for doubt in cleaning.doubts if doubt.action == "relabelled"]
        write_overrides(overrides, {doubt.row.hash: doubt.heard_fine for doubt in changed})
    write_manifest(out, rows)


def _print(cleaning: Cleaning, value: dict[str, Any], out: Path | None) -> None:
    doubtful, judged = len(cleaning.doubts), counted(cleaning.judged, "recording")
    click.echo(f"{judged} judged, {cleaning.disagreements:,} called something else, {doubtful:,} surely so")
    for action, count in value["actions"].items():
        click.echo(f"  {count:,} {action}")
    for doubt in cleaning.doubts[:_SHOWN]:
        click.echo(f"  {safe_text(str(doubt.row.path))}: {doubt.row.label}, {doubt.why}")
    if doubtful > _SHOWN:
        click.echo(f"  and {doubtful - _SHOWN:,} more")
    if cleaning.second_agrees is not None:
        click.echo(f"of those called something else, the second hearing agrees on {cleaning.second_agrees:,}")
    if out is not None:
        click.echo(f"{safe_text(str(out))} written; listen before you train on it")
