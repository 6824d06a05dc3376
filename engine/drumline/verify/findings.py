"""The words of verification: check, kind, finding, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from drumline.records import display_path

__all__ = ["FINDINGS_KEPT", "Check", "Finding", "Kind", "Ledger", "Report"]

Check = Literal[
    "run.json",
    "frames",
    "records",
    "paths",
    "decisions",
    "summary",
    "cache",
    "archive",
    "log",
    "files",
    "reports",
]

Kind = Literal[
    "run_json",
    "index_missing",
    "damaged_frame",
    "torn_tail",
    "no_checksum",
    "bad_record",
    "double_record",
    "other_decision",
    "summary",
    "cache",
    "log",
    "missing",
    "changed",
    "not_linked",
    "content",
    "unreadable",
    # Of notes only, as is the torn tail of an unfinished run.
    "unfinished",
    "no_cache",
    "last_copy",
    "additional",
]

FINDINGS_KEPT: Final = 1_000
"""Findings of one kind that are kept by name; the others are only counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Parameters
    ----------
    check, kind
        What was looked at, and what is the matter: see `drumline.verify`.
    where
        A path, or a place in a file; text for people.
    message
        What is there, and what should be.
    """

    check: Check
    kind: Kind
    where: str
    message: str


@dataclass(frozen=True)
class Report:
    """What was verified, and what was found.

    Parameters
    ----------
    subject
        The run or the tree; text for people.
    complete
        Whether the run came to its end; None for a lone index and for a tree.
    checks
        Check → what was looked at, in words.
    counts
        Check and kind → problems.
    findings
        The problems, at most `FINDINGS_KEPT` of a kind.
    note_counts, notes
        The same for what is no problem.
    """

    subject: str
    complete: bool | None
    checks: dict[Check, str]
    counts: dict[tuple[Check, Kind], int]
    findings: tuple[Finding, ...]
    note_counts: dict[tuple[Check, Kind], int]
    notes: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.counts

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return sum(self.counts.values())

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of problems that there are."""
        return {kind for _, kind in self.counts}

    def problems_of(self, check: Check) -> int:
        """Return how many problems a check found."""
        return sum(count for (name, _), count in self.counts.items() if name == check)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "complete": self.complete,
            "checks": [
                {"check": check, "problems": self.problems_of(check), "text": text}
                for check, text in self.checks.items()
            ],
            "problems": _plain(self.counts),
            "findings": [asdict(finding) for finding in self.findings],
            "notes": _plain(self.note_counts),
            "noted": [asdict(note) for note in self.notes],
        }


def _plain(counts: dict[tuple[Check, Kind], int]) -> list[dict[str, Any]]:
    return [{"check": check, "kind": kind, "count": count} for (check, kind), count in counts.items()]


class _Collection:
    """Findings by kind: the first are kept, all are counted."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Check, Kind]] = Counter()
        self.kept: list[Finding] = []

    def add(self, check: Check, kind: Kind, where: str | bytes, message: str) -> None:
        """Count a finding, and keep it while there are few of its kind."""
        self.counts[check, kind] += 1
        if self.counts[check, kind] <= FINDINGS_KEPT:
            text = display_path(where) if isinstance(where, bytes) else where
            self.kept.append(Finding(check, kind, text, message))


class Ledger:
    """Collects what is found, for a report."""

    def __init__(self) -> None:
        self._problems, self._notes = _Collection(), _Collection()
        self._checks: dict[Check, str] = {}

    def checked(self, check: Check, text: str) -> None:
        """Say what was looked at."""
        self._checks[check] = text

    def problem(self, check: Check, kind: Kind, where: str | bytes, message: str) -> None:
        """Note a problem."""
        self._problems.add(check, kind, where, message)

    def unnamed(self, check: Check, kind: Kind, count: int) -> None:
        """Count problems that are not kept by name."""
        if count > 0:
            self._problems.counts[check, kind] += count

    def note(self, check: Check, kind: Kind, where: str | bytes, message: str) -> None:
        """Note what is no problem."""
        self._notes.add(check, kind, where, message)

    def count(self, *kinds: Kind) -> int:
        """Return how many problems of some kinds there are so far."""
        return sum(count for (_, kind), count in self._problems.counts.items() if kind in kinds)

    def report(self, subject: str, complete: bool | None) -> Report:
        """Return the report."""
        failed = [check for check, _ in self._problems.counts]
        return Report(
            subject=subject,
            complete=complete,
            checks={check: self._checks.get(check, "") for check in _in_order([*self._checks, *failed])},
            counts=dict(self._problems.counts),
            findings=tuple(self._problems.kept),
            note_counts=dict(self._notes.counts),
            notes=tuple(self._notes.kept),
        )


def _in_order(checks: Iterable[Check]) -> list[Check]:
    return sorted(set(checks), key=get_args(Check).index)
