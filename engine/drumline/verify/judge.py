"""What is wrong with one line of an index."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, get_args

import orjson

from drumline.decide import DecisionSettings, Reason
from drumline.records import (
    FIELD_TYPES,
    OPTIONAL_FIELDS,
    SCHEMA_VERSION,
    ErrorType,
    Record,
    absolute_path,
    redecide,
    relative_path,
)

__all__ = ["Judge", "Verdict", "record_trouble"]

_REASONS: Final = frozenset(get_args(Reason))
_ERRORS: Final = frozenset(get_args(ErrorType))
_NUMBERS: Final = frozenset({int, float})
_INT64: Final = range(-(2**63), 2**63)


def record_trouble(record: Any) -> str:
    """Return what keeps a value from being a record, empty if nothing does.

    Notes
    -----
    Says no wherever `drumline.records.json_schema` does, and where the schema cannot: a path that is no
    base64 or leads out of the archive, numbers beyond 64 bits, a record with neither prediction nor error.
    """
    if type(record) is not dict:
        return "is no object"
    odd = (record.keys() ^ FIELD_TYPES.keys()) - (OPTIONAL_FIELDS - record.keys())
    if odd:
        return f"fields are missing or unknown: {', '.join(sorted(odd))[:200]}"
    for name, value in record.items():
        if type(value) not in FIELD_TYPES[name]:
            return f"{name} is {value!r:.60}"
    return _value_trouble(record) or _prediction_trouble(record) or _path_trouble(record)


def _value_trouble(record: dict[str, Any]) -> str:
    if record["schema_version"] != SCHEMA_VERSION:
        return f"is of version {record['schema_version']}, not {SCHEMA_VERSION}"
    if record["size"] < 0 or record["size"] not in _INT64:
        return f"size is {record['size']}"
    if record["mtime_ns"] not in _INT64:
        return f"mtime_ns is {record['mtime_ns']}"
    if record["assigned_reason"] not in _REASONS:
        return f"assigned_reason is {record['assigned_reason']!r:.60}"
    return ""


def _prediction_trouble(record: dict[str, Any]) -> str:
    error, probs = record["errors"], record["probs"] or {}
    if error is not None and not _is_error(error):
        return f"errors is {error!r:.60}"
    if (error is None) == (not probs):
        return "has neither a prediction nor an error" if error is None else "has a prediction and an error"
    single = (record["conf_top1"], record["assigned_conf"], record.get("gate"))
    known = [value for value in single if value is not None]
    if not _are_probabilities([*known, *probs.values()]):
        return "a probability is not between 0 and 1"
    return "" if all(map(_is_top, record["topk"])) else f"topk is {record['topk']!r:.60}"


def _is_error(value: dict[str, Any]) -> bool:
    texts = value.keys() == {"type", "message"} and all(type(text) is str for text in value.values())
    return texts and value["type"] in _ERRORS


def _are_probabilities(values: list[Any]) -> bool:
    return _NUMBERS.issuperset(map(type, values)) and (not values or 0 <= min(values) <= max(values) <= 1)


def _is_top(value: Any) -> bool:
    if type(value) is not dict or value.keys() != {"label", "prob"}:
        return False
    return type(value["label"]) is str and _are_probabilities([value["prob"]])


def _path_trouble(record: Any) -> str:
    try:
        path = relative_path(record)
        absolute_path(record)
    except ValueError as error:
        return f"its path is no base64: {error}"
    if not path or path.startswith(b"/") or b"\0" in path or b".." in path.split(b"/"):
        return "its path is none below an archive"
    return ""


class Verdict(NamedTuple):
    """What a line is worth.

    Parameters
    ----------
    record
        As it stands; None for what is no record.
    decided
        As it should read: the same, but for another decision.
    trouble
        What is wrong with it; empty if nothing is.
    """

    record: Record | None
    decided: Record | None
    trouble: str


class Judge:
    """Judges lines.

    Parameters
    ----------
    decisions, top_k
        What the run decided with; None where that is not known: then decisions are not judged.
    """

    def __init__(self, decisions: DecisionSettings | None, top_k: int | None) -> None:
        self._decisions, self._top_k = decisions, top_k

    def judge(self, line: bytes) -> Verdict:
        """Judge a line."""
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Verdict(None, None, f"no JSON: {error}")
        if trouble := record_trouble(record):
            return Verdict(None, None, trouble)
        return self._decision(record)

    def _decision(self, record: Record) -> Verdict:
        if self._decisions is None:
            return Verdict(record, record, "")
        try:
            decided = redecide(record, self._decisions, self._top_k)
        except KeyError as error:
            return Verdict(None, None, f"has a label that the model lacks: {error}")
        if decided == record:
            return Verdict(record, record, "")
        return Verdict(record, decided, _difference(dict(record), dict(decided)))


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    names = [name for name in found if found[name] != expected[name]]
    return "; ".join(f"{name} is {found[name]!r:.60}, not {expected[name]!r:.60}" for name in names)
