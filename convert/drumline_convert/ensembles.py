"""Several bundles → one: a single graph where they share a front end, else a bundle that names its members.

Either way, member m says p_m (calibrated), and the ensemble says

    arithmetic    p = Σ w_m p_m                       geometric    p ∝ Π p_m ^ w_m

which its own calibration may then sharpen or soften. The gate of an ensemble is the weighted arithmetic
mean of its members' gates.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle
from drumline.bundle_files import CARD_NAME, MANIFEST_NAME, PARTS, bundle_json, write_labels
from drumline.calibration import TemperatureScaling, VectorScaling
from drumline.durable import new_directory, write_bytes, write_json
from drumline.ensemble import SMALLEST_PROBABILITY, Mean, MeanKind
from drumline.errors import BundleError
from drumline_convert.bundle_writer import BundleDescription, write_bundle
from drumline_convert.canvas import FLOAT, GATE, Canvas, common_form, in_one_opset, put_together
from drumline_convert.convert_model import NOT_CALIBRATED
from drumline_convert.graph import BATCH, INPUT, LOGITS, PROBABILITIES, save_graph, set_labels
from drumline_convert.labelled import Truth
from drumline_convert.metrics import negative_log_likelihood, softmax
from drumline_convert.provenance import inherit_training_set
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = [
    "can_be_merged",
    "check_members",
    "fit_weights",
    "measured",
    "merged_graph",
    "write_ensemble",
]

Floats = NDArray[np.float32]


def can_be_merged(bundles: Sequence[Bundle]) -> bool:
    """Tell whether one graph can do what the bundles do: one front end, and calibrations that it can hold."""
    scalings = (TemperatureScaling, VectorScaling)
    simple = all(isinstance(bundle.calibrator, scalings) and not bundle.members for bundle in bundles)
    return simple and len({bundle.front_end for bundle in bundles}) == 1


def check_members(bundles: Sequence[Bundle]) -> None:
    """See that bundles can be members of one ensemble.

    Raises
    ------
    BundleError
        When there are fewer than two, their labels differ, or one is an ensemble that names members.
    """
    if len(bundles) < 2:
        raise BundleError("an ensemble needs at least two bundles")
    for bundle in bundles:
        if bundle.members:
            raise BundleError(f"{bundle.name} names members itself", "Name those members in its place.")
        if bundle.labels != bundles[0].labels:
            raise BundleError(
                f"{bundle.name} and {bundles[0].name} have other labels, or the same in another order",
                "The members of an ensemble are trained with one taxonomy.",
            )


def fit_weights(probabilities: Sequence[Floats], truth: Truth, kind: MeanKind) -> tuple[float, ...]:
    """Return the weights that make the likelihood of the canonical labels largest.

    Parameters
    ----------
    probabilities
        Of each member, calibrated, (n, labels), for recordings that none of them was trained on.
    """
    from scipy.optimize import minimize

    def weights_of(free: NDArray[np.float64]) -> NDArray[np.float64]:
        exponentials = np.exp(free - free.max())
        return np.asarray(exponentials / exponentials.sum())

    def loss(free: NDArray[np.float64]) -> float:
        mean = Mean(kind, tuple(weights_of(free).tolist()))
        shares = softmax(mean.logits(probabilities)) @ truth.collapse
        return negative_log_likelihood(shares, truth.canonical)

    found = minimize(loss, np.zeros(len(probabilities)), method="Nelder-Mead", options={"maxiter": 400})
    rounded = np.round(weights_of(found.x), 4)
    rounded[rounded.argmax()] += 1.0 - rounded.sum()
    return tuple(float(round(weight, 4)) for weight in rounded)


def merged_graph(bundles: Sequence[Bundle], mean: Mean) -> Any:
    """Return one ``onnx.ModelProto`` that does what the bundles' graphs do, their calibrations and the mean.

    Raises
    ------
    BundleError
        When a graph cannot be read.
    """
    import onnx

    shape, classes = bundles[0].front_end.shape, len(bundles[0].labels)
    graphs = in_one_opset([_with_gate(bundle) for bundle in bundles])
    canvas = Canvas([], [])
    parts, gates, inners = [], [], []
    for place, (bundle, proto) in enumerate(zip(bundles, graphs, strict=True)):
        prefix = f"member{place}/"
        inner = onnx.compose.add_prefix(proto, prefix)
        canvas.node("Identity", [INPUT], prefix + INPUT)
        inners.append(inner)
        canvas.nodes.extend(inner.graph.node)
        canvas.weights.extend(inner.graph.initializer)
        parts.append(_weighted_part(canvas, prefix, bundle, mean, mean.weights[place]))
        if bundle.gate is not None:
            gates.append((prefix + GATE, mean.weights[place]))
    _write_mean(canvas, parts, mean)
    outputs = {LOGITS: [BATCH, classes], PROBABILITIES: [BATCH, classes]}
    if gates:
        _write_gate(canvas, gates)
        outputs[GATE] = [BATCH, 1]
    merged = put_together(canvas, inners, shape, outputs)
    set_labels(merged, bundles[0].labels)
    return merged


def _with_gate(bundle: Bundle) -> Any:
    """Return a bundle's graph in the common form, with its gate as a further output."""
    from onnx import helper

    proto = common_form(bundle)
    if bundle.gate is not None:
        proto.graph.node.append(helper.make_node("Identity", [f"model/{bundle.gate.output}"], [GATE]))
        proto.graph.output.append(helper.make_tensor_value_info(GATE, FLOAT, None))
    return proto


