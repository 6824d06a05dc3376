"""The plan: what `execute` is going to do, and what a dry run prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from drumline.decide import DecisionSettings
from drumline.errors import UsageError
from drumline.rebuild.actions import Action, Problem
from drumline.rebuild.log import LogState
from drumline.rebuild.settings import RebuildSettings
from drumline.rebuild.store import PLACED, TO_DO, Store, working_space
from drumline.rebuild.tree import Sources, Tree
from drumline.records import display_path
from drumline.runs import Run
from drumline.tally import Tally

__all__ = ["PLACED", "TO_DO", "LabelTotal", "Plan"]


@dataclass
class LabelTotal:
    """Files and bytes that one label has in the tree."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """A planned rebuild. Use it in a ``with`` statement, or close it.

    Parameters
    ----------
    settings
        What was asked.
    run
        The run that it comes from.
    archive_root
        Where the archive is; None for an empty index without a run.json.
    store
        The table that it stands in.
    decisions
        What decides the labels; None where the index alone holds the decisions.
    tree, log
        The output directory, opened and locked, and what its mapping log says; None when it is not there yet.
    sources
        The archive, opened; None when nothing is taken from it.
    counts
        Files per `State`, and ``remove``, ``duplicate`` (left out by dedup), ``failed``, ``overridden``.
    labels
        What each label has in the tree, by its directory's name.
    tally
        Counts over all records as decided now.
    warnings
        What the user should know before.
    """

    settings: RebuildSettings
    run: Run
    archive_root: bytes | None
    store: Store
    decisions: DecisionSettings | None = None
    tree: Tree | None = None
    log: LogState | None = None
    sources: Sources | None = None
    counts: Counter[str] = field(default_factory=Counter)
    labels: dict[str, LabelTotal] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    warnings: list[str] = field(default_factory=list)

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the output directory and drop the plan."""
        for part in (self.tree, self.sources, self.store):
            if part is not None:
                part.close()

    @property
    def is_first(self) -> bool:
        """Whether nothing that an earlier rebuild made stands in the tree."""
        return not self.store.has_made()

    @property
    def files(self) -> int:
        """Files that the tree will hold of this plan."""
        return sum(total.files for total in self.labels.values())

    @property
    def size(self) -> int:
        """Their size, in bytes."""
        return sum(total.bytes for total in self.labels.values())

    @property
    def wanted(self) -> str:
        """Which labels are wanted, in words; empty where the index alone holds the decisions."""
        if self.decisions is None:
            return ""
        targets = self.decisions.target_labels
        return "all labels" if targets is None else f"labels {', '.join(sorted(targets))}"

    def begin_execution(self) -> None:
        """Note that the plan is being executed; raise `UsageError` the second time."""
        if not self.store.claim():
            raise UsageError(
                "this plan was executed already", "Plan again: what is in place is then left alone."
            )

    def actions(self) -> Iterator[Action]:
        """Iterate over the whole plan, in order: what will be done, what is done, what cannot be done."""
        with working_space():
            yield from self.store.actions()

    def problems(self) -> Iterator[tuple[Problem, bytes, str]]:
        """Iterate over (problem, path, message), sorted."""
        with working_space():
            yield from self.store.problems()

    def batches(self, files: int, size: int, states: Sequence[str] = TO_DO) -> Iterator[list[Action]]:
        """Iterate over what is to be done, in lists of at most `files` files and about `size` bytes."""
        last = -1
        with working_space():
            while actions := self.store.actions_after(last, states, files):
                batch = _up_to(actions, size)
                yield batch
                last = batch[-1].number

    def to_json(self) -> dict[str, Any]:
        """Return everything that can be counted."""
        return {
            "out": display_path(self.settings.out),
            "run": self.run.display_name,
            "archive_root": None if self.archive_root is None else display_path(self.archive_root),
            "settings": self.settings.to_json(),
            "files": self.files,
            "bytes": self.size,
            "labels": {label: vars(total) for label, total in sorted(self.labels.items())},
            "counts": dict(sorted(self.counts.items())),
            "warnings": self.warnings,
        }


def _up_to(actions: list[Action], size: int) -> list[Action]:
    total = 0
    for place, action in enumerate(actions):
        total += action.size
        if total >= size:
            return actions[: place + 1]
    return actions
