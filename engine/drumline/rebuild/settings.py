"""What a rebuild is asked to do; contradictions and impossible values are refused here, by name.

Whether the run has such labels and operating points shows when its run.json is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from drumline.errors import ConfigError, UsageError
from drumline.records import display_path
from drumline.thresholds import Threshold, is_threshold

__all__ = ["CopyMode", "Dedup", "Layout", "RebuildSettings"]

CopyMode = Literal["copy", "hardlink", "symlink", "reflink", "none"]
"""How a file gets into the tree; none: manifests and statistics only, the tree's files stay as they are."""

Layout = Literal["mirror", "flat"]
"""mirror: label/relative path; flat: label/normalised name."""

Dedup = Literal["keep-all", "first"]
"""first: of files with the same content only the first by path."""


@dataclass(frozen=True)
class RebuildSettings:
    """What `plan_rebuild` plans.

    Parameters
    ----------
    source
        A run directory, a runs root (its newest complete run) or an index file.
    out
        Directory of the tree; made when it is not there.
    copy_mode, layout, dedup
        See the types.
    labels
        Canonical labels that are wanted; files of the others go to misc. None: as the run was made.
    allow_all
        Every canonical label is wanted, also where the run was made for some of them.
    threshold
        Smallest probability that is believed, 0..1, or one of the operating points that the run's model has,
        ``"precision=0.95"``. None: as the run was made.
    gate
        Whether the gate of the run's model may say misc. None: as the run was made.
    gate_threshold
        Smallest probability that passes the gate, 0..1. None: as the run was made, or as the gate was fitted.
    overrides
        File of overrides, one JSON object a line: ``hash``, ``correct_label``, ``note``.
    archive_root
        Where the archive is now, when it was moved since it was indexed.
    drop_last_copies
        Files of an earlier plan go also where the archive does not have them any more.
    """

    source: Path
    out: Path
    copy_mode: CopyMode = "copy"
    labels: tuple[str, ...] | None = None
    allow_all: bool = False
    threshold: Threshold | None = None
    gate: bool | None = None
    gate_threshold: float | None = None
    overrides: Path | None = None
    layout: Layout = "mirror"
    dedup: Dedup = "keep-all"
    archive_root: Path | None = None
    drop_last_copies: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("copy mode", self.copy_mode, get_args(CopyMode)),
            ("layout", self.layout, get_args(Layout)),
            ("dedup", self.dedup, get_args(Dedup)),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}", f"It is one of {', '.join(known)}.")
        if self.allow_all and self.labels is not None:
            raise UsageError("a list of labels and 'allow all' contradict each other", "Give one of them.")
        if self.gate is False and self.gate_threshold is not None:
            raise UsageError(
                "'no gate' and a threshold of the gate contradict each other", "Give one of them."
            )
        if self.labels is not None and not self.labels:
            raise UsageError("the list of labels is empty", "Name at least one, or leave it out.")
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        for name, value in (("threshold", self.threshold), ("gate threshold", self.gate_threshold)):
            if isinstance(value, str) and name == "threshold":
                continue  # an operating point: the run says which it has
            if value is not None and not is_threshold(value):
                raise ConfigError(f"{name} {value!r} is not between 0 and 1", "Give a probability.")

    @property
    def redecides(self) -> bool:
        """Whether decisions may differ from those that the index holds."""
        asked = (self.threshold, self.labels, self.gate, self.gate_threshold)
        return self.allow_all or any(value is not None for value in asked)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values; paths as text."""
        return {
            name: display_path(value) if isinstance(value, Path) else value
            for name, value in vars(self).items()
        }