def _weighted_part(canvas: Canvas, prefix: str, bundle: Bundle, mean: Mean, weight: float) -> str:
    calibrator, logits = bundle.calibrator, prefix + LOGITS
    if isinstance(calibrator, VectorScaling):
        scale = canvas.constant(f"{prefix}scale", calibrator.scale)
        bias = canvas.constant(f"{prefix}bias", calibrator.bias)
        scaled = canvas.node("Mul", [logits, scale], f"{prefix}scaled")
        calibrated = canvas.node("Add", [scaled, bias], f"{prefix}calibrated")
    else:
        assert isinstance(calibrator, TemperatureScaling)
        temperature = canvas.constant(f"{prefix}temperature", calibrator.temperature)
        calibrated = canvas.node("Div", [logits, temperature], f"{prefix}calibrated")
    kind = "Softmax" if mean.kind == "arithmetic" else "LogSoftmax"
    said = canvas.node(kind, [calibrated], f"{prefix}said", axis=1)
    return canvas.node("Mul", [said, canvas.constant(f"{prefix}weight", weight)], f"{prefix}part")


def _write_mean(canvas: Canvas, parts: Sequence[str], mean: Mean) -> None:
    if mean.kind == "arithmetic":
        summed = canvas.node("Sum", parts, "mean")
        smallest = canvas.constant("smallest", SMALLEST_PROBABILITY)
        canvas.node("Log", [canvas.node("Max", [summed, smallest], "above_zero")], LOGITS)
    else:
        canvas.node("Sum", parts, LOGITS)
    canvas.node("Softmax", [LOGITS], PROBABILITIES, axis=1)


def _write_gate(canvas: Canvas, gates: Sequence[tuple[str, float]]) -> None:
    total = sum(weight for _, weight in gates)
    column = canvas.constant("gate.shape", [-1, 1], np.int64)
    parts = []
    for place, (name, weight) in enumerate(gates):
        flat = canvas.node("Reshape", [name, column], f"gate{place}.column")
        share = canvas.constant(f"gate{place}.weight", weight / total if total else 1 / len(gates))
        parts.append(canvas.node("Mul", [flat, share], f"gate{place}.part"))
    canvas.node("Sum", parts, GATE)


