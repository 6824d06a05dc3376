"""Undo: take away what `rebuild` made, and nothing else.

Files first, then the reports, then the directories that became empty, last the mapping log: an undo that was
killed anywhere is completed by the same command. What a person added or changed stays, and is theirs from
then on. Where the archive does not have its content any more, or not as it was, the tree's may be the last
copy: it stays too, and the log with it, so that a later undo can still remove it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drumline.durable import output_errors
from drumline.errors import Interrupted, OutputError
from drumline.rebuild.actions import Progress, Refused, report_to
from drumline.rebuild.guard import check_log
from drumline.rebuild.leftovers import claim_leftovers
from drumline.rebuild.log import LOG_NAME, LogState, MappingLog, Removals, load_log
from drumline.rebuild.manifests import is_ours
from drumline.rebuild.standing import WHY_IT_STAYS, fate
from drumline.rebuild.store import Made, Store, working_space
from drumline.rebuild.tree import Tree, not_a_tree
from drumline.records import display_path

__all__ = ["UndoSummary", "undo"]

_KEPT_NAMES = 1_000
_REPORT_EVERY = 5_000


@dataclass(frozen=True)
class UndoSummary:
    """What an undo did, or would do.

    Parameters
    ----------
    out
        The tree.
    dry_run
        Whether nothing was done.
    removed
        Files that rebuild had made and that were removed.
    gone
        Files that rebuild had made and that somebody removed before.
    changed
        Files and reports that somebody changed: they stay.
    last_copies
        Files whose content the archive does not have any more: they stay.
    directories, reports
        Empty directories and reports that were removed; in a dry run directories are an upper bound.
    others
        What rebuild had not made in its directories: it stays.
    kept
        (path, why) of what stays, the first thousand.
    """

    out: str
    dry_run: bool
    removed: int
    gone: int
    changed: int
    last_copies: int
    directories: int
    reports: int
    others: int
    kept: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether nothing of rebuild's own is left."""
        return self.last_copies == 0

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        kept = [{"path": path, "why": why} for path, why in self.kept]
        return {**vars(self), "kept": kept, "complete": self.complete}


