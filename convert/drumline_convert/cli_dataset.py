"""``drumline dataset …``: from samples on a disk to a manifest that can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from drumline.cli.common import Command, counted, echo_json, json_option, path_type, safe_text

if TYPE_CHECKING:
    from drumline_convert.check import CheckReport
    from drumline_convert.corpus import Recording
    from drumline_convert.manifest import Manifest
    from drumline_convert.populate import CopyPlan
    from drumline_convert.scan import Scan
    from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["dataset"]

F = TypeVar("F", bound=Callable[..., Any])

_SHOWN = 5

_manifest_argument = click.argument("manifest", type=path_type(exists=True))
_quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress.")
_seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Decides between equals.")
_workers_option = click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode."
)


def _out_option(what: str, default: str = "manifest.jsonl") -> Callable[[F], F]:
    return click.option(
        "--out", type=path_type(), default=Path(default), show_default=True, help=f"{what} to write."
    )


def _taxonomy_option(function: F) -> F:
    return click.option(
        "--taxonomy", type=path_type(), help="Taxonomy file (default: the one that is shipped)."
    )(function)


class _Step(NamedTuple):
    """What a meter shows."""

    phase: str
    done: int
    total: int


@contextmanager
def _meter(phase: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    from drumline.cli.meter import meter

    with meter(quiet) as show:
        yield None if show is None else lambda done, total: show(_Step(phase, done, total))


def _taxonomy(path: Path | None) -> TrainingTaxonomy:
    from drumline_convert.taxonomy import DEFAULT_TAXONOMY, read_taxonomy

    return read_taxonomy(path or DEFAULT_TAXONOMY)


def _recordings(manifest: Path, taxonomy: TrainingTaxonomy) -> list[Recording]:
    from drumline_convert.corpus import open_manifest, recordings_of

    return recordings_of(open_manifest(manifest, taxonomy), taxonomy)


@click.group(short_help="Make, split and check data sets to train on.")
def dataset() -> None:
    """Make, split and check data sets to train on.

    A data set is a manifest: a line of JSON for each recording, with its label, kit, family, source, licence,
    content hash, side of the split and weight. Where a command takes a MANIFEST, a directory that has its own
    manifest.jsonl does, too.
    """


@dataset.command(
    "scan",
    cls=Command,
    short_help="Make a manifest of a directory of recordings.",
    examples=(
        "drumline dataset scan ~/Samples --out manifest.jsonl --licence CC0-1.0",
        "drumline dataset scan ../shared/corpus --out corpus.jsonl",
        "drumline dataset scan ~/Samples --rules my_rules.yml --json",
    ),
)
@click.argument("directory", type=path_type())
@_out_option("Manifest")
@click.option(
    "--by",
    type=click.Choice(["metadata", "folders", "names"]),
    help="Where labels come from (default: the first of these that fits).",
)
@click.option(
    "--rules", type=path_type(), help="What names say (default: the label_rules.yml that is shipped)."
)
@click.option("--source", help="Where the recordings come from (default: the directory's name).")
@click.option("--licence", default="unknown", show_default=True, help="What their source states.")
@click.option(
    "--family-level",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Folders of a kit's path that make a family; 0: all.",
)
@_taxonomy_option
@_quiet_option
@json_option
def scan_command(
    directory: Path,
    out: Path,
    by: Any,
    rules: Path | None,
    taxonomy: Path | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a manifest of the recordings in DIRECTORY, which is only read.

    Labels come from the directory's own manifest.jsonl (metadata), from its folders where each is called
    exactly as a label (folders: TrainingData/<Label>/…), or from the names of files and folders by strict
    rules (names). What is ambiguous, broken or there twice is left out, and listed with its reason in a
    second file: manifest.left-out.jsonl beside manifest.jsonl.
    """
    from drumline_convert.manifest import write_manifest
    from drumline_convert.rules import DEFAULT_RULES, read_rules
    from drumline_convert.scan import ScanSettings, scan_directory, write_left_out

    asked = ScanSettings(by, _taxonomy(taxonomy), read_rules(rules or DEFAULT_RULES), **settings)
    with _meter("reading", quiet) as progress:
        scan = scan_directory(directory, asked, progress)
    left_out = out.with_name(f"{out.stem}.left-out.jsonl")
    write_left_out(left_out, scan.left_out)
    write_manifest(out, scan.manifest)
    if as_json:
        echo_json(_scan_json(scan, out, left_out))
    else:
        _print_scan(scan, out, left_out)


