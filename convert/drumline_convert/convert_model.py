"""A trained model → a bundle that the engine runs, with a report of how nearly it says the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from drumline.durable import new_directory, write_json
from drumline.frontend import FrontEnd
from drumline_convert.bundle_writer import BundleDescription, write_bundle
from drumline_convert.export import compare, open_source
from drumline_convert.graph import Layout, adapt, opset_of, placement_of, save_graph, set_labels
from drumline_convert.target import Target
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["convert_model"]

_COMPARED = 256
NOT_CALIBRATED = {"method": "none", "temperature": 1.0, "version": 0, "fitted_on": None}


def convert_model(
    source: Path,
    target: Target,
    out: Path,
    version: str = "0.1.0",
    *,
    layout: Layout = "auto",
    output: str | None = None,
) -> dict[str, Any]:
    """Convert a Keras, PyTorch or ONNX model, and compare it with the original on random features.

    Parameters
    ----------
    source
        ``.keras``, ``.pt2`` (an exported program) or ``.onnx``.
    target
        Front end and labels that it was trained with.
    out
        Bundle to make; nothing may stand there.
    layout, output
        See `drumline_convert.graph.adapt`.

    Returns
    -------
    dict
        What ``conversion.json`` in the bundle says: origin, opset, and what `drumline_convert.export.compare`
        measured.

    Raises
    ------
    BundleError
        When the model cannot be read, does not fit front end and labels, or its ONNX says something else.
    OutputError
        When something stands at `out`, or it cannot be written.
    """
    original = open_source(source)
    shape, labels = target.front_end.shape, target.taxonomy.fine
    place = placement_of(original.proto, shape, layout)
    proto = adapt(original.proto, shape, len(labels), layout=layout, output=output)
    set_labels(proto, labels)
    features = _random_features(target.front_end)
    with TemporaryDirectory() as directory, new_directory(out) as draft:
        graph = Path(directory, "model.onnx")
        save_graph(proto, graph)
        report = {
            "source": {"file": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
            "framework": original.framework,
            "opset": opset_of(proto),
            "ir_version": int(proto.ir_version),
            "bytes": graph.stat().st_size,
            "parity": compare(graph, original.run(place(features), output), features, original.framework),
        }
        write_bundle(
            draft, graph, TrainingTaxonomy(target.taxonomy, {}), _description(out, version, target, report)
        )
        write_json(draft / "conversion.json", report)
    return report


def _random_features(front_end: FrontEnd) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    return rng.normal(-20, 20, (_COMPARED, *front_end.shape)).astype(np.float32)


def _description(out: Path, version: str, target: Target, report: dict[str, Any]) -> BundleDescription:
    origin = f"{report['source']['file']} ({report['framework']})"
    parity = report["parity"]
    card = (
        f"# {out.name} {version}\n\n"
        f"Converted from `{report['source']['file']}` ({report['framework']}), ONNX opset {report['opset']}. "
        f"Over {parity['files']:.0f} random inputs, no probability differs by more than "
        f"{parity['probabilities']:.1e}.\n\n"
        f"Front end: {target.front_end.name}, {' × '.join(map(str, target.front_end.shape))}. "
        f"{len(target.taxonomy.fine)} labels.\n\n"
        "**Neither evaluated nor calibrated.** Do both before its confidences are believed: "
        "`drumline calibrate`, `drumline evaluate`.\n"
    )
    return BundleDescription(
        out.name, version, f"Converted from {origin}; not calibrated", target.front_end, NOT_CALIBRATED, card
    )
