"""Bundles in smaller numbers: int8 for CPUs, fp16 for GPUs, each with what it costs and what it wins.

What stands before the first convolutions of a graph stays in float32: it takes cepstral coefficients of up to
a thousand decibels, whose steps in 8 bits would be larger than most of what follows is about.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle, load_bundle
from drumline.bundle_files import CARD_NAME
from drumline.durable import new_directory, write_bytes, write_json
from drumline.errors import BundleError, UsageError
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.inference import open_session
from drumline_convert.bundle_writer import copy_bundle
from drumline_convert.cost import files_per_cpu_second
from drumline_convert.ensembles import measured
from drumline_convert.graph import read_graph, save_graph
from drumline_convert.labelled import Said, read_rows, rows_of, said_of, truth_of
from drumline_convert.manifest import Row
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = [
    "PARITY",
    "Precision",
    "drawn",
    "half_graph",
    "int8_graph",
    "reduce_precision",
    "synthesised",
]

Floats = NDArray[np.float32]
Precision: TypeAlias = Literal["int8", "fp16"]

_CALIBRATED_ON = 512
_BATCH = 32
_ROUNDS = 20
_SYNTHESISED = 64
PARITY = 0.01
"""Largest difference of a confidence that fp16 may make."""


def reduce_precision(
    name: str | Path,
    precision: Precision,
    out: Path,
    manifest: Path | None = None,
    calibrate_on: Sequence[str] = ("train",),
    measure_on: Sequence[str] = ("validation", "test"),
    seed: int = 0,
) -> dict[str, Any]:
    """Write a bundle with the same model in smaller numbers.

    Parameters
    ----------
    name
        The bundle; one graph, no ensemble that names members.
    out
        Bundle to make.
    manifest
        Labelled recordings. int8 needs them, to see which values occur; both are measured on them.
    calibrate_on, measure_on
        Sides of the manifest: what int8's ranges come from (at most 512 recordings, drawn by `seed`), and
        what accuracy is measured on. They share no family, since splits never do.

    Returns
    -------
    dict
        ``before`` and ``after`` with ``bytes``, ``files_per_cpu_second`` and, with a manifest, ``accuracy``
        and ``nll``; ``speed`` (ratio); over so many ``recordings`` (synthesised ones without a manifest)
        ``agreement`` of canonical labels and ``largest_difference`` of a probability.

    Raises
    ------
    UsageError
        When int8 is asked for without a manifest.
    BundleError
        When the graph cannot be converted, or fp16 says something else: another canonical label, or a
        confidence that differs by more than 0.01.
    """
    bundle = load_bundle(name)
    _check_can_be_reduced(bundle)
    if precision == "int8" and manifest is None:
        raise UsageError("int8 needs recordings to see which values occur", "Give them with --manifest.")
    with TemporaryDirectory() as directory, new_directory(out) as draft:
        graph = Path(directory, "model.onnx")
        if precision == "int8":
            assert manifest is not None
            rows = rows_of(manifest, *calibrate_on)
            chosen = [rows[place] for place in drawn(len(rows), seed).tolist()]
            features = read_rows(chosen, bundle.front_ends)
            int8_graph(bundle.model_path, bundle.input_name, features, graph)
        else:
            half_graph(bundle.model_path, graph)
        _copy_with(bundle, graph, draft, out.name, precision)
        labelled = None if manifest is None else rows_of(manifest, *measure_on)
        report = _compared(bundle, load_bundle(draft), labelled, precision)
        write_json(draft / "conversion.json", report)
    return report


def _check_can_be_reduced(bundle: Bundle) -> None:
    if bundle.members:
        raise BundleError(
            f"{bundle.name} names members", "Convert each of them, and make the ensemble of the results."
        )
    if bundle.front_end_in_graph is not None:
        raise BundleError(
            f"{bundle.name} has its front end in the graph, which keeps its precision",
            "Convert the bundle that it was made of, with --precision and --front-end-in-graph together.",
        )


def _compared(
    bundle: Bundle, after: Bundle, labelled: Sequence[Row] | None, precision: Precision
) -> dict[str, Any]:
    """Return what `reduce_precision` reports; raise `BundleError` where fp16 says something else."""
    report = {"precision": precision, **_costs(bundle, after)}
    report |= _quality(bundle, after, labelled, report)
    if precision == "fp16":
        _check_parity(report)
    return report


def drawn(recordings: int, seed: int) -> NDArray[np.intp]:
    """Draw the recordings that int8's ranges come from, at most 512: their numbers, in order."""
    return np.sort(np.random.default_rng(seed).permutation(recordings)[:_CALIBRATED_ON])


