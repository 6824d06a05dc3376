"""Records: one JSON object per file of the archive. The schema of the index.

`Record` is the typed structure, `json_schema` the same as JSON Schema, and `docs/index-format.md`
the same for people; a test holds them together.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, TypedDict, cast, get_args

import orjson

from drumline.decide import (
    PROBABILITY_DIGITS,
    DecisionSettings,
    Reason,
    decide,
    failed_decision,
    rounded_probability,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "FIELD_TYPES",
    "OPTIONAL_FIELDS",
    "SCHEMA_VERSION",
    "TRANSIENT_ERRORS",
    "WORKER_ERRORS",
    "Brief",
    "ErrorType",
    "FileError",
    "Record",
    "Top",
    "absolute_path",
    "display_path",
    "encode_record",
    "json_schema",
    "misfit",
    "path_fields",
    "redecide",
    "relative_path",
    "rounded_probability",
    "sparse_probs",
    "topk_of",
]

SCHEMA_VERSION: Final = 1

ErrorType = Literal[
    "unsupported_format",
    "decode_error",
    "empty_audio",
    "invalid_samples",
    "needs_ffmpeg",
    "unreadable",
    "vanished",
    "changed",
    "path_too_long",
    "too_large",
    "worker_crash",
    "timeout",
    "out_of_memory",
]

OPTIONAL_FIELDS: Final[frozenset[str]] = frozenset({"gate"})
"""Fields that the records of some models lack."""

TRANSIENT_ERRORS: Final[frozenset[str]] = frozenset(
    {"needs_ffmpeg", "unreadable", "vanished", "changed", "too_large"}
)
"""Errors that may be gone at the next run although the file's size and mtime are the same."""

WORKER_ERRORS: Final[frozenset[str]] = frozenset({"worker_crash", "timeout", "out_of_memory"})
"""Errors that cost worker processes: a file of the same content is not tried either."""


class FileError(TypedDict):
    """Why a file has no prediction."""

    type: ErrorType
    message: str


class Top(TypedDict):
    """One of the most probable fine labels."""

    label: str
    prob: float


class Brief(TypedDict):
    """What counting and rebuilding look at of a `Record`, which has all of it."""

    relative_path: str
    relative_path_b64: str | None
    hash: str | None
    size: int
    mtime_ns: int
    format: str
    duration_sec: float | None
    label_top1: str | None
    assigned_label: str
    assigned_conf: float | None
    assigned_reason: Reason
    errors: FileError | None


class Record(TypedDict):
    """One file of the archive.

    Paths are text for people; where the name is no UTF-8, ``*_b64`` keeps the exact bytes.
    Times are seconds since the epoch, durations seconds, rates and frequencies Hz, levels dB (full scale).
    ``probs`` maps fine labels to probabilities (six decimals; labels below 5e-7 are left out).
    ``gate`` is there only where the model has a gate; null for a failed file.
    """

    schema_version: int
    relative_path: str
    relative_path_b64: str | None
    abs_path: str
    abs_path_b64: str | None
    hash: str | None
    size: int
    mtime: float
    mtime_ns: int
    format: str
    sample_rate: int | None
    channels: int | None
    duration_sec: float | None
    rms_db: float | None
    spectral_centroid: float | None
    spectral_rolloff: float | None
    label_top1: str | None
    conf_top1: float | None
    topk: list[Top]
    probs: dict[str, float] | None
    gate: NotRequired[float | None]
    assigned_label: str
    assigned_conf: float | None
    assigned_reason: Reason
    misc_routed: bool
    below_misc_threshold: bool
    out_of_target: bool
    errors: FileError | None


def display_path(path: bytes | str | os.PathLike[str]) -> str:
    """Return a path as text for people; bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def path_fields(path: bytes) -> tuple[str, str | None]:
    """Return (text, base64 of the exact bytes or None when the text says it all)."""
    try:
        return path.decode("utf-8"), None
    except UnicodeDecodeError:
        return display_path(path), base64.b64encode(path).decode("ascii")


def _exact(text: str, encoded: str | None) -> bytes:
    return text.encode("utf-8") if encoded is None else base64.b64decode(encoded, validate=True)


def relative_path(record: Brief) -> bytes:
    """Return the file's exact path below the archive root."""
    return _exact(record["relative_path"], record["relative_path_b64"])


def absolute_path(record: Record, archive_root: bytes | None = None) -> bytes:
    """Return the file's exact absolute path; below `archive_root` when that is given."""
    if archive_root is not None:
        return os.path.join(archive_root, relative_path(record))
    return _exact(record["abs_path"], record["abs_path_b64"])


