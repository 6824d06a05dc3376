"""The survey: the files' final names, their order in the tree, then how each stands there."""

from __future__ import annotations

import os
from collections.abc import Callable

from drumline.rebuild import guard
from drumline.rebuild.actions import Action, Progress, Refused, State
from drumline.rebuild.names import collision_key, spare_names
from drumline.rebuild.originals import archive_has, find_for_link, is_trusted
from drumline.rebuild.plan import LabelTotal, Plan
from drumline.rebuild.standing import (
    WHY_IT_STAYS,
    fate,
    has_same_content,
    holds_others,
    replaces,
    standing,
)
from drumline.rebuild.store import SOURCE_PROBLEMS, Made, Row
from drumline.rebuild.tree import Indexed

__all__ = ["Surveyor"]

_COMPARED_TOGETHER = 2_048


class Surveyor:
    """Turns the table of records into the plan."""

    def __init__(self, plan: Plan, progress: Callable[[Progress], None]) -> None:
        self._plan, self._store, self._progress = plan, plan.store, progress
        self._mode = plan.settings.copy_mode
        self._is_first = plan.is_first
        self._devices: dict[int, bytes] = {}
        self._root = plan.archive_root or b""

    def survey(self) -> None:
        """Go over all files."""
        self._drop_superseded()
        self._unify_labels()
        if self._plan.settings.dedup == "first":
            self._plan.counts["duplicate"] = self._store.keep_one_of_each_content(self._is_there)
        total = self._store.record_count()
        self._progress(Progress("planning", 0, total))
        self._name_apart()
        self._store.plan_records("listed" if self._mode == "none" else "make")
        if self._plan.tree and self._mode != "none":
            self._doubt_failed()
            self._compare_with_tree()
        self._check_devices()
        self._store.note_problems_of_plan()
        self._progress(Progress("planning", total, total))
        self._plan.counts.update(self._store.state_counts())
        for label, files, size in self._store.label_totals():
            self._plan.labels[label] = LabelTotal(files, size)
        if self._mode != "none" and not self._is_first:
            self._find_stale()
        self._store.flush()

    def _drop_superseded(self) -> None:
        """Let the last record of a file count, as `repair` does, and say which files have several."""
        for source in self._store.drop_superseded():
            self._store.note_problem("duplicate_record", source, "its last record counts")
            self._plan.counts["duplicate_record"] += 1
        self._plan.counts["failed"] = self._store.failed_count()

    def _unify_labels(self) -> None:
        """Let labels that a file system may take for one share the directory of the first."""
        first: dict[bytes, str] = {}
        for label in self._store.labels():
            kept = first.setdefault(collision_key(label.encode()), label)
            if kept != label:
                self._store.rename_label(label, kept)

    def _is_there(self, file: Indexed) -> bool:
        """Tell whether the archive has a file as it was indexed."""
        if self._plan.sources is None:
            return True
        try:
            self._plan.sources.find(file)
        except Refused:
            return False
        return True

    def _name_apart(self) -> None:
        """Give the first of several files their name, and to none a name that a directory has."""
        self._store.reserve_marked()
        for row in self._store.without_their_name():
            self._store.rename(row, self._spare(row))

    def _spare(self, row: Row) -> bytes:
        for target in spare_names(row.target, row.source):
            if self._store.reserve(collision_key(target)):
                return target
        raise AssertionError("spare names never end")

    def _doubt_failed(self) -> None:
        """Doubt the originals that could not be read when they were indexed last, by path or by inode."""
        if self._is_first or not self._plan.counts["failed"]:
            return
        prefix = os.path.join(self._root, b"")
        self._store.doubt_failed(prefix)
        if next(self._store.made_from_elsewhere(prefix), None) is None:
            return
        # The archive was moved, perhaps with a link in its old place.
        for path in self._store.failed_paths():
            if inode := _inode(prefix + path):
                self._store.note_failed_file(inode)
        self._store.flush()
        for made in list(filter(self._has_failed, self._store.made_from_elsewhere(prefix))):
            self._store.doubt(made)

    def _has_failed(self, made: Made) -> bool:
        inode = _inode(made.source)
        return inode is not None and self._store.is_failed_file(inode)

    def _compare_with_tree(self) -> None:
        total, done = self._store.action_count(), 0
        for batch in self._plan.batches(_COMPARED_TOGETHER, 1 << 62, ("make", *SOURCE_PROBLEMS)):
            for action in batch:
                self._compare(action)
            done += len(batch)
            self._progress(Progress("planning", done, total))

    def _compare(self, action: Action) -> None:
        """Say how a file stands; one that stands as planned need not be in the archive any more."""
        try:
            state = self._standing(action)
            if state not in ("there", "adopt"):
                if action.state != "make":
                    return
                self._look_for(action)
        except Refused as refused:
            self._store.set_state(action, refused.problem, refused.message)
        else:
            if state != action.state:
                self._store.set_state(action, state)

    def _look_for(self, action: Action) -> None:
        """Look for a file in the archive, unless that was done while the index was read."""
        if not self._is_first:
            found = self._found(action, self._made(action.target))
            self._devices.setdefault(found.st_dev, action.source)

    def _found(self, action: Action, instead_of: Made | None) -> os.stat_result:
        assert self._plan.sources is not None
        assert self._plan.tree is not None
        if self._mode == "symlink":
            return find_for_link(self._plan.tree, self._plan.sources, action, instead_of)
        return self._plan.sources.stat(action)

    def _check_devices(self) -> None:
        """See that the copy mode can bring files into the tree from each device that they lie on."""
        if self._plan.sources is None:
            return
        settings, archive = self._plan.settings, os.fstat(self._plan.sources.root).st_dev
        for device, source in {**self._devices, **dict(self._store.devices_to_do())}.items():
            if device != archive:
                path = os.path.join(self._root, source)
                guard.check_device(settings.out, settings.copy_mode, device, path)

    def _standing(self, action: Action) -> State:
        assert self._plan.tree is not None
        made = self._made(action.target)
        if made is None:
            self._check_free(action.target)
            return "make"
        how = standing(self._plan.tree, made)
        if how == "gone":
            return "make"
        if how == "ours" and self._as_planned(made, action):
            return "there" if self._knows_origin(made, action) or self._is_doubted(made, action) else "adopt"
        if self._is_linked(made, action):
            return "adopt"
        if how == "changed":
            raise Refused("edited", WHY_IT_STAYS["changed"])
        if self._would_be_lost(made, action):
            raise Refused("edited", "the archive does not have what stands here any more")
        return "replace"

    def _is_doubted(self, made: Made, action: Action) -> bool:
        """Tell whether the log has to go on saying that a file's original is doubted."""
        assert self._plan.sources is not None
        return not is_trusted(self._plan.sources, action, made)

    def _would_be_lost(self, made: Made, action: Action) -> bool:
        assert self._plan.sources is not None
        assert self._plan.tree is not None
        if self._plan.settings.drop_last_copies:
            return False
        if replaces(made, action, self._root) and is_trusted(self._plan.sources, action, made):
            return False
        return not archive_has(self._plan.tree, made)

    def _made(self, target: bytes) -> Made | None:
        return None if self._is_first else self._store.made_at(target)

    def _check_free(self, target: bytes) -> None:
        """Raise `Refused` when something is at `target` that this rebuild is not going to remove first."""
        assert self._plan.tree is not None
        try:
            status = self._plan.tree.lstat(target)
        except Refused:
            if self._below_our_file(target):
                return
            raise
        if status is None:
            return
        if not self._store.is_our_folder(target) or holds_others(
            self._plan.tree, self._store, target, self._store.has_made_at
        ):
            raise Refused("occupied", "something that drumline did not make is there")

    def _below_our_file(self, target: bytes) -> bool:
        parent = target.rpartition(b"/")[0]
        while parent and self._made(parent) is None:
            parent = parent.rpartition(b"/")[0]
        return bool(parent)

    def _is_linked(self, made: Made, action: Action) -> bool:
        """Tell whether a hard link is the planned file, whatever the log says of it."""
        if made.mode != "hardlink" or self._mode != "hardlink":
            return False
        assert self._plan.tree is not None
        assert self._plan.sources is not None
        linked = self._plan.tree.lstat(action.target)
        return linked is not None and os.path.samestat(linked, self._plan.sources.stat(action))

    def _as_planned(self, made: Made, action: Action) -> bool:
        if (made.mode, made.size, made.mtime_ns) != (self._mode, action.size, action.mtime_ns):
            return False
        if made.source == os.path.join(self._root, action.source):
            return made.hash == action.hash
        return self._mode in ("copy", "reflink") and has_same_content(made, action)

    def _knows_origin(self, made: Made, action: Action) -> bool:
        """Tell whether the log names the planned origin of a copy, or that is not there to be named."""
        return made.source == os.path.join(self._root, action.source) or not self._is_there(action)

    def _find_stale(self) -> None:
        """Find what was made earlier and is not in the plan; only what is elsewhere too is removed."""
        assert self._plan.tree is not None
        self._store.index_plan()
        for made in self._store.made_but_not_planned():
            how = fate(self._plan.tree, made, even_last=self._plan.settings.drop_last_copies)
            is_last = how == "last_copy" and any(self._holds(twin, made) for twin in self._store.twins(made))
            if how in ("ours", "gone") or is_last:
                self._store.note_stale(made, is_last=is_last)
                self._plan.counts["remove"] += how != "gone"
            else:
                self._store.note_problem("kept", made.target, WHY_IT_STAYS[how])
                self._plan.counts["kept"] += 1
            if how in ("changed", "last_copy"):
                self._give_precedence(made, replaceable=is_last)

    def _holds(self, twin: Action, made: Made) -> bool:
        """Tell whether a file of the plan holds the content of one made earlier, also once that is gone."""
        assert self._plan.sources is not None
        if self._mode == "symlink":
            try:
                self._found(twin, made)
            except Refused:
                return False
        return is_trusted(self._plan.sources, twin, made)

    def _give_precedence(self, made: Made, *, replaceable: bool) -> None:
        """Plan for what would need a file's name as a directory, or its directory as a name.

        A last copy that is placed elsewhere gives way to it as in a replacement; what stays, to nothing.
        """
        for action in self._store.blocked_by(made.target):
            self._plan.counts[action.state] -= 1
            self._plan.counts["replace" if replaceable else "occupied"] += 1
            self._store.set_state(action, "replace" if replaceable else "occupied")
            if not replaceable:
                self._store.note_problem("occupied", action.target, "a file that stays is in the way")
                self._plan.labels[action.label].files -= 1
                self._plan.labels[action.label].bytes -= action.size


def _inode(path: bytes) -> bytes | None:
    """Return device and inode of a file, as one value; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return b"%d %d" % (status.st_dev, status.st_ino)
