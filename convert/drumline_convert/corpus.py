"""Recordings: rows of a manifest, placed in a taxonomy. What every training and evaluation is given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from drumline.errors import ConfigError
from drumline_convert.manifest import Manifest, Row, read_manifest
from drumline_convert.scan import METADATA_NAME, ScanSettings, scan_directory
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["Recording", "default_corpus", "open_manifest", "read_corpus", "recordings_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Row):
    """A manifest's row and its place in a taxonomy.

    Parameters
    ----------
    fine, canonical
        Index of the fine and of the canonical label.
    """

    fine: int
    canonical: int


def default_corpus() -> Path:
    """Return the corpus that ``DRUMLINE_CORPUS`` names, or else ``../shared/corpus``."""
    return Path(os.environ.get("DRUMLINE_CORPUS") or Path("..", "shared", "corpus"))


def open_manifest(source: Path, taxonomy: TrainingTaxonomy) -> Manifest:
    """Read a manifest, or make one on the spot of a directory that has its own metadata.

    Raises
    ------
    ConfigError
        When there is neither, or when a recording of the directory would be left out.
    """
    if not source.exists():
        raise ConfigError(
            f"no manifest or corpus at {str(source)!r}",
            "Give a manifest, or a directory that has its own, with --corpus or in DRUMLINE_CORPUS.",
        )
    if not source.is_dir():
        return read_manifest(source)
    if not (source / METADATA_NAME).exists():
        raise ConfigError(
            f"the directory {str(source)!r} has no {METADATA_NAME}",
            f"Make a manifest and give that: drumline dataset scan {source} --out manifest.jsonl",
        )
    scan = scan_directory(source, ScanSettings(by="metadata", taxonomy=taxonomy))
    for path, _, detail in scan.left_out:
        raise ConfigError(
            f"{str(path)!r} cannot be used: {detail} ({len(scan.left_out)} such files)",
            f"Make a manifest of the others: drumline dataset scan {source} --out manifest.jsonl",
        )
    return scan.manifest


def read_corpus(source: Path, taxonomy: TrainingTaxonomy) -> list[Recording]:
    """Read the recordings of a manifest (see `open_manifest`) that may be learnt from: all but ``test``.

    Raises
    ------
    ConfigError
        When there is none, it is wrong, or a label is not in the taxonomy.
    """
    rows = [row for row in open_manifest(source, taxonomy) if row.split != "test"]
    if not rows:
        raise ConfigError(
            f"all recordings of {str(source)!r} are on the side test: none may be learnt from",
            "Give the manifest with the other sides, too.",
        )
    return recordings_of(rows, taxonomy)


def recordings_of(rows: Iterable[Row], taxonomy: TrainingTaxonomy) -> list[Recording]:
    """Place rows in a taxonomy, in their order.

    Raises
    ------
    ConfigError
        When a label is not in the taxonomy.
    """
    return [_placed(row, taxonomy) for row in rows]


def _placed(row: Row, taxonomy: TrainingTaxonomy) -> Recording:
    fine, canonical = taxonomy.fine_index(row.label), taxonomy.canonical_index(row.label)
    if fine is None or canonical is None:
        raise ConfigError(
            f"the label {row.label!r} of {str(row.path)!r} is not in the taxonomy",
            "Correct it in the manifest, or give a taxonomy that has it (--taxonomy).",
        )
    values = {part.name: getattr(row, part.name) for part in fields(row)}
    return Recording(**values, fine=fine, canonical=canonical)
