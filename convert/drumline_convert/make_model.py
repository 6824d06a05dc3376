"""From a corpus to a bundle: features, folds by family, final training, calibration, conversion, card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.durable import write_bytes, write_json
from drumline_convert.architecture import multiply_adds
from drumline_convert.bundle_writer import BundleDescription, write_bundle
from drumline_convert.calibrate import HeldOutLogits, full_calibration
from drumline_convert.card import model_card, network_name, with_calibration
from drumline_convert.cost import files_per_cpu_second
from drumline_convert.crossval import figures
from drumline_convert.export import OPSET, check_parity, export_onnx
from drumline_convert.fold_precision import held_out_in, precision_facts
from drumline_convert.precision import Precision
from drumline_convert.predictions import save_held_out
from drumline_convert.provenance import write_training_set
from drumline_convert.side_by_side import Training, train_side_by_side
from drumline_convert.transfer import KERAS_NAME
from drumline_convert.workbench import ModelSettings, Report, Workbench, load_model, prepare

__all__ = ["cross_validate", "make_model"]


def make_model(settings: ModelSettings, report: Report = print) -> dict[str, Any]:
    """Cross-validate, train on everything, calibrate, convert and write the bundle.

    Returns
    -------
    dict
        What ``<build>/model/metrics.json`` holds.

    Raises
    ------
    ConfigError
        When the corpus or the taxonomy cannot be used.
    BundleError
        When ONNX and Keras disagree.
    OutputError
        When something cannot be written.
    """
    bench = prepare(settings, report)
    train_side_by_side([*_folds(bench), Training(bench, None)], settings.threads)
    logits = bench.held_out_logits()
    keras_model = bench.final_model()
    model = load_model(keras_model, settings.threads)
    graph = bench.directory / f"model.opset{OPSET}.onnx"
    # tf2onnx numbers its nodes anew each time: exported once, the same training stays the same file.
    if not graph.exists():
        export_onnx(model, settings.front_end, graph)
    metrics = _figures(bench, logits)
    _keep_held_out(bench, logits)
    metrics["parity"] = check_parity(graph, model, np.asarray(bench.features[bench.rows, 0]))
    metrics["model"] = _model_facts(model, graph)
    metrics["doubted"] = bench.doubted()
    metrics["calibration"] = full_calibration(_held_out(bench, logits), _fitted_on(bench))
    write_bundle(settings.out, graph, bench.taxonomy, _description(bench, metrics))
    write_training_set(settings.out, bench.recordings)
    write_bytes(settings.out / KERAS_NAME, keras_model.read_bytes())
    write_json(settings.build / "model" / "metrics.json", metrics)
    report(f"bundle {settings.out} written")
    return metrics


def _folds(bench: Workbench) -> list[Training]:
    return [Training(bench, fold) for fold in range(bench.settings.folds)]


def cross_validate(
    settings: ModelSettings, report: Report = print, precision: Precision | None = None
) -> dict[str, Any]:
    """Train and measure the folds only; returns and writes the same figures as `make_model`.

    Both keep ``<build>/model/held_out.npz``, for ``drumline evaluate --held-out`` and ``drumline calibrate``.

    Parameters
    ----------
    precision
        Measure the folds' networks in these smaller numbers; their figures and logits are kept under names of
        their own (``metrics.int8.json``, ``held_out.int8.npz``), with ``reduced``: see `precision_facts`.
    """
    bench = prepare(settings, report)
    train_side_by_side(_folds(bench), settings.threads)
    plain = bench.held_out_logits()
    if precision is None:
        logits, metrics = plain, _figures(bench, plain)
    else:
        logits = held_out_in(bench, precision)
        facts = precision_facts(bench, precision, plain, logits)
        metrics = {**_figures(bench, logits), "reduced": facts}
    _keep_held_out(bench, logits, precision)
    kept = "metrics.json" if precision is None else f"metrics.{precision}.json"
    write_json(settings.build / "model" / kept, metrics)
    return metrics


def _figures(bench: Workbench, logits: NDArray[np.float32]) -> dict[str, Any]:
    settings = bench.settings
    labels = [recording.label for recording in bench.recordings]
    families = [recording.family for recording in bench.recordings]
    return {
        **figures(logits, bench.fine, bench.fold_of, labels, families, bench.taxonomy),
        "recordings": len(bench.recordings),
        "families": bench.families,
        "settings": {
            "front_end": {**settings.front_end.to_json(), "name": settings.front_end.name},
            "architecture": asdict(settings.architecture),
            "training": asdict(settings.training),
            "augment": asdict(settings.augment),
        },
    }


def _keep_held_out(bench: Workbench, logits: NDArray[np.float32], precision: Precision | None = None) -> None:
    settings, hashes = bench.settings, [recording.hash for recording in bench.recordings]
    name = f"{settings.out.name}, {settings.folds} folds of {settings.corpus.name}"
    file = "held_out.npz"
    if precision is not None:
        name, file = f"{name}, {precision}", f"held_out.{precision}.npz"
    path = settings.build / "model" / file
    save_held_out(path, name, bench.taxonomy.fine, hashes, bench.fold_of, logits)


def _held_out(bench: Workbench, logits: NDArray[np.float32]) -> HeldOutLogits:
    taxonomy = bench.taxonomy
    return HeldOutLogits(
        logits, bench.recordings, taxonomy.collapse, taxonomy.canonical, bench.fold_of.tolist()
    )


def _model_facts(model: Any, graph: Path) -> dict[str, Any]:
    return {
        "parameters": int(model.count_params()),
        "multiply_adds": multiply_adds(model),
        "bytes": graph.stat().st_size,
        "opset": OPSET,
        "files_per_cpu_second": round(files_per_cpu_second(graph)),
    }


def _fitted_on(bench: Workbench) -> dict[str, Any]:
    return {
        "what": "pooled held-out logits of the cross-validation: every recording by the network that did "
        "not see its family; the likelihood is that of the canonical label",
        "folds": bench.settings.folds,
        "seed": bench.settings.training.seed,
    }


def _description(bench: Workbench, metrics: dict[str, Any]) -> BundleDescription:
    settings = bench.settings
    sentence = f"{network_name(metrics)}, {len(bench.taxonomy.fine)} drum and percussion classes"
    card = model_card(settings.out.name, settings.version, bench.recordings, bench.taxonomy, metrics)
    calibration = metrics["calibration"]
    return BundleDescription(
        settings.out.name,
        settings.version,
        sentence,
        settings.front_end,
        calibration,
        with_calibration(card, calibration),
    )
