"""``drumline dataset populate`` and ``merge-overrides``: between a data set and an archive."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, quiet_option, safe_text
from drumline.wording import counted
from drumline_convert.cli_common import (
    licence_option,
    manifest_argument,
    meter,
    out_option,
    run_option,
    taxonomy_of,
    taxonomy_option,
)

if TYPE_CHECKING:
    from drumline.runs import Run
    from drumline_convert.manifest import Manifest
    from drumline_convert.populate import CopyPlan

__all__ = ["merge_overrides_command", "populate_command"]

_SHOWN = 5


@click.command(
    "populate",
    cls=Command,
    short_help="Copy a manifest's recordings out of an archive, by content.",
    examples=(
        "drumline dataset populate test-set.jsonl --archive ~/Samples --out test-set --dry-run",
        "drumline dataset populate manifest.jsonl --split test --run ClassifiedArchive --out test-set",
    ),
)
@manifest_argument
@click.option("--archive", type=path_type(), help="Archive whose files are hashed to find them.")
@click.option("--run", type=path_type(), help="Run of the archive whose index has the hashes already.")
@click.option("--out", type=path_type(), required=True, help="Directory for the copies and their manifest.")
@click.option("--split", "side", help="Only this side: train, validation, test, fold0 …")
@click.option("--dry-run", is_flag=True, help="Say what would be copied.")
@quiet_option
@json_option
def populate_command(
    manifest: Path,
    archive: Path | None,
    run: Path | None,
    out: Path,
    side: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Copy the recordings of a MANIFEST out of an archive, which is only read.

    Files are found by their content, whatever they are called there. Nothing is replaced; what has been
    copied is not copied again. Exits with 6 when the archive lacks some of the recordings, with 8 when --out
    and the archive lie in one another.
    """
    from drumline.errors import ArchiveError
    from drumline_convert.populate import (
        check_place,
        copy_recordings,
        hashed_archive,
        hashed_run,
        plan_copies,
    )

    if (archive is None) == (run is None):
        raise click.UsageError("give either --archive or --run")
    rows = _side_of(manifest, side)
    opened = _open_run(run) if run else None
    check_place(out, opened.archive_root if opened else archive)
    with meter(quiet) as tell:
        found = hashed_run(opened) if opened else hashed_archive(archive or Path(), partial(tell, "reading"))
        plan = plan_copies(rows, found, out)
        made = 0 if dry_run else copy_recordings(plan, partial(tell, "copying"))
    if as_json:
        echo_json(_plan_json(plan, made, dry_run))
    else:
        _print_plan(plan, made, dry_run, quiet)
    return ArchiveError.exit_code if plan.missing else 0


def _side_of(path: Path, side: str | None) -> Manifest:
    from drumline.errors import ConfigError
    from drumline_convert.manifest import read_manifest

    manifest = read_manifest(path / "manifest.jsonl" if path.is_dir() else path)
    if side is None:
        return manifest
    if side not in manifest.splits:
        there = ", ".join(manifest.splits) or "it is not split"
        raise ConfigError(f"the manifest has no recordings on the side {side!r}", f"There are: {there}.")
    return manifest.side(side)


def _open_run(path: Path) -> Run:
    from drumline.runs import open_run

    return open_run(path)


def _plan_json(plan: CopyPlan, made: int, dry_run: bool) -> dict[str, Any]:
    copies = [
        {"from": safe_text(str(copy.source)), "to": safe_text(str(copy.row.path))} for copy in plan.copies
    ]
    missing = [{"path": safe_text(str(row.path)), "hash": row.hash} for row in plan.missing]
    return {"dry_run": dry_run, "copied": made, "found": len(copies), "copies": copies, "missing": missing}


def _print_plan(plan: CopyPlan, made: int, dry_run: bool, quiet: bool) -> None:
    if dry_run and not quiet:
        for copy in plan.copies:
            click.echo(f"{safe_text(str(copy.source))} → {safe_text(str(copy.row.path))}")
    there = "" if dry_run else f", {made:,} copied, {len(plan.copies) - made:,} were there already"
    if plan.missing or not quiet:
        click.echo(f"{counted(len(plan.copies), 'recording')} found{there}; {len(plan.missing):,} missing")
    for row in plan.missing[:_SHOWN]:
        click.echo(f"  missing: {row.hash} {safe_text(str(row.path))}")


@click.command(
    "merge-overrides",
    cls=Command,
    short_help="Turn corrections into rows of a manifest.",
    examples=(
        "drumline dataset merge-overrides corrections.jsonl --run ClassifiedArchive --out corrected.jsonl",
        "drumline dataset merge-overrides corrections.jsonl --into manifest.jsonl --out next.jsonl",
    ),
)
@click.argument("overrides", type=path_type(exists=True, dir_okay=False))
@run_option
@click.option(
    "--into", type=path_type(), help="Manifest that is to hold them, too; it is not changed itself."
)
@out_option("Manifest to write.", "corrected.jsonl")
@click.option("--source", help="Where new recordings come from. [default: the archive's name]")
@licence_option
@click.option(
    "--weight",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Weight of corrected recordings in the training loss.",
)
@taxonomy_option
@json_option
def merge_overrides_command(
    overrides: Path,
    run: Path,
    into: Path | None,
    out: Path,
    taxonomy: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Turn OVERRIDES, lines of hash and correct_label as 'drumline rebuild' takes them, into a manifest.

    With --into, recordings that the manifest has already get the corrected label there and stay on their side
    of the split; others are added, to train on.
    """
    from drumline.errors import ArchiveError
    from drumline.outputs import check_outside
    from drumline_convert.corpus import open_manifest
    from drumline_convert.manifest import check_manifest_output, write_manifest
    from drumline_convert.overrides import MergeSettings, merge_overrides

    labels = taxonomy_of(taxonomy)
    old = open_manifest(into, labels) if into else None
    opened = _open_run(run)
    check_outside(out, opened.archive_root)
    check_manifest_output(out)
    merged = merge_overrides(overrides, opened, MergeSettings(labels, **settings), old)
    if not merged.rows:
        raise ArchiveError("none of the corrected files is there as it was", "Mount the archive again.")
    write_manifest(out, merged.rows)
    gone = [safe_text(str(path)) for path in merged.gone]
    counts = {"recordings": len(merged.rows), "added": merged.added, "relabelled": merged.relabelled}
    if as_json:
        echo_json({"manifest": safe_text(str(out)), **counts, "gone": gone})
        return
    click.echo(
        f"{safe_text(str(out))}: {counted(len(merged.rows), 'recording')}, "
        f"{merged.added:,} added, {merged.relabelled:,} relabelled"
    )
    for path in gone:
        click.echo(f"  not there as it was: {path}")
