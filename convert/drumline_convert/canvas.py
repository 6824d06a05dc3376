"""Graphs put together of other graphs: for ensembles and gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from drumline.bundle import Bundle
from drumline_convert.graph import BATCH, INPUT, adapt, opset_of, read_graph

__all__ = ["FLOAT", "GATE", "Canvas", "common_form", "in_one_opset", "put_together"]

GATE: Final = "gate"
"""Name of the output that says whether a sound is a kit drum."""

FLOAT: Final = 1
"""``onnx.TensorProto.FLOAT``, without importing onnx."""


@dataclass
class Canvas:
    """Nodes and constants of a graph that is being put together."""

    nodes: list[Any]
    weights: list[Any]

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: Any, kind: Any = np.float32) -> str:
        """Add a constant, and return its name."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name


def common_form(bundle: Bundle) -> Any:
    """Return a bundle's graph with the engine's input and outputs; see `drumline_convert.graph.adapt`."""
    proto = read_graph(bundle.model_path)
    names = [value.name for value in proto.graph.output]
    scores = bundle.logits_name if bundle.logits_name in names else bundle.probabilities_name
    return adapt(proto, bundle.front_end.shape, len(bundle.labels), output=scores)


def in_one_opset(graphs: list[Any]) -> list[Any]:
    """Return the graphs with the newest of their opsets."""
    from onnx import version_converter

    newest = max(map(opset_of, graphs))
    return [
        graph if opset_of(graph) == newest else version_converter.convert_version(graph, newest)
        for graph in graphs
    ]


def put_together(
    canvas: Canvas, graphs: Sequence[Any], shape: tuple[int, ...], outputs: dict[str, list[Any]]
) -> Any:
    """Return the ``onnx.ModelProto`` of a canvas, with the operators that `graphs` needed."""
    from onnx import helper

    given = [helper.make_tensor_value_info(INPUT, FLOAT, [BATCH, *shape])]
    given_out = [helper.make_tensor_value_info(name, FLOAT, sizes) for name, sizes in outputs.items()]
    graph = helper.make_graph(canvas.nodes, "ensemble", given, given_out, canvas.weights)
    opsets = {entry.domain: entry for proto in graphs for entry in proto.opset_import}
    functions = [function for proto in graphs for function in proto.functions]
    merged = helper.make_model(
        graph, opset_imports=list(opsets.values()), functions=functions, producer_name="drumline"
    )
    merged.ir_version = max(proto.ir_version for proto in graphs)
    return merged
