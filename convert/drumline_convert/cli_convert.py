"""``drumline convert``, ``ensemble`` and ``gate``: thin; what they need is imported when they run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, safe_text
from drumline.errors import RuntimeMissingError

__all__ = ["convert"]


def require(*packages: str) -> None:
    """Raise `RuntimeMissingError` where one of the packages of the extra is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise RuntimeMissingError(
            f"this command needs {', '.join(missing)}", "Install it with: pip install 'drumline[train,cpu]'"
        )


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
