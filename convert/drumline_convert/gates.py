"""Gates: a second opinion on whether a sound is a kit drum at all, as a further output of a bundle's graph.

A *head* is one linear layer and a sigmoid on the logits that the bundle gives anyway, fitted on recordings
that it was not trained on: it costs nothing at run time. A *model* is a classifier of its own on the same
front end, whose graph becomes part of the bundle's. Either way, the threshold is the highest one that still
lets the wanted share of kit drums pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle, load_bundle
from drumline.durable import new_directory, write_json
from drumline.errors import BundleError, ConfigError
from drumline_convert.bundle_writer import copy_bundle
from drumline_convert.canvas import GATE, Canvas, common_form, in_one_opset, put_together
from drumline_convert.graph import BATCH, INPUT, LOGITS, PROBABILITIES, save_graph, set_labels
from drumline_convert.labelled import Said, Truth, read_rows, rows_of, said_of, truth_of
from drumline_convert.manifest import Row
from drumline_convert.metrics import auroc
from drumline_convert.provenance import refuse_what_was_learnt

__all__ = [
    "Contamination",
    "Head",
    "check_gateless",
    "contamination",
    "fit_head",
    "gated_graph",
    "make_gate",
    "passing_threshold",
    "refuse_one_kind",
    "write_gated",
]

Floats = NDArray[np.float32]

_PENALTY = 1e-2


@dataclass(frozen=True, slots=True)
class Head:
    """One linear layer: the logit of "a kit drum" is ``logits @ weights + bias``; `weights` (labels,)."""

    weights: Floats
    bias: float

    def __call__(self, logits: Floats) -> NDArray[np.float64]:
        """Return the probability of a kit drum, (n,)."""
        return np.asarray(1.0 / (1.0 + np.exp(-(logits.astype(np.float64) @ self.weights + self.bias))))


def fit_head(logits: Floats, is_drum: NDArray[np.bool_]) -> Head:
    """Fit a head by logistic regression with a quadratic penalty, both kinds weighing the same.

    Raises
    ------
    ConfigError
        When the recordings are all drums, or none is.
    """
    from scipy.optimize import minimize

    drums = int(is_drum.sum())
    if not 0 < drums < len(is_drum):
        raise ConfigError("a gate is fitted on kit drums and other sounds; there is only one of the two")
    scale = float(np.abs(logits).max()) or 1.0
    given = logits.astype(np.float64) / scale
    weight = np.where(is_drum, 0.5 / drums, 0.5 / (len(is_drum) - drums))

    def loss(free: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        evidence = given @ free[:-1] + free[-1]
        signed = np.where(is_drum, evidence, -evidence)
        slope = -weight * np.where(is_drum, 1.0, -1.0) / (1.0 + np.exp(signed))
        value = float(weight @ np.logaddexp(0.0, -signed)) + _PENALTY / scale * float(free[:-1] @ free[:-1])
        gradient = np.append(given.T @ slope + 2 * _PENALTY / scale * free[:-1], slope.sum())
        return value, gradient

    found = minimize(loss, np.zeros(given.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Head((found[:-1] / scale).astype(np.float32), float(found[-1]))


def passing_threshold(gate: NDArray[Any], is_drum: NDArray[np.bool_], recall: float) -> float:
    """Return the highest threshold (four decimals) that at least the share `recall` of kit drums passes."""
    drums = np.sort(np.asarray(gate, np.float64)[is_drum])
    lowest = drums[int(np.floor((1.0 - recall) * len(drums)))]
    return float(np.floor(lowest * 1e4) / 1e4)


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a gate takes away, counted over labelled recordings with every label believed.

    Parameters
    ----------
    recordings, drums
        How many there are, and how many of them are kit drums.
    called_drums, contamination
        Files that are called kit drums without the gate, and the share of them that are none.
    called_drums_gated, contamination_gated
        The same with the gate.
    removed
        Share of the other sounds among the called drums that the gate takes away.
    lost
        Share of the kit drums among them that it takes away, too.
    auroc
        Of kit drums against other sounds, by what the gate says; and by the labels' own probabilities.
    """

    recordings: int
    drums: int
    called_drums: int
    contamination: float
    called_drums_gated: int
    contamination_gated: float
    removed: float
    lost: float
    auroc: float
    auroc_of_labels: float

    def to_json(self) -> dict[str, float]:
        """Return the figures by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def contamination(
    said: Said, gate: NDArray[Any], truth: Truth, threshold: float | NDArray[Any]
) -> Contamination:
    """Count what a gate takes away.

    Parameters
    ----------
    gate
        Probability of a kit drum, (n,).
    threshold
        Below it the gate rejects; one for all, or (n,).
    """
    shares = said.probabilities.astype(np.float64) @ truth.collapse
    called = shares.argmax(axis=1) != truth.collapse.shape[1] - 1
    passes = called & (np.asarray(gate) >= threshold)
    foreign, drums = called & ~truth.is_drum, called & truth.is_drum

    def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
        return round(float(part.sum()) / max(int(whole.sum()), 1), 4)

    return Contamination(
        recordings=len(called),
        drums=int(truth.is_drum.sum()),
        called_drums=int(called.sum()),
        contamination=share(foreign, called),
        called_drums_gated=int(passes.sum()),
        contamination_gated=share(foreign & passes, passes),
        removed=share(foreign & ~passes, foreign),
        lost=share(drums & ~passes, drums),
        auroc=round(auroc(np.asarray(gate, np.float64), truth.is_drum), 4),
        auroc_of_labels=round(auroc(1.0 - shares[:, -1], truth.is_drum), 4),
    )


def make_gate(
    name: str | Path,
    out: Path,
    manifest: Path,
    model: str | Path | None = None,
    fit_on: Sequence[str] = ("validation",),
    measure_on: Sequence[str] = ("test",),
    recall: float = 0.98,
) -> dict[str, Any]:
    """Write a bundle with a gate.

    Parameters
    ----------
    name
        Bundle that gets the gate.
    manifest
        Labelled recordings with splits, which the bundle was not trained on.
    model
        Bundle with a front end of the same settings whose misc is what the gate rejects; None: a head is
        fitted.
    fit_on, measure_on
        Sides of the manifest that head and threshold are fitted on, and that the result is measured on.
    recall
        Share of the kit drums, of `fit_on`, that shall pass.

    Returns
    -------
    dict
        ``kind`` (head or model), ``threshold``, ``recall``, and ``measured`` (`Contamination`).

    Raises
    ------
    BundleError
        When the bundle names members or has a gate, or the model another front end.
    ConfigError
        When the manifest has no such sides, only one kind of sound, or what a model was trained on.
    """
    bundle, other = load_bundle(name), None if model is None else load_bundle(model)
    check_gateless(bundle, other)
    fitting, measuring = rows_of(manifest, *fit_on), rows_of(manifest, *measure_on)
    for heard in (bundle,) if other is None else (bundle, other):
        refuse_what_was_learnt(
            heard, [*fitting, *measuring], "Give recordings of families it has not learnt."
        )
    truth, measured = truth_of(fitting, bundle.taxonomy), truth_of(measuring, bundle.taxonomy)
    refuse_one_kind(fit_on, truth)
    refuse_one_kind(measure_on, measured)
    head, threshold = _fitted(bundle, other, fitting, truth, recall)
    with new_directory(out) as draft:
        write_gated(bundle, gated_graph(bundle, head, other), threshold, draft, out.name)
        report = {
            "kind": "head" if other is None else "model",
            "threshold": threshold,
            "recall": recall,
            "fitted_on": {"splits": list(fit_on), "recordings": len(fitting)},
            "measured_on": {"splits": list(measure_on), "recordings": len(measuring)},
            "measured": _measured(load_bundle(draft), measuring, measured, threshold).to_json(),
        }
        write_json(draft / "gate.json", report)
    return report


def _fitted(
    bundle: Bundle, other: Bundle | None, rows: Sequence[Row], truth: Truth, recall: float
) -> tuple[Head | None, float]:
    """Return the head, None where the gate is a model of its own, and the threshold."""
    said = said_of(other or bundle, read_rows(rows, bundle.front_ends))
    if other is not None:
        return None, passing_threshold(said.probabilities @ _drum_mask(other), truth.is_drum, recall)
    head = fit_head(said.logits, truth.is_drum)
    return head, passing_threshold(head(said.logits), truth.is_drum, recall)


def _measured(made: Bundle, rows: Sequence[Row], truth: Truth, threshold: float) -> Contamination:
    said = said_of(made, read_rows(rows, made.front_ends))
    assert said.gate is not None
    return contamination(said, said.gate, truth, threshold)


def refuse_one_kind(sides: Sequence[str], truth: Truth) -> None:
    """Raise `ConfigError` unless there are kit drums and other sounds."""
    drums, others = int(truth.is_drum.sum()), int((~truth.is_drum).sum())
    if not drums or not others:
        raise ConfigError(
            f"the manifest has {drums:,} kit drums and {others:,} other sounds on {', '.join(sides)}: a gate "
            "needs both, to be fitted and to be measured",
            "Name other sides (--fit-on, --measure-on), or add recordings of label misc.",
        )


def check_gateless(bundle: Bundle, other: Bundle | None) -> None:
    """Raise `BundleError` unless the bundle can get a gate, and `other`, where there is one, can be it."""
    if bundle.members:
        raise BundleError(
            f"{bundle.name} names members", "Give one of its members a gate, and join them again."
        )
    if bundle.gate is not None:
        raise BundleError(f"{bundle.name} has a gate already", "Give the bundle that it was made of.")
    if other is not None and other.front_end != bundle.front_end:
        raise BundleError(
            f"{other.name} and {bundle.name} have other front ends: {other.front_end.name} and "
            f"{bundle.front_end.name}",
            "A gate hears what the model hears: train it on the same front end.",
        )
    if other is not None and (other.members or other.temperature is None):
        raise BundleError(f"{other.name} must be one graph, calibrated by a temperature, to be a gate")


def _drum_mask(other: Bundle) -> Floats:
    """Return 1 for each label of a gate's model that is a kit drum, else 0, (labels,)."""
    taxonomy = other.taxonomy
    drums = [taxonomy.canonical_of[label] != taxonomy.misc for label in taxonomy.fine]
    return np.asarray(drums, np.float32)


