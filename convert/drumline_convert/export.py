"""Trained models → ONNX: one graph from features to logits and probabilities, checked against its origin.

From Keras by ``tf2onnx.convert.from_function``, since `from_keras` fails on Keras 3 models; from PyTorch by
``torch.onnx.export`` of a saved ``ExportedProgram`` (``.pt2``). Either result goes through
`drumline_convert.graph.adapt` and `onnx.checker`, because converters only log operators that ONNX lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.calibration import softmax
from drumline.errors import BundleError, RuntimeMissingError
from drumline.frontend import FrontEnd
from drumline.inference import open_graph
from drumline_convert.graph import (
    INPUT,
    LOGITS,
    PROBABILITIES,
    adapt,
    chosen_output,
    read_graph,
    save_graph,
)

__all__ = ["OPSET", "Source", "check_parity", "compare", "export_onnx", "onnx_outputs", "open_source"]

OPSET = 17
"""Of what is converted from Keras."""
TORCH_OPSET = 18
"""Of what is converted from PyTorch."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """A trained model, as its own framework runs it.

    Parameters
    ----------
    framework
        Keras, PyTorch or ONNX, with its version.
    proto
        The same model as an ``onnx.ModelProto``.
    run
        (n, …) as the model takes it, and the name of an output or None → scores (n, classes).
    """

    framework: str
    proto: Any
    run: Callable[[Floats, str | None], Floats]


def open_source(path: Path) -> Source:
    """Read a model by its suffix: ``.keras`` (or ``.h5``), ``.pt2``, else ONNX.

    Raises
    ------
    BundleError
        When it cannot be read.
    RuntimeMissingError
        When its framework is not installed.
    """
    if not path.is_file():
        raise BundleError(f"no model at {str(path)!r}")
    if path.suffix in (".keras", ".h5"):
        return _keras_source(path)
    return _torch_source(path) if path.suffix in (".pt2", ".pt", ".pth") else _onnx_source(path)


def _keras_source(path: Path) -> Source:
    _require("keras", path)
    from drumline_convert.training import prepare_tensorflow

    prepare_tensorflow()
    import keras

    try:
        model = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"cannot load the Keras model {str(path)!r}: {error}") from error
    return Source(
        f"Keras {keras.__version__}",
        keras_graph(model),
        lambda given, _output: np.asarray(model.predict(given, batch_size=64, verbose=0), np.float32),
    )


def _torch_source(path: Path) -> Source:
    _require("torch", path)
    import torch

    try:
        program = torch.export.load(path)
    except Exception as error:  # PyTorch raises whatever its readers raise
        raise BundleError(
            f"{str(path)!r} is no exported PyTorch program: {error}",
            "Save it with torch.export.save(torch.export.export(model, …), 'model.pt2'): "
            "a file of weights alone does not say what the model computes.",
        ) from error
    module = program.module()

    def run(given: Floats, _output: str | None) -> Floats:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(given)).numpy(), np.float32)

    with TemporaryDirectory() as directory:
        exported = Path(directory, "model.onnx")
        torch.onnx.export(program, f=exported, dynamo=True, opset_version=TORCH_OPSET, external_data=False)
        return Source(f"PyTorch {torch.__version__}", read_graph(exported), run)


def _onnx_source(path: Path) -> Source:
    proto = read_graph(path)
    graph = open_graph(path)
    name = graph.session.get_inputs()[0].name
    maker = f"{proto.producer_name} {proto.producer_version}".strip() or "unknown origin"

    def run(given: Floats, output: str | None) -> Floats:
        wanted = chosen_output(list(graph.outputs), output)
        return np.asarray(graph.session.run([wanted], {name: given})[0])

    return Source(f"ONNX by {maker}", proto, run)


def _require(package: str, path: Path) -> None:
    if find_spec(package) is None:
        raise RuntimeMissingError(f"{path.name} needs {package}", f"pip install {package}")


def keras_graph(model: Any) -> Any:
    """Return a Keras model of one input and one output as an ``onnx.ModelProto``, batch varying."""
    import tensorflow as tf
    import tf2onnx

    def function(features: Any) -> Any:
        return {"scores": tf.identity(model(features, training=False))}

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=INPUT)]
    proto, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature), input_signature=signature, opset=OPSET
    )
    return proto


def export_onnx(model: Any, front_end: FrontEnd, path: Path) -> None:
    """Write a Keras `model` as ONNX with outputs ``logits`` and ``probabilities``.

    The input is named ``features`` (batch, coefficients, frames) float32, and ``batch`` varies.
    """
    save_graph(adapt(keras_graph(model), front_end.shape, model.output_shape[-1]), path)


def onnx_outputs(path: Path, features: Floats, batch: int = 64) -> dict[str, Floats]:
    """Run an adapted graph over `features` (n, coefficients, frames) as the engine does."""
    session = open_graph(path).session
    names = [LOGITS, PROBABILITIES]
    parts = [
        session.run(names, {INPUT: np.ascontiguousarray(features[start : start + batch], np.float32)})
        for start in range(0, len(features), batch)
    ]
    return {name: np.concatenate([part[column] for part in parts]) for column, name in enumerate(names)}


def check_parity(path: Path, model: Any, features: Floats, tolerance: float = 1e-5) -> dict[str, float]:
    """Compare the ONNX file at `path` with the Keras `model` over `features`; see `compare`."""
    return compare(
        path, np.asarray(model.predict(features, batch_size=64, verbose=0)), features, "Keras", tolerance
    )


def compare(
    path: Path, scores: Floats, features: Floats, framework: str, tolerance: float = 1e-5
) -> dict[str, float]:
    """Compare an adapted graph with what its origin says of `features` (n, coefficients, frames).

    Parameters
    ----------
    scores
        Of the origin, (n, classes): logits or probabilities.
    tolerance
        Largest difference of a probability that is allowed.

    Returns
    -------
    dict
        ``files`` compared, and the largest difference of ``probabilities``, of ``logits`` (where the origin
        gives them), between the ``softmax`` of the logits and the probabilities, and between batches of one
        and of 64 (``batch``).

    Raises
    ------
    BundleError
        When a probability differs by more than `tolerance`.
    """
    ours, alone = onnx_outputs(path, features), onnx_outputs(path, features[:16], batch=1)
    are_probabilities = (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3)
    expected = scores if are_probabilities else softmax(scores)
    result = {
        "files": float(len(features)),
        "probabilities": _largest(ours[PROBABILITIES], expected),
        "softmax": _largest(ours[PROBABILITIES], softmax(ours[LOGITS])),
        "batch": _largest(ours[PROBABILITIES][:16], alone[PROBABILITIES]),
    }
    if not are_probabilities:
        result["logits"] = _largest(ours[LOGITS], scores)
    if not max(result["probabilities"], result["batch"]) <= tolerance:
        worst = max(result["probabilities"], result["batch"])
        raise BundleError(
            f"ONNX and {framework} differ by {worst:.2g} in a probability (allowed {tolerance:g})"
        )
    return result


def _largest(ours: Floats, theirs: Floats) -> float:
    return float(np.abs(ours - theirs).max())
