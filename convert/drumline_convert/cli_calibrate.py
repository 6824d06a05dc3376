"""``drumline calibrate``: thin, and light to import; what it needs is imported when it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, quiet_option, safe_text
from drumline.errors import UsageError
from drumline_convert.cli_common import (
    manifest_option,
    meter,
    require,
    split_option,
    taxonomy_option,
)

__all__ = ["calibrate"]


@click.command(
    "calibrate",
    cls=Command,
    short_help="Fit a bundle's probabilities and thresholds.",
    examples=(
        "drumline calibrate --model models/mine --manifest manifest.jsonl",
        "drumline calibrate --model models/mine --manifest manifest.jsonl --precision 0.97 --dry-run",
        "drumline calibrate --model models/mine --manifest manifest.jsonl --held-out held_out.npz",
        "drumline calibrate --model models/mine --undo",
    ),
)
@click.option("--model", type=path_type(), required=True, help="Bundle to calibrate.")
@manifest_option("Labelled recordings.")
@click.option(
    "--method",
    type=click.Choice(["temperature", "vector", "platt"]),
    default="temperature",
    show_default=True,
    help="Only a temperature leaves the ranking of the fine labels alone; the others can change it.",
)
@click.option(
    "--precision",
    "precisions",
    type=float,
    multiple=True,
    default=(0.9, 0.95, 0.99),
    show_default=True,
    help="An operating point for --threshold precision=…; several.",
)
@split_option("--split", "validation")
@click.option(
    "--held-out",
    type=path_type(),
    help="Held-out logits of the model's cross-validation, for one that was trained on all recordings.",
)
@taxonomy_option
@click.option("--dry-run", is_flag=True, help="Fit and show; write nothing.")
@click.option("--undo", is_flag=True, help="Put back the calibration that the last one replaced.")
@quiet_option
@json_option
def calibrate(
    model: Path, manifest: Path | None, dry_run: bool, undo: bool, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Fit what turns a bundle's logits into probabilities, and thresholds for wanted precisions.

    Uses only recordings that the model was not trained on: the validation side of a manifest's split, or the
    held-out logits of a cross-validation. Writes calibration.json (method, parameters, what it was fitted on,
    figures before and after) and the card's section on it. A run with --threshold precision=0.95 then
    believes each label from its own threshold on. Another method or other parameters classify files anew at
    the next run.

    Exit codes: 0 done, 2 contradicting options or nothing to undo, 3 wrong manifest or recordings that the
    model has learnt, 4 wrong model, 5 a package is missing, 8 the bundle cannot be written.
    """
    require("scipy")
    from drumline_convert.calibrate import undo_calibration

    if undo:
        made = undo_calibration(model)
    elif manifest is None:
        raise UsageError("no manifest was given", "Give --manifest FILE, or --undo.")
    else:
        made = _fitted(model, manifest, dry_run=dry_run, quiet=quiet or as_json, **options)
    if as_json:
        echo_json(made)
    elif not quiet:
        _show(made)
        click.echo("Nothing was written." if dry_run else f"Written: {safe_text(str(model))}")


def _fitted(
    model: Path, manifest: Path, *, dry_run: bool, quiet: bool, taxonomy: Path | None, **options: Any
) -> dict[str, Any]:
    from drumline.bundle import find_bundle
    from drumline_convert.calibrate import CalibrationSettings, calibrate, write_calibration
    from drumline_convert.taxonomy import DEFAULT_TAXONOMY

    settings = CalibrationSettings(
        model=model, manifest=manifest, taxonomy=taxonomy or DEFAULT_TAXONOMY, **options
    )
    with meter(quiet) as tell:
        made = calibrate(settings, partial(tell, "classifying"))
    if not dry_run:
        write_calibration(find_bundle(model), made)
    return made


def _show(made: dict[str, Any]) -> None:
    fitted_on = made.get("fitted_on", {})
    click.echo(f"{made.get('method')}, version {made.get('version')}, fitted on {fitted_on.get('what')}")
    for name in ("before", "after"):
        click.echo(f"  {name:34} {_figures(made.get(name))}")
    for method, figures in (made.get("cross_fitted") or {}).items():
        click.echo(f"  {f'{method}, families not fitted on':34} {_figures(figures)}")
    if made.get("changed"):
        click.echo(f"  the canonical label of {made['changed']:,} recordings is another one now")
    for name, point in made.get("operating_points", {}).items():
        click.echo(f"  --threshold {name:16} {_effect(point)}")


def _figures(figures: dict[str, float] | None) -> str:
    return "–" if not figures else f"ECE {figures['ece']:.4f}, NLL {figures['nll']:.4f}"


def _effect(point: dict[str, Any]) -> str:
    found = point.get("held_out") or point["fitted"]
    on = "families not fitted on" if point.get("held_out") else "what it was fitted on"
    right, kept = ("–" if found[key] is None else f"{found[key]:.3f}" for key in ("precision", "recall"))
    never = [label for label, limit in point["thresholds"].items() if limit is None]
    lost = f"; never believed: {', '.join(never)}" if never else ""
    return f"{right} right, {kept} of the drums kept, on {on}{lost}"
