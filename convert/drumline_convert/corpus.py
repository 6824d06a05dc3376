"""Labelled recordings: the rows of a manifest.

A corpus is a directory with ``manifest.jsonl``; each line has at least ``path`` (relative to the directory),
``label``, ``family``, ``source``, ``licence`` and ``xxh64`` (content hash), and perhaps ``label_conf``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drumline.errors import ConfigError
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["Recording", "default_corpus", "read_corpus"]

_WEIGHT_OF_CONFIDENCE = {"high": 1.0, "medium": 0.6}


@dataclass(frozen=True, slots=True)
class Recording:
    """One labelled file.

    Parameters
    ----------
    path
        Where the audio is.
    label
        Label as the manifest states it, before thin classes are folded.
    fine, canonical
        Index of the fine and of the canonical label in the taxonomy.
    family
        Kits that share recordings or are the same machine; never split.
    content
        Hash of the file's bytes, hexadecimal.
    source, licence
        Where the recording comes from and what its source states.
    weight
        Weight in the training loss; less where the label is uncertain.
    """

    path: Path
    label: str
    fine: int
    canonical: int
    family: str
    content: str
    source: str
    licence: str
    weight: float = 1.0


def default_corpus() -> Path:
    """Return the corpus that ``DRUMLINE_CORPUS`` names, or else ``../shared/corpus``."""
    return Path(os.environ.get("DRUMLINE_CORPUS") or Path("..", "shared", "corpus"))


def read_corpus(corpus: Path, taxonomy: TrainingTaxonomy) -> list[Recording]:
    """Read ``manifest.jsonl`` of the directory `corpus`.

    Raises
    ------
    ConfigError
        When the manifest is missing or empty, a row is incomplete, or a label is not in the taxonomy.
    """
    manifest = corpus / "manifest.jsonl"
    try:
        lines = manifest.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read the corpus manifest {str(manifest)!r}: {error.strerror}",
            "Give the corpus directory with --corpus, or in DRUMLINE_CORPUS.",
        ) from error
    recordings = [
        _recording(corpus, line, taxonomy, f"{manifest}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not recordings:
        raise ConfigError(f"the corpus manifest {str(manifest)!r} has no rows")
    return recordings


def _recording(corpus: Path, line: str, taxonomy: TrainingTaxonomy, where: str) -> Recording:
    try:
        row: dict[str, Any] = json.loads(line)
        label = row["label"]
        fine, canonical = taxonomy.fine_index(label), taxonomy.canonical_index(label)
        if fine is None or canonical is None:
            raise ConfigError(f"{where}: the label {label!r} is not in the taxonomy")
        return Recording(
            corpus / row["path"],
            label,
            fine,
            canonical,
            row["family"],
            row["xxh64"],
            row["source"],
            row["licence"],
            _WEIGHT_OF_CONFIDENCE.get(row.get("label_conf", "high"), 1.0),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: not a manifest row ({error!r})") from error