def int8_graph(source: Path, input_name: str, features: Floats, path: Path) -> None:
    """Write the graph `source` with 8-bit weights and activations (QDQ), ranges as `features` need them.

    Weights are signed, with a scale for each channel; activations are unsigned, which is what processors'
    instructions take.

    Raises
    ------
    BundleError
        When the graph cannot be quantised.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        """Gives the calibration batch after batch."""

        def __init__(self) -> None:
            starts = range(0, len(features), _BATCH)
            self._batches = iter([features[start : start + _BATCH] for start in starts])

        def get_next(self) -> dict[str, Floats] | None:
            batch = next(self._batches, None)
            return None if batch is None else {input_name: batch}

    with TemporaryDirectory() as directory, _quiet():
        prepared, quantised = Path(directory, "prepared.onnx"), Path(directory, "quantised.onnx")
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            head = _head(_with_names(prepared))
            quantize_static(
                prepared,
                quantised,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=head,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise BundleError(f"{str(source)!r} cannot be quantised: {error}") from error
        save_graph(read_graph(quantised), path)


def half_graph(source: Path, path: Path) -> None:
    """Write the graph `source` with 16-bit floats inside; input and outputs stay in float32.

    Raises
    ------
    BundleError
        When the graph cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with TemporaryDirectory() as directory:
        named = Path(directory, "named.onnx")
        write_bytes(named, source.read_bytes())
        proto = _with_names(named)
    with _quiet():
        half = convert_float_to_float16(proto, keep_io_types=True, node_block_list=_head(proto))
    _sort_nodes(half.graph)
    save_graph(half, path)


def _sort_nodes(graph: Any) -> None:
    """Put each node behind those whose outputs it takes, and keep one of equal casts.

    The converter puts its casts at the end, and one for each node that takes a value.
    """
    made_here = {output for node in graph.node for output in node.output}
    waiting, ordered, known = list({node.output[0]: node for node in graph.node}.values()), [], set[str]()
    while waiting:
        ready = [node for node in waiting if not (made_here & set(node.input)) - known]
        if not ready:
            raise BundleError("the graph has a circle")
        ordered.extend(ready)
        known.update(output for node in ready for output in node.output)
        waiting = [node for node in waiting if not set(node.output) <= known]
    del graph.node[:]
    graph.node.extend(ordered)


def _with_names(path: Path) -> Any:
    """Give every node of a graph a name of its own, in the file, and return the graph."""
    proto = read_graph(path)
    for place, node in enumerate(proto.graph.node):
        node.name = f"{node.name or node.op_type}#{place}"
    write_bytes(path, proto.SerializeToString())
    return proto


def _head(proto: Any) -> list[str]:
    """Return the names of the nodes that stand before the first convolution of every branch."""
    maker = {output: node for node in proto.graph.node for output in node.output}
    behind: set[str] = set()
    pending: list[str] = []
    for node in proto.graph.node:
        later = not behind.isdisjoint(node.input)
        if node.op_type == "Conv" and not later:
            pending.append(node.input[0])
        if node.op_type == "Conv" or later:
            behind.update(node.output)
    found: dict[str, None] = {}
    while pending:
        node = maker.get(pending.pop())
        if node is not None and node.name not in found:
            found[node.name] = None
            pending.extend(node.input)
    return list(found)


