"""Writes the directory that the engine loads: graph, labels, mapping, calibration and card."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drumline.durable import output_errors, sync_directory, write_bytes, write_json
from drumline.errors import OutputError
from drumline.frontend import FrontEnd
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["BundleDescription", "new_bundle", "write_bundle", "write_labels"]


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
    extra
        Further keys of ``bundle.json``: ``gate``.
    """

    name: str
    version: str
    description: str
    front_end: FrontEnd
    calibration: dict[str, Any]
    card: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """Give a directory to write a bundle in, which becomes `out` when all of it is there.

    Raises
    ------
    OutputError
        When something stands at `out`, or it cannot be written.
    """
    if os.path.lexists(out):
        raise OutputError(f"{str(out)!r} exists already", "Choose another place: nothing is overwritten.")
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        (draft / "bundle").mkdir()
        yield draft / "bundle"
        with output_errors(out):
            os.rename(draft / "bundle", out)
            sync_directory(out.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
    write_labels(directory, taxonomy)
    write_json(directory / "calibration.json", description.calibration)
    write_bytes(directory / "MODEL_CARD.md", description.card.encode())
    write_json(directory / "bundle.json", _bundle(description))


def write_labels(directory: Path, taxonomy: TrainingTaxonomy) -> None:
    """Write the label file and the canonical mapping of a bundle."""
    write_json(directory / "label_mapping.json", _label_mapping(taxonomy))
    write_json(directory / "canonical_mapping.json", _canonical_mapping(taxonomy))


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
        **description.extra,
    }


def _created() -> str:
    """Return today's date, or that of SOURCE_DATE_EPOCH, which makes a bundle reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    return moment.date().isoformat()
