"""``drumline evaluate``: thin, and light to import; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, quiet_option, safe_text
from drumline_convert.cli_common import (
    manifest_option,
    meter,
    out_option,
    require,
    split_option,
    taxonomy_option,
)

__all__ = ["evaluate"]


@click.command(
    "evaluate",
    cls=Command,
    short_help="Measure models on labelled recordings.",
    examples=(
        "drumline evaluate --model mfcc-cnn --manifest manifest.jsonl --out evaluation",
        "drumline evaluate --model models/old --model models/new --manifest manifest.jsonl --split test",
        "drumline evaluate --index ClassifiedArchive --manifest manifest.jsonl --json > report.json",
    ),
)
@click.option("--model", "models", type=path_type(), multiple=True, help="Bundle; several side by side.")
@click.option(
    "--index",
    "indexes",
    type=path_type(),
    multiple=True,
    help="Run or index file: the predictions that the engine made, found by content hash.",
)
@click.option(
    "--held-out",
    type=path_type(),
    multiple=True,
    help="Held-out logits of a cross-validation: each recording by a network that did not see its family.",
)
@manifest_option("Labelled recordings.", required=True)
@split_option("--split", otherwise="test, or all where there is none")
@taxonomy_option
@out_option("Directory of report.html, report.json and plots/.", "evaluation")
@click.option(
    "--resamples",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="Of the families, for the intervals.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resamples.")
@quiet_option
@json_option
def evaluate(
    manifest: Path,
    taxonomy: Path | None,
    out: Path,
    resamples: int,
    seed: int,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure models on labelled recordings, and write a report.

    Accuracy, macro-F1, scores and confusions by label, calibration, selective classification, drums against
    misc, results by source and family, each with an interval over families; with several models also the
    paired differences to the first one. The report says on its face when a model was trained on what it is
    measured on.

    Exit codes: 0 done, 2 nothing to evaluate, 3 wrong manifest or taxonomy, or a family on two sides of its
    split, 4 wrong model, 5 a package is missing, 7 no index, 8 the report cannot be written.
    """
    require("matplotlib", "scipy")
    from drumline_convert.bootstrap import Resampling
    from drumline_convert.evaluation import EvaluationSettings, evaluate_manifest
    from drumline_convert.report import check_report_output, write_report
    from drumline_convert.taxonomy import DEFAULT_TAXONOMY

    settings = EvaluationSettings(
        manifest=manifest,
        taxonomy=taxonomy or DEFAULT_TAXONOMY,
        resampling=Resampling(resamples, seed),
        **{name: tuple(values) for name, values in chosen.items()},
    )
    check_report_output(out)
    with meter(quiet or as_json) as tell:
        report = evaluate_manifest(settings, tell)
    write_report(report, out)
    if as_json:
        echo_json(report)
        return
    for warning in report["warnings"]:
        click.echo(f"drumline: warning: {safe_text(warning['text'])}", err=True)
    if not quiet:
        _show(report, out)


def _show(report: dict[str, Any], out: Path) -> None:
    for model in report["models"]:
        click.echo(safe_text(model["name"]))
        for name, figure in model["figures"].items():
            click.echo(f"  {name:13} {_shown(figure)}")
    for difference in report["differences"]:
        click.echo(f"{safe_text(difference['model'])} minus {safe_text(difference['minus'])}")
        for name, figure in difference["figures"].items():
            click.echo(f"  {name:13} {_shown(figure, '+')}")
    click.echo(f"Report: {safe_text(str(out / 'report.html'))}")


def _shown(figure: dict[str, Any], sign: str = "") -> str:
    if figure["value"] is None:
        return "–"
    low, high = figure["interval"]
    return f"{figure['value']:{sign}.3f}  ({low:{sign}.3f} to {high:{sign}.3f})"
