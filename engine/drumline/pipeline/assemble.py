"""From slots to records: the one place where a record of a new file is put together."""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any, cast

from drumline.decide import failed_decision
from drumline.decide_rows import Decided, RowDecider
from drumline.laps import Lap, Step
from drumline.pipeline.job import Job
from drumline.pipeline.slots import ERROR_TYPES, SlotTable
from drumline.records import (
    SCHEMA_VERSION,
    ErrorType,
    FileError,
    Record,
    path_fields,
    rounded_probability,
)

__all__ = ["Assembler", "assigned_labels"]

_COLUMNS = ("size", "mtime_ns", "hash", "error", "message", "format", "sample_rate", "channels")
_ROUNDED = {"duration_sec": 6, "rms_db": 3, "spectral_centroid": 2, "spectral_rolloff": 2}
"""Field → digits that a record keeps of it."""


class Assembler:
    """Reads slots, many at once, and makes their records."""

    def __init__(self, job: Job, table: SlotTable, lap: Lap) -> None:
        self._job, self._table, self._lap = job, table, lap
        self._decide = RowDecider(job.bundle.labels, job.decisions, job.settings.top_k)
        self._failed = Decided({}, [], failed_decision(job.decisions))
        self._assigned = assigned_labels(job)
        self._root = os.path.join(job.archive, b"")
        self._root_text, self._root_b64 = path_fields(self._root)

    def records(self, slots: list[int]) -> list[Record]:
        """Make the records of slots that hold files."""
        decided = self._decisions(slots)
        self._lap(Step.DECISION, len(slots))
        columns: dict[str, list[Any]] = {"path": self._table.paths(slots)}
        columns |= {name: self._table.view(name)[slots].tolist() for name in _COLUMNS}
        columns |= {name: self._rounded(name, slots, digits) for name, digits in _ROUNDED.items()}
        names = tuple(columns)
        records = [
            self._record(dict(zip(names, values, strict=True)), *what)
            for values, what in zip(zip(*columns.values(), strict=True), decided, strict=True)
        ]
        self._lap(Step.RECORD, len(slots))
        return records

    def _decisions(self, slots: list[int]) -> list[tuple[Decided, float | None]]:
        """Return what is decided for each slot, and what the gate says."""
        sound = [
            slot for slot, error in zip(slots, self._table.view("error")[slots], strict=True) if not error
        ]
        gates = [_gate(value) for value in self._table.view("gate")[sound].tolist()]
        decided = dict(
            zip(
                sound,
                zip(self._decide(self._table.view("probs")[sound], gates), gates, strict=True),
                strict=True,
            )
        )
        return [decided.get(slot, (self._failed, None)) for slot in slots]

    def _rounded(self, name: str, slots: list[int], digits: int) -> list[float | None]:
        """Return a column as records have it: rounded, and None where it is not known."""
        values = self._table.view(name)[slots].round(digits).tolist()
        return [None if math.isnan(value) else value for value in values]

    def _record(self, fields: dict[str, Any], decided: Decided, gate: float | None) -> Record:
        relative, relative_b64 = path_fields(fields["path"])
        absolute, absolute_b64 = self._root_text + relative, self._root_b64
        if relative_b64 or self._root_b64:
            absolute, absolute_b64 = path_fields(self._root + fields["path"])
        failed, decision = bool(fields["error"]), decided.decision
        record = Record(
            schema_version=SCHEMA_VERSION,
            relative_path=relative,
            relative_path_b64=relative_b64,
            abs_path=absolute,
            abs_path_b64=absolute_b64,
            hash=fields["hash"].decode() or None,
            size=fields["size"],
            mtime=fields["mtime_ns"] / 1e9,
            mtime_ns=fields["mtime_ns"],
            format=fields["format"].decode() if not failed else _extension(fields["path"]),
            sample_rate=None if failed else fields["sample_rate"],
            channels=None if failed else fields["channels"],
            duration_sec=None if failed else fields["duration_sec"],
            rms_db=None if failed else fields["rms_db"],
            spectral_centroid=None if failed else fields["spectral_centroid"],
            spectral_rolloff=None if failed else fields["spectral_rolloff"],
            label_top1=decision.label_top1,
            conf_top1=decision.conf_top1,
            topk=decided.topk,
            probs=None if failed else decided.probs,
            assigned_label=decision.assigned_label,
            assigned_conf=decision.assigned_conf,
            assigned_reason=decision.assigned_reason,
            misc_routed=decision.misc_routed,
            below_misc_threshold=decision.below_misc_threshold,
            out_of_target=decision.out_of_target,
            errors=_error(fields) if failed else None,
        )
        if self._job.bundle.gate is not None:
            record["gate"] = gate
        return record

    def count_labels(self, labels: Counter[str]) -> None:
        """Add to the label counts that the progress display shows."""
        for label, count in labels.items():
            self._table.label_counts[self._assigned.index(label)] += count


def assigned_labels(job: Job) -> list[str]:
    """Return every label that a file may be assigned, misc last."""
    misc = job.decisions.misc
    return [*sorted(set(job.decisions.canonical_of.values()) - {misc}), misc]


def _error(fields: dict[str, Any]) -> FileError:
    kind = cast(ErrorType, ERROR_TYPES[fields["error"]])
    return FileError(type=kind, message=fields["message"].decode("utf-8", "replace"))


def _gate(value: float) -> float | None:
    return None if math.isnan(value) else rounded_probability(value)


def _extension(path: bytes) -> str:
    return os.path.splitext(path)[1][1:].lower().decode("ascii", "replace")