def undo(
    out: Path,
    *,
    dry_run: bool = False,
    drop_last_copies: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> UndoSummary:
    """Remove exactly what `rebuild` made in a directory.

    Parameters
    ----------
    out
        The tree.
    dry_run
        Only tell what would be done.
    drop_last_copies
        Remove also what the archive does not have any more.
    progress
        Called now and then with how far it got.

    Raises
    ------
    OutputError
        When the directory is not there, was not made by drumline, or cannot be written.
    BusyError
        When another process works in it.
    Interrupted
        On Ctrl-C; the same command goes on.
    """
    if not out.is_dir():
        raise OutputError(f"there is no directory {str(out)!r}", "Give the directory that rebuild made.")
    tree, store = Tree(out), Store()
    try:
        with output_errors(out), working_space():
            return _Undo(tree, store, dry_run, drop_last_copies, report_to(progress)).run()
    except KeyboardInterrupt as error:
        raise Interrupted(
            "undo stopped", "Give the same command again: it goes on where it stopped."
        ) from error
    finally:
        tree.close()
        store.close()


class _Undo:
    def __init__(
        self,
        tree: Tree,
        store: Store,
        dry_run: bool,
        drop_last_copies: bool,
        progress: Callable[[Progress], None],
    ) -> None:
        self._tree, self._store = tree, store
        self._dry_run, self._drop_last_copies, self._progress = dry_run, drop_last_copies, progress
        self._counts: Counter[str] = Counter()
        self._kept: list[tuple[str, str]] = []
        self._removals: Removals | None = None

    def run(self) -> UndoSummary:
        """Remove files, reports, directories, and last the log."""
        state = load_log(self._tree, self._store)
        if state is None:
            why = "was not made by 'drumline rebuild': nothing to undo"
            raise not_a_tree(self._tree.path, why, "Give the directory that rebuild made")
        check_log(self._tree, state)
        claim_leftovers(self._tree, self._store)
        with ExitStack() as cleanup:
            if not self._dry_run:
                log = MappingLog(self._tree, state.length)
                cleanup.callback(log.close)
                self._removals = Removals(self._tree, log)
            self._files()
            self._reports()
            self._folders()
            self._finish(state)
        return self._summary()

    def _files(self) -> None:
        total = self._store.made_count()
        for number, made in enumerate(self._store.made_files()):
            self._file(made)
            if number % _REPORT_EVERY == 0:
                self._progress(Progress("removing", number, total))

    def _file(self, made: Made) -> None:
        how = fate(self._tree, made, even_last=self._drop_last_copies)
        self._counts[how] += 1
        if how == "ours":
            self._remove(made.target)
        elif how != "gone":
            self._keep(made.target, WHY_IT_STAYS[how])

    def _remove(self, target: bytes) -> None:
        if self._removals is not None:
            self._tree.unlink(target)
            self._removals.add(target)

    def _keep(self, target: bytes, why: str) -> None:
        if len(self._kept) < _KEPT_NAMES:
            self._kept.append((display_path(target), why))

    def _reports(self) -> None:
        for target in self._store.reports():
            if is_ours(self._tree, self._store, target):
                self._counts["reports"] += 1
                self._remove(target)
            elif self._tree.has(target):
                self._counts["changed"] += 1
                self._keep(target, "edited since it was written")

    def _folders(self) -> None:
        if self._removals is None:
            self._counts["directories"] = self._store.folder_count()
            for folder in self._store.folders_bottom_up():
                self._others(folder)
        else:
            self._remove_folders(self._removals)
        self._others(b"")

    def _remove_folders(self, removals: Removals) -> None:
        with suppress(Refused):
            self._tree.clear_staging(self._store.has_made_at)
        self._tree.forget()
        stayed = self._remove_empty(self._store.folders_bottom_up(), removals)
        # Where case does not count, `a` stays before `A/other` goes, which is in it.
        while len(left := self._remove_empty(stayed, removals)) < len(stayed):
            stayed = left
        self._tree.forget()
        for folder in left:
            self._others(folder)

    def _remove_empty(self, folders: Iterable[bytes], removals: Removals) -> list[bytes]:
        """Remove those of the directories that are empty; return the others."""
        stayed = list[bytes]()
        for folder in folders:
            if self._tree.rmdir(folder):
                self._counts["directories"] += 1
                removals.add(folder)
            else:
                stayed.append(folder)
        return stayed

    def _others(self, folder: bytes) -> None:
        """Name what rebuild did not make in one of its directories."""
        with suppress(Refused):
            for name in sorted(self._tree.names(folder)):
                target = os.path.join(folder, name)
                if target != LOG_NAME and not self._store.is_our_own(target):
                    self._counts["others"] += 1
                    self._keep(target, "not made by rebuild")

    def _finish(self, state: LogState) -> None:
        """Remove the log, and the directory if it was made too, once nothing of ours is left on the disk."""
        if self._removals is None:
            return
        if self._counts["last_copy"]:
            self._removals.flush()
            return
        self._tree.sync()
        self._tree.unlink(LOG_NAME)
        with suppress(OSError):  # what lost power may bring back now is a log of nothing
            self._tree.sync_names()
        if state.made_root:
            with suppress(OSError):
                os.rmdir(self._tree.path)

    def _summary(self) -> UndoSummary:
        counts = self._counts
        return UndoSummary(
            out=display_path(self._tree.path),
            dry_run=self._dry_run,
            removed=counts["ours"],
            gone=counts["gone"],
            changed=counts["changed"],
            last_copies=counts["last_copy"],
            directories=counts["directories"],
            reports=counts["reports"],
            others=counts["others"],
            kept=tuple(self._kept),
        )
