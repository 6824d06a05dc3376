"""Labels: the model's fine classes, and the kit classes that they collapse to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from drumline.errors import BundleError
from drumline.inputs import read_json

__all__ = [
    "CANONICAL_LABELS",
    "LONGEST_LABEL_BYTES",
    "MISC",
    "Taxonomy",
    "is_label",
    "label_checksum",
    "read_canonical_map",
    "read_labels",
]

CANONICAL_LABELS = ("Crash", "Hihat", "Kick", "Ride", "Snare", "Tom")
MISC = "misc"


LONGEST_LABEL_BYTES = 255 - len(".txt")
"""A label names a directory and a list beside it, and no file system takes more than 255 bytes for a name."""


def label_checksum(labels: Iterable[str]) -> str:
    """SHA-256 of the raw label list, one label a line, in the model's order."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()


@dataclass(frozen=True)
class Taxonomy:
    """The model's labels in output order, and what each collapses to.

    Parameters
    ----------
    fine
        Fine labels; position = index of the model's output.
    canonical_of
        Fine label → canonical label or `misc`, for every fine label.
    misc
        Name of the class for everything that is no kit drum.
    """

    fine: tuple[str, ...]
    canonical_of: Mapping[str, str]
    misc: str = MISC

    def __post_init__(self) -> None:
        doubled = sorted({label for label in self.fine if self.fine.count(label) > 1})
        if doubled:
            raise BundleError(f"labels stand twice in the label file: {', '.join(doubled)}")
        missing = [label for label in self.fine if label not in self.canonical_of]
        if missing:
            raise BundleError(
                f"the canonical mapping lacks {len(missing)} of the model's labels: {', '.join(missing[:5])}",
                "Add them to the canonical mapping, or use the mapping that belongs to the model.",
            )
        object.__setattr__(self, "canonical_of", MappingProxyType(dict(self.canonical_of)))

    @cached_property
    def canonical(self) -> tuple[str, ...]:
        """Canonical labels in use, sorted, `misc` last."""
        used = {self.canonical_of[label] for label in self.fine} - {self.misc}
        return (*sorted(used), self.misc)

    @property
    def checksum(self) -> str:
        """Checksum of the raw label list."""
        return label_checksum(self.fine)


def is_label(value: object) -> bool:
    """Return whether `value` can be a label: printable text without ``/`` or a dot in front, not too long."""
    # A label becomes a directory name: neither "a/b" nor ".." may leave the output directory.
    if not isinstance(value, str) or not value.strip():
        return False
    if len(value.encode("utf-8", "replace")) > LONGEST_LABEL_BYTES:
        return False
    return value.isprintable() and "/" not in value and not value.startswith(".")


def read_labels(path: Path) -> tuple[str, ...]:
    """Read fine labels in output order from a label file.

    Accepts ``{"labels": [...]}``, a plain list, ``{"0": "Kick", ...}`` and ``{"Kick": 0, ...}``.
    """
    value = read_json(path, BundleError, "label file")
    if isinstance(value, dict) and "labels" in value:
        checksum, value = value.get("sha256"), value["labels"]
        if checksum is not None and isinstance(value, list) and checksum != label_checksum(map(str, value)):
            raise BundleError(
                f"the label file {str(path)!r} does not match its own checksum",
                "It was edited after the model was made: restore it, or write the checksum anew.",
            )
    if isinstance(value, dict):
        value = _in_order(value, path)
    if not isinstance(value, list) or not value or not all(map(is_label, value)):
        raise BundleError(
            f"the label file {str(path)!r} is no list of labels",
            "Labels are printable strings without '/' of at most 251 bytes, in the order of the outputs.",
        )
    return tuple(value)


def _in_order(mapping: dict[str, Any], path: Path) -> list[str]:
    by_label = all(isinstance(value, int) for value in mapping.values())
    pairs = [
        (value, key) if by_label else (int(key) if key.isdigit() else -1, value)
        for key, value in mapping.items()
    ]
    pairs.sort(key=lambda pair: pair[0])
    if [index for index, _ in pairs] != list(range(len(pairs))):
        raise BundleError(f"the indices in the label file {str(path)!r} are not 0 … {len(pairs) - 1}")
    return [label for _, label in pairs]


def read_canonical_map(path: Path) -> tuple[dict[str, str], str]:
    """Read (fine label → canonical label, name of misc) from a canonical mapping file."""
    value = read_json(path, BundleError, "canonical mapping")
    misc = MISC
    if isinstance(value, dict) and isinstance(value.get("map"), dict):
        misc, value = value.get("misc", MISC), value["map"]
    if not isinstance(value, dict) or not all(is_label(label) for label in (*value.values(), misc)):
        raise BundleError(
            f"the canonical mapping {str(path)!r} is no object of fine label: canonical label",
            "Canonical labels are printable strings without '/' of at most 251 bytes.",
        )
    return value, misc
