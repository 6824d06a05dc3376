"""From slots to records: the one place where a record of a new file is put together."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from drumline.decide import decide, failed_decision
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
    sparse_probs,
    topk_of,
)

__all__ = ["Assembler", "assigned_labels"]

_COLUMNS = (
    *("path", "size", "mtime_ns", "hash", "error", "message", "format", "sample_rate", "channels"),
    *("duration_sec", "rms_db", "spectral_centroid", "spectral_rolloff", "gate"),
)


class Assembler:
    """Reads slots, many at once, and makes their records."""

    def __init__(self, job: Job, table: SlotTable, lap: Lap) -> None:
        self._job, self._table, self._lap = job, table, lap
        self._labels = job.bundle.labels
        self._assigned = assigned_labels(job)
        self._root, self._root_text = job.archive, path_fields(job.archive)

    def records(self, slots: list[int]) -> Iterator[Record]:
        """Make the records of slots that hold files."""
        columns = [self._table.view(name)[slots].tolist() for name in _COLUMNS]
        probabilities = sparse_probs(self._labels, self._table.view("probs")[slots])
        for values, probs in zip(zip(*columns, strict=True), probabilities, strict=True):
            fields = dict(zip(_COLUMNS, values, strict=True))
            record = self._record(fields, {} if fields["error"] else probs)
            self._lap(Step.RECORD)
            yield record

    def _record(self, fields: dict[str, Any], probs: dict[str, float]) -> Record:
        relative, relative_b64 = path_fields(fields["path"])
        absolute, absolute_b64 = path_fields(os.path.join(self._root, fields["path"]))
        failed = bool(fields["error"])
        self._lap(Step.RECORD, 0)
        gate = None if failed else _gate(fields)
        decision = (
            failed_decision(self._job.decisions) if failed else decide(probs, self._job.decisions, gate)
        )
        self._lap(Step.DECISION)
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
            duration_sec=None if failed else round(fields["duration_sec"], 6),
            rms_db=None if failed else _rounded(fields["rms_db"], 3),
            spectral_centroid=None if failed else _rounded(fields["spectral_centroid"], 2),
            spectral_rolloff=None if failed else _rounded(fields["spectral_rolloff"], 2),
            label_top1=decision.label_top1,
            conf_top1=decision.conf_top1,
            topk=topk_of(probs, self._job.settings.top_k),
            probs=None if failed else probs,
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


def _gate(fields: dict[str, Any]) -> float | None:
    return None if math.isnan(fields["gate"]) else rounded_probability(fields["gate"])


def _extension(path: bytes) -> str:
    return os.path.splitext(path)[1][1:].lower().decode("ascii", "replace")


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
