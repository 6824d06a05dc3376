"""Executing a plan: remove what nobody wants here, replace, place, remove last copies, write the reports.

The order makes every step repeatable, and keeps every sample. Files are announced in the mapping log, on
disk, before they appear; removals are noted once they are on disk. A file that is made anew stands complete
in the staging directory before the old one goes; a last copy whose content the plan places elsewhere goes
only when that stands there. A rebuild that was killed anywhere is completed by the same command.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from drumline import __version__
from drumline.durable import output_errors
from drumline.errors import Interrupted
from drumline.helpers import helpers_for
from drumline.rebuild.actions import Action, Failure, Progress, report_to
from drumline.rebuild.clearing import Clearing
from drumline.rebuild.log import make_line, rebuild_line
from drumline.rebuild.manifests import STATS, SUMMARY, Reports
from drumline.rebuild.place import Placer, Staged
from drumline.rebuild.plan import Plan
from drumline.rebuild.site import Site, open_site
from drumline.rebuild.store import working_space
from drumline.records import display_path

__all__ = ["RebuildSummary", "execute"]

FILE_PROBLEMS = ("missing", "changed", "unreadable", "occupied", "edited", "bad_name", "refused")
"""Problems of files that are in the plan."""

BESIDES = (
    *("failed", "duplicate", "duplicate_record", "unsafe_path", "unsafe_label"),
    *("overridden", "kept", "reports_left"),
)
"""What is counted besides."""

_Rows: TypeAlias = list[tuple[Any, ...]]
"""Actions as bare tuples: named ones take a helper's pipe four times as long."""

_ADOPTED_TOGETHER = 2_048
_LOGGED_TOGETHER = 10_000


@dataclass(frozen=True)
class RebuildSummary:
    """What a rebuild did.

    Parameters
    ----------
    out
        The tree.
    counts
        ``planned`` = ``made`` + ``already_there`` + ``listed`` (copy mode none) + `FILE_PROBLEMS`. Besides
        them ``replaced`` (of those made: where another stood), ``removed`` and ``kept`` (no longer in the
        plan), ``failed`` (have an error in the index), ``duplicate`` (left out by dedup), records that are
        refused, ``overridden``, and ``reports_left`` (reports that somebody edited).
    labels
        Files and bytes of each label in the tree.
    seconds
        Time taken by the execution.
    """

    out: str
    counts: dict[str, int]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def not_placed(self) -> int:
        """Files of the plan that are not in the tree as planned."""
        return sum(self.counts[problem] for problem in FILE_PROBLEMS)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**vars(self), "not_placed": self.not_placed}


def execute(plan: Plan, progress: Callable[[Progress], None] | None = None) -> RebuildSummary:
    """Do what a plan says.

    Parameters
    ----------
    plan
        From `plan_rebuild`; it is executed once.
    progress
        Called now and then with how far it got.

    Raises
    ------
    OutputError
        When the tree cannot be written; what is in place stays, and the same rebuild goes on from there.
    Interrupted
        On Ctrl-C; likewise.
    """
    plan.begin_execution()
    execution = _Execution(plan, report_to(progress))
    try:
        with output_errors(plan.settings.out), working_space(), open_site(plan) as (site, placer):
            return execution.run(site, placer)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped with {execution.counts['made']:,} of {execution.to_make:,} files placed",
            "Give the same command again: it goes on where it stopped.",
        ) from error