def _scan_json(scan: Scan, out: Path, left_out: Path) -> dict[str, Any]:
    from collections import Counter

    return {
        "manifest": safe_text(str(out)),
        "left_out_list": safe_text(str(left_out)),
        "by": scan.by,
        "recordings": len(scan.rows),
        "kits": len({row.kit for row in scan.rows}),
        "families": len(scan.manifest.families),
        "without_kit": len(scan.kitless),
        "labels": dict(sorted(Counter(row.label for row in scan.rows).items())),
        "left_out": dict(sorted(Counter(entry.reason for entry in scan.left_out).items())),
    }


def _print_scan(scan: Scan, out: Path, left_out: Path) -> None:
    facts = _scan_json(scan, out, left_out)
    click.echo(
        f"{facts['manifest']}: {counted(facts['recordings'], 'recording')} of {len(facts['labels'])} labels, "
        f"{facts['kits']:,} kits in {facts['families']:,} families, labels by {scan.by}"
    )
    if scan.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items())
        click.echo(f"{facts['left_out_list']}: {counted(len(scan.left_out), 'file')} left out: {reasons}")
    if scan.kitless:
        click.echo(
            f"{counted(len(scan.kitless), 'recording')} name no kit and count as families of their own: "
            "figures measured on a split of them flatter. Put the files of a kit into a folder of their own."
        )


@dataset.command(
    "split",
    cls=Command,
    short_help="Split a manifest by family.",
    examples=(
        "drumline dataset split manifest.jsonl --out manifest.jsonl",
        "drumline dataset split manifest.jsonl --folds 5 --test 0.2 --out folds.jsonl --seed 1",
    ),
)
@_manifest_argument
@_out_option("Manifest")
@click.option("--test", type=click.FloatRange(0, 1), help="Share of test (default: 0.15; with --folds none).")
@click.option("--validation", type=click.FloatRange(0, 1), help="Share of validation (default: 0.15).")
@click.option("--folds", type=click.IntRange(2), help="Folds of what is not test, instead of validation.")
@_seed_option
@_taxonomy_option
@json_option
def split_command(
    manifest: Path,
    out: Path,
    test: float | None,
    validation: float | None,
    folds: int | None,
    seed: int,
    taxonomy: Path | None,
    as_json: bool,
) -> None:
    """Split a MANIFEST into train, validation and test, or into folds; an old split is replaced.

    Families, and families that share a content, stay whole, and the six drums and misc are spread over the
    sides as evenly as that allows.
    """
    from drumline_convert.dataset_stats import dataset_statistics
    from drumline_convert.manifest import write_manifest
    from drumline_convert.split import SplitSettings, split_manifest

    settings = SplitSettings(
        (0.0 if folds else 0.15) if test is None else test,
        (0.0 if folds else 0.15) if validation is None else validation,
        folds or 0,
        seed,
    )
    labels = _taxonomy(taxonomy)
    rows = split_manifest(_recordings(manifest, labels), settings)
    write_manifest(out, rows)
    statistics = dataset_statistics(rows, [], labels)
    if as_json:
        families = {side: len({row.family for row in rows if row.split == side}) for side in settings.shares}
        echo_json({"manifest": safe_text(str(out)), "sides": statistics["sides"], "families": families})
    else:
        _print_sides(statistics["sides"])


def _print_sides(sides: dict[str, dict[str, int]]) -> None:
    from drumline.cli.common import stdout_console

    columns = list(next(iter(sides.values())))
    table = _table("side", *columns, "all")
    for side, counts in sides.items():
        table.add_row(side, *(f"{counts[name]:,}" for name in columns), f"{sum(counts.values()):,}")
    stdout_console().print(table)


