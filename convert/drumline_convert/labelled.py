"""What bundles say of labelled recordings: the material to fit weights and gates on, and to measure with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drumline.audio import AudioError
from drumline.bundle import Bundle
from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline.inference import Session, open_session
from drumline.labels import Taxonomy
from drumline.rows import RowReader
from drumline_convert.manifest import Row, read_manifest
from drumline_convert.progress import Progress
from drumline_convert.taxonomy import TrainingTaxonomy, read_taxonomy

__all__ = ["Said", "Truth", "read_rows", "rows_of", "said_of", "truth_of"]

Floats = NDArray[np.float32]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Truth:
    """What recordings really are, as far as a taxonomy can say it.

    Parameters
    ----------
    canonical
        Index of the canonical label of each, (n,); misc is the last.
    collapse
        Matrix (fine, canonical) of 0 and 1.
    """

    canonical: NDArray[np.intp]
    collapse: Floats

    @property
    def is_drum(self) -> NDArray[np.bool_]:
        """Whether each is a kit drum, (n,)."""
        return np.asarray(self.canonical != self.collapse.shape[1] - 1)


@dataclass(frozen=True, slots=True)
class Said:
    """What a bundle says of recordings.

    Parameters
    ----------
    logits
        Not calibrated, (n, labels).
    probabilities
        Calibrated, (n, labels).
    gate
        Probability of being a kit drum, (n,); None of a bundle without a gate.
    """

    logits: Floats
    probabilities: Floats
    gate: Floats | None


def rows_of(manifest: Path, *splits: str) -> list[Row]:
    """Return the rows of a manifest on these sides; with no sides named, all of them.

    Raises
    ------
    ConfigError
        When the manifest cannot be read or has no such rows.
    """
    read = read_manifest(manifest)
    rows = list(read.side(*splits) if splits else read)
    if not rows:
        known = ", ".join(read.splits) or "none"
        raise ConfigError(
            f"{str(manifest)!r} has no rows of split {', '.join(splits)}; it has: {known}",
            "Give it splits with 'drumline dataset split', or name another one.",
        )
    return rows


def truth_of(rows: Sequence[Row], taxonomy: Taxonomy) -> Truth:
    """Return what the rows' labels collapse to; labels that only the shipped taxonomy knows go by that.

    Raises
    ------
    ConfigError
        When a label is unknown to both.
    """
    own, shipped = TrainingTaxonomy(taxonomy, {}), read_taxonomy()
    places = [_canonical(row.label, own, shipped) for row in rows]
    unknown = sorted({row.label for row, place in zip(rows, places, strict=True) if place is None})
    if unknown:
        raise ConfigError(f"neither bundle nor taxonomy knows the labels {', '.join(unknown[:5])}")
    return Truth(np.array(places, np.intp), own.collapse)


def _canonical(label: str, own: TrainingTaxonomy, shipped: TrainingTaxonomy) -> int | None:
    place, name = own.canonical_index(label), shipped.canonical_index(label)
    if place is not None or name is None:
        return place
    canonical = shipped.canonical[name]
    if canonical == shipped.labels.misc:
        return len(own.canonical) - 1
    return own.canonical.index(canonical) if canonical in own.canonical else None


def read_rows(
    rows: Sequence[Row], front_ends: Sequence[FrontEnd], progress: Progress | None = None
) -> Floats:
    """Return the features of recordings, (n, *row_shape), by the engine's own code.

    Raises
    ------
    ConfigError
        When a recording cannot be read.
    """
    reader = RowReader(front_ends)
    features = np.empty((len(rows), *reader.shape), np.float32)
    for place, row in enumerate(rows):
        features[place] = _row(row, reader)
        if progress and (place + 1) % _BATCH == 0:
            progress(place + 1, len(rows))
    if progress:
        progress(len(rows), len(rows))
    return features


def _row(row: Row, reader: RowReader) -> Floats:
    try:
        return reader.row(lambda decoder: decoder.decode_path(os.fsencode(row.path)))
    except (OSError, AudioError) as error:
        raise ConfigError(
            f"cannot read the recording {str(row.path)!r}: {error}",
            "'drumline dataset check' lists all such; mend them, or take their lines out of the manifest.",
        ) from error


def said_of(bundle: Bundle, features: Floats, session: Session | None = None) -> Said:
    """Run a bundle on the CPU over the features of `read_rows`."""
    session = session or open_session(bundle, "cpu")
    starts = range(0, len(features), _BATCH)
    logits = np.concatenate([session.logits(features[start : start + _BATCH]) for start in starts])
    outputs = [session.predict(features[start : start + _BATCH]) for start in starts]
    gates = [gate for output in outputs if (gate := output.gate) is not None]
    probabilities = np.concatenate([output.probabilities for output in outputs])
    return Said(logits, probabilities, np.concatenate(gates) if gates else None)
