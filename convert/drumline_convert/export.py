"""Keras → ONNX: one graph from raw MFCC to logits and probabilities, checked against Keras.

`tf2onnx.convert.from_function` is used, since `from_keras` fails on Keras 3 models; the result is checked
by `onnx.checker` because the converter only logs operators that ONNX lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.calibration import softmax
from drumline.durable import write_bytes
from drumline.errors import BundleError
from drumline.frontend import FrontEnd
from drumline.inference import open_graph

__all__ = ["OPSET", "check_parity", "export_onnx", "onnx_outputs"]

OPSET = 17


def export_onnx(model: Any, front_end: FrontEnd, path: Path) -> None:
    """Write `model` (MFCC → logits) as ONNX with outputs ``logits`` and ``probabilities``.

    The input is named ``features`` (batch, coefficients, frames) float32, and ``batch`` is dynamic.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx

    def function(features: Any) -> dict[str, Any]:
        logits = model(features, training=False)
        return {"logits": tf.identity(logits), "probabilities": tf.nn.softmax(logits)}

    signature = [tf.TensorSpec((None, *front_end.shape), tf.float32, name="features")]
    proto, _ = tf2onnx.convert.from_function(
        tf.function(function, input_signature=signature), input_signature=signature, opset=OPSET
    )
    _name_batch(proto)
    names = [output.name for output in proto.graph.output]
    if sorted(names) != ["logits", "probabilities"]:
        raise BundleError(f"the converted graph has outputs {names}, not logits and probabilities")
    onnx.checker.check_model(proto, full_check=True)
    write_bytes(path, proto.SerializeToString())


def _name_batch(proto: Any) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def onnx_outputs(
    path: Path, features: NDArray[np.float32], batch: int = 64
) -> dict[str, NDArray[np.float32]]:
    """Run an ONNX model over `features` (n, coefficients, frames) as the engine does, on one CPU thread."""
    session = open_graph(path).session
    names = ["logits", "probabilities"]
    parts = [
        session.run(names, {"features": np.ascontiguousarray(features[start : start + batch], np.float32)})
        for start in range(0, len(features), batch)
    ]
    return {name: np.concatenate([part[column] for part in parts]) for column, name in enumerate(names)}


def check_parity(
    path: Path, model: Any, features: NDArray[np.float32], tolerance: float = 1e-5
) -> dict[str, float]:
    """Compare the ONNX model with Keras over `features` (n, coefficients, frames).

    Returns
    -------
    dict
        ``files`` compared, and the largest difference of ``probabilities``, of ``logits``, and between
        the softmax of the logits and the probabilities.

    Raises
    ------
    BundleError
        When a probability differs by more than `tolerance`.
    """
    logits = np.asarray(model.predict(features, batch_size=64, verbose=0))
    ours = onnx_outputs(path, features)
    result = {
        "files": float(len(features)),
        "probabilities": float(np.abs(ours["probabilities"] - softmax(logits)).max()),
        "logits": float(np.abs(ours["logits"] - logits).max()),
        "softmax": float(np.abs(ours["probabilities"] - softmax(ours["logits"])).max()),
    }
    if not result["probabilities"] <= tolerance:
        raise BundleError(
            f"ONNX and Keras differ by {result['probabilities']:.2g} in a probability (allowed {tolerance:g})"
        )
    return result
