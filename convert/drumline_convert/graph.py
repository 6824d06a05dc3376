"""Any ONNX classifier → the one form that the engine, ensembles and quantisation work on.

    features (batch, coefficients, frames) float32  ──►  logits, probabilities (batch, classes) float32

A model that is fed the waveform takes features (batch, samples). What a model expects otherwise (a channel
axis, frames before coefficients, flat rows) becomes nodes of its graph, so nothing else has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drumline.durable import write_bytes
from drumline.ensemble import SMALLEST_PROBABILITY
from drumline.errors import BundleError
from drumline.inference import open_graph

__all__ = [
    "BATCH",
    "INPUT",
    "LOGITS",
    "PROBABILITIES",
    "Layout",
    "Placement",
    "adapt",
    "chosen_output",
    "opset_of",
    "placement_of",
    "read_graph",
    "save_graph",
    "set_labels",
]

INPUT, LOGITS, PROBABILITIES, BATCH = "features", "logits", "probabilities", "batch"

Layout: TypeAlias = Literal["auto", "coefficients-frames", "frames-coefficients"]
"""Which axis of the model's input comes first; auto: the one that fits, coefficients where both do."""

_INSIDE = "model/"
_FLOAT = 1


def read_graph(path: Path) -> Any:
    """Read an ONNX file, with the weights that it keeps in other files, as an ``onnx.ModelProto``.

    Raises
    ------
    BundleError
        When it is none.
    """
    import onnx

    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except Exception as error:  # what protobuf, onnx and the file system raise has no common base
        raise BundleError(f"{str(path)!r} is no ONNX model: {_first_line(error)}") from error
    return proto


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def save_graph(proto: Any, path: Path) -> None:
    """Check a graph with ``onnx.checker``, types and shapes included, and write it as one file.

    Raises
    ------
    BundleError
        When it contradicts ONNX.
    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise BundleError(f"the converted graph is no ONNX: {_first_line(error)}") from error
    write_bytes(path, proto.SerializeToString())


def set_labels(proto: Any, labels: Sequence[str]) -> None:
    """Put the labels into a graph's metadata, where 'drumline validate-mapping' finds them."""
    import onnx

    onnx.helper.set_model_props(proto, {"labels": "\n".join(labels)})


def opset_of(proto: Any) -> int:
    """Return the version of ONNX's own operators that a graph uses."""
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def adapt(
    proto: Any,
    shape: tuple[int, ...],
    classes: int,
    *,
    layout: Layout = "auto",
    output: str | None = None,
) -> Any:
    """Return `proto` with the engine's input and outputs.

    Parameters
    ----------
    proto
        An ``onnx.ModelProto`` with one input and an output of scores (logits or probabilities).
    shape
        Of the features: (coefficients, frames) or (samples,).
    classes
        Labels that the model tells apart.
    layout
        How the features lie in the model's input.
    output
        Name of the output to read, where there are several.

    Raises
    ------
    BundleError
        When the model does not fit `shape` and `classes`, or takes only batches of one size.
    """
    import onnx

    scores = chosen_output([value.name for value in proto.graph.output], output)
    result = onnx.compose.add_prefix(proto, _INSIDE)
    # What was inferred for a fixed batch would contradict the one that varies.
    del result.graph.value_info[:]
    _adapt_input(result.graph, placement_of(proto, shape, layout))
    _adapt_output(result, _INSIDE + scores, shape, classes)
    return result


def chosen_output(names: Sequence[str], wanted: str | None) -> str:
    """Return the output to read: the wanted one, or ``logits``, or the only one; else raise `BundleError`."""
    known = ", ".join(map(repr, names))
    if wanted is not None and wanted not in names:
        raise BundleError(f"the model has no output {wanted!r}; it has {known}")
    if wanted is None and LOGITS not in names and len(names) > 1:
        raise BundleError(
            f"the model has several outputs: {known}", "Name the one with the scores: --output."
        )
    return wanted or (LOGITS if LOGITS in names else names[0])


