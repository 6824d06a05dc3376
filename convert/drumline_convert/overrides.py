"""Corrections and the index they were made for → rows of a manifest, for the next training.

A correction is a line ``{"hash": …, "correct_label": …}``, the same that `drumline rebuild` takes. Its label
may be fine or canonical. A content that the manifest has already is relabelled there and keeps its kit,
family and side. Any other becomes a new row: its kit is its folder in the archive, and it is learnt from, not
measured on, unless its family stands on another side already. A file that is gone, or no longer has the
content that somebody listened to, cannot become a row.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import orjson

from drumline.content import hasher
from drumline.decide import DecisionSettings
from drumline.durable import write_bytes
from drumline.errors import ConfigError
from drumline.index import read_index, record_errors
from drumline.outputs import check_output
from drumline.rebuild.labelling import Override, read_overrides
from drumline.records import Record, absolute_path, display_path, relative_path
from drumline.runs import Run
from drumline_convert.content import MANIFEST_HASH, hash_file
from drumline_convert.manifest import Manifest, Row
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["MergeSettings", "Merged", "check_overrides_output", "merge_overrides", "write_overrides"]


@dataclass(frozen=True, slots=True)
class MergeSettings:
    """What is said of new rows.

    Parameters
    ----------
    taxonomy
        Labels that there are.
    source
        Where new recordings come from; None: the archive's name.
    licence
        What is known of their licence.
    weight
        Their weight in the training loss, and that of relabelled rows: somebody has listened to them.
    """

    taxonomy: TrainingTaxonomy
    source: str | None = None
    licence: str = "unknown"
    weight: float = 1.0


class Merged(NamedTuple):
    """The new manifest, and how its rows came about; `gone` are new files that are not there as they were."""

    rows: tuple[Row, ...]
    added: int
    relabelled: int
    gone: tuple[Path, ...]


def merge_overrides(
    overrides: Path, run: Run, settings: MergeSettings, into: Manifest | None = None
) -> Merged:
    """Make rows of corrections.

    Parameters
    ----------
    overrides
        File with the corrections.
    run
        The run whose hashes they name.
    settings
        What is said of new rows.
    into
        A manifest that is to hold them, too; they may name hashes of its rows as well.

    Raises
    ------
    ConfigError
        When the corrections are wrong, name a label that is not in the taxonomy, or a hash that neither a
        file of the index nor a row of the manifest has.
    """
    corrections = read_overrides(overrides, _own_labels(settings.taxonomy))
    old = list(into) if into else []
    known = {row.hash for row in old}
    found = _corrected_files(corrections, run, overrides, known)
    named = [(digest, entry.label) for digest, entry in corrections.items() if digest in known]
    named += [(entry.hash, entry.label) for entry in found]
    label_of = {digest: _label(label, settings.taxonomy) for digest, label in named}
    rows = [_relabelled(row, label_of, settings.weight) for row in old]
    unknown = [entry for entry in found if entry.hash not in known]
    there = [entry for entry in unknown if entry.there]
    new = _on_their_sides([_new(entry, run, settings) for entry in there], old)
    changed = sum(row.label != before.label for row, before in zip(rows, old, strict=True))
    gone = tuple(entry.path for entry in unknown if not entry.there)
    return Merged((*rows, *new), len(new), changed, gone)


def check_overrides_output(path: Path) -> None:
    """Raise `OutputError` when anything stands where corrections are to be written."""
    # Older corrections, too: whether a person has gone through them, no file says.
    check_output(path, "empty file", lambda stream: False, "--overrides")


def write_overrides(path: Path, label_of: Mapping[str, str]) -> None:
    """Write corrections, content hash → label, as `merge_overrides` and ``drumline rebuild`` take them.

    Raises
    ------
    OutputError
        When they cannot be written.
    """
    lines = (orjson.dumps({"hash": digest, "correct_label": label}) for digest, label in label_of.items())
    write_bytes(path, b"".join(line + b"\n" for line in lines))


class _Corrected(NamedTuple):
    """A file that was corrected.

    `hash` is by a manifest's algorithm where that is known; `there` says that the file still has the content
    that was corrected; `folder` is where it lies in the archive.
    """

    path: Path
    hash: str
    there: bool
    folder: str
    label: str


def _own_labels(taxonomy: TrainingTaxonomy) -> DecisionSettings:
    """Return settings by which every label of the taxonomy stands for itself."""
    labels = (*taxonomy.known, *taxonomy.canonical)
    return DecisionSettings({label: label for label in labels}, misc=taxonomy.labels.misc)


def _corrected_files(
    corrections: Mapping[str, Override], run: Run, overrides: Path, known: Container[str]
) -> list[_Corrected]:
    first: dict[str, Record] = {}
    with record_errors(run.index_path):
        for record in read_index(run.index_path):
            digest = record["hash"]
            if digest is not None and digest in corrections:
                first[digest] = min(first.get(digest, record), record, key=relative_path)
    for digest, override in corrections.items():
        if digest not in first and digest not in known:
            raise ConfigError(
                f"{str(overrides)!r}, line {override.line}: no file of the index has the hash {digest!r}",
                "Take the hashes from the index's field 'hash' or from the manifest, or remove the line.",
            )
    algorithm = run.info.get("settings", {}).get("hash_algorithm", MANIFEST_HASH)
    return [
        _corrected(first[digest], digest, override.label, algorithm)
        for digest, override in corrections.items()
        if digest in first
    ]


def _corrected(record: Record, digest: str, label: str, algorithm: str) -> _Corrected:
    path = Path(os.fsdecode(absolute_path(record)))
    there, content = False, digest
    # A file that has changed is not the one that was heard; and the index may hash otherwise than manifests.
    with suppress(OSError):
        there = hash_file(path, hasher(algorithm)) == digest
        content = hash_file(path) if there else digest
    folder = _printable(os.path.dirname(relative_path(record)))
    return _Corrected(path, content, there, folder, label)


def _printable(name: bytes) -> str:
    return "".join(char if char.isprintable() else "?" for char in display_path(name))


def _relabelled(row: Row, label_of: Mapping[str, str], weight: float) -> Row:
    return replace(row, label=label_of[row.hash], weight=weight) if row.hash in label_of else row


def _label(named: str, taxonomy: TrainingTaxonomy) -> str:
    label = taxonomy.manifest_label(named)
    if label is None:
        raise ConfigError(
            f"nothing in the taxonomy stands in for the canonical label {named!r}",
            "Correct to a fine label, or give the taxonomy a 'stand_in' for it.",
        )
    return label


def _new(entry: _Corrected, run: Run, settings: MergeSettings) -> Row:
    archive = os.path.basename(run.archive_root or b"") or b"archive"
    source = settings.source or _printable(archive)
    kit = f"{source}/{entry.folder}" if entry.folder else source
    label = _label(entry.label, settings.taxonomy)
    licence, weight = settings.licence, settings.weight
    return Row(entry.path, label, kit, kit, source, licence, entry.hash, weight=weight)


def _on_their_sides(new: Iterable[Row], old: Iterable[Row]) -> list[Row]:
    side_of = {row.family: row.split for row in old}
    split = "train" if "train" in side_of.values() else None
    return [replace(row, split=side_of.get(row.family, split)) for row in new]
