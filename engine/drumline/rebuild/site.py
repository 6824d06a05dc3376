"""The site: a tree that is being worked at, and its mapping log, kept in step.

What is going to appear is announced in the log, on disk, before it does; what was removed is noted once that
is on disk. Opening a site makes the directory if need be, begins its log, clears what a killed rebuild left
in the staging directory, and tries the copy mode; where that fails, nothing of it stays behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from drumline.durable import make_directories
from drumline.errors import DrumlineError, OutputError
from drumline.rebuild import guard
from drumline.rebuild.actions import Action, Failure, Refused
from drumline.rebuild.leftovers import claim_leftovers
from drumline.rebuild.log import LOG_NAME, MappingLog, Removals, make_line, path_line
from drumline.rebuild.manifests import MANIFESTS
from drumline.rebuild.place import Placer, Staged, placer_for
from drumline.rebuild.plan import Plan
from drumline.rebuild.standing import WHY_IT_STAYS, fate
from drumline.rebuild.store import Made
from drumline.rebuild.tree import STAGING, Sources, Tree

__all__ = ["Site", "open_site"]

_REMEMBERED = 20_000
"""Directories; of more, it is asked again what they are."""


class Site:
    """The tree of a plan, opened for work; made by `open_site`.

    Parameters
    ----------
    plan
        What is executed.
    tree, log
        The output directory and its log.

    Attributes
    ----------
    removals
        Notes what is removed from the tree.
    """

    def __init__(self, plan: Plan, tree: Tree, log: MappingLog) -> None:
        self.tree, self.log = tree, log
        self._mode = plan.settings.copy_mode
        self.removals = Removals(tree, log)
        self._plan, self._store = plan, plan.store
        # Directories that were looked at: whether each was new then, so is made by this execution.
        self._folders: dict[bytes, bool] = {}
        self._staged: dict[bytes, Made] = {}
        self._left_staged: set[bytes] = set()

    @property
    def sources(self) -> Sources:
        """The archive; asked for only where something is taken from it."""
        assert self._plan.sources is not None
        return self._plan.sources

    def make_folder(self, folder: bytes) -> None:
        """Make a directory of our own at the top of the tree, unless it is there."""
        if self.tree.lstat(folder) is None:
            self.log.append([path_line("dir", folder)])
            self._store.note_folder(folder)
        self.tree.locate(folder + b"/", make=True)

    def drop_staging(self) -> None:
        """Leave no staging directory; where that fails, the log knows it, and the next rebuild clears it.

        What holds a last copy stays: it was to take the place of what is gone.
        """
        with suppress(OSError, DrumlineError, Refused):
            self.clear_staged()
            self.removals.flush()
            self.tree.clear_staging(self._is_announced)
            if self.tree.rmdir(STAGING):
                self.log.append([path_line("removed", STAGING)], sync=False)
            self.tree.forget()

    def probed_placer(self) -> Placer | None:
        """Return what places files, tried with the first of them; None where none is to be placed.

        Raises
        ------
        OutputError
            When the file system of the tree cannot do what the copy mode needs.
        """
        first = next(self._plan.batches(1, 1), None)
        if first is None or self._plan.sources is None:
            return None
        placer = placer_for(self._plan.settings.copy_mode, self.tree, self.sources)
        placer.probe(first[0])
        return placer

    def announce(self, actions: Iterable[Action]) -> None:
        """Put on disk what is about to appear, each directory before what is in it."""
        mode, absolute = self._mode, self.sources.absolute
        lines: list[bytes] = []
        self._forget_folders()
        for action in actions:
            folder = action.target.rpartition(b"/")[0]
            if folder not in self._folders:
                lines += self._folder_lines(folder)
            lines.append(make_line(action, mode, absolute(action)))
        self._store.flush()
        self.log.append(lines)

    def _forget_folders(self) -> None:
        """Forget directories that were there, as their owner may have removed them; of too many, all."""
        few = len(self._folders) <= _REMEMBERED
        self._folders = {folder: True for folder, is_new in self._folders.items() if is_new and few}

    def announce_staged(self, staged: Sequence[Staged]) -> None:
        """Put on disk what stands in the staging directory: what it is to replace may then go."""
        for action, place in staged:
            source = self.sources.absolute(action)
            self._staged[place] = Made(place, self._mode, action.size, action.mtime_ns, source, action.hash)
        self.announce(action._replace(target=place) for action, place in staged)

    def clear_staged(self) -> list[tuple[bytes, str]]:
        """Remove what was staged and not published; return what stays, and why.

        When the archive lost it meanwhile, this may be the last copy.
        """
        kept = []
        for place, made in self._staged.items():
            how = fate(self.tree, made, even_last=False)
            if how in ("ours", "gone"):
                self.tree.unlink(place)
                self.removals.add(place)
            else:
                kept.append((place, WHY_IT_STAYS[how]))
        self._left_staged.update(place for place, _ in kept)
        self._staged.clear()
        return kept

    def _is_announced(self, target: bytes) -> bool:
        if target in self._staged or target in self._left_staged:
            return True
        return self._store.has_made_at(target)

    def _folder_lines(self, folder: bytes) -> list[bytes]:
        unseen, lines = list[bytes](), list[bytes]()
        while folder and folder not in self._folders:
            unseen.append(folder)
            folder = folder.rpartition(b"/")[0]
        is_new = self._folders.get(folder, False)
        for folder in reversed(unseen):
            is_new = is_new or self._is_new(folder)  # in a new directory, nothing is looked for
            self._folders[folder] = is_new
            if is_new:
                self._store.note_folder(folder)
                lines.append(path_line("dir", folder))
        return lines

    def _is_new(self, folder: bytes) -> bool:
        if self._store.is_our_folder(folder):
            return False
        try:
            return self.tree.lstat(folder) is None
        except Refused:
            return False  # something stands in the way: placing will say so

    def disown(self, failures: Sequence[Failure]) -> None:
        """Note that what was announced did not come."""
        lines = list[bytes]()
        for target in (failure.action.target for failure in failures):
            lines.append(path_line("removed", target))
            if self._store.is_our_folder(target):
                lines.append(path_line("dir", target))  # it stands in the way, and the line before unsays it
        self.log.append(lines)

    def remove_folders_within(self, directory: bytes) -> None:
        """Remove an empty directory of ours, and empty ones below, so that its name is free."""
        folders = self._store.folders_within(directory)
        if folders:
            self.tree.forget()
        for folder in folders:
            if self.tree.rmdir(folder):
                self._store.note_removed(folder)
                self.removals.add(folder)
        self._folders.clear()

    def remove_empty_folders(self) -> None:
        """Remove directories of ours that became empty, and note all removals."""
        self.tree.forget()
        for folder in self._store.folders_bottom_up():
            if folder not in (STAGING, MANIFESTS) and self.tree.rmdir(folder):
                self._store.note_removed(folder)
                self.removals.add(folder)
        self.removals.flush()
        self.tree.forget()
        self._folders.clear()


@contextmanager
def open_site(plan: Plan) -> Iterator[tuple[Site, Placer | None]]:
    """Open the output directory of a plan for work; also give what places files, None when none is to be.

    Raises
    ------
    OutputError, BusyError
        When it cannot be made, written or locked, or its file system cannot do what the copy mode needs.
    """
    # They unwind from the right: what a failed opening takes back needs the tree, and no log any more.
    with ExitStack() as opened, ExitStack() as on_error, ExitStack() as at_work:
        tree = plan.tree or _new_tree(plan, opened, on_error)
        length = 0 if plan.log is None else plan.log.length
        if not length:
            on_error.callback(_forsake, tree)
        log = MappingLog(tree, length)
        at_work.callback(log.close)
        if not length:
            log.begin(made_root=plan.tree is None)
        site = Site(plan, tree, log)
        site.make_folder(MANIFESTS)
        site.make_folder(STAGING)
        claim_leftovers(tree, plan.store)  # once more: the archive may have lost what the plan still found
        tree.clear_staging(plan.store.has_made_at)
        at_work.callback(site.drop_staging)
        placer = site.probed_placer()
        on_error.pop_all()
        yield site, placer


def _new_tree(plan: Plan, opened: ExitStack, on_error: ExitStack) -> Tree:
    """Make and lock the output directory; it is closed by `opened` and taken back by `on_error`."""
    out = plan.settings.out
    on_error.callback(_remove_directories, make_directories(out))
    found = guard.open_tree(out, plan.store)
    if found is None or found[1] is not None:
        raise OutputError(
            f"{str(out)!r} appeared while the rebuild was planned", "Give the same command again."
        )
    opened.callback(found[0].close)
    return found[0]


def _remove_directories(directories: list[Path]) -> None:
    with suppress(OSError):
        for directory in reversed(directories):
            os.rmdir(directory)


def _forsake(tree: Tree) -> None:
    """Leave nothing behind in a directory that turned out not to do."""
    with suppress(OSError, Refused):
        tree.clear_staging()
        if tree.rmdir(STAGING) and tree.rmdir(MANIFESTS):
            tree.unlink(LOG_NAME)
