"""Executing a plan: remove what is no longer wanted, place what is missing, write the reports.

The order makes every step repeatable. Files are announced in the mapping log, on disk, before they appear;
removals are noted after. A rebuild that was killed anywhere is completed by the same command.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any

from drumline import __version__
from drumline.durable import output_errors
from drumline.errors import Interrupted, OutputError
from drumline.rebuild import guard
from drumline.rebuild.actions import Action, Failure, Progress, Refused, report_to
from drumline.rebuild.crew import crew_for
from drumline.rebuild.log import (
    MAPPING,
    Made,
    MappingLog,
    fate,
    folders_bottom_up,
    make_line,
    path_line,
    rebuild_line,
)
from drumline.rebuild.manifests import MANIFESTS, STATS, SUMMARY, Reports
from drumline.rebuild.place import Placer, placer_for
from drumline.rebuild.plan import Plan, check_not_executed
from drumline.rebuild.settings import display
from drumline.rebuild.store import working_space
from drumline.rebuild.tree import STAGING, Tree

__all__ = ["RebuildSummary", "execute"]

FILE_PROBLEMS = ("missing", "changed", "unreadable", "occupied", "edited", "bad_name", "refused")
"""Problems of files that are in the plan."""

BESIDES = (
    "failed",
    "duplicate",
    "duplicate_record",
    "unsafe_path",
    "unsafe_label",
    "overridden",
    "kept",
    "reports_left",
)
"""What is counted besides."""

_REMOVED_LINES = 1_000


@dataclass(frozen=True)
class RebuildSummary:
    """What a rebuild did.

    Parameters
    ----------
    out
        The tree.
    counts
        ``planned`` = ``made`` + ``already_there`` + ``listed`` (copy mode none) + `FILE_PROBLEMS`. Besides
        them ``replaced`` (made where another stood), ``removed`` and ``kept`` (no longer in the plan),
        ``failed`` (have an error in the index), ``duplicate`` (left out by dedup), records that are refused,
        ``overridden``, and ``reports_left`` (reports that somebody edited).
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
    check_not_executed(plan)
    with output_errors(plan.settings.out), working_space():
        execution = _Execution(plan, report_to(progress))
        try:
            with closing(execution):
                return execution.run()
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped with {execution.counts['made']:,} of {execution.to_make:,} files placed",
                "Give the same command again: it goes on where it stopped.",
            ) from error


