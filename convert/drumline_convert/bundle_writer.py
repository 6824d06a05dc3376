"""Writes the directory that the engine loads: graph, labels, mapping, calibration and card."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drumline.durable import output_errors, write_bytes, write_json
from drumline.frontend import FrontEnd
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["BundleDescription", "write_bundle"]


@dataclass(frozen=True, slots=True)
class BundleDescription:
    """What a bundle says about itself, next to its graph.

    Parameters
    ----------
    name, version
        The bundle's name (that of its directory) and semantic version.
    description
        One sentence.
    front_end
        What turns a waveform into the graph's input.
    calibration
        Content of ``calibration.json``.
    card
        Markdown of ``MODEL_CARD.md``.
    """

    name: str
    version: str
    description: str
    front_end: FrontEnd
    calibration: dict[str, Any]
    card: str


def write_bundle(
    directory: Path, model: Path, taxonomy: TrainingTaxonomy, description: BundleDescription
) -> None:
    """Write a bundle around the ONNX file `model`; ``bundle.json`` comes last.

    Raises
    ------
    OutputError
        When a file cannot be written.
    """
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_bytes(directory / "model.onnx", model.read_bytes())
    write_json(directory / "label_mapping.json", _label_mapping(taxonomy))
    write_json(directory / "canonical_mapping.json", _canonical_mapping(taxonomy))
    write_json(directory / "calibration.json", description.calibration)
    write_bytes(directory / "MODEL_CARD.md", description.card.encode())
    write_json(directory / "bundle.json", _bundle(description))


def _label_mapping(taxonomy: TrainingTaxonomy) -> dict[str, Any]:
    return {"labels": list(taxonomy.fine), "sha256": taxonomy.labels.checksum}


def _canonical_mapping(taxonomy: TrainingTaxonomy) -> dict[str, Any]:
    return {
        "canonical": list(taxonomy.canonical[:-1]),
        "misc": taxonomy.labels.misc,
        "map": dict(taxonomy.labels.canonical_of),
    }


def _bundle(description: BundleDescription) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": description.name,
        "version": description.version,
        "kind": "classifier",
        "description": description.description,
        "created": _created(),
        "front_end": description.front_end.to_json(),
        "model": "model.onnx",
        "labels": "label_mapping.json",
        "canonical": "canonical_mapping.json",
        "calibration": "calibration.json",
        "input": {"name": "features", "layout": "batch, coefficients, frames"},
        "outputs": {"logits": "logits", "probabilities": "probabilities"},
    }


def _created() -> str:
    """Return today's date, or that of SOURCE_DATE_EPOCH, which makes a bundle reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    return moment.date().isoformat()