def _table(first: str, *others: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


@dataset.command(
    "stats",
    cls=Command,
    short_help="Count what a manifest holds.",
    examples=(
        "drumline dataset stats manifest.jsonl",
        "drumline dataset stats manifest.jsonl --plots plots --json",
    ),
)
@_manifest_argument
@click.option("--plots", type=path_type(), help="Directory for labels.png, families.png and durations.png.")
@_taxonomy_option
@_workers_option
@_quiet_option
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

    _require_plots(plots)
    labels = _taxonomy(taxonomy)
    rows = _recordings(manifest, labels)
    durations = []
    with _meter("decoding", quiet) as progress:
        for _, found in examine(rows, workers):
            durations.append(float("nan") if found.fault else found.duration_sec)
            if progress:
                progress(len(durations), len(rows))
    statistics = dataset_statistics(rows, durations, labels)
    drawn = plot_statistics(statistics, plots) if plots else []
    if as_json:
        echo_json({**statistics, "plots": [safe_text(str(path)) for path in drawn]})
    else:
        _print_statistics(statistics)


def _require_plots(plots: Path | None) -> None:
    from drumline.errors import RuntimeMissingError

    if plots and find_spec("matplotlib") is None:
        raise RuntimeMissingError(
            "plots need matplotlib", "Install it with: pip install 'drumline[train,cpu]'"
        )


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
    table = _table(title, "recordings", "worth", "kits", "families", "worth")
    for name, entry in classes.items():
        values = ("recordings", "effective_recordings", "kits", "families", "effective_families")
        table.add_row(name, *(f"{entry[value]:,}" for value in values))
    return table


def _count_table(title: str, counts: dict[str, int]) -> Any:
    from rich.text import Text

    table = _table(title, "recordings")
    for name, count in counts.items():
        table.add_row(Text(name), f"{count:,}")
    return table


@dataset.command(
    "check",
    cls=Command,
    short_help="Say whether a manifest is fit to be trained on.",
    examples=(
        "drumline dataset check manifest.jsonl",
        "drumline dataset check manifest.jsonl --minimum 25 --json | jq .counts",
    ),
)
@_manifest_argument
@click.option(
    "--minimum", type=click.IntRange(1), default=10, show_default=True, help="Fewest recordings of a label."
)
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
@_taxonomy_option
@_workers_option
@_quiet_option
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
    settings = CheckSettings(_taxonomy(taxonomy), minimum, workers)
    with _meter("decoding", quiet) as progress:
        report = check_manifest(rows, settings, progress)
    if as_json:
        echo_json(report.to_json())
    else:
        _print_check(report)
    failed = report.errors or (strict and report.findings)
    return DatasetError.exit_code if failed else 0


def _print_check(report: CheckReport) -> None:
    from itertools import groupby

    for kind, same in groupby(report.findings, key=lambda finding: finding.kind):
        entries = list(same)
        noun = "warning" if entries[0].is_warning else "error"
        click.echo(f"{kind}: {counted(len(entries), noun)}")
        for entry in entries[:_SHOWN]:
            click.echo(f"  {safe_text(entry.what)}: {safe_text(entry.message)}")
        if len(entries) > _SHOWN:
            click.echo(f"  … and {len(entries) - _SHOWN:,} more; --json lists them all")
    warnings = len(report.findings) - report.errors
    click.echo(
        f"{counted(report.recordings, 'recording')}: "
        f"{counted(report.errors, 'error')}, {counted(warnings, 'warning')}"
    )


@dataset.command(
    "populate",
    cls=Command,
    short_help="Copy a manifest's recordings out of an archive, by content.",
    examples=(
        "drumline dataset populate test-set.jsonl --archive ~/Samples --out test-set --dry-run",
        "drumline dataset populate manifest.jsonl --split test --run ClassifiedArchive --out test-set",
    ),
)
@_manifest_argument
@click.option("--archive", type=path_type(), help="Archive whose files are hashed to find them.")
@click.option("--run", type=path_type(), help="Run of the archive whose index has the hashes already.")
@click.option("--out", type=path_type(), required=True, help="Directory for the copies and their manifest.")
@click.option("--split", "side", help="Only this side: train, validation, test, fold0 …")
@click.option("--dry-run", is_flag=True, help="Say what would be copied.")
@_quiet_option
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
    copied is not copied again. Exits with 6 when the archive lacks some of the recordings.
    """
    from drumline.errors import ArchiveError
    from drumline_convert.populate import copy_recordings, hashed_archive, hashed_run, plan_copies

    if (archive is None) == (run is None):
        raise click.UsageError("give either --archive or --run")
    rows = _side_of(manifest, side)
    with _meter("reading", quiet) as progress:
        if archive is not None:
            plan = plan_copies(rows, hashed_archive(archive, progress), out)
        else:
            plan = plan_copies(rows, hashed_run(_open_run(run)), out)
    with _meter("copying", quiet) as progress:
        made = 0 if dry_run else copy_recordings(plan, progress)
    if as_json:
        echo_json(_plan_json(plan, made, dry_run))
    else:
        _print_plan(plan, made, dry_run)
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


def _open_run(path: Path | None) -> Any:
    from drumline.runs import open_run

    return open_run(path or Path("ClassifiedArchive"))


def _plan_json(plan: CopyPlan, made: int, dry_run: bool) -> dict[str, Any]:
    copies = [
        {"from": safe_text(str(copy.source)), "to": safe_text(str(copy.row.path))} for copy in plan.copies
    ]
    missing = [{"path": safe_text(str(row.path)), "hash": row.hash} for row in plan.missing]
    return {"dry_run": dry_run, "copied": made, "found": len(copies), "copies": copies, "missing": missing}


def _print_plan(plan: CopyPlan, made: int, dry_run: bool) -> None:
    if dry_run:
        for copy in plan.copies:
            click.echo(f"{safe_text(str(copy.source))} → {safe_text(str(copy.row.path))}")
    there = "" if dry_run else f", {made:,} copied, {len(plan.copies) - made:,} were there already"
    click.echo(f"{counted(len(plan.copies), 'recording')} found{there}; {len(plan.missing):,} missing")
    for row in plan.missing[:_SHOWN]:
        click.echo(f"  missing: {row.hash} {safe_text(str(row.path))}")


@dataset.command(
    "merge-overrides",
    cls=Command,
    short_help="Turn corrections into rows of a manifest.",
    examples=(
        "drumline dataset merge-overrides corrections.jsonl --run ClassifiedArchive --out corrected.jsonl",
        "drumline dataset merge-overrides corrections.jsonl --into manifest.jsonl --out next.jsonl",
    ),
)
@click.argument("overrides", type=path_type(exists=True, dir_okay=False))
@click.option(
    "--run",
    type=path_type(),
    default=Path("ClassifiedArchive"),
    show_default=True,
    help="Run, index or runs root whose hashes the corrections name.",
)
@click.option(
    "--into", type=path_type(), help="Manifest that is to hold them, too; it is not changed itself."
)
@_out_option("Manifest", "corrected.jsonl")
@click.option("--source", help="Where new recordings come from (default: the archive's name).")
@click.option("--licence", default="unknown", show_default=True, help="What their source states.")
@click.option(
    "--weight",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Weight of corrected recordings in the training loss.",
)
@_taxonomy_option
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
    from drumline_convert.corpus import open_manifest
    from drumline_convert.manifest import write_manifest
    from drumline_convert.overrides import MergeSettings, merge_overrides

    labels = _taxonomy(taxonomy)
    old = open_manifest(into, labels) if into else None
    merged = merge_overrides(overrides, _open_run(run), MergeSettings(labels, **settings), old)
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


@dataset.command(
    "extract",
    cls=Command,
    short_help="Compute the features of a manifest, once.",
    examples=(
        "drumline dataset extract manifest.jsonl",
        "drumline dataset extract manifest.jsonl --like models/mfcc-cnn --variants 1 --json",
    ),
)
@_manifest_argument
@click.option(
    "--build", type=path_type(), default=Path("build"), show_default=True, help="Where they are kept."
)
@click.option("--like", type=path_type(), help="Bundle whose front end is used (default: plain MFCC).")
@click.option(
    "--variants",
    type=click.IntRange(1),
    help="Augmented variants of each, itself included (default: as trainings use).",
)
@_workers_option
@_quiet_option
@json_option
def extract_command(
    manifest: Path,
    build: Path,
    like: Path | None,
    variants: int | None,
    workers: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compute the features of a MANIFEST by the engine's own code, and keep them for trainings.

    They are kept by content and front end, memory-mapped: nothing is computed twice, a stopped computation
    goes on where it was, and trainings and evaluations with the same front end find them below --build.
    """
    from drumline.bundle import load_bundle
    from drumline.frontend import FrontEnd
    from drumline_convert.augment import AugmentSettings
    from drumline_convert.corpus import open_manifest
    from drumline_convert.dataset import FeatureStore

    front_end = load_bundle(str(like)).front_end if like else FrontEnd()
    augment = AugmentSettings(variants=variants) if variants else AugmentSettings()
    store = FeatureStore(build / "features", front_end, augment)
    rows = open_manifest(manifest, _taxonomy(None)).rows
    with _meter("extracting", quiet) as progress:
        features, _ = store.load(rows, workers, progress)
    facts = {"store": safe_text(str(store.directory)), "recordings": len(rows), "shape": list(features.shape)}
    if as_json:
        echo_json(facts)
    else:
        shape = " × ".join(map(str, features.shape))
        click.echo(f"{facts['store']}: {counted(len(rows), 'recording')}, features {shape} float32")
