"""Executing a plan: remove what nobody wants here, replace, place, remove last copies, write the reports.

The order makes every step repeatable, and keeps every sample. Files are announced in the mapping log, on
disk, before they appear; removals are noted once they are on disk. A file that is made anew stands complete
in the staging directory before the old one goes; a last copy whose content the plan places elsewhere goes
only when that stands there. A rebuild that was killed anywhere is completed by the same command.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drumline import __version__
from drumline.durable import output_errors
from drumline.errors import DrumlineError, Interrupted, OutputError
from drumline.rebuild import guard
from drumline.rebuild.actions import Action, Failure, Progress, Refused, report_to
from drumline.rebuild.helpers import helpers_for
from drumline.rebuild.log import (
    LOG_NAME,
    WHY_IT_STAYS,
    MappingLog,
    Removals,
    fate,
    make_line,
    path_line,
    rebuild_line,
    replaces,
)
from drumline.rebuild.manifests import MANIFESTS, STATS, SUMMARY, Reports
from drumline.rebuild.place import Placer, Staged, placer_for
from drumline.rebuild.plan import Plan
from drumline.rebuild.settings import display
from drumline.rebuild.store import Made, working_space
from drumline.rebuild.tree import STAGING, Sources, Tree

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

_REPORT_EVERY = 1_000
_ADOPTED_TOGETHER = 2_048


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
        self._done = self._removed_before = 0
        self.counts: Counter[str] = Counter()
        self.to_make = sum(plan.counts[state] for state in ("make", "replace", "adopt"))

    def run(self) -> RebuildSummary:
        self._open()
        self._remove()
        self._adopt()
        self._place()
        self._replace()
        self._remove_last_copies()
        return self._report()

    def close(self) -> None:
        self._cleanup.close()

    def _open(self) -> None:
        """Make the directory if need be, begin its log, and try the copy mode."""
        made_root = self._plan.tree is None
        with ExitStack() as on_error:
            if made_root:
                on_error.callback(_remove_directories, _make_directories(self._plan.settings.out))
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
        self._removals = Removals(self._tree, self._log)
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
            self._store.note_folder(folder)
        self._tree.locate(folder + b"/", make=True)

    def _drop_staging(self) -> None:
        """Leave no staging directory; where that fails, the log knows it, and the next rebuild clears it."""
        with suppress(OSError, DrumlineError, Refused):
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
        with suppress(OSError, Refused):
            self._tree.clear_staging()
            if self._tree.rmdir(STAGING) and self._tree.rmdir(MANIFESTS):
                self._tree.unlink(LOG_NAME)

    def _about(self) -> dict[str, Any]:
        about = self._plan.to_json()
        return {name: about[name] for name in ("run", "archive_root", "settings")} | {
            "drumline": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _remove(self) -> None:
        """Remove what was made earlier and the plan does not want, where it is not the last copy."""
        even_last = self._plan.settings.drop_last_copies
        for made in self._store.stale(is_last=False):
            self._remove_file(made, even_last=even_last)
        self._remove_folders()

    def _remove_last_copies(self) -> None:
        """Remove last copies whose content stands elsewhere in the tree by now."""
        for made in self._store.stale(is_last=True):
            if any(map(self._stands, self._store.twins(made))):
                self._remove_file(made, even_last=True)
            else:
                self._note_kept(made, WHY_IT_STAYS["last_copy"])
        self._remove_folders()

    def _remove_file(self, made: Made, *, even_last: bool) -> None:
        how = fate(self._tree, made, even_last=even_last)
        if how == "ours":
            self._tree.unlink(made.target)
            self._removals.add(made.target)
            self.counts["removed"] += 1
            if self.counts["removed"] % _REPORT_EVERY == 0:
                self._progress(Progress("removing", self.counts["removed"], self._plan.counts["remove"]))
        elif how == "gone":
            self._removals.add(made.target)  # by somebody, or by a rebuild that was killed before it noted it
        else:
            self._note_kept(made, WHY_IT_STAYS[how])

    def _note_kept(self, made: Made, why: str) -> None:
        self._store.note_problem("kept", made.target, why)
        self.counts["kept"] += 1

    def _stands(self, action: Action) -> bool:
        """Tell whether a file of the plan is in the tree, and not as a link that leads nowhere."""
        try:
            if self._plan.settings.copy_mode == "symlink":
                self._sources().find(action)
            status = self._tree.lstat(action.target)
        except Refused:
            return False
        return status is not None and (stat.S_ISLNK(status.st_mode) or status.st_size == action.size)

    def _remove_folders(self) -> None:
        """Remove directories that became empty, when something was removed."""
        self._removals.flush()
        if self.counts["removed"] == self._removed_before:
            return
        self._removed_before = self.counts["removed"]
        self._tree.forget()
        for folder in self._store.folders_bottom_up():
            if folder not in (STAGING, MANIFESTS) and self._tree.rmdir(folder):
                self._store.note_removed(folder)
                self._removals.add(folder)
        self._removals.flush()
        self._tree.forget()
        self._known_folder = b""

    def _replace(self) -> None:
        """Make anew what was made otherwise: helpers stage it, then the old ones give way to it."""
        if self._placer is None or not self._plan.counts["replace"]:
            return
        placer = self._placer
        with helpers_for(placer.stage, self._plan.counts["replace"]) as helpers:
            for batch in self._plan.batches(placer.batch_files, placer.batch_bytes, ("replace",)):
                self._exchange(helpers.give(batch))
            self._exchange(helpers.finish())

    def _exchange(self, done: Sequence[tuple[Sequence[Action], tuple[list[Staged], list[Failure]]]]) -> None:
        assert self._placer is not None
        for batch, (staged, failures) in done:
            ready = []
            for action, place in staged:
                if failure := self._make_way(action):
                    failures.append(failure)
                    self._tree.unlink(place)
                else:
                    ready.append((action, place))
            self._removals.flush()
            self._announce([action for action, _ in ready])
            unpublished = self._placer.publish(ready)
            self._disown(unpublished)
            self.counts["replaced"] += len(ready) - len(unpublished)
            self._note(batch, failures + unpublished)

    def _make_way(self, action: Action) -> Failure | None:
        """Take away what stands in the place of a staged file; return why it stays."""
        made = self._store.made_at(action.target)
        blocking = self._store.last_copies_blocking(action.target) if made is None else [made]
        for old in blocking:
            how = fate(self._tree, old, even_last=self._may_go_for(old, action))
            if how in ("changed", "last_copy"):
                return Failure(action, "edited" if old is made else "occupied", WHY_IT_STAYS[how])
        if self._plan.settings.copy_mode == "symlink":
            try:
                self._sources().find(action)
            except Refused as refused:
                return Failure(action, refused.problem, refused.message)
        for old in blocking:
            self._tree.unlink(old.target)
            self._removals.add(old.target)
            if old is not made:
                self._store.drop_stale(old)
                self.counts["removed"] += 1
        if made is None:
            self._remove_folders()
        return None

    def _may_go_for(self, old: Made, action: Action) -> bool:
        root = self._plan.archive_root or b""
        if self._plan.settings.drop_last_copies or replaces(old, action, root):
            return True
        return old.target != action.target and any(map(self._stands, self._store.twins(old)))

    def _adopt(self) -> None:
        """Tell the log of what stands as planned, and which file of the archive it comes from now."""
        for batch in self._plan.batches(_ADOPTED_TOGETHER, 1 << 62, ("adopt",)):
            self._announce(batch)
            self._done += len(batch)
            self._progress(Progress("placing", self._done, self.to_make))

    def _place(self) -> None:
        if self._placer is None:
            return
        placer = self._placer
        with helpers_for(placer.place, self.to_make) as helpers:
            for batch in self._plan.batches(placer.batch_files, placer.batch_bytes, ("make",)):
                self._announce(batch)
                self._note_placed(helpers.give(batch))
            self._note_placed(helpers.finish())

    def _announce(self, batch: Iterable[Action]) -> None:
        """Put on disk what is about to appear, each directory before what is in it."""
        mode, absolute = self._plan.settings.copy_mode, self._sources().absolute
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
            self._store.note_folder(folder)
        self._store.flush()

    def _is_new(self, folder: bytes) -> bool:
        if self._store.is_our_folder(folder):
            return False
        try:
            return self._tree.lstat(folder) is None
        except Refused:
            return False  # something stands in the way: placing will say so

    def _note_placed(self, done: Sequence[tuple[Sequence[Action], list[Failure]]]) -> None:
        for batch, failures in done:
            self._disown(failures)
            self._note(batch, failures)

    def _disown(self, failures: Sequence[Failure]) -> None:
        """Note that what was announced did not come."""
        self._log.append([path_line("removed", failure.action.target) for failure in failures])

    def _note(self, batch: Sequence[Action], failures: Sequence[Failure]) -> None:
        for failure in failures:
            self._note_failure(failure)
        self._store.flush()
        self.counts["made"] += len(batch) - len(failures)
        self._done += len(batch)
        self._progress(Progress("placing", self._done, self.to_make))

    def _note_failure(self, failure: Failure) -> None:
        action, problem, message = failure
        self._store.note_problem(problem, action.target, message)
        self._store.set_state(action, problem)
        self.counts[problem] += 1
        total = self._plan.labels[action.label]
        total.files -= 1
        total.bytes -= action.size

    def _report(self) -> RebuildSummary:
        self._progress(Progress("writing", self.to_make, self.to_make))
        reports = Reports(self._plan, self._tree, self._log)
        self.counts["reports_left"] += reports.write_manifests()
        labels = {label: vars(total) for label, total in sorted(self._plan.labels.items()) if total.files}
        self.counts["reports_left"] += not reports.write_json(
            STATS, {**self._plan.tally.report(), "tree": labels}
        )
        if self.to_make:
            self._tree.sync()
        seconds = round(time.monotonic() - self._began, 3)
        summary = RebuildSummary(display(self._plan.settings.out), self._counts(), labels, seconds)
        if not reports.write_json(SUMMARY, {**self._about(), **summary.to_json()}):
            self.counts["reports_left"] += 1
            summary = replace(summary, counts=self._counts())
        self._tree.sync_names()
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

    def _sources(self) -> Sources:
        assert self._plan.sources is not None
        return self._plan.sources


def _make_directories(out: Path) -> list[Path]:
    """Make a directory and what it is in; return what had to be made, innermost first."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    os.makedirs(out, exist_ok=True)
    return missing


def _remove_directories(directories: list[Path]) -> None:
    with suppress(OSError):
        for directory in directories:
            os.rmdir(directory)
