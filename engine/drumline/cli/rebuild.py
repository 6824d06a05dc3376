"""``drumline rebuild`` and ``drumline undo``."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import (
    THRESHOLD,
    Command,
    comma_separated,
    echo_json,
    json_option,
    path_type,
    quiet_option,
    safe_text,
    shell_word,
    stdout_console,
)
from drumline.cli.meter import meter
from drumline.wording import counted, size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from drumline.decide import DecisionSettings
    from drumline.rebuild import Plan, RebuildSummary, UndoSummary

__all__ = ["rebuild_command", "undo_command"]

_EXAMPLES_SHOWN = 10
_ACTIONS_READ = 1_000
_PROBLEMS_SHOWN = 5
_PROBLEMS_IN_JSON = 1_000
_TOLD = (
    "copy_mode",
    "layout",
    "dedup",
    "threshold",
    "labels",
    "allow_all",
    "gate",
    "gate_threshold",
    "overrides",
)
"""Settings of an earlier rebuild that are named where they differ."""

_WANTED = ("labels", "allow_all")
"""Those of which the log says more: which labels the tree has by them and by its run."""

_MEANINGS = {
    "missing": "missing: not in the archive any more",
    "changed": "changed since they were indexed: run 'drumline infer' again",
    "unreadable": "unreadable",
    "occupied": "in the way is something that drumline did not make",
    "edited": "edited in the tree since they were made: they stay",
    "bad_name": "have a name that the file system of the tree does not take",
    "refused": "refused by the file system of the tree",
    "kept": "no longer in the plan, but edited or the last copy: they stay",
    "unsafe_path": "records with a path that leads out of the tree: left out",
    "unsafe_label": "records with a label that can be no directory: left out",
    "duplicate_record": "records that name a file a second time: left out",
    "failed": "failed when they were indexed: listed in _manifests/errors.txt",
    "duplicate": "duplicates left out",
    "reports_left": "reports that somebody edited: they stay",
}


@click.command(
    "rebuild",
    cls=Command,
    short_help="Make an organised tree from a run.",
    examples=(
        "drumline rebuild ClassifiedArchive --out Organised --dry-run",
        "drumline rebuild ClassifiedArchive/run_20261121T101500Z --out Organised --copy-mode hardlink",
        "drumline rebuild --index old/index.jsonl.zst --out Drums --labels Kick,Snare --threshold 0.8",
        "drumline rebuild ClassifiedArchive --out Organised --overrides corrections.jsonl --layout flat",
    ),
)
@click.argument("run", required=False, type=path_type())
@click.option("--index", "index_file", type=path_type(), help="An index file, in place of RUN.")
@click.option("--out", type=path_type(), help="Directory of the tree; made when missing.")
@click.option(
    "--config",
    "config_file",
    type=path_type(),
    help="Take RUN and OUT from this file's paths.runs_root and paths.regenerated_root.",
)
@click.option(
    "--copy-mode",
    type=click.Choice(["copy", "hardlink", "symlink", "reflink", "none"]),
    default="copy",
    show_default=True,
    help="How files get into the tree; none writes only manifests and statistics.",
)
@click.option("--labels", callback=comma_separated, help="Wanted labels: A,B. Others go to misc.")
@click.option("--allow-all", is_flag=True, help="All labels, also where the run was made for some of them.")
@click.option(
    "--threshold",
    type=THRESHOLD,
    help="Below this probability a file is misc; or an operating point of the run's model: precision=0.95."
    " [default: as the run was made]",
)
@click.option(
    "--gate/--no-gate",
    default=None,
    help="Whether the model's gate may say misc. [default: as the run was made]",
)
@click.option(
    "--gate-threshold",
    type=float,
    help="Below this probability of being a kit drum a file is misc. [default: as the run was made]",
)
@click.option("--overrides", type=path_type(), help="Corrections: JSON lines of hash, correct_label, note.")
@click.option(
    "--layout",
    type=click.Choice(["mirror", "flat"]),
    default="mirror",
    show_default=True,
    help="mirror: LABEL/relative path; flat: LABEL/normalised-name.",
)
@click.option(
    "--dedup",
    type=click.Choice(["keep-all", "first"]),
    default="keep-all",
    show_default=True,
    help="first: of files with the same content, only the first by path.",
)
@click.option("--archive-root", type=path_type(), help="Where the archive is now, when it was moved.")
@click.option(
    "--drop-last-copies",
    is_flag=True,
    help="Files of an earlier plan go, too, when the archive does not have them any more.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="With --dry-run: name every file.")
@json_option
def rebuild_command(
    run: Path | None,
    index_file: Path | None,
    out: Path | None,
    config_file: Path | None,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make an organised tree from RUN: a directory for each label, and misc.

    RUN is a run directory, an index file, or a runs root (its newest complete run). The archive is only
    read, and nothing outside of OUT is written. The same command again completes a rebuild that was stopped;
    other options turn OUT into what they say. Files that somebody added or edited in OUT stay as they are.

    Exit codes: 0 done (files that were missing or changed are counted and named), 2 contradicting options,
    3 wrong labels, threshold or overrides, 6 no archive, 7 no index, 8 OUT cannot be written or is not
    drumline's, 9 another process works in OUT, 130 stopped.
    """
    from drumline.rebuild import RebuildSettings, plan_rebuild

    source, out = _places(run, index_file, out, config_file)
    settings = RebuildSettings(source=source, out=out, **options)
    silent = quiet or as_json
    # Bars and results share a terminal: each meter is gone before anything is printed.
    with meter(quiet) as progress:
        plan = plan_rebuild(settings, progress)
    with plan:
        for warning in plan.warnings:
            click.echo(f"drumline: {safe_text(warning)}", err=True)
        if not silent:
            _show_plan(plan)
            if dry_run:
                _show_actions(plan, None if verbose else _EXAMPLES_SHOWN)
        summary = None if dry_run else _execute(plan, quiet)
        if as_json:
            echo_json(_as_json(plan, summary))
        elif summary is not None:
            _show_outcome(plan, summary, quiet)
        elif not quiet:
            click.echo("\nNothing was written. The same command without --dry-run does it.")


