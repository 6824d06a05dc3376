"""What a bundle was trained on: families and content, so that nobody is measured on what he has learnt.

``training_set.json`` in a bundle::

    {"recordings": 5018, "families": ["808", …], "hash_algorithm": "xxh3_64", "hashes": "base64 …"}

``hashes`` are the first 48 bits of each content hash, sorted, six bytes each.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from drumline.bundle import Bundle
from drumline.durable import write_json
from drumline.errors import BundleError, ConfigError
from drumline_convert.content import MANIFEST_HASH

__all__ = [
    "Labelled",
    "TrainingSet",
    "inherit_training_set",
    "read_training_set",
    "refuse_what_was_learnt",
    "training_set_of",
    "write_training_set",
]

_FILE = "training_set.json"
_DIGITS = 12


class Labelled(Protocol):
    """What is needed of a manifest's row."""

    @property
    def family(self) -> str:
        """Kits that share recordings or are the same machine."""

    @property
    def hash(self) -> str:
        """XXH3-64 of the file, hexadecimal."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Families and content hashes that a model was trained or calibrated on.

    Parameters
    ----------
    families
        Their names.
    hashes
        First 12 hexadecimal digits of each content hash.
    """

    families: frozenset[str]
    hashes: frozenset[str]

    @classmethod
    def of(cls, rows: Iterable[Labelled]) -> TrainingSet:
        """Take families and hashes of `rows`."""
        listed = list(rows)
        return cls(frozenset(row.family for row in listed), frozenset(row.hash[:_DIGITS] for row in listed))

    def holds(self, row: Labelled) -> bool:
        """Whether the row's family or content was part of it."""
        return row.family in self.families or row.hash[:_DIGITS] in self.hashes


def training_set_of(bundle: Bundle) -> TrainingSet | None:
    """Return what a bundle, or all members of an ensemble, were trained on; None where one does not say."""
    if bundle.members:
        return _union([training_set_of(member) for member in bundle.members])
    return read_training_set(bundle.path)


def _union(sets: Sequence[TrainingSet | None]) -> TrainingSet | None:
    known = [each for each in sets if each is not None]
    if len(known) < len(sets):
        return None
    families = frozenset[str]().union(*(each.families for each in known))
    return TrainingSet(families, frozenset[str]().union(*(each.hashes for each in known)))


def refuse_what_was_learnt(bundle: Bundle, rows: Sequence[Labelled], way_out: str) -> None:
    """Raise `ConfigError` when a bundle says that it was trained on some of the rows.

    Parameters
    ----------
    way_out
        What to give instead.
    """
    trained_on = training_set_of(bundle)
    seen = 0 if trained_on is None else sum(map(trained_on.holds, rows))
    if seen:
        raise ConfigError(
            f"{bundle.name} was trained on {seen:,} of these {len(rows):,} recordings: on what it has "
            "learnt, it is far too sure of itself",
            way_out,
        )


def write_training_set(bundle: Path, rows: Iterable[Labelled]) -> None:
    """Write what a bundle was trained on into its directory.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    _write(bundle, TrainingSet.of(rows))


def inherit_training_set(bundle: Path, members: Iterable[Bundle]) -> None:
    """Write into a bundle what its members were trained on; nothing where one does not say.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    inherited = _union([training_set_of(member) for member in members])
    if inherited is not None:
        _write(bundle, inherited)


def _write(bundle: Path, used: TrainingSet) -> None:
    packed = b"".join(bytes.fromhex(digits) for digits in sorted(used.hashes))
    value = {
        "recordings": len(used.hashes),
        "families": sorted(used.families),
        "hash_algorithm": MANIFEST_HASH,
        "hashes": base64.b64encode(packed).decode("ascii"),
    }
    write_json(bundle / _FILE, value)


def read_training_set(bundle: Path) -> TrainingSet | None:
    """Return what a bundle was trained on; None where it does not say.

    Raises
    ------
    BundleError
        When the file is there and cannot be understood.
    """
    path = bundle / _FILE
    if not path.exists():
        return None
    try:
        value: Any = orjson.loads(path.read_bytes())
        packed = base64.b64decode(value["hashes"], validate=True).hex()
        hashes = [packed[place : place + _DIGITS] for place in range(0, len(packed), _DIGITS)]
        return TrainingSet(frozenset(map(str, value["families"])), frozenset(hashes))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"cannot understand {str(path)!r}: {error}", "Restore it, or train the bundle again."
        ) from error
