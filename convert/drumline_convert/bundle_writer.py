"""Writes the directory that the engine loads: graph, labels, mapping, calibration and card."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drumline.bundle import Bundle
from drumline.bundle_files import CARD_NAME, MANIFEST_NAME, PARTS, bundle_json, write_labels
from drumline.durable import output_errors, write_bytes, write_json
from drumline.errors import BundleError
from drumline.frontend import FrontEnd
from drumline.inputs import read_json_object
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["BundleDescription", "copy_bundle", "write_bundle"]


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

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``bundle.json`` of a classifier."""
        about = (self.name, self.version, self.description)
        return bundle_json(*about, self.front_end, created=_created(), **self.extra)


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
    write_bytes(directory / PARTS["model"], model.read_bytes())
    write_labels(directory, taxonomy.labels)
    write_json(directory / PARTS["calibration"], description.calibration)
    write_bytes(directory / CARD_NAME, description.card.encode())
    write_json(directory / MANIFEST_NAME, description.to_json())


def copy_bundle(bundle: Bundle, directory: Path, **changes: Any) -> None:
    """Copy a bundle, training notes and card included, with other values in its ``bundle.json``."""
    shutil.copytree(bundle.path, directory, dirs_exist_ok=True)
    value = read_json_object(directory / MANIFEST_NAME, BundleError)
    write_json(directory / MANIFEST_NAME, value | changes)


def _created() -> str:
    """Return today's date, or that of SOURCE_DATE_EPOCH, which makes a bundle reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    return moment.date().isoformat()