def _execute(plan: Plan, quiet: bool) -> RebuildSummary:
    from drumline.rebuild import execute

    with meter(quiet) as progress:
        return execute(plan, progress)


@click.command(
    "undo",
    cls=Command,
    short_help="Remove what rebuild made.",
    examples=("drumline undo Organised --dry-run", "drumline undo Organised"),
)
@click.argument("out", type=path_type())
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@click.option(
    "--drop-last-copies", is_flag=True, help="Remove also files that the archive does not have any more."
)
@quiet_option
@json_option
def undo_command(out: Path, dry_run: bool, drop_last_copies: bool, quiet: bool, as_json: bool) -> None:
    """Remove what 'drumline rebuild' made in OUT, and nothing that somebody added or changed.

    Exit codes: 0 done (what stays is counted and named), 8 OUT is not drumline's or cannot be written,
    9 another process works in OUT, 130 stopped; the same command goes on.
    """
    from drumline.rebuild import undo

    with meter(quiet) as progress:
        summary = undo(out, dry_run=dry_run, drop_last_copies=drop_last_copies, progress=progress)
    if as_json:
        echo_json(summary.to_json())
    else:
        _show_undo(summary, quiet)


def _places(
    run: Path | None, index_file: Path | None, out: Path | None, config_file: Path | None
) -> tuple[Path, Path]:
    if run is not None and index_file is not None:
        raise click.UsageError("give either RUN or --index FILE, not both")
    source = run or index_file
    if config_file is not None:
        from drumline.config import load_config

        config = load_config(config_file)
        source = source or config.values.get("runs_root")
        out = out or config.regenerated_root
    if source is None:
        raise click.UsageError("give RUN or --index FILE, or a --config that sets paths.runs_root")
    if out is None:
        raise click.UsageError("give --out DIR, or a --config that sets paths.regenerated_root")
    return source, out


def _as_json(plan: Plan, summary: RebuildSummary | None) -> dict[str, Any]:
    problems = [
        {"problem": kind, "path": safe_text(path), "message": message}
        for kind, path, message in islice(plan.problems(), _PROBLEMS_IN_JSON)
    ]
    done = None if summary is None else summary.to_json()
    return {"dry_run": summary is None, "plan": plan.to_json(), "summary": done, "problems": problems}


def _show_plan(plan: Plan) -> None:
    console = stdout_console()
    counts, mode = plan.counts, plan.settings.copy_mode
    console.print(
        f"{counted(plan.files, 'file')}, {size_text(plan.size)} → {safe_text(str(plan.settings.out))}"
        f" ({mode}, {plan.settings.layout})",
        markup=False,
    )
    console.print(f"  {_decided(plan)}", markup=False, soft_wrap=True)
    if before := _before(plan):
        console.print(f"  before: {before}", markup=False, soft_wrap=True)
    console.print(_label_table(plan))
    parts = {
        "to make": counts["make"],
        "to make anew": counts["replace"],
        "already there": counts["there"] + counts["adopt"],
        "to remove": counts["remove"],
        "for the manifests only": counts["listed"],
        "by override": counts["overridden"],
    }
    told = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    console.print(f"  {told or 'nothing to do'}")
    _show_counts(console, counts)


def _decided(plan: Plan) -> str:
    """Say how files get their labels."""
    decisions = plan.decisions
    how = "decided anew" if plan.settings.redecides else f"decided as in {safe_text(plan.run.name)}"
    if decisions is None:
        return how
    parts = [_threshold_text(plan, decisions), plan.wanted]
    if decisions.gate_threshold is not None:
        parts.append(f"gate {decisions.gate_threshold:g}")
    return safe_text(f"{how}: {'; '.join(parts)}")


