"""``drumline convert``, ``ensemble`` and ``gate``: thin; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drumline.cli.common import (
    Command,
    comma_separated,
    echo_json,
    json_option,
    path_type,
    safe_text,
)
from drumline.errors import UsageError
from drumline.wording import counted
from drumline_convert.cli_common import bundle_option, manifest_option, require, split_option, version_option

__all__ = ["convert", "ensemble", "gate"]


@click.command(
    "convert",
    cls=Command,
    short_help="Make a bundle of a trained model.",
    examples=(
        "drumline convert model.keras --like mfcc-cnn --out models/mine",
        "drumline convert cnn.onnx --front-end kind=log-mel,n_mels=64 --labels labels.json --out models/mine",
        "drumline convert network.pt2 --front-end front_end.yml --labels labels.json --out models/mine",
        "drumline convert models/mine --precision int8 --manifest manifest.jsonl --out models/mine-int8",
        "drumline convert models/mine --front-end-in-graph --precision fp16 --out models/mine-gpu",
    ),
)
@click.argument("model", type=path_type())
@bundle_option()
@click.option(
    "--like", type=path_type(), help="Bundle whose front end and labels the model has. [default: mfcc-cnn]"
)
@click.option(
    "--front-end",
    metavar="SETTINGS",
    help="Front end of the model: name=value,…, or a JSON or YAML file. [default: that of --like]",
)
@click.option(
    "--labels", type=path_type(), help="Labels in the order of the outputs. [default: those of --like]"
)
@click.option(
    "--canonical",
    type=path_type(),
    help="Mapping label → canonical label. [default: by the shipped taxonomy]",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "coefficients-frames", "frames-coefficients"]),
    default="auto",
    show_default=True,
    help="Which axis of the model's input comes first; auto: the one that fits.",
)
@click.option("--output", metavar="NAME", help="Output with the scores, where the model has several.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8", "fp16"]),
    default="float32",
    show_default=True,
    help="int8 for CPUs, fp16 for GPUs: then MODEL is a bundle, which this makes smaller.",
)
@click.option(
    "--front-end-in-graph",
    "in_graph",
    is_flag=True,
    help="Put the front end into the graph, for GPUs: then MODEL is a bundle, and workers only decode.",
)
@manifest_option(
    "Recordings with splits: int8 takes its ranges from train; both results are compared on the others."
)
@version_option
@json_option
def convert(
    model: Path,
    out: Path,
    like: Path | None,
    front_end: str | None,
    labels: Path | None,
    canonical: Path | None,
    precision: str,
    in_graph: bool,
    manifest: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a bundle of a trained MODEL: Keras (.keras), PyTorch (.pt2) or any .onnx classifier.

    The result has one input, logits and probabilities, and a batch that varies; it is checked, and compared
    with the original. A .pt2 file is what torch.export.save writes. Front ends are mfcc and log-mel with any
    rate, length and number of bands, with or without deltas; see docs/models.md.

    With --precision, MODEL is a bundle, and the result has its graph in int8 (static, with 8-bit weights and
    activations) or fp16, and says what that costs in accuracy and wins in speed. With --front-end-in-graph,
    MODEL is a bundle too, and the result's graph takes the waveform (docs/gpu.md). Both may be given.

    Exits with 4 when the model does not fit front end and labels, or its ONNX says something else; with 5
    when what is needed to read it is not installed; with 8 when something stands at --out.
    """
    require("onnx")
    if precision != "float32" or in_graph:
        _remake(model, precision, in_graph, out, manifest, as_json)
        return
    if manifest is not None:
        raise UsageError(
            "--manifest is for --precision and --front-end-in-graph", "Leave it out, or give one of them."
        )
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


def _remake(
    model: Path, precision: Any, in_graph: bool, out: Path, manifest: Path | None, as_json: bool
) -> None:
    if in_graph:
        from drumline_convert.in_graph import put_front_end_in_graph

        report = put_front_end_in_graph(model, out, manifest, precision=precision)
    else:
        from drumline_convert.precision import reduce_precision

        report = reduce_precision(model, precision, out, manifest)
    if as_json:
        echo_json(report)
        return
    if "precision" in report:
        _show_precision(report)
    if moved := report.get("front_end_in_graph"):
        heard = counted(moved["recordings"], "recording")
        click.echo(
            f"front end in the graph: over {heard}, features differ by at most {moved['features']:.1e} dB, "
            f"probabilities by {moved['probabilities']:.1e}; the same label for {100 * moved['labels']:.2f} %"
        )
    click.echo(f"bundle {safe_text(str(out))} written")