@dataclass(frozen=True, slots=True)
class Placement:
    """How a model takes the features of one recording.

    Parameters
    ----------
    features
        Shape of the features, (coefficients, frames) or (samples,).
    given
        Shape that the model takes.
    transposed
        Whether frames come before coefficients there.
    """

    features: tuple[int, ...]
    given: tuple[int, ...]
    transposed: bool

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `features` (n, *self.features) as the model takes them, (n, *given)."""
        placed = features.transpose(0, 2, 1) if self.transposed else features
        return np.ascontiguousarray(placed).reshape(-1, *self.given)


def placement_of(proto: Any, shape: tuple[int, ...], layout: Layout = "auto") -> Placement:
    """Return how the one input of `proto` takes features of `shape`.

    Raises
    ------
    BundleError
        When it has several inputs, or takes no such features.
    """
    weights = {weight.name for weight in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise BundleError(f"the model has inputs {names}; a classifier of recordings has one")
    given = [_size(dimension) for dimension in inputs[0].type.tensor_type.shape.dim]
    orders = {"auto": (False, True), "coefficients-frames": (False,), "frames-coefficients": (True,)}
    for transposed in orders[layout]:
        placed = shape[::-1] if transposed else shape
        for target in (placed, (1, *placed), (*placed, 1), (math.prod(placed),)):
            if _fits(given[1:], target):
                return Placement(shape, target, transposed and len(shape) > 1)
    shown = " × ".join("any" if size is None else str(size) for size in given) or "no known shape"
    raise BundleError(
        f"the model takes inputs of {shown}, and the front end gives {' × '.join(map(str, (BATCH, *shape)))}",
        "Give the front end that the model was trained with (--front-end), or another --layout.",
    )


def _size(dimension: Any) -> int | None:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else None


def _fits(given: Sequence[int | None], target: Sequence[int]) -> bool:
    pairs = zip(given, target, strict=False)
    return len(given) == len(target) and all(size in (None, wanted) for size, wanted in pairs)


def _adapt_input(graph: Any, placement: Placement) -> None:
    from onnx import helper, numpy_helper

    weights = {weight.name for weight in graph.initializer}
    (name,) = (value.name for value in graph.input if value.name not in weights)
    sizes = numpy_helper.from_array(np.array([-1, *placement.given], np.int64), "features.shape")
    if placement.transposed:
        graph.initializer.append(sizes)
        nodes = [
            helper.make_node("Transpose", [INPUT], ["features.transposed"], perm=[0, 2, 1]),
            helper.make_node("Reshape", ["features.transposed", sizes.name], [name]),
        ]
    elif placement.given == placement.features:
        nodes = [helper.make_node("Identity", [INPUT], [name])]
    else:
        graph.initializer.append(sizes)
        nodes = [helper.make_node("Reshape", [INPUT, sizes.name], [name])]
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *rest])
    graph.input.append(helper.make_tensor_value_info(INPUT, _FLOAT, [BATCH, *placement.features]))


def _adapt_output(model: Any, scores: str, shape: tuple[int, ...], classes: int) -> None:
    from onnx import helper, numpy_helper

    graph = model.graph
    values = _values(model, scores, shape)
    if values.ndim != 2 or values.shape[1] != classes:
        given = " × ".join(map(str, values.shape[1:]))
        raise BundleError(
            f"the model gives {given} scores for a recording, there are {classes} labels",
            "Give the label file that belongs to the model: --labels.",
        )
    maker = next((node for node in graph.node if scores in node.output), None)
    nodes = [helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1)]
    if maker is not None and maker.op_type == "Softmax":
        nodes.insert(0, helper.make_node("Identity", [maker.input[0]], [LOGITS]))
    elif (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        graph.initializer.append(numpy_helper.from_array(np.asarray(SMALLEST_PROBABILITY), "smallest"))
        nodes.insert(0, helper.make_node("Max", [scores, "smallest"], ["above_zero"]))
        nodes.insert(1, helper.make_node("Log", ["above_zero"], [LOGITS]))
    else:
        nodes.insert(0, helper.make_node("Identity", [scores], [LOGITS]))
    graph.node.extend(nodes)
    del graph.output[:]
    for name in (LOGITS, PROBABILITIES):
        graph.output.append(helper.make_tensor_value_info(name, _FLOAT, [BATCH, classes]))


def _values(model: Any, output: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Run the model over a batch of three, and return one output."""
    features = np.random.default_rng(0).normal(0, 20, (3, *shape)).astype(np.float32)
    with TemporaryDirectory() as directory:
        path = Path(directory, "model.onnx")
        write_bytes(path, model.SerializeToString())
        session = open_graph(path).session
        try:
            values = np.asarray(session.run([output], {INPUT: features})[0])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise BundleError(
                f"the model does not run on a batch of three: {_first_line(error)}",
                "Export it with a batch that varies (dynamic_axes or dynamic_shapes).",
            ) from error
    if len(values) != len(features):
        raise BundleError(
            f"the model gives {len(values)} rows of scores for three recordings",
            "Export it with a batch that varies (dynamic_axes or dynamic_shapes).",
        )
    return values