def _threshold_text(plan: Plan, decisions: DecisionSettings) -> str:
    """Name the threshold, or the operating point with the threshold of each label."""
    if not decisions.thresholds:
        return f"threshold {decisions.threshold:g}"
    point = plan.settings.threshold
    if point is None:
        point = plan.run.info["settings"]["misc"]["threshold"]
    each = ", ".join(
        f"{label} {'never' if threshold is None else format(threshold, 'g')}"
        for label, threshold in sorted(decisions.thresholds.items())
    )
    return f"{point} ({each})"


def _before(plan: Plan) -> str:
    """Say with what other settings the tree was made, and which labels it had, or nothing."""
    if plan.log is None or not plan.log.settings:
        return ""
    before, now, wanted = plan.log.settings, plan.settings.to_json(), plan.log.wanted
    names = [name for name in _TOLD if name in before and not (wanted and name in _WANTED)]
    told = [
        f"{name.replace('_', ' ')} {_in_words(name, before[name])}"
        for name in names
        if _in_words(name, before[name]) != _in_words(name, now[name])
    ]
    if wanted and plan.wanted and wanted != plan.wanted:
        told.append(wanted)
    return safe_text(", ".join(told))


def _in_words(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if value is None:
        return "none" if name == "overrides" else "as the run was made"
    return str(value)


def _show_actions(plan: Plan, most: int | None) -> None:
    """Name what is going to be placed: all of it, or the first few."""
    from drumline.rebuild.plan import TO_DO

    console = stdout_console()
    actions = chain.from_iterable(plan.batches(_ACTIONS_READ, 1 << 62))
    for action in islice(actions, most):
        arrow = f"  {safe_text(action.source)} → {safe_text(action.target)}"
        console.print(arrow, markup=False, soft_wrap=True)
    hidden = sum(plan.counts[state] for state in TO_DO) - (most or 0)
    if most is not None and hidden > 0:
        console.print(f"  … and {hidden:,} more: --verbose names them")


def _label_table(plan: Plan) -> Table:
    from rich.table import Table
    from rich.text import Text

    from drumline.charts import Bar

    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_column(ratio=1)
    largest = max((total.files for total in plan.labels.values()), default=1) or 1
    filled = [(label, total) for label, total in plan.labels.items() if total.files]
    for label, total in sorted(filled, key=lambda item: (-item[1].files, item[0])):
        table.add_row(
            Text(f"  {safe_text(label)}/"),
            f"{total.files:,}",
            size_text(total.bytes),
            Bar(total.files / largest),
        )
    return table


def _show_counts(console: Console, counts: Any) -> None:
    for name, meaning in _MEANINGS.items():
        if counts[name]:
            console.print(f"  {counts[name]:,} {meaning}", markup=False)


def _warned(summary: RebuildSummary) -> str:
    """Say what is not as one may expect it, or nothing."""
    counts = summary.counts
    parts = {
        "could not be placed": summary.not_placed,
        "left out for an unsafe path or label": counts["unsafe_path"] + counts["unsafe_label"],
        "with several records": counts["duplicate_record"],
        "stay": counts["kept"] + counts["reports_left"],
    }
    return ", ".join(f"{counted(count, 'file')} {what}" for what, count in parts.items() if count)


def _show_outcome(plan: Plan, summary: RebuildSummary, quiet: bool) -> None:
    counts = summary.counts
    if warned := _warned(summary):
        click.echo(f"drumline: warning: {warned}:", err=True)
        for kind, path, message in islice(plan.problems(), _PROBLEMS_SHOWN):
            click.echo(f"  {kind}: {safe_text(path)}: {safe_text(message)}", err=True)
    if quiet:
        return
    parts = {
        "made": counts["made"],
        "already there": counts["already_there"],
        "removed": counts["removed"],
        "listed": counts["listed"],
        "not placed": summary.not_placed,
    }
    told = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count) or "nothing to do"
    out = shell_word(summary.out)
    click.echo(f"\n{told} in {summary.seconds:.1f} s")
    click.echo(f"Tree: {out}   Lists: {out}/_manifests   Take it back: drumline undo {out}")


def _show_undo(summary: UndoSummary, quiet: bool) -> None:
    for path, why in summary.kept[:_PROBLEMS_SHOWN]:
        click.echo(f"drumline: stays: {safe_text(path)}: {why}", err=True)
    if summary.last_copies:
        click.echo(
            f"drumline: {counted(summary.last_copies, 'file')} not removed: the archive does not have"
            " their content (is its volume mounted?); --drop-last-copies removes these too",
            err=True,
        )
    if quiet:
        return
    verb = "would be removed" if summary.dry_run else "removed"
    directories = counted(summary.directories, "directory", "directories")
    stay = summary.changed + summary.last_copies + summary.others
    click.echo(
        f"{counted(summary.removed, 'file')}, {counted(summary.reports, 'report')} and"
        f" {'up to ' if summary.dry_run else ''}{directories} {verb};"
        f" {stay:,} stay, {summary.gone:,} were gone already"
    )