def write_ensemble(
    bundles: Sequence[Bundle],
    mean: Mean,
    out: Path,
    version: str = "0.1.0",
    calibration: dict[str, Any] | None = None,
    figures: str = "",
) -> bool:
    """Write an ensemble as a bundle; True when it became one graph.

    Parameters
    ----------
    bundles
        The members.
    calibration
        Content of ``calibration.json``, for the logits of the mean; None: none.
    figures
        Markdown for the card: what was measured.

    Raises
    ------
    BundleError
        When the bundles cannot be members of one ensemble.
    OutputError
        When something stands at `out`, or it cannot be written.
    """
    check_members(bundles)
    merge = can_be_merged(bundles)
    description = _description(bundles, mean, out.name, version, calibration or NOT_CALIBRATED, figures)
    with new_directory(out) as draft:
        if merge:
            _write_merged(draft, bundles, mean, description)
        else:
            _write_named(draft, bundles, mean, description)
    return merge


def _write_merged(draft: Path, bundles: Sequence[Bundle], mean: Mean, description: BundleDescription) -> None:
    with TemporaryDirectory() as directory:
        graph = Path(directory, "model.onnx")
        save_graph(merged_graph(bundles, mean), graph)
        write_bundle(draft, graph, TrainingTaxonomy(bundles[0].taxonomy, {}), description)
    inherit_training_set(draft, bundles)


def _write_named(draft: Path, bundles: Sequence[Bundle], mean: Mean, description: BundleDescription) -> None:
    write_labels(draft, bundles[0].taxonomy)
    write_json(draft / PARTS["calibration"], description.calibration)
    write_bytes(draft / CARD_NAME, description.card.encode())
    names = [f"member{place}-{bundle.path.name}" for place, bundle in enumerate(bundles)]
    for name, bundle in zip(names, bundles, strict=True):
        shutil.copytree(bundle.path, draft / name)
    pairs = zip(names, mean.weights, strict=True)
    members = [{"bundle": name, "weight": weight} for name, weight in pairs]
    about = (description.name, description.version, description.description)
    value = bundle_json(*about, None, mean=mean.kind, members=members, **description.extra)
    write_json(draft / MANIFEST_NAME, value)


def _description(
    bundles: Sequence[Bundle],
    mean: Mean,
    name: str,
    version: str,
    calibration: dict[str, Any],
    figures: str,
) -> BundleDescription:
    names = ", ".join(f"{bundle.name} {bundle.version}" for bundle in bundles)
    table = "\n".join(
        f"| {bundle.name} {bundle.version} | {bundle.front_end.name} | {weight:.4f} |"
        for bundle, weight in zip(bundles, mean.weights, strict=True)
    )
    card = (
        f"# {name} {version}\n\nThe {mean.kind} mean of {len(bundles)} bundles.\n\n"
        f"| member | front end | weight |\n|---|---|---|\n{table}\n\n{figures}"
        "What they were trained on, and under which licences, their own cards say"
        + (":\n\n" + "\n\n".join(map(_card, bundles)) if can_be_merged(bundles) else ".")
        + "\n"
    )
    thresholds = [bundle.gate.threshold for bundle in bundles if bundle.gate is not None]
    extra = {"gate": {"output": GATE, "threshold": float(np.mean(thresholds))}} if thresholds else {}
    description = f"{mean.kind.capitalize()} mean of {names}"
    return BundleDescription(name, version, description, bundles[0].front_end, calibration, card, extra)


def _card(bundle: Bundle) -> str:
    try:
        text = (bundle.path / CARD_NAME).read_text("utf-8", "replace")
    except OSError:
        return f"## {bundle.name}\n\nThis bundle has no card."
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())


def measured(probabilities: Floats, truth: Truth) -> dict[str, float]:
    """Return accuracy and negative log-likelihood of the canonical labels."""
    shares = probabilities.astype(np.float64) @ truth.collapse
    return {
        "accuracy": round(float((shares.argmax(axis=1) == truth.canonical).mean()), 4),
        "nll": round(negative_log_likelihood(shares, truth.canonical), 4),
    }
