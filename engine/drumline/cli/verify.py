"""``drumline verify`` and ``drumline repair``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drumline.cli.common import (
    Command,
    echo_json,
    json_option,
    path_type,
    quiet_option,
    safe_text,
    short_path,
    stdout_console,
)
from drumline.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from drumline.repair import RepairReport
    from drumline.verify import Check, Report

__all__ = ["repair_command", "verify_command"]

_SHOWN = 5
"""Findings of one kind that are printed; --json has more."""


@click.command(
    "verify",
    cls=Command,
    short_help="Check that a run or a rebuilt tree is whole.",
    examples=(
        "drumline verify",
        "drumline verify ClassifiedArchive/run_20261121T101500Z --archive",
        "drumline verify Organised --hash",
        "drumline verify index.jsonl.zst --json | jq .findings",
    ),
)
@click.argument("path", type=path_type(), default=Path("ClassifiedArchive"), required=False)
@click.option("--archive", is_flag=True, help="Also that the archive's files have their size and mtime.")
@click.option("--hash", "content", is_flag=True, help="Also that files have their content: reads them all.")
@quiet_option
@json_option
def verify_command(path: Path, archive: bool, content: bool, quiet: bool, as_json: bool) -> None:
    """Check that a run, or a tree that 'drumline rebuild' made, is as drumline wrote it.

    PATH is a run directory, an index file, a runs root, which stands for its newest complete run (default:
    ClassifiedArchive), or a tree. Nothing is written. Files that somebody added to a tree are named; they
    are no problem.

    Exit codes: 0 all is well, 6 the archive is not there, 7 there is no run, 8 the tree cannot be opened,
    9 a rebuild works in it, 11 there are problems: each is printed with its check.
    """
    from drumline.cli.meter import meter
    from drumline.verify import is_tree, verify_run, verify_tree

    tree = is_tree(path)
    if tree and archive:
        raise click.UsageError("--archive is for runs; a tree is compared with its own mapping log")
    with meter(quiet) as progress:
        if tree:
            report = verify_tree(path, content, progress)
        else:
            report = verify_run(path, archive, content, progress)
    if as_json:
        echo_json(report.to_json())
    else:
        _print(report, quiet)
    _raise_for(report, tree)


def _raise_for(report: Report, tree: bool) -> None:
    from drumline.errors import IntegrityError

    if report.ok:
        return
    ways = {
        "log": "Without its log nothing in this tree is known to be rebuild's: rebuild into a new directory.",
        "tree": "The same 'drumline rebuild' makes what is missing; what was edited stays as it is.",
        "archive": "A new 'drumline infer' classifies what has changed in the archive.",
        "run": "'drumline repair' restores what can be restored, and keeps what it replaces.",
    }
    found = f"{counted(report.problems, 'problem')} found in {report.subject!r}"
    raise IntegrityError(found, ways[_kind({check for check, _ in report.counts}, tree)])


def _kind(checks: set[Check], tree: bool) -> str:
    if tree:
        return "log" if "log" in checks else "tree"
    return "archive" if checks == {"archive"} else "run"


def _print(report: Report, quiet: bool) -> None:
    console = stdout_console()
    if not quiet:
        _print_line(console, "bold", short_path(report.subject))
    for check, text in report.checks.items():
        problems = report.problems_of(check)
        if problems:
            _print_line(console, "bold red", f"problem  {check:<10} {problems:,} found")
            _print_findings(console, report, check)
        elif not quiet:
            _print_line(console, "green", f"ok       {check:<10} {text}")
    if not quiet:
        _print_notes(console, report)


def _print_line(console: Console, style: str, line: str) -> None:
    from rich.text import Text

    console.print(Text(safe_text(line), style), soft_wrap=True)


def _print_findings(console: Console, report: Report, check: Check) -> None:
    shown: Counter[str] = Counter()
    for finding in report.findings:
        if finding.check != check:
            continue
        shown[finding.kind] += 1
        if shown[finding.kind] <= _SHOWN:
            _print_line(console, "", f"           {finding.kind}: {finding.where}: {finding.message}")
    for (of, kind), count in report.counts.items():
        if of == check and count > _SHOWN:
            _print_line(console, "dim", f"           {kind}: {count - _SHOWN:,} more (--json)")


def _print_notes(console: Console, report: Report) -> None:
    shown: Counter[tuple[Check, str]] = Counter()
    for note in report.notes:
        key = (note.check, note.kind)
        shown[key] += 1
        if shown[key] <= _SHOWN:
            _print_line(console, "", f"note     {note.check:<10} {note.kind}: {note.where}: {note.message}")
    for key, count in report.note_counts.items():
        if count > _SHOWN:
            _print_line(console, "dim", f"note     {key[0]:<10} {key[1]}: {count - _SHOWN:,} more (--json)")


@click.command(
    "repair",
    cls=Command,
    short_help="Restore what can be restored of a run.",
    examples=(
        "drumline repair ClassifiedArchive --dry-run",
        "drumline repair ClassifiedArchive/run_20261121T101500Z",
    ),
)
@click.argument("run", type=path_type(), default=Path("ClassifiedArchive"), required=False)
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@quiet_option
@json_option
def repair_command(run: Path, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Restore what can be restored of RUN: its index, its summary, and the cache.

    RUN is a run directory, or a runs root, which stands for its newest complete run (default:
    ClassifiedArchive). Whole frames and sound records of the index are kept; the summary is counted and the
    cache made anew from them. Where records are lost, the run becomes an unfinished one: the same
    'drumline infer' command then classifies what is missing. Nothing is deleted: what is replaced is kept
    beside, as NAME.damaged-N.

    Exit codes: 0 done, or nothing to do; 7 there is no run, 8 something cannot be written, 9 another process
    holds the runs root, 11 something could not be restored: it is printed.
    """
    from drumline.cli.meter import meter
    from drumline.errors import IntegrityError
    from drumline.repair import repair_run

    with meter(quiet) as progress:
        report = repair_run(run, dry_run=dry_run, progress=progress)
    if as_json:
        echo_json(report.to_json())
    else:
        _print_repair(report, quiet)
    if report.unrepaired:
        raise IntegrityError(
            f"{counted(len(report.unrepaired), 'problem')} of {report.run!r} cannot be repaired",
            "Restore the run from a backup, or classify again with 'drumline infer --fresh'.",
        )


def _print_repair(report: RepairReport, quiet: bool) -> None:
    console = stdout_console()
    if not quiet:
        _print_done(console, report)
    for finding in report.unrepaired[:_SHOWN]:
        _print_line(console, "bold red", f"stays {finding.check:<10} {finding.where}: {finding.message}")


def _print_done(console: Console, report: RepairReport) -> None:
    _print_line(console, "bold", short_path(report.run))
    for step in report.steps:
        _print_line(console, "", f"{'would' if report.dry_run else 'done'}  {step.part:<10} {step.message}")
    if not report.steps:
        _print_line(console, "green", "nothing to repair")
    for path in report.kept:
        _print_line(console, "", f"kept  {short_path(path)}")
    if report.resumable:
        _print_line(
            console, "", "Next: give the same 'drumline infer' command; it classifies what is missing."
        )
