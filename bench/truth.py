"""What is true about the files of a synthesised archive; kept outside of it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Entry", "read_truth", "write_truth"]


class Entry(NamedTuple):
    """What is true about one file.

    Parameters
    ----------
    path
        Relative to the archive, as bytes.
    kind
        ``"sound"``, ``"duplicate"``, ``"broken"`` or ``"clutter"``.
    label, canonical
        Fine and canonical label; None for what is broken or clutter.
    format
        One of `bench.formats.FORMATS`; for a broken file, one of `bench.broken.BROKEN`.
    rate, channels
        Sample rate in Hz and channels; 0 for what is broken or clutter.
    duplicate_of
        Path of the file with the same content, for duplicates.
    """

    path: bytes
    kind: str
    label: str | None = None
    canonical: str | None = None
    format: str = ""
    rate: int = 0
    channels: int = 0
    duplicate_of: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a path that is no UTF-8 stands under ``path_base64`` in place of ``path``."""
        values = self._asdict()
        for name in ("path", "duplicate_of"):
            if values[name] is not None:
                values.update(_path_to_json(name, values.pop(name)))
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Entry:
        """Turn `to_json` round."""
        plain = {name: values[name] for name in cls._fields if name not in ("path", "duplicate_of")}
        path, original = (_path_from_json(name, values) for name in ("path", "duplicate_of"))
        return cls(path=path or b"", duplicate_of=original, **plain)


def _path_to_json(name: str, path: bytes) -> dict[str, str]:
    try:
        return {name: path.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(path).decode()}


def _path_from_json(name: str, values: dict[str, Any]) -> bytes | None:
    if f"{name}_base64" in values:
        return base64.b64decode(values[f"{name}_base64"])
    value: str | None = values.get(name)
    return value.encode() if value is not None else None


def write_truth(entries: Iterable[Entry], file: str | os.PathLike[str]) -> int:
    """Write one JSON line per entry, as they come; returns how many."""
    count = 0
    with Path(file).open("w", encoding="utf-8") as stream:
        for entry in entries:
            stream.write(json.dumps(entry.to_json()) + "\n")
            count += 1
    return count


def read_truth(file: str | os.PathLike[str]) -> list[Entry]:
    """Read what `write_truth` wrote."""
    with Path(file).open(encoding="utf-8") as stream:
        return [Entry.from_json(json.loads(line)) for line in stream]