class _Execution:
    def __init__(self, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self._plan, self._store, self._progress = plan, plan.store, progress
        self._began = time.monotonic()
        self._cleanup = ExitStack()
        self._known_folder = b""
        self._done = 0
        self.counts: Counter[str] = Counter()
        self.to_make = sum(plan.counts[state] for state in ("make", "replace", "adopt"))

    def run(self) -> RebuildSummary:
        self._open()
        self._remove()
        self._place()
        return self._report()

    def close(self) -> None:
        self._cleanup.close()

    def _open(self) -> None:
        """Make the directory if need be, begin its log, and try the copy mode."""
        made_root = self._plan.tree is None
        with ExitStack() as on_error:
            if made_root:
                os.makedirs(self._plan.settings.out, exist_ok=True)
                on_error.callback(self._forsake_root)
                self._lock_root()
            assert self._plan.tree is not None
            self._tree: Tree = self._plan.tree
            self._open_log(made_root, on_error)
            self._make_folder(MANIFESTS)
            self._make_folder(STAGING)
            self._tree.clear_staging()
            self._cleanup.callback(self._drop_staging)
            self._placer = self._probed_placer()
            on_error.pop_all()
        self._log.append([rebuild_line(self._about())], sync=False)

    def _open_log(self, made_root: bool, on_error: ExitStack) -> None:
        state = self._plan.log
        fresh = state is None or state.length == 0
        if fresh:
            on_error.callback(self._forsake)
        self._log = MappingLog(self._tree, 0 if state is None else state.length)
        self._cleanup.callback(self._log.close)
        if fresh:
            self._log.begin(made_root=made_root)

    def _lock_root(self) -> None:
        opened = guard.open_tree(self._plan.settings.out, self._store)
        if opened is None or opened[1] is not None:
            raise OutputError(
                f"{str(self._plan.settings.out)!r} appeared while the rebuild was planned",
                "Give the same command again.",
            )
        self._plan.tree = opened[0]

    def _make_folder(self, folder: bytes) -> None:
        if self._tree.lstat(folder) is None:
            self._log.append([path_line("dir", folder)])
            self._store.folder(folder)
        self._tree.locate(folder + b"/", make=True)

    def _drop_staging(self) -> None:
        with suppress(OSError):
            self._tree.clear_staging()
            if self._tree.rmdir(STAGING):
                self._log.append([path_line("removed", STAGING)], sync=False)
            self._tree.forget()

    def _probed_placer(self) -> Placer | None:
        first = next(self._plan.batches(1, 1), None)
        if first is None or self._plan.sources is None:
            return None
        placer = placer_for(self._plan.settings.copy_mode, self._tree, self._plan.sources)
        placer.probe(first[0])
        return placer

    def _forsake(self) -> None:
        """Leave nothing behind in a directory that turned out not to do."""
        self.close()
        with suppress(OSError):
            self._tree.clear_staging()
            if self._tree.rmdir(STAGING) and self._tree.rmdir(MANIFESTS):
                self._tree.unlink(MAPPING)

    def _forsake_root(self) -> None:
        with suppress(OSError):
            os.rmdir(self._plan.settings.out)

    def _about(self) -> dict[str, Any]:
        about = self._plan.to_json()
        return {name: about[name] for name in ("run", "archive_root", "settings")} | {
            "drumline": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _remove(self) -> None:
        """Remove what was made earlier and is not wanted any more, or otherwise; then empty directories."""
        # A rebuild that was killed may have removed files and not have noted it.
        gone = self._store.rows("SELECT target FROM gone ORDER BY target")
        self._log.append([path_line("removed", target) for (target,) in gone], sync=False)
        drop = int(self._plan.settings.drop_last_copies)
        self._remove_files(
            "SELECT s.even_last, m.target, m.mode, m.size, m.mtime_ns, m.source, m.hash FROM stale s"
            " JOIN made m ON m.target = s.target",
            "removed",
        )
        self._remove_files(
            f"SELECT {drop} OR m.hash IS p.hash, m.target, m.mode, m.size, m.mtime_ns, m.source, m.hash"
            " FROM plan p JOIN made m ON m.target = p.target WHERE p.state = 'replace'",
            "replaced",
        )
        if self.counts["removed"] or self.counts["replaced"]:
            self._remove_folders()

    def _remove_files(self, query: str, count: str) -> None:
        total = self._plan.counts["remove"] + self._plan.counts["replace"]
        lines = []
        for even_last, *fields in self._store.rows(query + " ORDER BY m.target"):
            made = Made(*fields)
            if fate(self._tree, made, even_last=bool(even_last)) == "ours":
                self._tree.unlink(made.target)
                self.counts[count] += 1
                lines.append(path_line("removed", made.target))
            if len(lines) == _REMOVED_LINES:
                self._log.append(lines, sync=False)
                lines.clear()
                self._progress(Progress("removing", self.counts["removed"] + self.counts["replaced"], total))
        self._log.append(lines, sync=False)

    def _remove_folders(self) -> None:
        self._tree.forget()
        for folder in folders_bottom_up(self._store):
            if folder not in (STAGING, MANIFESTS) and self._tree.rmdir(folder):
                self._store.removed(folder)
                self._log.append([path_line("removed", folder)], sync=False)
        self._tree.forget()

    def _place(self) -> None:
        if self._placer is None:
            return
        placer = self._placer
        with crew_for(placer.place, self.to_make) as crew:
            for batch in self._plan.batches(placer.batch_files, placer.batch_bytes):
                self._announce(batch)
                self._note(crew.give(batch))
            self._note(crew.finish())

    def _announce(self, batch: Iterable[Action]) -> None:
        """Put on disk what is about to appear: first of all the directories."""
        assert self._plan.sources is not None
        mode, absolute = self._plan.settings.copy_mode, self._plan.sources.absolute
        lines: list[bytes] = []
        for action in batch:
            folder = action.target.rpartition(b"/")[0]
            if folder != self._known_folder:
                self._announce_folder(folder, lines)
            lines.append(make_line(action, mode, absolute(action)))
        self._store.flush()
        self._log.append(lines)

    def _announce_folder(self, folder: bytes, lines: list[bytes]) -> None:
        self._known_folder = folder
        new: list[bytes] = []
        while folder and self._is_new(folder):
            new.append(folder)
            folder = folder.rpartition(b"/")[0]
        for folder in reversed(new):
            lines.append(path_line("dir", folder))
            self._store.change("INSERT OR IGNORE INTO folder VALUES (?)", (folder,))

    def _is_new(self, folder: bytes) -> bool:
        if self._store.row("SELECT 1 FROM folder WHERE target = ?", (folder,)) is not None:
            return False
        try:
            return self._tree.lstat(folder) is None
        except Refused:
            return False  # something stands in the way: placing will say so

    def _note(self, done: list[tuple[list[Action], list[Failure]]]) -> None:
        for batch, failures in done:
            for failure in failures:
                self._note_failure(failure)
            self._store.flush()
            self._log.append([path_line("removed", failure.action.target) for failure in failures])
            adopted = sum(action.state == "adopt" for action in batch)
            self.counts["made"] += len(batch) - len(failures) - adopted
            self._done += len(batch)
            self._progress(Progress("placing", self._done, self.to_make))

    def _note_failure(self, failure: Failure) -> None:
        action, problem, message = failure
        self._store.problem(problem, action.target, message)
        self._store.change("UPDATE plan SET state = ? WHERE number = ?", (problem, action.number))
        self.counts[problem] += 1
        total = self._plan.labels[action.label]
        total.files -= 1
        total.bytes -= action.size

    def _report(self) -> RebuildSummary:
        self._progress(Progress("writing", self.to_make, self.to_make))
        reports = Reports(self._plan, self._tree, self._log)
        reports.write_manifests()
        labels = {label: vars(total) for label, total in sorted(self._plan.labels.items()) if total.files}
        reports.write_json(STATS, {**self._plan.tally.report(), "tree": labels})
        summary = RebuildSummary(
            display(self._plan.settings.out), self._counts(), labels, round(time.monotonic() - self._began, 3)
        )
        if self.to_make:
            self._tree.sync()
        reports.write_json(SUMMARY, {**self._about(), **summary.to_json()})
        self._store.flush()
        return summary

    def _counts(self) -> dict[str, int]:
        planned = self._plan.counts
        counts = {name: planned[name] + self.counts[name] for name in (*FILE_PROBLEMS, *BESIDES)}
        done = {name: self.counts[name] for name in ("made", "replaced", "removed")}
        return {
            "planned": self._store.row("SELECT COUNT(*) FROM plan")[0],
            "already_there": planned["there"] + planned["adopt"],
            "listed": planned["listed"],
            **done,
            **counts,
        }
