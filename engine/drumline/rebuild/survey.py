"""The survey: over the files in their order in the tree, final name, then how each stands there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import cast

from drumline.rebuild import guard
from drumline.rebuild.actions import Action, Progress, Refused, State
from drumline.rebuild.collect import Row
from drumline.rebuild.log import Made, Standing, fate, original_is_gone, standing
from drumline.rebuild.names import collision_key, spare_names
from drumline.rebuild.plan import PLACED, LabelTotal, Plan

__all__ = ["Surveyor"]

_WHY_KEPT: dict[Standing, str] = {
    "changed": "changed since it was made",
    "last_copy": "the archive does not have it any more",
}
_REPORT_EVERY = 5_000


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
        self._reserve()
        total = self._store.row("SELECT COUNT(*) FROM record")[0]
        for number, (target, row) in enumerate(self._named()):
            self._add(number, target, row)
            if number % _REPORT_EVERY == 0:
                self._progress(Progress("planning", number, total))
        self._store.flush()
        self._store.change("DROP TABLE record")
        if self._mode != "none" and not self._log_is_empty:
            self._find_stale()
        self._store.flush()

    def _reserve(self) -> None:
        """Note the keys, of files and directories, that a spare name could clash with."""
        for (key,) in self._store.rows("SELECT key FROM record WHERE instr(key, x'7e')"):
            while b"~" in key:
                self._store.add("spare", (key,))
                key = key.rpartition(b"\0")[0]
        self._store.flush()

    def _drop_duplicates(self) -> int:
        return self._store.change(
            "DELETE FROM record WHERE rowid IN (SELECT place FROM (SELECT rowid AS place, row_number()"
            " OVER (PARTITION BY hash, size ORDER BY source, key) AS copy FROM record WHERE hash IS NOT NULL)"
            " WHERE copy > 1)"
        )

    def _named(self) -> Iterator[tuple[bytes, Row]]:
        """Iterate over (final target, row): the first of colliding ones keeps its name.

        A directory goes before a file of the same key. Keys sort depth first, so what is in a directory
        follows right after a file that would take its name: holding back one row is all that this needs.
        """
        first: Row | None = None
        last_source = b""
        for row in self._ordered():
            key, source = row[:2]
            if first is None or key != first[0]:
                if first is not None:
                    yield (self._spare(first) if key.startswith(first[0] + b"\0") else first[3]), first
                first = row
            elif source == last_source:
                self._refuse(source)
            else:
                yield self._spare(row), row
            last_source = source
        if first is not None:
            yield first[3], first

    def _ordered(self) -> Iterator[Row]:
        rows = self._store.rows("SELECT * FROM record ORDER BY key, source, size, mtime_ns, hash, target")
        return cast("Iterator[Row]", rows)

    def _spare(self, row: Row) -> bytes:
        for target in spare_names(row[3], row[1]):
            if self._store.change("INSERT OR IGNORE INTO spare VALUES (?)", (collision_key(target),)):
                return target
        raise AssertionError("spare names never end")

    def _refuse(self, source: bytes) -> None:
        self._store.problem("duplicate_record", source)
        self._plan.counts["duplicate_record"] += 1

    def _add(self, number: int, target: bytes, row: Row) -> None:
        _, source, label, _, size, mtime_ns, digest = row
        state = self._state(Action(number, "make", label, target, source, size, mtime_ns, digest))
        self._store.add("plan", (number, state, label, target, source, size, mtime_ns, digest))
        self._plan.counts[state] += 1
        if state in PLACED:
            total = self._plan.labels.setdefault(label, LabelTotal())
            total.files += 1
            total.bytes += size

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
        """Find what was made earlier and is not in the plan; only what is elsewhere too is removed."""
        assert self._plan.tree is not None
        self._store.change("CREATE INDEX plan_target ON plan (target)")
        self._store.change("CREATE INDEX plan_hash ON plan (hash)")
        rows = self._store.rows(
            "SELECT m.target, m.mode, m.size, m.mtime_ns, m.source, m.hash FROM made m"
            " LEFT JOIN plan p ON p.target = m.target WHERE p.target IS NULL ORDER BY m.target"
        )
        for made in map(Made._make, rows):
            how = fate(self._plan.tree, made, even_last=self._plan.settings.drop_last_copies)
            even_last = how == "last_copy" and self._is_placed(made)
            if how == "ours" or even_last:
                self._store.add("stale", (made.target, even_last or self._plan.settings.drop_last_copies))
                self._plan.counts["remove"] += 1
            elif how == "gone":
                self._store.add("gone", (made.target,))
            else:
                self._store.problem("kept", made.target, _WHY_KEPT[how])
                self._plan.counts["kept"] += 1

    def _is_placed(self, made: Made) -> bool:
        query = f"SELECT 1 FROM plan WHERE hash = ? AND size = ? AND state IN {PLACED} LIMIT 1"
        return self._store.row(query, (made.hash, made.size)) is not None
