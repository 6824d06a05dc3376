"""From corrections to a better bundle: train again, compare, and replace the old one by none that is worse.

The manifest, with corrections merged in, is split by family, unless it says its own sides: ``train`` is
learnt from, the temperature is fitted on ``validation``, and both bundles are asked about ``test``, each
through the very graph that the engine runs. What replaces the old bundle is the network that was compared.
The old one may have been trained on the test families, which favours it; the report says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import find_bundle, load_bundle
from drumline.durable import make_directories, output_errors, sync_directory, write_bytes, write_json
from drumline.errors import ConfigError, OutputError
from drumline.failpoints import step
from drumline_convert.bundle_writer import BundleDescription, write_bundle
from drumline_convert.calibration import calibration_json
from drumline_convert.corpus import Recording, open_manifest, recordings_of
from drumline_convert.evaluation import EvaluationSettings, evaluate_manifest
from drumline_convert.export import OPSET, check_parity, export_onnx
from drumline_convert.manifest import Manifest, write_manifest
from drumline_convert.overrides import MergeSettings, merge_overrides
from drumline_convert.provenance import write_training_set
from drumline_convert.split import SplitSettings, assert_no_leak, split_manifest
from drumline_convert.taxonomy import TrainingTaxonomy, read_taxonomy
from drumline_convert.training import predict_logits
from drumline_convert.transfer import KERAS_NAME
from drumline_convert.workbench import ModelSettings, Report, Workbench, load_model, prepare, save_model

__all__ = ["Corrections", "retrain"]

_SIDES = {"train", "validation", "test"}


@dataclass(frozen=True, slots=True)
class Corrections:
    """Corrections by content hash, and the run whose hashes they name."""

    overrides: Path
    run: Path


def retrain(
    settings: ModelSettings,
    old: Path,
    corrections: Corrections | None = None,
    *,
    even_if_worse: bool = False,
    report: Report = print,
) -> dict[str, Any]:
    """Train, compare, and put the new bundle in place.

    Parameters
    ----------
    settings
        As for `make_model`; where `out` is a bundle already, it is kept beside as ``NAME.before``.
    old
        The bundle that the new one must not fall behind, by path or name.
    corrections
        What people have corrected since.
    even_if_worse
        Put it in place all the same.

    Returns
    -------
    dict
        ``old``, ``new`` (figures on the test families, with intervals), ``difference`` (new less old),
        ``warnings``, ``replaced`` and ``bundle``, where the new one lies.

    Raises
    ------
    ConfigError
        When manifest, corrections or taxonomy cannot be used.
    OutputError
        When the new bundle is worse, or something cannot be written.
    """
    taxonomy, work = read_taxonomy(settings.taxonomy), settings.build / "retrain"
    with output_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    manifest = work / "manifest.jsonl"
    write_manifest(manifest, _sides(_rows(settings, taxonomy, corrections), taxonomy, settings.training.seed))
    draft = _trained(replace(settings, corpus=manifest), taxonomy, work / settings.out.name, report)
    result = _compared(find_bundle(old), draft, manifest, settings.taxonomy)
    write_json(work / "comparison.json", result)
    if result["difference"]["accuracy"]["value"] < 0 and not even_if_worse:
        raise OutputError(
            f"the new bundle is worse and does not replace {str(settings.out)!r}: accuracy "
            f"{result['new']['accuracy']['value']:.4f}, before {result['old']['accuracy']['value']:.4f}",
            f"It lies in {str(draft)!r}, compared in comparison.json beside it; --even-if-worse takes it.",
        )
    _put_in_place(draft, settings.out)
    report(f"bundle {settings.out} written")
    return {**result, "replaced": True, "bundle": str(settings.out)}


def _rows(
    settings: ModelSettings, taxonomy: TrainingTaxonomy, corrections: Corrections | None
) -> list[Recording]:
    manifest = open_manifest(settings.corpus, taxonomy)
    if corrections is not None:
        from drumline.runs import open_run

        run = open_run(corrections.run)
        manifest = Manifest(
            merge_overrides(corrections.overrides, run, MergeSettings(taxonomy), manifest).rows
        )
    return recordings_of(manifest, taxonomy)


def _sides(rows: Sequence[Recording], taxonomy: TrainingTaxonomy, seed: int) -> list[Recording]:
    """Return the rows with the manifest's own sides, or split by family where it has none."""
    sides = {row.split for row in rows}
    if sides == {None}:
        return split_manifest(rows, SplitSettings(seed=seed))
    if sides != _SIDES:
        names = ", ".join(sorted(str(side) for side in sides))
        raise ConfigError(
            f"the manifest's sides are {names}; training again needs train, validation and test",
            "Split it by 'drumline dataset split', or take the sides out.",
        )
    assert_no_leak(rows, [row.split for row in rows])
    return list(rows)


