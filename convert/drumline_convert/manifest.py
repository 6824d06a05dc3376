"""Manifests: which recordings there are, what each is, and on which side of a split it stands.

A manifest is JSON Lines in UTF-8, one recording a line, and the one form in which data sets are passed on::

    {"path": "808/kick.wav", "label": "Kick", "kit": "808", "family": "808", "source": "own",
     "licence": "CC0-1.0", "hash": "0123456789abcdef", "split": "train", "weight": 1.0}

- ``path`` is relative to the manifest's directory where the recording lies below it, so that both can be
  moved together, and absolute elsewhere. In memory it is always absolute. Of a name that is no UTF-8 it is
  what people can read, and ``path_b64`` holds the exact bytes, as in an index.
- ``hash`` is the XXH3-64 of the file's bytes, 16 hexadecimal digits. There is one algorithm only: the same
  content under two hashes could stand on two sides of a split.
- ``family`` names kits that share recordings or are the same machine. It is never split.
- ``split`` is null, ``train``, ``validation``, ``test``, or ``fold0``, ``fold1`` …
- ``weight`` is the recording's weight in the training loss, above zero; less where the label is uncertain.

Every field has to be there and no other may: a misspelt ``weight`` must not silently become 1. Two lines
cannot name one path; two files may have one content.
"""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from drumline.durable import write_bytes
from drumline.errors import ConfigError
from drumline.inputs import open_regular
from drumline.labels import is_label
from drumline.outputs import check_output
from drumline.records import path_fields

__all__ = ["Manifest", "Row", "check_manifest_output", "has_fields", "read_manifest", "write_manifest"]

_LONGEST_LINE = 1 << 20
_HASH = re.compile(r"[0-9a-f]{16}")
_SPLIT = re.compile(r"train|validation|test|fold(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled recording; checked on construction.

    Parameters
    ----------
    path
        Where the audio is, absolute.
    label
        Fine label, as the data set states it.
    kit
        The drum kit, machine or pack that it belongs to.
    family
        Kits that share recordings or are the same machine; never split.
    source, licence
        Where the recording comes from, and what its source states.
    hash
        XXH3-64 of the file's bytes, hexadecimal.
    split
        ``train``, ``validation``, ``test``, ``fold0`` …, or None.
    weight
        Weight in the training loss.

    Raises
    ------
    ValueError
        When a value cannot be: the message names the field.
    """

    path: Path
    label: str
    kit: str
    family: str
    source: str
    licence: str
    hash: str
    split: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.path, Path) and self.path.is_absolute()) or "\0" in str(self.path):
            raise ValueError(f"path {str(self.path)!r} is no absolute path")
        if not is_label(self.label):
            raise ValueError(f"label {self.label!r} is no printable name without '/'")
        for name in ("kit", "family", "source", "licence"):
            _check_text(name, getattr(self, name))
        if not isinstance(self.hash, str) or not _HASH.fullmatch(self.hash):
            raise ValueError(f"hash {self.hash!r} is not 16 hexadecimal digits")
        if self.split is not None and not _SPLIT.fullmatch(str(self.split)):
            raise ValueError(f"split {self.split!r} is none of train, validation, test, fold0, fold1 …")
        _check_weight(self.weight)

    @property
    def fold(self) -> int | None:
        """The number in ``fold0``, ``fold1`` …; None on any other side."""
        return int(self.split[4:]) if self.split and self.split.startswith("fold") else None


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{name} {value!r} is no printable text")


def _check_weight(value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"weight {value!r} is no number above 0")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Labelled recordings, in order; no path stands twice.

    Parameters
    ----------
    rows
        The recordings.

    Raises
    ------
    ValueError
        When two rows have one path.
    """

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if len({row.path for row in self.rows}) < len(self.rows):
            raise ValueError("a path stands twice in the manifest")

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def side(self, *splits: str | None) -> Manifest:
        """Return the rows on these sides: ``manifest.side("train", "validation")``."""
        return Manifest(tuple(row for row in self.rows if row.split in splits))

    @property
    def families(self) -> tuple[str, ...]:
        """Names of all families, sorted."""
        return tuple(sorted({row.family for row in self.rows}))

    @property
    def splits(self) -> tuple[str, ...]:
        """Sides that have rows, sorted."""
        return tuple(sorted({row.split for row in self.rows if row.split is not None}))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises
    ------
    ConfigError
        When it cannot be read or has no rows, or, naming the line, when a line is no row or names a path
        that an earlier one has.
    """
    rows: list[Row] = []
    line_of: dict[Path, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        row = _row(line, _directory(path), f"{str(path)!r}, line {number}")
        earlier = line_of.setdefault(row.path, number)
        if earlier != number:
            raise ConfigError(
                f"{str(path)!r}, line {number}: {str(row.path)!r} stands in line {earlier}, too"
            )
        rows.append(row)
    if not rows:
        raise ConfigError(f"the manifest {str(path)!r} has no rows")
    return Manifest(tuple(rows))


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write a `Manifest`, or rows, as a manifest; atomically and durably.

    Raises
    ------
    OutputError
        When it cannot be written; what stood at `path` before is still there.
    """
    directory = _directory(path)
    write_bytes(path, b"".join(_line(row, directory) for row in rows))


def check_manifest_output(path: Path) -> None:
    """Raise `OutputError` when something other than a manifest stands where one is to be written."""
    names = {field.name for field in fields(Row)}
    check_output(path, "manifest", lambda stream: has_fields(stream, names))


def has_fields(stream: BinaryIO, names: Collection[str]) -> bool:
    """Tell whether an open file's first line is a JSON object with these fields."""
    try:
        value = orjson.loads(stream.readline(_LONGEST_LINE))
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.keys() >= set(names)


def _directory(path: Path) -> bytes:
    return os.path.dirname(os.path.abspath(os.fsencode(path)))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as stream:
            yield from iter(lambda: stream.readline(_LONGEST_LINE), b"")
    except OSError as error:
        raise ConfigError(
            f"cannot read the manifest {str(path)!r}: {error.strerror}",
            "Make one of a directory of recordings: drumline dataset scan DIR --out manifest.jsonl",
        ) from error


def _row(line: bytes, directory: bytes, where: str) -> Row:
    try:
        value: Any = orjson.loads(line)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        encoded = value.pop("path_b64", None)
        _check_names(value)
        location = os.fsencode(value["path"]) if encoded is None else base64.b64decode(encoded, validate=True)
        return Row(**{**value, "path": Path(os.fsdecode(os.path.join(directory, location)))})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: not a manifest row: {error}") from error


def _check_names(value: dict[str, Any]) -> None:
    known = [field.name for field in fields(Row)]
    missing = [name for name in known if name not in value]
    unknown = sorted(set(value) - set(known))
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    if unknown:
        raise ValueError(f"{unknown[0]} is no field of a manifest")


def _line(row: Row, directory: bytes) -> bytes:
    location = os.fsencode(row.path)
    inside = os.path.join(directory, b"")
    text, encoded = path_fields(location.removeprefix(inside))
    value = {field.name: getattr(row, field.name) for field in fields(Row)}
    value["path"] = text
    if encoded is not None:
        value["path_b64"] = encoded
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
