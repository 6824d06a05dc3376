"""Classifiers as other people export them, built with `onnx.helper`: no training framework is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'drumline[train]'")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

TWELVE = (
    *("Kick", "Snare", "Rim", "HihatClosed", "HihatOpen", "TomLow", "TomHigh", "Crash", "Ride"),
    *("Clap", "Cowbell", "Perc"),
)
"""Labels of the log-mel CNN."""

LOG_MEL = "kind=log-mel,n_mels=128,samples=65024"
"""Its front end: 128 bands × 128 frames."""


def log_mel_cnn(batch: int | str = "s0", widths: tuple[int, ...] = (32, 64, 128, 256)) -> onnx.ModelProto:
    """Return the CNN as PyTorch lays it out: (batch, 1, 128, 128) → 12 logits, names of its own."""
    rng = np.random.default_rng(5)
    nodes, weights, current, channels = [], [], "input.1", 1
    for place, width in enumerate(widths):
        kernel = rng.normal(0, np.sqrt(2 / (9 * channels)), (width, channels, 3, 3))
        weights += [_constant(f"conv{place}.weight", kernel), _constant(f"conv{place}.bias", np.zeros(width))]
        names = [f"conv{place}", f"relu{place}", f"pool{place}"]
        nodes += [
            helper.make_node(
                "Conv", [current, weights[-2].name, weights[-1].name], [names[0]], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [names[0]], [names[1]]),
            helper.make_node("MaxPool", [names[1]], [names[2]], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        current, channels = names[2], width
    weights += [
        _constant("fc.weight", rng.normal(0, 0.05, (len(TWELVE), channels))),
        _constant("fc.bias", np.zeros(len(TWELVE))),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [current], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["17"], transB=1),
    ]
    return model(nodes, weights, [batch, 1, 128, 128], {"17": [batch, len(TWELVE)]})


def linear(shape: list[Any], classes: int, last: str = "", name: str = "output") -> onnx.ModelProto:
    """Return one linear layer over inputs of `shape`, perhaps with a node of type `last` behind it."""
    size = int(np.prod([dimension for dimension in shape[1:] if isinstance(dimension, int)]))
    weights = _constant("weights", np.random.default_rng(1).normal(0, 0.003, (size, classes)))
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores" if last else name]),
    ]
    if last == "normalised":
        nodes += [
            helper.make_node("Exp", ["scores"], ["exp"]),
            helper.make_node("ReduceSum", ["exp"], ["sum"], keepdims=1),
            helper.make_node("Div", ["exp", "sum"], [name]),
        ]
        nodes[-2].input.append("axes")
    elif last:
        nodes.append(helper.make_node(last, ["scores"], [name], axis=1))
    constants = [weights, numpy_helper.from_array(np.array([1], np.int64), "axes")]
    return model(nodes, constants, shape, {name: [shape[0], classes]})


def model(
    nodes: list[Any], weights: list[Any], shape: list[Any], outputs: dict[str, list[Any]]
) -> onnx.ModelProto:
    source = nodes[0].input[0]
    graph = helper.make_graph(
        nodes,
        "exported",
        [helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
            for name, sizes in outputs.items()
        ],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="elsewhere")
    proto.ir_version = 8
    return proto


def _constant(name: str, values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)
