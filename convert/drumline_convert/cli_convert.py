"""``drumline convert``, ``ensemble`` and ``gate``: thin; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drumline.cli.common import Command, comma_separated, echo_json, json_option, path_type, safe_text
from drumline_convert.cli_common import require

__all__ = ["convert", "ensemble"]


@click.command(
    "convert",
    cls=Command,
    examples=(
        "drumline convert model.keras --like models/mfcc-cnn --out models/mine",
        "drumline convert cnn.onnx --front-end kind=log-mel,n_mels=64 --labels labels.json --out models/mine",
        "drumline convert network.pt2 --front-end front_end.yml --labels labels.json --out models/mine",
    ),
)
@click.argument("model", type=path_type())
@click.option("--out", type=path_type(), required=True, help="Bundle to make; nothing may stand there.")
@click.option(
    "--like", type=path_type(), help="Bundle whose front end and labels the model has. [the default one]"
)
@click.option(
    "--front-end",
    metavar="SETTINGS",
    help="Front end of the model: name=value,…, or a JSON or YAML file. [that of --like]",
)
@click.option("--labels", type=path_type(), help="Labels in the order of the outputs. [those of --like]")
@click.option(
    "--canonical", type=path_type(), help="Mapping label → canonical label. [by the shipped taxonomy]"
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "coefficients-frames", "frames-coefficients"]),
    default="auto",
    show_default=True,
    help="Which axis of the model's input comes first; auto: the one that fits.",
)
@click.option("--output", metavar="NAME", help="Output with the scores, where the model has several.")
@click.option("--version", "version", default="0.1.0", show_default=True, help="Version of the bundle.")
@json_option
def convert(
    model: Path,
    out: Path,
    like: Path | None,
    front_end: str | None,
    labels: Path | None,
    canonical: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a bundle of a trained MODEL: Keras (.keras), PyTorch (.pt2) or any .onnx classifier.

    The result has one input, logits and probabilities, and a batch that varies; it is checked, and compared
    with the original. A .pt2 file is what torch.export.save writes. Front ends are mfcc and log-mel with any
    rate, length and number of bands, with or without deltas; see docs/models.md.

    Exits with 4 when the model does not fit front end and labels, or its ONNX says something else; with 5
    when what is needed to read it is not installed; with 8 when something stands at --out.
    """
    require("onnx")
    from drumline_convert.convert_model import convert_model
    from drumline_convert.target import read_target

    report = convert_model(model, read_target(like, front_end, labels, canonical), out, **options)
    if as_json:
        echo_json(report)
        return
    parity = report["parity"]
    click.echo(
        f"bundle {safe_text(str(out))} written: opset {report['opset']}, {report['bytes'] / 1e6:.2f} MB; "
        f"largest difference in a probability: {parity['probabilities']:.1e} from the original, "
        f"{parity['batch']:.1e} between batch sizes"
    )


@click.command(
    "ensemble",
    cls=Command,
    examples=(
        "drumline ensemble models/a models/b --out models/both --weights 0.6,0.4",
        "drumline ensemble models/a models/b --out models/both --manifest manifest.jsonl --split validation",
    ),
)
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLES...")
@click.option("--out", type=path_type(), required=True, help="Bundle to make; nothing may stand there.")
@click.option(
    "--mean",
    type=click.Choice(["geometric", "arithmetic"]),
    default="geometric",
    show_default=True,
    help="Of the members' calibrated probabilities.",
)
@click.option("--weights", callback=comma_separated, help="One for each member: A,B. [fitted, or all equal]")
@click.option(
    "--manifest", type=path_type(), help="Recordings to fit weights and temperature on, seen by no member."
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    default=("validation",),
    show_default=True,
    help="Side of the manifest to use; several may be named.",
)
@click.option("--version", "version", default="0.1.0", show_default=True, help="Version of the bundle.")
@json_option
def ensemble(bundles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Make one bundle of several BUNDLES: the weighted mean of what they say.

    Members that share a front end become one graph. Otherwise the bundle holds copies of its members, and
    each front end is computed once for every file. Weights are divided by their sum. With a manifest, weights
    that are not given are fitted, and the mean is calibrated by one temperature.

    Exits with 4 when the bundles have not the same labels, with 8 when something stands at --out.
    """
    require("onnx")
    from drumline_convert.combine import combine

    report = combine(bundles, **options)
    if as_json:
        echo_json(report)
        return
    for member in report["members"]:
        click.echo(f"{member['weight']:.4f}  {safe_text(member['name'])}{_figures(member)}")
    form = "one graph" if report["merged"] else "naming its members"
    click.echo(f"bundle {safe_text(str(options['out']))} written, {form}{_figures(report)}")


def _figures(values: dict[str, Any]) -> str:
    if "accuracy" not in values:
        return ""
    return f"; accuracy {values['accuracy']:.4f}, negative log-likelihood {values['nll']:.4f}"