def _show_precision(report: dict[str, Any]) -> None:
    for when in ("before", "after"):
        costs = report[when]
        size, speed = costs["bytes"] / 1e6, costs["files_per_cpu_second"]
        click.echo(f"{when:6}  {size:.2f} MB, {speed:,} files per CPU-second{_figures(costs)}")
    click.echo(f"{report['precision']}: {report['speed']:.2f} times the speed on this CPU")
    click.echo(
        f"the same label for {100 * report['agreement']:.2f} % of "
        f"{counted(report['recordings'], 'recording')}; "
        f"largest difference in a probability {report['largest_difference']:.4f}"
    )


@click.command(
    "ensemble",
    cls=Command,
    short_help="Make one bundle of several.",
    examples=(
        "drumline ensemble models/a models/b --out models/both --weights 0.6,0.4",
        "drumline ensemble models/a models/b --out models/both --manifest manifest.jsonl --split validation",
    ),
)
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLES...")
@bundle_option()
@click.option(
    "--mean",
    type=click.Choice(["geometric", "arithmetic"]),
    default="geometric",
    show_default=True,
    help="Of the members' calibrated probabilities.",
)
@click.option(
    "--weights", callback=comma_separated, help="One for each member: A,B. [default: fitted, or all equal]"
)
@manifest_option("Recordings to fit weights and temperature on, seen by no member.")
@split_option("--split", "validation")
@version_option
@json_option
def ensemble(bundles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Make one bundle of several BUNDLES: the weighted mean of what they say.

    Members that share a front end become one graph. Otherwise the bundle holds copies of its members, and
    each front end is computed once for every file. Weights are divided by their sum. With a manifest, weights
    that are not given are fitted, and the mean is calibrated by one temperature.

    Exits with 3 when a member was trained on these recordings, with 4 when the bundles have not the same
    labels, with 8 when something stands at --out.
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


@click.command(
    "gate",
    cls=Command,
    short_help="Teach a bundle what is no kit drum.",
    examples=(
        "drumline gate models/mine --manifest manifest.jsonl --out models/mine-gated",
        "drumline gate models/mine --model models/drum-or-not --manifest manifest.jsonl --out models/gated",
        "drumline gate mfcc-cnn --manifest manifest.jsonl --held-out build/model/held_out.npz --out gated",
    ),
)
@click.argument("bundle")
@bundle_option()
@manifest_option("Recordings with splits, not trained on.", required=True)
@click.option(
    "--model",
    metavar="BUNDLE",
    help="Classifier that is the gate: it rejects what it takes for misc."
    " [default: a head on BUNDLE's own logits]",
)
@click.option(
    "--held-out",
    type=path_type(),
    help="Held-out logits of BUNDLE's cross-validation to fit a head on, of one that was trained on all.",
)
@split_option("--fit-on", "validation", what="Side to fit the gate on")
@split_option("--measure-on", "test", what="Side to measure it on")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.98,
    show_default=True,
    help="Share of the kit drums of --fit-on that shall pass.",
)
@json_option
def gate(
    bundle: str, held_out: Path | None, model: str | None, as_json: bool, recall: float, **options: Any
) -> None:
    """Give BUNDLE a gate: a second opinion on whether a sound is a kit drum at all.

    What it says becomes the field gate of every record; what it rejects is misc, with the reason gated.
    Prints how much misc it keeps out of the drums on recordings that it was not fitted on.

    Exits with 3 when the manifest has not what is needed or a model was trained on it, with 4 when the
    bundles do not fit together.
    """
    require("onnx")
    from drumline_convert.gates import make_gate
    from drumline_convert.held_out_gate import make_held_out_gate

    if held_out is None:
        report = make_gate(bundle, model=model, recall=recall, **options)
    elif model is not None:
        raise click.UsageError("--held-out fits a head: it takes no --model")
    else:
        report = make_held_out_gate(bundle, options["out"], options["manifest"], held_out, recall)
    if as_json:
        echo_json(report)
        return
    found = report["measured"]
    click.echo(
        f"{found['recordings']:,} recordings: of {found['called_drums']:,} files called drums, "
        f"{100 * found['contamination']:.1f} % are none; with the gate at {report['threshold']:.4f}, of "
        f"{found['called_drums_gated']:,} {100 * found['contamination_gated']:.1f} %"
    )
    click.echo(
        f"it takes away {100 * found['removed']:.1f} % of what is no drum, and {100 * found['lost']:.1f} % "
        f"of the drums; AUROC {found['auroc']:.4f} (by the labels alone {found['auroc_of_labels']:.4f})"
    )
