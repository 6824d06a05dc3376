"""Does a label file belong to a model? Length, order and checksum of the raw label list."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from drumline.bundle import find_bundle, load_bundle
from drumline.errors import BundleError, RuntimeMissingError
from drumline.labels import label_checksum, read_labels

__all__ = ["Check", "ModelLabels", "model_labels", "validate_mapping"]

_METADATA_KEYS = ("labels", "label_mapping", "classes", "names")


@dataclass(frozen=True, slots=True)
class ModelLabels:
    """What a model itself says about its labels.

    Parameters
    ----------
    source
        Where that was read.
    outputs
        Number of classes; None where it varies or cannot be seen.
    labels
        Labels in output order; None where the model does not say.
    """

    source: str
    outputs: int | None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `passed` is None where the model does not say enough."""

    name: str
    passed: bool | None
    detail: str


def validate_mapping(model: str | Path, mapping: Path) -> list[Check]:
    """Check a label file against a model.

    Parameters
    ----------
    model
        Bundle (directory or name), ``.onnx`` or ``.keras`` file.
    mapping
        Label file.

    Raises
    ------
    BundleError
        When one of them cannot be read.
    RuntimeMissingError
        When the model needs a package that is not installed.
    """
    labels, about = read_labels(mapping), model_labels(model)
    return [
        _length_check(labels, about),
        _order_check(labels, about),
        _checksum_check(labels, about),
    ]


def _length_check(labels: tuple[str, ...], about: ModelLabels) -> Check:
    if about.outputs is None:
        return Check("length", None, f"{about.source} does not say how many classes it gives")
    detail = f"model gives {about.outputs} classes, label file has {len(labels)}"
    return Check("length", about.outputs == len(labels), detail)


def _order_check(labels: tuple[str, ...], about: ModelLabels) -> Check:
    if about.labels is None:
        return Check("order", None, f"{about.source} does not name its labels")
    pairs = enumerate(zip(about.labels, labels, strict=False))
    place = next((place for place, (theirs, ours) in pairs if theirs != ours), None)
    if place is not None:
        detail = f"output {place} is {about.labels[place]!r}, the label file has {labels[place]!r} there"
        return Check("order", False, detail)
    return Check("order", len(labels) == len(about.labels), f"{len(labels)} labels in the model's order")


def _checksum_check(labels: tuple[str, ...], about: ModelLabels) -> Check:
    ours = label_checksum(labels)
    if about.labels is None:
        return Check("checksum", None, f"{ours}; {about.source} has none to compare")
    theirs = label_checksum(about.labels)
    return Check("checksum", ours == theirs, ours if ours == theirs else f"{ours}, the model's is {theirs}")


def model_labels(model: str | Path) -> ModelLabels:
    """Return what a model says about its labels; raises as `validate_mapping`."""
    path = Path(model)
    if path.suffix == ".onnx":
        return _of_onnx(path)
    if path.suffix in (".keras", ".h5"):
        return _of_keras(path)
    bundle = load_bundle(find_bundle(model))
    return ModelLabels(f"bundle {bundle.name}", _of_onnx(bundle.model_path).outputs, bundle.labels)


def _of_onnx(path: Path) -> ModelLabels:
    from drumline.inference import open_graph

    graph = open_graph(path)
    found = (graph.metadata[key] for key in _METADATA_KEYS if key in graph.metadata)
    return ModelLabels(path.name, graph.classes, _parse_labels(next(found, "")))


def _parse_labels(text: str) -> tuple[str, ...] | None:
    """Read a list of labels from a model's metadata: JSON, or one a line, or separated by commas."""
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = [part.strip() for part in text.split("\n" if "\n" in text else ",") if part.strip()]
    if isinstance(value, dict):
        value = [value.get(str(place)) for place in range(len(value))]
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        return None
    return tuple(value)


def _of_keras(path: Path) -> ModelLabels:
    if not path.is_file():
        raise BundleError(f"no model at {str(path)!r}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import keras
    except ImportError as error:
        raise RuntimeMissingError(
            f"Keras is needed to read {path.name}: {error}", 'pip install "path/to/drumline[train]"'
        ) from error
    try:
        shape = keras.saving.load_model(path, compile=False, safe_mode=True).output_shape
    except Exception as error:  # Keras raises whatever its layers raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BundleError(f"Keras cannot read {str(path)!r}: {cause}") from error
    size = shape[-1] if isinstance(shape, tuple) and shape else None
    return ModelLabels(path.name, size if isinstance(size, int) else None)