def gated_graph(bundle: Bundle, head: Head | None, other: Bundle | None) -> Any:
    """Return the bundle's graph with the further output ``gate``, (batch, 1).

    Parameters
    ----------
    head
        Goes on the bundle's logits.
    other
        Bundle of the gate's model, where there is no head: the gate is its calibrated probability of all
        labels but misc.
    """
    protos = [common_form(bundle)] + ([] if other is None else [common_form(other)])
    proto, *further = in_one_opset(protos)
    canvas = Canvas(list(proto.graph.node), list(proto.graph.initializer))
    if head is not None:
        weights = canvas.constant("gate.weights", head.weights[:, np.newaxis])
        scaled = canvas.node("MatMul", [LOGITS, weights], "gate.scaled")
        evidence = canvas.node("Add", [scaled, canvas.constant("gate.bias", head.bias)], "gate.evidence")
        canvas.node("Sigmoid", [evidence], GATE)
    for inner in further:
        assert other is not None
        _write_model(canvas, inner, other)
    outputs = {LOGITS: [BATCH, len(bundle.labels)], PROBABILITIES: [BATCH, len(bundle.labels)]}
    made = put_together(canvas, [proto, *further], bundle.front_end.shape, {**outputs, GATE: [BATCH, 1]})
    set_labels(made, bundle.labels)
    return made


def _write_model(canvas: Canvas, proto: Any, other: Bundle) -> None:
    from onnx import compose

    prefixed = compose.add_prefix(proto, "gate/", rename_functions=False)
    canvas.node("Identity", [INPUT], f"gate/{INPUT}")
    canvas.nodes.extend(prefixed.graph.node)
    canvas.weights.extend(prefixed.graph.initializer)
    temperature = canvas.constant("gate.temperature", other.temperature)
    calibrated = canvas.node("Div", [f"gate/{LOGITS}", temperature], "gate.calibrated")
    said = canvas.node("Softmax", [calibrated], "gate.said", axis=1)
    canvas.node("MatMul", [said, canvas.constant("gate.drums", _drum_mask(other)[:, np.newaxis])], GATE)


def write_gated(bundle: Bundle, proto: Any, threshold: float, draft: Path, name: str) -> None:
    """Write a copy of the bundle with its gated graph into a draft."""
    copy_bundle(
        bundle,
        draft,
        name=name,
        gate={"output": GATE, "threshold": threshold},
        input={"name": INPUT, "layout": bundle.front_end.layout},
        outputs={"logits": LOGITS, "probabilities": PROBABILITIES},
    )
    save_graph(proto, draft / bundle.model_path.name)
