"""`drumline models`, `validate-mapping` and `create-stub`: model bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, safe_text, stdout_console
from drumline.inputs import read_regular

if TYPE_CHECKING:
    from drumline.bundle import Bundle

__all__ = ["create_stub_command", "models_command", "validate_mapping_command"]

_LARGEST_CARD_BYTES = 1 << 20


@click.command(
    "models",
    cls=Command,
    short_help="List the model bundles, or show a card.",
    examples=("drumline models", "drumline models mfcc-cnn", "drumline models --json | jq '.[].name'"),
)
@click.argument("name", required=False)
@json_option
def models_command(name: str | None, as_json: bool) -> None:
    """List the model bundles, or show the card of the one called NAME (or a directory).

    Bundles are looked for in ./models and in what came with drumline. Exits with 4 when NAME is none.
    """
    if name is None:
        _list(as_json)
    else:
        _show(name, as_json)


def _list(as_json: bool) -> None:
    from drumline.bundle import shipped_bundles

    found = [_about(path) for path in shipped_bundles()]
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo("There is no bundle here. Make one to try: drumline create-stub --output models/stub")
    _print_list(found)


def _about(path: Path) -> dict[str, Any]:
    """Return a bundle in plain values; one that cannot be read has an `error` instead."""
    from drumline.bundle import load_bundle
    from drumline.errors import BundleError
    from drumline.records import display_path

    place = {"name": path.name, "path": display_path(path)}
    try:
        return place | _facts(load_bundle(path)) | {"error": None}
    except BundleError as error:
        return place | {"error": error.what}


def _facts(bundle: Bundle) -> dict[str, Any]:
    from drumline.bundle import DEFAULT_BUNDLE

    return {
        "name": bundle.name,
        "version": bundle.version,
        "default": bundle.path.name == DEFAULT_BUNDLE,
        "description": bundle.description,
        "labels": list(bundle.labels),
        "canonical_labels": list(bundle.taxonomy.canonical),
        "label_checksum": bundle.taxonomy.checksum,
        "front_end": bundle.front_end.to_json(),
        "front_end_in_graph": bundle.front_end_in_graph and bundle.front_end_in_graph.to_json(),
        "front_end_name": bundle.front_end_name,
        "input_shape": list(bundle.row_shape),
        "model_bytes": bundle.model_bytes,
        "ensemble": _ensemble(bundle),
        "temperature": bundle.temperature,
        "operating_points": {name: dict(point) for name, point in bundle.operating_points.items()},
        "gate": None if bundle.gate is None else {"threshold": bundle.gate.threshold},
        "calibration": bundle.calibration,
        "fingerprint": bundle.fingerprint,
    }


def _ensemble(bundle: Bundle) -> dict[str, Any] | None:
    if bundle.mean is None:
        return None
    pairs = zip(bundle.members, bundle.mean.weights, strict=True)
    members = [{"name": member.name, "weight": weight} for member, weight in pairs]
    return {"mean": bundle.mean.kind, "members": members}


def _print_list(bundles: list[dict[str, Any]]) -> None:
    for bundle in bundles:
        if bundle["error"]:
            click.echo(f"{safe_text(bundle['name'])}: {safe_text(bundle['error'])}", err=True)
            continue
        default = "  (default)" if bundle["default"] else ""
        click.echo(f"{safe_text(bundle['name'])} {safe_text(bundle['version'])}{default}")
        click.echo(f"  {_shape(bundle)}")
        if bundle["description"]:
            click.echo(f"  {safe_text(bundle['description'])}")


def _shape(bundle: dict[str, Any]) -> str:
    shape = " × ".join(map(str, bundle["input_shape"]))
    size = f"{bundle['model_bytes'] / 1e6:.2f} MB"
    labels = f"{len(bundle['labels'])} labels, {len(bundle['canonical_labels'])} canonical"
    temperature = bundle["temperature"]
    method = bundle["calibration"].get("method") if temperature is None else f"temperature {temperature:.3f}"
    points = "".join(f"; {name}" for name in bundle["operating_points"])
    gate = "" if bundle["gate"] is None else f"; gate {bundle['gate']['threshold']:.2f}"
    return f"{labels}; {bundle['front_end_name']} {shape}; {size}; {method}{points}{gate}"


def _show(name: str, as_json: bool) -> None:
    from drumline.bundle import load_bundle

    bundle = load_bundle(name)
    card = _card(bundle)
    if as_json:
        mapping = dict(bundle.taxonomy.canonical_of)
        echo_json(_about(bundle.path) | {"canonical_map": mapping, "card": card})
        return
    from rich.markdown import Markdown

    console = stdout_console()
    _print_list([_about(bundle.path)])
    console.print()
    console.print(Markdown("".join(char for char in card if char == "\n" or char.isprintable())))


def _card(bundle: Bundle) -> str:
    try:
        return read_regular(bundle.path / "MODEL_CARD.md", _LARGEST_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return "This bundle has no card."


@click.command(
    "validate-mapping",
    cls=Command,
    short_help="Check that a label file belongs to a model.",
    examples=(
        "drumline validate-mapping --model mfcc-cnn --mapping label_mapping.json",
        "drumline validate-mapping --model export/model.onnx --mapping labels.json --json",
    ),
)
@click.option(
    "--model", required=True, metavar="MODEL", help="Bundle (directory or name), .onnx or .keras file."
)
@click.option("--mapping", type=path_type(), required=True, help="Label file to check.")
@json_option
def validate_mapping_command(model: str, mapping: Path, as_json: bool) -> int:
    """Check that a label file belongs to a model: length, order, and checksum of the raw label list.

    What a lone .onnx or .keras file does not say is reported as unknown, and is no failure. A .keras file
    needs the `train` extra. Exits with 4 when the mapping does not belong to the model.
    """
    from drumline.errors import BundleError
    from drumline.mapping import validate_mapping

    checks = validate_mapping(model, mapping)
    valid = all(check.passed is not False for check in checks)
    if as_json:
        plain = [{"check": check.name, "passed": check.passed, "detail": check.detail} for check in checks]
        echo_json({"valid": valid, "checks": plain})
    else:
        for check in checks:
            click.echo(f"{_verdict(check.passed):8} {check.name:9} {safe_text(check.detail)}")
    return 0 if valid else BundleError.exit_code


def _verdict(passed: bool | None) -> str:
    return "unknown" if passed is None else "ok" if passed else "WRONG"


@click.command(
    "create-stub",
    cls=Command,
    short_help="Make a bundle around a model that knows nothing.",
    examples=(
        "drumline create-stub --output models/stub",
        "drumline create-stub --model my_labels.json --output models/mine",
        "drumline infer ARCHIVE --model models/stub",
    ),
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Bundle whose front end and labels are taken, or a label file [default: mfcc-cnn].",
)
@click.option("--output", type=path_type(), required=True, help="Directory to make; it must not exist.")
def create_stub_command(model: str | None, output: Path) -> None:
    """Make a complete bundle around a tiny model that has learnt nothing, to try the pipeline with.

    Needs neither a training framework nor data. Nothing is ever overwritten: exits with 8 when something
    stands at --output.
    """
    from drumline.stub import create_stub

    taxonomy = create_stub(output, model)
    name = safe_text(str(output))
    click.echo(f"Wrote {name} ({len(taxonomy.fine)} labels). Try it: drumline infer ARCHIVE --model {name}")
