"""Is a manifest fit to be trained on: every fault that would spoil a training or flatter its figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from drumline.records import display_path
from drumline.wording import counted
from drumline_convert.examine import Examined, Fault, examine
from drumline_convert.manifest import Manifest, Row
from drumline_convert.progress import Progress
from drumline_convert.split import leaks
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["CheckReport", "CheckSettings", "Finding", "Kind", "check_manifest"]

Kind = Literal[
    "missing",
    "unreadable",
    "changed",
    "silent",
    "unknown_label",
    "contradiction",
    "leak",
    "few",
    "few_families",
    "absent",
    "duplicate",
    "clipped",
    "licence",
]
WARNINGS: frozenset[Kind] = frozenset({"few_families", "absent", "duplicate", "clipped", "licence"})
"""What a training can live with; all else makes `drumline dataset check` fail."""

_SILENT_DB = -60.0
_CLIPPED_SHARE = 0.005


class Finding(NamedTuple):
    """A fault: its kind, what has it (a path or a name), and a sentence for people."""

    kind: Kind
    what: str
    message: str

    @property
    def is_warning(self) -> bool:
        """Whether a training can live with it."""
        return self.kind in WARNINGS


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """What is asked of a manifest.

    Parameters
    ----------
    taxonomy
        Labels that there are.
    minimum
        Fewest recordings of a fine label.
    workers
        Processes that decode.
    """

    taxonomy: TrainingTaxonomy
    minimum: int = 10
    workers: int = 2


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Parameters
    ----------
    recordings
        How many were looked at.
    findings
        Errors first.
    """

    recordings: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings are no warnings."""
        return sum(not finding.is_warning for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        warnings = len(self.findings) - self.errors
        findings = [{**finding._asdict(), "warning": finding.is_warning} for finding in self.findings]
        return {
            "recordings": self.recordings,
            "errors": self.errors,
            "warnings": warnings,
            "counts": dict(Counter(finding.kind for finding in self.findings)),
            "findings": findings,
        }


def check_manifest(
    manifest: Manifest, settings: CheckSettings, progress: Progress | None = None
) -> CheckReport:
    """Look at a manifest and at every recording in it; nothing is changed.

    Parameters
    ----------
    manifest
        The recordings.
    settings
        What is asked of them.
    progress
        Called with (recordings decoded, recordings in all).
    """
    findings = [
        *_of_files(manifest.rows, settings.workers, progress),
        *_of_labels(manifest.rows, settings),
        *_of_contents(manifest.rows),
        *_of_sides(manifest.rows),
        *_of_licences(manifest.rows),
    ]
    findings.sort(key=lambda finding: (finding.is_warning, finding.kind))
    return CheckReport(len(manifest), tuple(findings))


def _of_files(rows: Sequence[Row], workers: int, progress: Progress | None) -> Iterator[Finding]:
    for done, (row, found) in enumerate(examine(rows, workers), start=1):
        for kind, message in _of_file(found):
            yield Finding(kind, _name(row), message)
        if progress:
            progress(done, len(rows))


def _of_file(found: Examined) -> Iterator[tuple[Fault | Literal["silent", "clipped"], str]]:
    if found.fault:
        yield found.fault, found.message
    elif found.peak_db < _SILENT_DB:
        yield "silent", f"its peak is {found.peak_db:.0f} dB"
    elif found.clipped >= _CLIPPED_SHARE:
        yield "clipped", f"{100 * found.clipped:.1f} % of its samples lie on flat tops"


def _of_labels(rows: Sequence[Row], settings: CheckSettings) -> Iterator[Finding]:
    taxonomy = settings.taxonomy
    families: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        fine = taxonomy.fine_index(row.label)
        if fine is None:
            yield Finding("unknown_label", _name(row), f"{row.label!r} is no label of the taxonomy")
        else:
            families[taxonomy.fine[fine]].append(row.family)
    for label in taxonomy.fine:
        count, kinds = len(families[label]), len(set(families[label]))
        if not count:
            yield Finding("absent", label, "no recording has this label: the model cannot learn it")
        elif count < settings.minimum:
            yield Finding("few", label, f"{counted(count, 'recording')}, fewer than {settings.minimum}")
        elif kinds < 2:
            yield Finding("few_families", label, "all recordings are of one family: it cannot be measured")


def _of_contents(rows: Sequence[Row]) -> Iterator[Finding]:
    twins: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        twins[row.hash].append(row)
    for same in twins.values():
        labels = sorted({row.label for row in same})
        others = ", ".join(_name(row) for row in same[1:])
        if len(labels) > 1:
            yield Finding("contradiction", _name(same[0]), f"{' and '.join(labels)}: the same as {others}")
        elif len(same) > 1:
            yield Finding("duplicate", _name(same[0]), f"the same content as {others}")


def _of_sides(rows: Sequence[Row]) -> Iterator[Finding]:
    for leak in leaks(rows, [row.split for row in rows]):
        yield Finding("leak", leak.name, str(leak))


def _of_licences(rows: Sequence[Row]) -> Iterator[Finding]:
    unknown = Counter(row.source for row in rows if row.licence.casefold() == "unknown")
    for source, count in sorted(unknown.items()):
        yield Finding("licence", source, f"the licence of {count} recordings is unknown")


def _name(row: Row) -> str:
    return display_path(row.path)
