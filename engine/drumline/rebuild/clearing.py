"""Clearing: what an earlier rebuild made and this plan does not want, and what stands in its way.

Removes only files that are as rebuild made them. A last copy goes only once the plan has placed its content
elsewhere.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable

from drumline.rebuild.actions import Action, Failure, Progress, Refused
from drumline.rebuild.originals import find_for_link, is_trusted
from drumline.rebuild.plan import Plan
from drumline.rebuild.site import Site
from drumline.rebuild.standing import WHY_IT_STAYS, fate, holds_others, replaces
from drumline.rebuild.store import Made

__all__ = ["Clearing"]

_REPORT_EVERY = 1_000


class Clearing:
    """Removes files from a site.

    Parameters
    ----------
    plan, site
        What is executed, and where.
    counts
        ``removed`` and ``kept`` are counted here.
    progress
        Is told how far it got.
    """

    def __init__(
        self, plan: Plan, site: Site, counts: Counter[str], progress: Callable[[Progress], None]
    ) -> None:
        self._plan, self._store, self._site = plan, plan.store, site
        self._counts, self._progress = counts, progress
        # What was killed before its reports may have emptied directories and not come to removing them.
        self._may_have_emptied = plan.log is not None and not plan.log.reported

    def remove_unwanted(self) -> None:
        """Remove what was made earlier and the plan does not want, where it is not the last copy."""
        even_last = self._plan.settings.drop_last_copies
        for made in self._store.stale(is_last=False):
            self._remove(made, even_last=even_last)
        self._remove_folders()

    def remove_last_copies(self) -> None:
        """Remove last copies whose content stands elsewhere in the tree by now."""
        for made in self._store.stale(is_last=True):
            if any(self._stands(twin, made) for twin in self._store.twins(made)):
                self._remove(made, even_last=True)
            else:
                self._note_kept(made.target, WHY_IT_STAYS["last_copy"])
        self._remove_folders()

    def make_way(self, action: Action) -> Failure | None:
        """Take away what stands in the place of a staged file; return why it stays."""
        made = self._store.made_at(action.target)
        blocking = self._store.last_copies_blocking(action.target) if made is None else [made]
        if failure := self._why_not(action, made, blocking):
            return failure
        for old in blocking:
            self._site.tree.unlink(old.target)
            self._site.removals.add(old.target)
            if old is not made:
                self._store.drop_stale(old)
                self._counts["removed"] += 1
        if made is None:
            self._site.remove_folders_within(action.target)
        return None

    def _why_not(self, action: Action, made: Made | None, blocking: list[Made]) -> Failure | None:
        """Return why what stands in the place of a staged file stays; None: it may go."""
        for old in blocking:
            how = fate(self._site.tree, old, even_last=self._may_go_for(old, action))
            if how in ("changed", "last_copy"):
                return Failure(action, "edited" if old is made else "occupied", WHY_IT_STAYS[how])
        if made is None and self._holds_others(action.target, blocking):
            return Failure(action, "occupied", "the directory there holds something that stays")
        if self._plan.settings.copy_mode == "symlink":
            try:
                for goes in blocking:
                    find_for_link(self._site.tree, self._site.sources, action, goes)
            except Refused as refused:
                return Failure(action, refused.problem, refused.message)
        return None

    def _holds_others(self, target: bytes, blocking: list[Made]) -> bool:
        """Tell whether a directory stands at a target that is not empty once what blocks it is gone."""
        gone = {old.target for old in blocking}
        try:
            return holds_others(self._site.tree, self._store, target, gone.__contains__)
        except Refused:
            return False  # a file stands where a directory should be, and is to go

    def clear_staged(self) -> None:
        """Remove what could not take its place."""
        for place, why in self._site.clear_staged():
            self._note_kept(place, why)

    def _may_go_for(self, old: Made, action: Action) -> bool:
        root = self._plan.archive_root or b""
        if self._plan.settings.drop_last_copies:
            return True
        if replaces(old, action, root) and is_trusted(self._site.sources, action, old):
            return True
        # Where a twin is yet to be replaced, what stands at its target is another file.
        twins = [twin for twin in self._store.twins(old) if twin.state != "replace"]
        return old.target != action.target and any(self._stands(twin, old) for twin in twins)

    def _remove(self, made: Made, *, even_last: bool) -> None:
        how = fate(self._site.tree, made, even_last=even_last)
        self._may_have_emptied |= how in ("ours", "gone")
        if how == "ours":
            self._site.tree.unlink(made.target)
            self._site.removals.add(made.target)
            self._counts["removed"] += 1
            if self._counts["removed"] % _REPORT_EVERY == 0:
                self._progress(Progress("removing", self._counts["removed"], self._plan.counts["remove"]))
        elif how == "gone":
            # By somebody, or by what was killed before it noted it.
            self._site.removals.add(made.target)
        else:
            self._note_kept(made.target, WHY_IT_STAYS[how])

    def _note_kept(self, target: bytes, why: str) -> None:
        self._store.note_problem("kept", target, why)
        self._counts["kept"] += 1

    def _stands(self, action: Action, made: Made) -> bool:
        """Tell whether a planned file is in the tree and, if it is a link, leads somewhere without `made`."""
        try:
            if self._plan.settings.copy_mode == "symlink":
                find_for_link(self._site.tree, self._site.sources, action, made)
            status = self._site.tree.lstat(action.target)
        except Refused:
            return False
        if not is_trusted(self._site.sources, action, made):
            return False
        return status is not None and (stat.S_ISLNK(status.st_mode) or status.st_size == action.size)

    def _remove_folders(self) -> None:
        """Remove directories that became empty, when there may be some."""
        self._site.removals.flush()
        if self._may_have_emptied:
            self._may_have_emptied = False
            self._site.remove_empty_folders()
