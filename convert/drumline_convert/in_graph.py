"""A bundle → the same bundle with its front end in the graph: fed the waveform, its workers only decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle, load_bundle
from drumline.durable import new_directory, write_bytes, write_json
from drumline.errors import BundleError
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.inference import open_graph, open_session
from drumline_convert.bundle_writer import copy_bundle
from drumline_convert.graph import INPUT, read_graph, save_graph
from drumline_convert.graph_front_end import front_end_graph, waveform_front_end, with_front_end
from drumline_convert.labelled import read_rows, rows_of
from drumline_convert.precision import PARITY, reduce_precision, synthesised

__all__ = ["TOLERANCE_DB", "graph_features", "put_front_end_in_graph"]

Floats = NDArray[np.float32]

TOLERANCE_DB = 1e-3
"""Largest difference of a feature that is allowed between graph and workers."""
_TOLERANCE = {"float32": 1e-4, "fp16": PARITY, "int8": PARITY}
"""Largest difference of a probability, where the network rounds so."""
_BATCH = 8


def put_front_end_in_graph(
    name: str | Path,
    out: Path,
    manifest: Path | None = None,
    *,
    precision: Literal["float32", "int8", "fp16"] = "float32",
    measure_on: Sequence[str] = ("validation", "test"),
) -> dict[str, Any]:
    """Write a bundle with the same model, whose graph takes the waveform.

    Parameters
    ----------
    name
        The bundle; one graph, no ensemble that names members.
    out
        Bundle to make; nothing may stand there.
    manifest
        Recordings that graph and workers are compared on, from its sides `measure_on`; None: synthesised
        ones.
    precision
        Of the network; see `drumline_convert.precision.reduce_precision`. The front end keeps its own.

    Returns
    -------
    dict
        ``front_end_in_graph``: its settings (``front_end``), ``recordings`` compared, the largest difference
        of ``features`` (in dB) and of ``probabilities``, the share of equal ``labels``, and ``bytes``. With
        another precision, also what `reduce_precision` returns.

    Raises
    ------
    BundleError
        When the bundle names members, is fed the waveform already, or says something else afterwards.
    OutputError
        When something stands at `out`, or it cannot be written.
    """
    bundle, report = load_bundle(name), dict[str, Any]()
    with new_directory(out) as draft, TemporaryDirectory() as directory:
        if precision != "float32":
            reduced = Path(directory, f"{bundle.name}-{precision}")
            report = reduce_precision(name, precision, reduced, manifest, measure_on=measure_on)
            bundle = load_bundle(reduced)
        _write(bundle, draft, out.name)
        moved = _compared(bundle, load_bundle(draft), manifest, measure_on)
        _check(moved, _TOLERANCE[precision])
        report["front_end_in_graph"] = {"front_end": bundle.front_end.to_json(), **moved}
        write_json(draft / "conversion.json", report)
    return report


def graph_features(front_end: FrontEnd, waveforms: Floats) -> Floats:
    """Return what the graph's nodes make of `waveforms` (n, samples): (n, *front_end.shape)."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "front_end.onnx")
        save_graph(front_end_graph(front_end), path)
        session = open_graph(path).session
        starts = range(0, len(waveforms), _BATCH)
        parts = [session.run(None, {INPUT: waveforms[start : start + _BATCH]})[0] for start in starts]
    return np.concatenate(parts)


def _write(bundle: Bundle, draft: Path, name: str) -> None:
    """Write a bundle with another graph and front end: labels, calibration and gate stay."""
    if bundle.members:
        raise BundleError(f"{bundle.name} names members", "Convert each of them, and make the ensemble anew.")
    proto = with_front_end(read_graph(bundle.model_path), bundle.front_end)
    outside = waveform_front_end(bundle.front_end)
    origin = f"front end of {bundle.name} {bundle.version} in the graph"
    copy_bundle(
        bundle,
        draft,
        name=name,
        description=f"{bundle.description} ({origin})".strip(),
        front_end=outside.to_json(),
        front_end_in_graph=bundle.front_end.to_json(),
        input={"name": INPUT, "layout": outside.layout},
    )
    save_graph(proto, draft / bundle.model_path.name)
    card = draft / "MODEL_CARD.md"
    if card.exists():
        note = f"# {name}\n\n{origin.capitalize()}; `conversion.json` says how nearly it says the same.\n\n"
        write_bytes(card, note.encode() + card.read_bytes())


def _compared(before: Bundle, after: Bundle, manifest: Path | None, sides: Sequence[str]) -> dict[str, Any]:
    waveforms = (
        synthesised(after.front_end)
        if manifest is None
        else read_rows(rows_of(manifest, *sides), [after.front_end])
    )
    extractor = FeatureExtractor(before.front_end)
    features = np.array([extractor.features(waveform) for waveform in waveforms], np.float32)
    in_graph = graph_features(before.front_end, waveforms)
    old, new = (_probabilities(bundle, rows) for bundle, rows in ((before, features), (after, waveforms)))
    return {
        "recordings": len(waveforms),
        "features": float(np.abs(in_graph - features).max()),
        "probabilities": float(np.abs(new - old).max()),
        "labels": float((new.argmax(axis=1) == old.argmax(axis=1)).mean()),
        "bytes": after.model_bytes,
    }


def _check(report: dict[str, Any], tolerance: float) -> None:
    for what, allowed in (("features", TOLERANCE_DB), ("probabilities", tolerance)):
        if not report[what] <= allowed:
            raise BundleError(
                f"with the front end in the graph, {what} differ by {report[what]:.2g} (allowed {allowed:g})"
            )


def _probabilities(bundle: Bundle, rows: Floats) -> Floats:
    session = open_session(bundle, "cpu")
    starts = range(0, len(rows), _BATCH)
    return np.concatenate([session.probabilities(rows[start : start + _BATCH]) for start in starts])
