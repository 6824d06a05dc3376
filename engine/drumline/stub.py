"""Stub bundles: everything a bundle has, around a tiny model that has learnt nothing.

They let the pipeline, a front end or a label list be tried before there is a trained model. The graph is
encoded by `drumline.onnxfile`, so that neither `onnx` nor a training framework is needed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from drumline.bundle import find_bundle, load_bundle
from drumline.bundle_files import CARD_NAME, MANIFEST_NAME, PARTS, bundle_json, write_labels
from drumline.durable import new_directory, write_bytes, write_json
from drumline.errors import BundleError
from drumline.frontend import FrontEnd
from drumline.labels import CANONICAL_LABELS, MISC, Taxonomy, read_labels
from drumline.onnxfile import encode_model, encode_node
from drumline.records import display_path

__all__ = ["create_stub", "stub_model"]

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
    with new_directory(output) as draft:
        _write_parts(draft, display_path(Path(os.path.abspath(output)).name), front_end, taxonomy)
    return taxonomy


def _pattern(model: str | Path | None) -> tuple[FrontEnd, Taxonomy]:
    if model is None or not (path := Path(model)).is_file() or path.suffix != ".json":
        bundle = load_bundle(model)
        return bundle.front_end, bundle.taxonomy
    if path.name == MANIFEST_NAME:
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


def _write_parts(directory: Path, name: str, front_end: FrontEnd, taxonomy: Taxonomy) -> None:
    write_bytes(directory / PARTS["model"], stub_model(front_end, taxonomy.fine))
    write_labels(directory, taxonomy)
    calibration = {"method": "none", "temperature": 1.0, "version": 1, "note": "a stub has none"}
    write_json(directory / PARTS["calibration"], calibration)
    write_bytes(directory / CARD_NAME, _card(name, taxonomy).encode())
    description = "Stub that has learnt nothing; to try the pipeline."
    write_json(directory / MANIFEST_NAME, bundle_json(name, "0.0.0", description, front_end))


def _card(name: str, taxonomy: Taxonomy) -> str:
    return (
        f"# {name}\n\n"
        "**A stub: it has learnt nothing.** Its predictions are arbitrary, but the same every time.\n\n"
        f"It has the shapes of a real model ({len(taxonomy.fine)} labels), so that the pipeline, a label\n"
        "list or a front end can be tried. Made by `drumline create-stub`.\n"
    )


def stub_model(front_end: FrontEnd, labels: tuple[str, ...]) -> bytes:
    """Return an ONNX model: mean over the frames, if there are any, one linear layer, softmax.

    Input ``features`` (batch, rows, frames) or (batch, samples) float32; outputs ``logits`` and
    ``probabilities`` (batch, labels) float32. The bytes depend on the front end's shape and the labels only.
    """
    rows, *frames = front_end.shape
    seed = hashlib.shake_256("\n".join(labels).encode()).digest(rows * len(labels))
    weights = (np.frombuffer(seed, np.uint8).astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    weights = weights.reshape(rows, len(labels)) * np.float32(_SCALE)
    if front_end.kind == "mfcc":
        weights[0] *= np.float32(0.1)  # the level, which would drown the rest
    sizes = ("batch", len(labels))
    return encode_model(
        nodes=[
            encode_node("ReduceMean", ["features"], "means", axes=[2], keepdims=0)
            if frames
            else encode_node("Identity", ["features"], "means"),
            encode_node("Gemm", ["means", "weights", "bias"], "logits"),
            encode_node("Softmax", ["logits"], "probabilities", axis=1),
        ],
        weights={"weights": weights, "bias": np.zeros(len(labels), np.float32)},
        inputs={"features": ("batch", rows, *frames)},
        outputs={"logits": sizes, "probabilities": sizes},
    )
