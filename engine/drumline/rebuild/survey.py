"""The survey: over the files in their order in the tree, final name, then how each stands there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from drumline.rebuild import guard
from drumline.rebuild.actions import Action, Progress, Refused, State
from drumline.rebuild.log import Made, Standing, original_is_gone, standing
from drumline.rebuild.names import collision_key, spare_names
from drumline.rebuild.plan import PLACED, Plan

__all__ = ["Surveyor"]

_WHY_KEPT: dict[Standing, str] = {
    "changed": "changed since it was made",
    "last_copy": "the archive does not have it any more",
}
_REPORT_EVERY = 5_000


class _Row(NamedTuple):
    key: bytes
    source: bytes
    label: int
    target: bytes
    size: int
    mtime_ns: int
    hash: str | None


class Surveyor:
    """Turns the table of records into the plan."""

    def __init__(self, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self._plan, self._store, self._progress = plan, plan.store, progress
        self._mode = plan.settings.copy_mode
        self._log_is_empty = plan.store.row("SELECT 1 FROM made LIMIT 1") is None
        self._root = plan.archive_root or b""
        self._devices = {os.fstat(plan.sources.root).st_dev} if plan.sources else set()

    def survey(self) -> None:
        """Go over all files."""
        if self._plan.settings.dedup == "first":
            self._plan.counts["duplicate"] = self._drop_duplicates()
        total = self._store.row("SELECT COUNT(*) FROM record")[0]
        for number, row in enumerate(self._named()):
            self._add(number, row)
            if number % _REPORT_EVERY == 0:
                self._progress(Progress("planning", number, total))
        self._store.flush()
        self._store.change("DROP TABLE record")
        if self._mode != "none" and not self._log_is_empty:
            self._find_stale()
        self._store.flush()

    def _drop_duplicates(self) -> int:
        return self._store.change(
            "DELETE FROM record WHERE rowid IN (SELECT place FROM (SELECT rowid AS place, row_number()"
            " OVER (PARTITION BY hash, size ORDER BY source, key) AS copy FROM record WHERE hash IS NOT NULL)"
            " WHERE copy > 1)"
        )

    def _named(self) -> Iterator[_Row]:
        """Iterate over the files with their final targets: the first of colliding ones keeps its name.

        A directory goes before a file of the same key. Keys sort depth first, so what is in a directory
        follows right after a file that would take its name: holding back one row is all that this needs.
        """
        first = last = None
        for row in self._ordered():
            if first is None or row.key != first.key:
                if first is not None:
                    yield self._renamed(first) if row.key.startswith(first.key + b"\0") else first
                first = row
            elif last is not None and row.source == last.source:
                self._refuse(row)
            else:
                yield self._renamed(row)
            last = row
        if first is not None:
            yield first

    def _ordered(self) -> Iterator[_Row]:
        rows = self._store.rows("SELECT * FROM record ORDER BY key, source, size, mtime_ns, hash, target")
        return map(_Row._make, rows)

    def _renamed(self, row: _Row) -> _Row:
        for target in spare_names(row.target, row.source):
            if self._store.change("INSERT OR IGNORE INTO spare VALUES (?)", (collision_key(target),)):
                return row._replace(target=target)
        raise AssertionError("spare names never end")

    def _refuse(self, row: _Row) -> None:
        self._store.problem("duplicate_record", row.source, "")
        self._plan.counts["duplicate_record"] += 1

    def _add(self, number: int, row: _Row) -> None:
        action = Action(number, "make", row.label, row.target, row.source, *row[4:])
        state = self._state(action)
        self._store.add("plan", (number, state, *action[2:]))
        self._plan.counts[state] += 1
        if state in PLACED:
            total = self._plan.labels[self._plan.label_names[row.label]]
            total.files += 1
            total.bytes += row.size

    def _state(self, action: Action) -> State:
        if self._mode == "none":
            return "listed"
        try:
            state = self._standing(action) if self._plan.tree else "make"
            if state != "there":
                self._check_source(action)
        except Refused as verdict:
            self._store.problem(verdict.problem, action.target, verdict.message)
            return verdict.problem
        return state

    def _check_source(self, action: Action) -> None:
        assert self._plan.sources is not None
        status = self._plan.sources.find(action)[2]
        if status.st_dev not in self._devices:
            self._devices.add(status.st_dev)
            guard.check_device(
                self._plan.settings.out, self._mode, status.st_dev, self._plan.sources.absolute(action)
            )

    def _standing(self, action: Action) -> State:
        assert self._plan.tree is not None
        made = self._made(action.target)
        if made is None:
            self._check_free(action.target)
            return "make"
        how = standing(self._plan.tree, made)
        if how == "gone":
            return "make"
        if how == "changed":
            if self._edited_in_place(action, made):
                return "adopt"
            raise Refused("edited", "changed since it was made")
        if self._as_planned(made, action):
            return "there"
        if self._would_be_lost(made, how, action):
            raise Refused("edited", "the archive does not have what stands here any more")
        return "replace"

    def _would_be_lost(self, made: Made, how: Standing, action: Action) -> bool:
        if self._plan.settings.drop_last_copies or (made.hash is not None and made.hash == action.hash):
            return False
        return how == "last_copy" or original_is_gone(made)

    def _made(self, target: bytes) -> Made | None:
        if self._log_is_empty:
            return None
        row = self._store.row(
            "SELECT target, mode, size, mtime_ns, source, hash FROM made WHERE target = ?", (target,)
        )
        return None if row is None else Made._make(row)

    def _check_free(self, target: bytes) -> None:
        """Raise `Refused` when something is at `target` that this rebuild is not going to remove first."""
        assert self._plan.tree is not None
        try:
            status = self._plan.tree.lstat(target)
        except Refused:
            if self._below_our_file(target):
                return
            raise
        if status is not None and not self._is_our_folder(target):
            raise Refused("occupied", "something that drumline did not make is there")

    def _below_our_file(self, target: bytes) -> bool:
        parent = target.rpartition(b"/")[0]
        while parent and self._made(parent) is None:
            parent = parent.rpartition(b"/")[0]
        return bool(parent)

    def _is_our_folder(self, target: bytes) -> bool:
        return self._store.row("SELECT 1 FROM folder WHERE target = ?", (target,)) is not None

    def _edited_in_place(self, action: Action, made: Made) -> bool:
        if made.mode != "hardlink" or self._mode != "hardlink":
            return False
        assert self._plan.tree is not None
        assert self._plan.sources is not None
        linked = self._plan.tree.lstat(action.target)
        return linked is not None and os.path.samestat(linked, self._plan.sources.find(action)[2])

    def _as_planned(self, made: Made, action: Action) -> bool:
        if (made.mode, made.size, made.mtime_ns) != (self._mode, action.size, action.mtime_ns):
            return False
        if made.source == os.path.join(self._root, action.source):
            return made.hash == action.hash
        return self._mode in ("copy", "reflink") and made.hash is not None and made.hash == action.hash

    def _find_stale(self) -> None:
        self._store.change("CREATE INDEX plan_target ON plan (target)")
        self._store.change("CREATE INDEX plan_hash ON plan (hash)")
        rows = self._store.rows(
            "SELECT m.target, m.mode, m.size, m.mtime_ns, m.source, m.hash FROM made m"
            " LEFT JOIN plan p ON p.target = m.target WHERE p.target IS NULL ORDER BY m.target"
        )
        for made in map(Made._make, rows):
            how = self._fate(made)
            if how == "ours":
                self._store.add("stale", (made.target,))
                self._plan.counts["remove"] += 1
            elif how != "gone":
                self._store.problem("kept", made.target, _WHY_KEPT[how])
                self._plan.counts["kept"] += 1

    def _fate(self, made: Made) -> Standing:
        """Tell how a file that is no longer in the plan stands; only what is elsewhere too is removed."""
        assert self._plan.tree is not None
        how = standing(self._plan.tree, made)
        if how == "ours" and original_is_gone(made):
            how = "last_copy"
        if how == "last_copy" and (self._plan.settings.drop_last_copies or self._is_placed(made)):
            return "ours"
        return how

    def _is_placed(self, made: Made) -> bool:
        query = f"SELECT 1 FROM plan WHERE hash = ? AND size = ? AND state IN {PLACED} LIMIT 1"
        return self._store.row(query, (made.hash, made.size)) is not None
