"""The label set of a training: fine labels in output order, what each collapses to, what is folded away.

A taxonomy is a JSON file (`taxonomy.json` is the default), so that another label set needs no code::

    {"misc": "misc", "canonical": {fine: canonical or misc, ...}, "fold": {rare: fine, ...},
     "stand_in": {canonical: fine, ...}}

The order of ``canonical`` is the order of the model's outputs. ``fold`` names labels that have too few
recordings to be a class of their own, and the class (of the same canonical label) that takes them in.
``stand_in`` says which fine label a recording gets of which only the canonical label is known, where that is
no fine label itself; it may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError
from drumline.inputs import LARGEST_JSON_BYTES, read_regular
from drumline.labels import Taxonomy

__all__ = ["DEFAULT_TAXONOMY", "TrainingTaxonomy", "read_taxonomy"]

DEFAULT_TAXONOMY = Path(__file__).with_name("taxonomy.json")


@dataclass(frozen=True)
class TrainingTaxonomy:
    """The model's labels, and the labels of a manifest that are folded into them.

    Parameters
    ----------
    labels
        Fine labels in output order with their canonical labels.
    fold
        Manifest label → fine label, for labels that are no class of their own.
    stand_in
        Canonical label → fine label, for recordings of which nothing finer is known.
    """

    labels: Taxonomy
    fold: Mapping[str, str]
    stand_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def fine(self) -> tuple[str, ...]:
        """Fine labels in output order."""
        return self.labels.fine

    @property
    def canonical(self) -> tuple[str, ...]:
        """Canonical labels, sorted, misc last."""
        return self.labels.canonical

    @property
    def known(self) -> tuple[str, ...]:
        """Labels that a manifest may have: fine ones, and those that are folded into them."""
        return (*self.fine, *self.fold)

    def manifest_label(self, label: str) -> str | None:
        """Return the label that a manifest has for a fine or canonical `label`, or None for another one."""
        return label if label in self.known else self.stand_in.get(label)

    @cached_property
    def collapse(self) -> NDArray[np.float32]:
        """Matrix (fine, canonical) of 0 and 1: fine probabilities @ collapse = canonical probabilities."""
        matrix = np.zeros((len(self.fine), len(self.canonical)), np.float32)
        for row, label in enumerate(self.fine):
            matrix[row, self.canonical.index(self.labels.canonical_of[label])] = 1
        return matrix

    def fine_index(self, label: str) -> int | None:
        """Index of the output that `label` trains, or None when the taxonomy does not know it."""
        label = self.fold.get(label, label)
        return self.fine.index(label) if label in self.labels.canonical_of else None

    def canonical_index(self, label: str) -> int | None:
        """Index of the canonical label that `label` collapses to, or None when it is unknown."""
        fine = self.fine_index(label)
        return None if fine is None else int(self.collapse[fine].argmax())


def read_taxonomy(path: Path = DEFAULT_TAXONOMY) -> TrainingTaxonomy:
    """Read a taxonomy file.

    Raises
    ------
    ConfigError
        When the file is missing, no JSON, or folds into a label that it does not have.
    """
    try:
        value = json.loads(read_regular(path, LARGEST_JSON_BYTES))
        labels = Taxonomy(tuple(value["canonical"]), value["canonical"], value["misc"])
        fold, stand_in = dict(value["fold"]), dict(value.get("stand_in", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read the taxonomy {str(path)!r}: {error}") from error
    astray = sorted({*fold.values(), *stand_in.values()} - set(labels.fine))
    if astray:
        raise ConfigError(f"the taxonomy {str(path)!r} folds into unknown labels: {', '.join(astray)}")
    return TrainingTaxonomy(labels, fold, stand_in)
