"""Tallies: what can be counted about records, in a form that adds up.

A tally is kept for every frame of an index, so that a summary is a sum over frames, whether they were
just written or carried over from an earlier run without being read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from drumline.records import Brief

__all__ = ["CONFIDENCE_BINS", "DURATION_EDGES", "Tally"]

CONFIDENCE_BINS = 20
"""Bins of the confidence histograms, equal widths over 0..1."""

DURATION_EDGES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Upper edges of the duration histogram in seconds; one more bin holds what is longer."""


_LARGEST = 2**63 - 1  # JSON knows larger numbers, its readers do not; three sparse files may add up to more


@dataclass(slots=True)
class Tally:
    """Counts over a set of records. Everything is a number that adds, so tallies merge in any order.

    Sums of confidences and durations are floats: in another order their last digits may differ, which the
    report rounds away.
    """

    records: int = 0
    failed: int = 0
    size: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    fine: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    confidence_sum: dict[str, float] = field(default_factory=dict)
    duration_sum: dict[str, float] = field(default_factory=dict)
    durations: Counter[str] = field(default_factory=Counter)
    confidences: Counter[str] = field(default_factory=Counter)

    def add(self, record: Brief) -> None:
        """Count one record."""
        label = record["assigned_label"]
        self.records += 1
        self.size += record["size"]
        self.reasons[record["assigned_reason"]] += 1
        self.formats[record["format"]] += 1
        if record["errors"] is not None:
            self.failed += 1
            self.errors[record["errors"]["type"]] += 1
            return
        self.labels[label] += 1
        self.fine[record["label_top1"] or ""] += 1
        confidence, duration = record["assigned_conf"] or 0.0, record["duration_sec"] or 0.0
        self.confidence_sum[label] = self.confidence_sum.get(label, 0.0) + confidence
        self.duration_sum[label] = self.duration_sum.get(label, 0.0) + duration
        self.durations[str(_duration_bin(duration))] += 1
        self.confidences[f"{label}/{_confidence_bin(confidence)}"] += 1

    def add_all(self, records: Sequence[Brief]) -> None:
        """Count records, as `add` does: column by column, which for many at once is four times as fast."""
        self.records += len(records)
        self.size += sum(record["size"] for record in records)
        self.reasons.update(record["assigned_reason"] for record in records)
        self.formats.update(record["format"] for record in records)
        errors = [error["type"] for record in records if (error := record["errors"]) is not None]
        self.failed += len(errors)
        self.errors.update(errors)
        self._add_sound([record for record in records if record["errors"] is None])

    def _add_sound(self, records: list[Brief]) -> None:
        labels = [record["assigned_label"] for record in records]
        confidences = [record["assigned_conf"] or 0.0 for record in records]
        durations = [record["duration_sec"] or 0.0 for record in records]
        self.labels.update(labels)
        self.fine.update(record["label_top1"] or "" for record in records)
        _add_sums(self.confidence_sum, labels, confidences)
        _add_sums(self.duration_sum, labels, durations)
        for place, count in Counter(map(_duration_bin, durations)).items():
            self.durations[str(place)] += count
        for (label, place), count in Counter(
            zip(labels, map(_confidence_bin, confidences), strict=True)
        ).items():
            self.confidences[f"{label}/{place}"] += count

    def merge(self, other: Tally) -> None:
        """Add another tally to this one."""
        for name in self.__slots__:
            mine, others = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                for key, value in others.items():
                    mine[key] = mine.get(key, 0) + value
            else:
                setattr(self, name, mine + others)

    def without(self, other: Tally) -> Tally:
        """Return this tally without what another counts, all of which is in this one."""
        left = Tally()
        for name in self.__slots__:
            mine, others = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                values = {key: value - others.get(key, 0) for key, value in mine.items()}
                setattr(left, name, type(mine)({key: value for key, value in values.items() if value}))
            else:
                setattr(left, name, mine - others)
        # Of sums, what rounding leaves of a label that no record has any more is nothing.
        left.confidence_sum = {key: left.confidence_sum.get(key, 0.0) for key in left.labels}
        left.duration_sum = {key: left.duration_sum.get(key, 0.0) for key in left.labels}
        return left

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values, for the cache."""
        return {name: getattr(self, name) for name in self.__slots__} | {"size": min(self.size, _LARGEST)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        """Build from what `to_json` gave."""
        tally = cls()
        for name, value in values.items():
            setattr(tally, name, type(getattr(tally, name))(value))
        return tally

    @classmethod
    def of(cls, records: Iterable[Brief]) -> Tally:
        """Count many records."""
        tally = cls()
        tally.add_all(list(records))
        return tally

    def report(self) -> dict[str, Any]:
        """Return what a person wants to know: counts, means and histograms per assigned label."""
        confidences = {label: [0] * CONFIDENCE_BINS for label in self.labels}
        for key, count in self.confidences.items():
            label, _, place = key.rpartition("/")
            confidences[label][int(place)] = count
        return {
            "labels": _by_count(self.labels),
            "fine_labels": _by_count(self.fine),
            "reasons": _by_count(self.reasons),
            "errors": _by_count(self.errors),
            "formats": _by_count(self.formats),
            "size_bytes": min(self.size, _LARGEST),
            "mean_confidence": _means(self.confidence_sum, self.labels),
            "confidence_histogram": confidences,
            "mean_duration_sec": _means(self.duration_sum, self.labels),
            "total_duration_sec": round(sum(self.duration_sum.values()), 3),
            "duration_histogram": {
                "edges_sec": list(DURATION_EDGES),
                "counts": [self.durations[str(place)] for place in range(len(DURATION_EDGES) + 1)],
            },
        }


def _by_count(counts: Counter[str]) -> dict[str, int]:
    """Return counts, the largest first, and equal ones by name: whoever counted first is chance."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _duration_bin(duration: float) -> int:
    return bisect_left(DURATION_EDGES, duration)


def _confidence_bin(confidence: float) -> int:
    return min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)


def _add_sums(sums: dict[str, float], labels: Iterable[str], values: Iterable[float]) -> None:
    for label, value in zip(labels, values, strict=True):
        sums[label] = sums.get(label, 0.0) + value


def _means(sums: dict[str, float], counts: Counter[str]) -> dict[str, float]:
    return {label: round(sums[label] / count, 4) for label, count in _by_count(counts).items()}