@contextmanager
def _quiet() -> Iterator[None]:
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _copy_with(bundle: Bundle, graph: Path, draft: Path, name: str, precision: Precision) -> None:
    """Copy a bundle with another graph: labels, calibration and gate stay."""
    origin = f"{precision} of {bundle.name} {bundle.version}"
    copy_bundle(bundle, draft, name=name, description=f"{bundle.description} ({origin})".strip())
    write_bytes(draft / bundle.model_path.name, graph.read_bytes())
    card = draft / CARD_NAME
    if card.exists():
        note = f"# {name}\n\n{origin}; `conversion.json` says what that costs and wins.\n\n"
        write_bytes(card, note.encode() + card.read_bytes())


def _costs(before: Bundle, after: Bundle) -> dict[str, Any]:
    costs = [
        {
            "bytes": bundle.model_bytes,
            "files_per_cpu_second": round(files_per_cpu_second(bundle.model_path, rounds=_ROUNDS)),
        }
        for bundle in (before, after)
    ]
    first, second = costs
    ratio = second["files_per_cpu_second"] / first["files_per_cpu_second"]
    return {"before": first, "after": second, "speed": round(ratio, 2)}


def _quality(
    before: Bundle, after: Bundle, rows: Sequence[Row] | None, costs: dict[str, Any]
) -> dict[str, Any]:
    """Return how nearly both say the same, and how right they are where labels are known."""
    if rows is None:
        features = _features_of(synthesised(before.front_end), before.front_end)
    else:
        features = read_rows(rows, before.front_ends)
    said: list[Said] = [said_of(bundle, features, open_session(bundle, "cpu")) for bundle in (before, after)]
    old, new = (one.probabilities for one in said)
    collapse = TrainingTaxonomy(before.taxonomy, {}).collapse
    shares = [probabilities @ collapse for probabilities in (old, new)]
    decided = [share.argmax(axis=1) for share in shares]
    report = {
        "recordings": len(features),
        "agreement": float((decided[0] == decided[1]).mean()),
        "largest_difference": round(float(np.abs(old - new).max()), 6),
        "largest_difference_of_confidence": round(float(np.abs(shares[0] - shares[1]).max()), 6),
    }
    if rows is None:
        return report
    truth = truth_of(rows, before.taxonomy)
    return report | {
        "families": len({row.family for row in rows}),
        "before": costs["before"] | measured(old, truth),
        "after": costs["after"] | measured(new, truth),
    }


def _check_parity(report: dict[str, Any]) -> None:
    """Refuse fp16 that gives another label, or a confidence that differs by more than `PARITY`."""
    difference, agreement = report["largest_difference_of_confidence"], report["agreement"]
    if not (difference <= PARITY and agreement == 1.0):
        raise BundleError(
            f"in fp16 this model says something else: a confidence differs by {difference:.4f} (allowed "
            f"{PARITY}), and {100 * (1 - agreement):.2f} % of {report['recordings']:,} labels do",
            "Keep it in float32.",
        )


def _features_of(waveforms: Floats, front_end: FrontEnd) -> Floats:
    extractor = FeatureExtractor(front_end)
    return np.array([extractor.features(waveform) for waveform in waveforms])


def synthesised(front_end: FrontEnd) -> Floats:
    """Return decaying tones in noise of all lengths, and silence, (n, samples)."""
    rng = np.random.default_rng(0)
    waveforms = np.zeros((_SYNTHESISED, front_end.samples), np.float32)
    for waveform, length in zip(
        waveforms[1:], np.geomspace(1, front_end.samples, _SYNTHESISED - 1), strict=True
    ):
        time = np.arange(round(length)) / front_end.sample_rate
        tone = np.sin(2.0 * np.pi * 10.0 ** rng.uniform(1.6, 4.0) * time)
        noise = 10.0 ** rng.uniform(-5.0, 0.0) * rng.standard_normal(len(time))
        waveform[: len(time)] = (tone + noise) * np.exp(-time * 10.0 ** rng.uniform(0.0, 2.0))
    return waveforms
