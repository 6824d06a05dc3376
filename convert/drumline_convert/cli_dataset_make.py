"""``drumline dataset scan``, ``split`` and ``extract``: a manifest, its sides and its features."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, quiet_option, safe_text
from drumline.wording import counted
from drumline_convert.cli_common import (
    build_option,
    licence_option,
    manifest_argument,
    meter,
    out_option,
    recordings_of_manifest,
    table,
    taxonomy_of,
    taxonomy_option,
    workers_option,
)

if TYPE_CHECKING:
    from drumline_convert.scan import Scan

__all__ = ["extract_command", "scan_command", "split_command"]


@click.command(
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
@out_option("Manifest to write.", "manifest.jsonl")
@click.option(
    "--by",
    type=click.Choice(["metadata", "folders", "names"]),
    help="Where labels come from. [default: the first of these that fits]",
)
@click.option(
    "--rules", type=path_type(), help="What names say. [default: the label_rules.yml that is shipped]"
)
@click.option("--source", help="Where the recordings come from. [default: the directory's name]")
@licence_option
@click.option(
    "--family-level",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Folders of a kit's path that make a family; 0: all.",
)
@taxonomy_option
@workers_option
@quiet_option
@json_option
def scan_command(
    directory: Path,
    out: Path,
    by: Any,
    rules: Path | None,
    taxonomy: Path | None,
    workers: int,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a manifest of the recordings in DIRECTORY, which is only read.

    Labels come from the directory's own manifest.jsonl (metadata), from its folders where each is called
    exactly as a label (folders: TrainingData/<Label>/…), or from the names of files and folders by strict
    rules (names). What is ambiguous, cannot be decoded or is there twice is left out, and listed with its
    reason in a second file: manifest.left-out.jsonl beside manifest.jsonl. An older manifest at --out is
    replaced; anything else there, or an --out in DIRECTORY, is refused with exit code 8.
    """
    from drumline.outputs import check_outside
    from drumline_convert.manifest import check_manifest_output, write_manifest
    from drumline_convert.rules import DEFAULT_RULES, read_rules
    from drumline_convert.scan import (
        ScanSettings,
        check_left_out_output,
        scan_directory,
        without_undecodable,
        write_left_out,
    )

    asked = ScanSettings(by, taxonomy_of(taxonomy), read_rules(rules or DEFAULT_RULES), **settings)
    left_out = out.with_name(f"{out.stem}.left-out.jsonl")
    check_outside(out, directory)
    check_manifest_output(out)
    check_left_out_output(left_out)
    with meter(quiet) as tell:
        scan = scan_directory(directory, asked, partial(tell, "reading"))
        scan = without_undecodable(scan, workers, partial(tell, "decoding"))
    write_left_out(left_out, scan.left_out)
    write_manifest(out, scan.manifest)
    if as_json:
        echo_json(_scan_json(scan, out, left_out))
    else:
        _print_scan(scan, out, left_out, quiet)


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


def _print_scan(scan: Scan, out: Path, left_out: Path, quiet: bool) -> None:
    facts = _scan_json(scan, out, left_out)
    if not quiet:
        click.echo(
            f"{facts['manifest']}: {counted(facts['recordings'], 'recording')} "
            f"of {counted(len(facts['labels']), 'label')}, "
            f"{counted(facts['kits'], 'kit')} in {counted(facts['families'], 'family', 'families')}, "
            f"labels by {scan.by}"
        )
    if scan.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items())
        click.echo(f"{facts['left_out_list']}: {counted(len(scan.left_out), 'file')} left out: {reasons}")
    if scan.kitless:
        click.echo(
            f"{counted(len(scan.kitless), 'recording')} name no kit and count as families of their own: "
            "figures measured on a split of them flatter. Put the files of a kit into a folder of their own."
        )


@click.command(
    "split",
    cls=Command,
    short_help="Split a manifest by family.",
    examples=(
        "drumline dataset split manifest.jsonl --out manifest.jsonl",
        "drumline dataset split manifest.jsonl --folds 5 --test 0.2 --out folds.jsonl --seed 1",
    ),
)
@manifest_argument
@out_option("Manifest to write.", "manifest.jsonl")
@click.option("--test", type=click.FloatRange(0, 1), help="Share of test. [default: 0.15; with --folds none]")
@click.option("--validation", type=click.FloatRange(0, 1), help="Share of validation. [default: 0.15]")
@click.option("--folds", type=click.IntRange(2), help="Folds of what is not test, instead of validation.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides between equals.")
@taxonomy_option
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
    from drumline_convert.manifest import check_manifest_output, write_manifest
    from drumline_convert.split import SplitSettings, split_manifest

    settings = SplitSettings(
        (0.0 if folds else 0.15) if test is None else test,
        (0.0 if folds else 0.15) if validation is None else validation,
        folds or 0,
        seed,
    )
    check_manifest_output(out)
    labels = taxonomy_of(taxonomy)
    rows = split_manifest(recordings_of_manifest(manifest, labels), settings)
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
    shown = table("side", *columns, "all")
    for side, counts in sides.items():
        shown.add_row(side, *(f"{counts[name]:,}" for name in columns), f"{sum(counts.values()):,}")
    stdout_console().print(shown)


@click.command(
    "extract",
    cls=Command,
    short_help="Compute the features of a manifest, once.",
    examples=(
        "drumline dataset extract manifest.jsonl",
        "drumline dataset extract manifest.jsonl --like mfcc-cnn --out ~/trainings",
    ),
)
@manifest_argument
@build_option("--out", "Directory to keep them in, below features/; trainings find them there by --build.")
@click.option("--like", type=path_type(), help="Bundle whose front end is used. [default: plain MFCC]")
@click.option(
    "--variants",
    type=click.IntRange(1),
    help="Augmented variants of each, itself included. [default: as trainings use]",
)
@workers_option
@quiet_option
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

    They are kept below --out (build/ in the current directory, as trainings have it) by content and front
    end, memory-mapped: nothing is computed twice, a stopped computation goes on where it was, and trainings
    with the same front end and --build find them.
    """
    from drumline.bundle import load_bundle
    from drumline.frontend import FrontEnd
    from drumline_convert.augment import AugmentSettings
    from drumline_convert.corpus import open_manifest
    from drumline_convert.dataset import FeatureStore

    front_end = load_bundle(str(like)).front_end if like else FrontEnd()
    augment = AugmentSettings(variants=variants) if variants else AugmentSettings()
    store = FeatureStore(build / "features", front_end, augment)
    rows = open_manifest(manifest, taxonomy_of(None)).rows
    with meter(quiet) as tell:
        features, _ = store.load(rows, workers, partial(tell, "extracting"))
    facts = {"store": safe_text(str(store.directory)), "recordings": len(rows), "shape": list(features.shape)}
    if as_json:
        echo_json(facts)
    elif not quiet:
        shape = " × ".join(map(str, features.shape))
        click.echo(f"{facts['store']}: {counted(len(rows), 'recording')}, features {shape} float32")