def _trained(settings: ModelSettings, taxonomy: TrainingTaxonomy, draft: Path, report: Report) -> Path:
    """Train on the train side, calibrate on the validation side, and write the bundle to `draft`."""
    # The sides are the manifest's; folds play no part, and two are always there.
    bench = prepare(replace(settings, folds=2), report)
    side = np.array([recording.split for recording in bench.recordings])
    path = bench.directory / "retrained.keras"
    if not path.exists():
        save_model(bench.trained(np.flatnonzero(side == "train"), "training side", "retrained"), path)
    model = load_model(path, settings.threads)
    graph = bench.directory / f"retrained.opset{OPSET}.onnx"
    if not graph.exists():
        export_onnx(model, settings.front_end, graph)
    watched = np.flatnonzero(side == "validation")
    check_parity(graph, model, np.asarray(bench.features[bench.rows[watched], 0]))
    shutil.rmtree(draft, ignore_errors=True)
    write_bundle(draft, graph, taxonomy, _description(bench, model, watched, draft.name))
    write_training_set(draft, [row for row in bench.recordings if row.split == "train"])
    write_bytes(draft / KERAS_NAME, path.read_bytes())
    return draft


def _description(bench: Workbench, model: Any, watched: NDArray[np.intp], name: str) -> BundleDescription:
    settings = bench.settings
    logits = predict_logits(model, bench.features, bench.rows[watched])
    families = {bench.recordings[place].family for place in watched}
    fitted_on = {
        "what": "validation families, not trained on; the likelihood is that of the canonical label",
        "recordings": len(watched),
        "families": len(families),
    }
    calibration = calibration_json(logits, bench.canonical[watched], bench.taxonomy.collapse, fitted_on)
    card = (
        f"# {name} {settings.version}\n\nTrained again by `drumline train retrain` on "
        f"{len(bench.recordings) - len(watched):,} recordings;\ntemperature fitted on {len(watched):,} of "
        f"{len(families)} other families. `drumline evaluate` measures it:\nthe test families of its "
        "manifest were not trained on.\n"
    )
    description = f"Trained again, {len(bench.taxonomy.fine)} classes"
    return BundleDescription(name, settings.version, description, settings.front_end, calibration, card)


def _compared(old: Path, new: Path, manifest: Path, taxonomy: Path) -> dict[str, Any]:
    """Measure both bundles on the manifest's test side."""
    report = evaluate_manifest(
        EvaluationSettings(manifest=manifest, models=(old, new), splits=("test",), taxonomy=taxonomy)
    )
    before, after = (model["figures"] for model in report["models"])
    return {
        "test": report["data"],
        "old": before,
        "new": after,
        "difference": report["differences"][0]["figures"],
        "warnings": report["warnings"],
    }


def _put_in_place(draft: Path, out: Path) -> None:
    """Move the new bundle to `out`; what stood there stays beside it as ``NAME.before``."""
    arriving, before = out.with_name(f".{out.name}.new"), out.with_name(f"{out.name}.before")
    with output_errors(out):
        if out.exists():
            load_bundle(out)  # what is no bundle is not moved away
        make_directories(out.parent)
        shutil.rmtree(arriving, ignore_errors=True)
        try:
            # The draft may lie on another file system.
            shutil.copytree(draft, arriving, copy_function=_copy_synced)
            sync_directory(arriving)
            with step("durable.publish"):
                if out.exists():
                    shutil.rmtree(before, ignore_errors=True)
                    os.rename(out, before)
                os.rename(arriving, out)
        except BaseException:
            shutil.rmtree(arriving, ignore_errors=True)
            raise
        sync_directory(out.parent)


def _copy_synced(source: str, target: str) -> None:
    shutil.copy2(source, target)
    with open(target, "rb") as stream:
        os.fsync(stream.fileno())