def encode_record(record: Record) -> bytes:
    """Encode a record as one line of the index, newline included."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def sparse_probs(labels: Sequence[str], rows: NDArray[np.floating]) -> Iterator[dict[str, float]]:
    """Yield each file's probabilities as a record stores them: six decimals, zeros left out.

    Parameters
    ----------
    labels
        Fine labels.
    rows
        Probabilities, shape (files, labels).
    """
    # All at once: rounding number by number would be the costliest step of a record.
    for row in rows.astype("f8").round(PROBABILITY_DIGITS).tolist():
        yield {label: value for label, value in zip(labels, row, strict=True) if value}


def topk_of(probs: Mapping[str, float], top_k: int) -> list[Top]:
    """Return the `top_k` most probable fine labels, ties in alphabetical order."""
    if not top_k:
        return []
    # Sorting bare numbers first, and labels only of what may be listed, takes a quarter of the time.
    least = sorted(probs.values(), reverse=True)[:top_k][-1:]
    likely = [label for label, prob in probs.items() if prob >= least[0]]
    best = sorted(likely, key=lambda label: (-probs[label], label))[:top_k]
    return [Top(label=label, prob=probs[label]) for label in best]


def redecide(record: Record, settings: DecisionSettings, top_k: int | None = None) -> Record:
    """Return the record as it reads under other decision settings; nothing is inferred.

    Parameters
    ----------
    record
        A record of any index.
    settings
        The new settings.
    top_k
        How many labels `topk` is to list; None leaves it.
    """
    probs = record["probs"]
    decision = decide(probs, settings, record.get("gate")) if probs else failed_decision(settings)
    topk = record["topk"] if top_k is None else topk_of(probs or {}, top_k)
    return cast(Record, {**record, **decision._asdict(), "topk": topk})


def _nullable(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    required = list(properties)
    return {"properties": properties, "required": required, "additionalProperties": False}


_STRING: Final = {"type": "string"}
_BOOLEAN: Final = {"type": "boolean"}
_PROBABILITY: Final = {"type": "number", "minimum": 0, "maximum": 1}
_NULLABLE_PROBABILITY: Final = {"anyOf": [_PROBABILITY, {"type": "null"}]}

_FIELDS: Final[dict[str, Any]] = {
    "schema_version": {"const": SCHEMA_VERSION},
    "relative_path": _STRING,
    "relative_path_b64": _nullable("string"),
    "abs_path": _STRING,
    "abs_path_b64": _nullable("string"),
    "hash": _nullable("string"),
    "size": {"type": "integer", "minimum": 0},
    "mtime": {"type": "number"},
    "mtime_ns": {"type": "integer"},
    "format": _STRING,
    "sample_rate": _nullable("integer"),
    "channels": _nullable("integer"),
    "duration_sec": _nullable("number"),
    "rms_db": _nullable("number"),
    "spectral_centroid": _nullable("number"),
    "spectral_rolloff": _nullable("number"),
    "label_top1": _nullable("string"),
    "conf_top1": _NULLABLE_PROBABILITY,
    "topk": {"type": "array", "items": {"type": "object", **_object(label=_STRING, prob=_PROBABILITY)}},
    "probs": {"type": ["object", "null"], "additionalProperties": _PROBABILITY},
    "gate": _NULLABLE_PROBABILITY,
    "assigned_label": _STRING,
    "assigned_conf": _NULLABLE_PROBABILITY,
    "assigned_reason": {"enum": list(get_args(Reason))},
    "misc_routed": _BOOLEAN,
    "below_misc_threshold": _BOOLEAN,
    "out_of_target": _BOOLEAN,
    "errors": {
        "type": ["object", "null"],
        **_object(type={"enum": list(get_args(ErrorType))}, message=_STRING),
    },
}

_PYTHON_TYPES: Final[dict[str, frozenset[type]]] = {
    "string": frozenset({str}),
    "integer": frozenset({int}),
    "number": frozenset({int, float}),
    "boolean": frozenset({bool}),
    "null": frozenset({type(None)}),
    "object": frozenset({dict}),
    "array": frozenset({list}),
}


def _types(schema: dict[str, Any]) -> frozenset[type]:
    """Return the Python types that the values of a JSON Schema have."""
    if "anyOf" in schema:
        return frozenset().union(*map(_types, schema["anyOf"]))
    if "type" not in schema:
        return frozenset(map(type, schema.get("enum", [schema.get("const")])))
    names = schema["type"]
    return frozenset().union(
        *(_PYTHON_TYPES[name] for name in ([names] if isinstance(names, str) else names))
    )


FIELD_TYPES: Final[dict[str, frozenset[type]]] = {name: _types(schema) for name, schema in _FIELDS.items()}
"""Field → the Python types that its value may have."""

_REQUIRED: Final = tuple(name for name in FIELD_TYPES if name not in OPTIONAL_FIELDS)
_LARGEST_WHOLE: Final = 2**63 - 1


@lru_cache(maxsize=256)
def _are_of_their_kinds(types: tuple[type, ...]) -> bool:
    # Nearly all records of an index have the same types: each combination is looked at once.
    return all(kind in FIELD_TYPES[name] for name, kind in zip(_REQUIRED, types, strict=True))


def misfit(record: Mapping[str, Any]) -> str | None:
    """Return the first field that is missing or not of its kind; None for what can be used as a `Record`.

    The kinds alone, which is quick; `json_schema` says more.
    """
    if not _are_of_their_kinds(tuple(map(type, map(record.get, _REQUIRED, repeat(...))))):
        return next(name for name in _REQUIRED if type(record.get(name, ...)) not in FIELD_TYPES[name])
    for name in ("size", "mtime_ns"):
        if abs(record[name]) > _LARGEST_WHOLE:
            return name
    if not _PYTHON_TYPES["number"].issuperset(map(type, (record["probs"] or {}).values())):
        return "probs"
    for name in ("conf_top1", "assigned_conf"):
        if not 0 <= (record[name] or 0) <= 1:
            return name
    error = record["errors"]
    if error is not None and not all(type(error.get(key)) is str for key in ("type", "message")):
        return "errors"
    return None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a record."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "drumline record",
        "type": "object",
        "properties": _FIELDS,
        "required": [name for name in _FIELDS if name not in OPTIONAL_FIELDS],
        "additionalProperties": False,
    }
