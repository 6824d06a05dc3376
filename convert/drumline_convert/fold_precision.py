"""The folds of a cross-validation in smaller numbers: what int8 and fp16 say of families they do not know.

Each fold's network is the float32 one, put together from the weights that its training keeps; int8 takes its
ranges from recordings that this network was trained on. The logits come from the graph, as the engine runs
it, and are kept beside the float32 ones, whose trainings both share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline_convert.cost import files_per_cpu_second
from drumline_convert.export import OPSET, export_onnx, onnx_outputs
from drumline_convert.graph import INPUT, LOGITS
from drumline_convert.metrics import softmax
from drumline_convert.precision import Precision, drawn, half_graph, int8_graph
from drumline_convert.workbench import Workbench, save_array

__all__ = ["held_out_in", "precision_facts"]

Floats = NDArray[np.float32]


def held_out_in(bench: Workbench, precision: Precision) -> Floats:
    """Return the logits (n, fine) of every recording by its fold's network in `precision`.

    Raises
    ------
    BundleError
        When a network cannot be converted.
    """
    logits = np.empty((len(bench.recordings), len(bench.taxonomy.fine)), np.float32)
    for fold in range(bench.settings.folds):
        logits[bench.fold_of == fold] = _fold_logits(bench, fold, precision)
    return logits


def _fold_logits(bench: Workbench, fold: int, precision: Precision) -> Floats:
    path = bench.directory / f"fold{fold}.{precision}.npy"
    if not path.exists():
        graph = _reduced(bench, fold, precision)
        logits = onnx_outputs(graph, _features(bench, bench.fold_of == fold))[LOGITS]
        bench.report(f"{bench.name_of(fold)} in {precision}")
        save_array(logits, path)
    return np.asarray(np.load(path), np.float32)


def _features(bench: Workbench, chosen: NDArray[Any]) -> Floats:
    return np.asarray(bench.features[bench.rows[chosen], 0], np.float32)


def _graph(bench: Workbench, fold: int, kind: str) -> Path:
    return bench.directory / f"fold{fold}.{kind}.onnx"


def _reduced(bench: Workbench, fold: int, precision: Precision) -> Path:
    """Return the graph of a fold's network in smaller numbers, made from that in float32 beside it."""
    plain, reduced = _graph(bench, fold, f"opset{OPSET}"), _graph(bench, fold, precision)
    if not plain.exists():
        export_onnx(bench.fold_network(fold), bench.settings.front_end, plain)
    if precision == "int8":
        learnt = np.flatnonzero(bench.fold_of != fold)
        ranges = learnt[drawn(len(learnt), bench.settings.training.seed)]
        int8_graph(plain, INPUT, _features(bench, ranges), reduced)
    else:
        half_graph(plain, reduced)
    return reduced


def precision_facts(bench: Workbench, precision: Precision, plain: Floats, reduced: Floats) -> dict[str, Any]:
    """Return what smaller numbers cost and win.

    Parameters
    ----------
    plain, reduced
        Held-out logits in float32 and in `precision`, (n, fine).

    Returns
    -------
    dict
        ``precision``; ``before`` and ``after`` with ``bytes`` and ``files_per_cpu_second`` of the first
        fold's graph; ``speed`` (ratio); ``agreement`` of canonical labels before calibration.
    """
    kinds = {"before": f"opset{OPSET}", "after": precision}
    costs = {when: _cost(_graph(bench, 0, kind)) for when, kind in kinds.items()}
    decided = [_canonical(logits, bench.taxonomy.collapse) for logits in (plain, reduced)]
    ratio = costs["after"]["files_per_cpu_second"] / costs["before"]["files_per_cpu_second"]
    return {
        "precision": precision,
        **costs,
        "speed": round(ratio, 2),
        "agreement": round(float((decided[0] == decided[1]).mean()), 4),
    }


def _cost(graph: Path) -> dict[str, int]:
    return {"bytes": graph.stat().st_size, "files_per_cpu_second": round(files_per_cpu_second(graph))}


def _canonical(logits: Floats, collapse: Floats) -> NDArray[np.intp]:
    return np.asarray((softmax(logits) @ collapse).argmax(axis=1), np.intp)
