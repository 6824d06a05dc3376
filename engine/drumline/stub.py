"""Stub bundles: everything a bundle has, around a tiny model that has learnt nothing.

They let the pipeline, a front end or a label list be tried before there is a trained model. The graph is
encoded by hand, so that neither `onnx` nor a training framework is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import find_bundle, load_bundle
from drumline.durable import output_errors, sync_directory, write_bytes, write_json
from drumline.errors import BundleError, OutputError
from drumline.frontend import FrontEnd
from drumline.labels import CANONICAL_LABELS, MISC, Taxonomy, read_labels
from drumline.onnxfile import bytes_field, int_field

__all__ = ["create_stub", "stub_model"]

_OPSET, _IR_VERSION = 17, 8
_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 7
_SCALE = 0.04
"""Size of the weights: logits of some units, so that confidences are spread over 0..1."""


def create_stub(output: Path, model: str | Path | None = None) -> Taxonomy:
    """Write a stub bundle.

    Parameters
    ----------
    output
        Directory to make; nothing may stand there yet.
    model
        Bundle (directory or name) whose front end, labels and mapping are taken, or a label file. None: the
        default bundle.

    Raises
    ------
    OutputError
        When something stands at `output`, or it cannot be written.
    BundleError
        When `model` cannot be read.
    """
    front_end, taxonomy = _pattern(model)
    output = Path(os.path.abspath(output))
    if os.path.lexists(output):
        raise OutputError(f"{str(output)!r} exists already", "Choose another place: nothing is overwritten.")
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        _write_members(draft, output.name, front_end, taxonomy)
        with output_errors(output):
            draft.chmod(0o777 & ~_umask())
            os.rename(draft, output)
            sync_directory(output.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return taxonomy


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _pattern(model: str | Path | None) -> tuple[FrontEnd, Taxonomy]:
    if model is None or not (path := Path(model)).is_file() or path.suffix != ".json":
        bundle = load_bundle(model)
        return bundle.front_end, bundle.taxonomy
    if path.name == "bundle.json":
        bundle = load_bundle(find_bundle(path))
        return bundle.front_end, bundle.taxonomy
    labels = read_labels(path)
    return FrontEnd(), Taxonomy(labels, {label: _guessed_canonical(label) for label in labels})


def _guessed_canonical(label: str) -> str:
    by_name = {name.lower(): name for name in CANONICAL_LABELS}
    return by_name.get(label.lower()) or _default_map().get(label, MISC)


def _default_map() -> dict[str, str]:
    try:
        return dict(load_bundle().taxonomy.canonical_of)
    except BundleError:
        return {}


def _write_members(directory: Path, name: str, front_end: FrontEnd, taxonomy: Taxonomy) -> None:
    write_bytes(directory / "model.onnx", stub_model(front_end, taxonomy.fine))
    write_json(directory / "label_mapping.json", {"labels": list(taxonomy.fine), "sha256": taxonomy.checksum})
    write_json(directory / "canonical_mapping.json", _canonical_mapping(taxonomy))
    calibration = {"method": "none", "temperature": 1.0, "version": 1, "note": "a stub has none"}
    write_json(directory / "calibration.json", calibration)
    write_bytes(directory / "MODEL_CARD.md", _card(name, taxonomy).encode())
    write_json(directory / "bundle.json", _manifest(name, front_end))


def _canonical_mapping(taxonomy: Taxonomy) -> dict[str, Any]:
    return {
        "canonical": [label for label in taxonomy.canonical if label != taxonomy.misc],
        "misc": taxonomy.misc,
        "map": dict(taxonomy.canonical_of),
    }


def _card(name: str, taxonomy: Taxonomy) -> str:
    return (
        f"# {name}\n\n"
        "**A stub: it has learnt nothing.** Its predictions are arbitrary, but the same every time.\n\n"
        f"It has the shapes of a real model ({len(taxonomy.fine)} labels), so that the pipeline, a label\n"
        "list or a front end can be tried. Made by `drumline create-stub`.\n"
    )


def _manifest(name: str, front_end: FrontEnd) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": name,
        "version": "0.0.0",
        "kind": "classifier",
        "description": "Stub that has learnt nothing; to try the pipeline.",
        "front_end": front_end.to_json(),
        "model": "model.onnx",
        "labels": "label_mapping.json",
        "canonical": "canonical_mapping.json",
        "calibration": "calibration.json",
        "input": {"name": "features", "layout": "batch, coefficients, frames"},
        "outputs": {"logits": "logits", "probabilities": "probabilities"},
    }


def stub_model(front_end: FrontEnd, labels: tuple[str, ...]) -> bytes:
    """Return an ONNX model: mean over the frames, one linear layer, softmax.

    Input ``features`` (batch, rows, frames) float32; outputs ``logits`` and ``probabilities``
    (batch, labels) float32. The bytes depend on the front end's shape and the labels only.
    """
    rows, frames = front_end.shape
    seed = hashlib.shake_256("\n".join(labels).encode()).digest(rows * len(labels))
    weights = (np.frombuffer(seed, np.uint8).astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    weights = weights.reshape(rows, len(labels)) * np.float32(_SCALE)
    if front_end.kind == "mfcc":
        weights[0] *= np.float32(0.1)  # the level, which would drown the rest
    graph = b"".join(
        [
            _node("ReduceMean", ["features"], "means", _ints("axes", [2]), _int("keepdims", 0)),
            _node("Gemm", ["means", "weights", "bias"], "logits"),
            _node("Softmax", ["logits"], "probabilities", _int("axis", 1)),
            bytes_field(2, "stub"),
            _tensor("weights", weights),
            _tensor("bias", np.zeros(len(labels), np.float32)),
            bytes_field(11, _value("features", ["batch", rows, frames])),
            bytes_field(12, _value("logits", ["batch", len(labels)])),
            bytes_field(12, _value("probabilities", ["batch", len(labels)])),
        ]
    )
    opset = bytes_field(1, "") + int_field(2, _OPSET)
    return b"".join(
        [
            int_field(1, _IR_VERSION),
            bytes_field(2, "drumline"),
            bytes_field(7, graph),
            bytes_field(8, opset),
        ]
    )


def _node(kind: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    node = b"".join(bytes_field(1, name) for name in inputs) + bytes_field(2, output) + bytes_field(4, kind)
    return bytes_field(1, node + b"".join(bytes_field(5, attribute) for attribute in attributes))


def _int(name: str, value: int) -> bytes:
    return bytes_field(1, name) + int_field(3, value) + int_field(20, _ATTRIBUTE_INT)


def _ints(name: str, values: list[int]) -> bytes:
    return (
        bytes_field(1, name)
        + b"".join(int_field(8, value) for value in values)
        + int_field(20, _ATTRIBUTE_INTS)
    )


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    dimensions = b"".join(int_field(1, size) for size in values.shape)
    data = values.astype("<f4").tobytes()
    return bytes_field(5, dimensions + int_field(2, _FLOAT) + bytes_field(8, name) + bytes_field(9, data))


def _value(name: str, shape: list[int | str]) -> bytes:
    sizes = (int_field(1, size) if isinstance(size, int) else bytes_field(2, size) for size in shape)
    dimensions = bytes_field(2, b"".join(bytes_field(1, size) for size in sizes))
    tensor_type = bytes_field(1, int_field(1, _FLOAT) + dimensions)
    return bytes_field(1, name) + bytes_field(2, tensor_type)