class _Execution:
    def __init__(self, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self._plan, self._store, self._progress = plan, plan.store, progress
        self._began = time.monotonic()
        self._done = 0
        self.counts: Counter[str] = Counter()
        self.to_make = sum(plan.counts[state] for state in ("make", "replace", "adopt"))

    def run(self, site: Site, placer: Placer | None) -> RebuildSummary:
        """Remove, adopt, place, replace, remove last copies, report: in the order that keeps every sample."""
        site.log.append([rebuild_line(self._about())], sync=False)
        self._log_doubts(site)
        clearing = Clearing(self._plan, site, self.counts, self._progress)
        clearing.remove_unwanted()
        self._adopt(site)
        if placer is not None:
            self._place(site, placer)
            self._replace(site, placer, clearing)
        clearing.remove_last_copies()
        return self._report(site)

    def _log_doubts(self, site: Site) -> None:
        """Say in the log whose originals failed, before anything is decided by that."""
        doubted = self._store.newly_doubted()
        while some := list(islice(doubted, _LOGGED_TOGETHER)):
            site.log.append([make_line(made, made.mode, made.source, doubted=True) for made in some])

    def _about(self) -> dict[str, Any]:
        about = self._plan.to_json()
        return {name: about[name] for name in ("run", "archive_root", "settings")} | {
            "wanted": self._plan.wanted,
            "drumline": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _adopt(self, site: Site) -> None:
        """Tell the log of what stands as planned, and which file of the archive it comes from now."""
        for batch in self._plan.batches(_ADOPTED_TOGETHER, 1 << 62, ("adopt",)):
            site.announce(batch)
            self._done += len(batch)
            self._progress(Progress("placing", self._done, self.to_make))

    def _place(self, site: Site, placer: Placer) -> None:
        with helpers_for(partial(_place_rows, placer), self.to_make) as helpers:
            for batch in self._plan.batches(placer.batch_files, placer.batch_bytes, ("make",)):
                site.announce(batch)
                self._note_placed(site, helpers.give(list(map(tuple, batch))))
            self._note_placed(site, helpers.finish())

    def _note_placed(self, site: Site, done: Sequence[tuple[_Rows, list[Failure]]]) -> None:
        for rows, failures in done:
            site.disown(failures)
            self._note(len(rows), failures)

    def _replace(self, site: Site, placer: Placer, clearing: Clearing) -> None:
        """Make anew what was made otherwise: helpers stage it, then the old ones give way to it."""
        files = self._plan.counts["replace"]
        if not files:
            return
        with helpers_for(placer.stage, files) as helpers:
            for batch in self._plan.batches(placer.batch_files, placer.batch_bytes, ("replace",)):
                self._exchange(site, placer, clearing, helpers.give(batch))
            self._exchange(site, placer, clearing, helpers.finish())

    def _exchange(
        self,
        site: Site,
        placer: Placer,
        clearing: Clearing,
        done: Sequence[tuple[Sequence[Action], tuple[list[Staged], list[Failure]]]],
    ) -> None:
        for batch, (staged, failures) in done:
            site.announce_staged(staged)
            ready = []
            for action, place in staged:
                if failure := clearing.make_way(action):
                    failures.append(failure)
                else:
                    ready.append((action, place))
            site.removals.flush()
            site.announce([action for action, _ in ready])
            unpublished = placer.publish(ready)
            site.disown(unpublished)
            clearing.clear_staged()
            self._note_replaced(ready, unpublished)
            self._note(len(batch), failures + unpublished)

    def _note_replaced(self, ready: Sequence[Staged], unpublished: Sequence[Failure]) -> None:
        """Note in the plan what stands now: from here on it is no longer what it was to replace."""
        for action, _ in ready:
            self._store.set_state(action, "there")
        self.counts["replaced"] += len(ready) - len(unpublished)

    def _note(self, files: int, failures: Sequence[Failure]) -> None:
        for failure in failures:
            self._note_failure(failure)
        self._store.flush()
        self.counts["made"] += files - len(failures)
        self._done += files
        self._progress(Progress("placing", self._done, self.to_make))

    def _note_failure(self, failure: Failure) -> None:
        action, problem, message = failure
        self._store.note_problem(problem, action.target, message)
        self._store.set_state(action, problem)
        self.counts[problem] += 1
        total = self._plan.labels[action.label]
        total.files -= 1
        total.bytes -= action.size

    def _report(self, site: Site) -> RebuildSummary:
        self._progress(Progress("writing", self.to_make, self.to_make))
        reports = Reports(self._plan, site.tree, site.log)
        self.counts["reports_left"] += reports.write_manifests()
        labels = {label: vars(total) for label, total in sorted(self._plan.labels.items()) if total.files}
        self.counts["reports_left"] += not reports.write_json(
            STATS, {**self._plan.tally.report(), "tree": labels}
        )
        if self.to_make or reports.published:
            site.tree.sync()
        seconds = round(time.monotonic() - self._began, 3)
        summary = RebuildSummary(display_path(self._plan.settings.out), self._counts(), labels, seconds)
        if not reports.write_json(SUMMARY, {**self._about(), **summary.to_json()}):
            self.counts["reports_left"] += 1
            summary = replace(summary, counts=self._counts())
        site.tree.sync_names()
        self._store.flush()
        return summary

    def _counts(self) -> dict[str, int]:
        planned = self._plan.counts
        return {
            "planned": self._store.action_count(),
            "already_there": planned["there"] + planned["adopt"],
            "listed": planned["listed"],
            **{name: self.counts[name] for name in ("made", "replaced", "removed")},
            **{name: planned[name] + self.counts[name] for name in (*FILE_PROBLEMS, *BESIDES)},
        }


def _place_rows(placer: Placer, rows: _Rows) -> list[Failure]:
    return placer.place(list(map(Action._make, rows)))
