"""A rebuilt tree against its mapping log."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from drumline.content import has_content
from drumline.errors import OutputError
from drumline.rebuild.actions import Progress, Refused, report_to
from drumline.rebuild.guard import check_log
from drumline.rebuild.log import LOG_NAME, load_log
from drumline.rebuild.manifests import is_ours
from drumline.rebuild.standing import standing
from drumline.rebuild.store import Made, Store, working_space
from drumline.rebuild.tree import Tree
from drumline.records import display_path
from drumline.verify.findings import Ledger, Report
from drumline.verify.originals import Trouble, stat_trouble, trouble_of
from drumline.wording import counted

__all__ = ["is_tree", "verify_tree"]

_REPORT_EVERY = 5_000


def is_tree(path: Path) -> bool:
    """Tell whether a directory was made by `rebuild`."""
    return os.path.lexists(os.path.join(os.fsencode(path), LOG_NAME))


def verify_tree(
    out: Path, content: bool = False, progress: Callable[[Progress], None] | None = None
) -> Report:
    """Verify a rebuilt tree: every file that its mapping log names is there, as it was made.

    Files that somebody added are noted; they are no problem.

    Parameters
    ----------
    out
        The tree.
    content
        Whether files must have the content, too; reads the whole tree.
    progress
        Called now and then with how far it got.

    Raises
    ------
    OutputError
        When the directory cannot be opened, or was not made by drumline.
    BusyError
        When a rebuild or undo works in it; other verifications may.
    """
    if not is_tree(out):
        raise OutputError(
            f"{str(out)!r} was not made by drumline: it has no {LOG_NAME.decode()}",
            "Give a directory that 'drumline rebuild' made.",
        )
    tree, store = Tree(out, shared=True), Store()
    try:
        with working_space():
            return _TreeCheck(tree, store, content, report_to(progress)).report()
    finally:
        store.close()
        tree.close()


class _TreeCheck:
    def __init__(self, tree: Tree, store: Store, content: bool, progress: Callable[[Progress], None]) -> None:
        self._tree, self._store, self._content, self._progress = tree, store, content, progress
        self._ledger = Ledger()

    def report(self) -> Report:
        """Make every check and return the report."""
        if self._load():
            self._check_files()
            self._check_reports()
            staged = set(self._tree.staged())
            for path in self._additional():
                what = "a killed rebuild left it" if path in staged else "was not made by drumline"
                self._ledger.note("files", "additional", path, what)
        return self._ledger.report(display_path(self._tree.path), None)

    def _load(self) -> bool:
        try:
            state = load_log(self._tree, self._store)
            check_log(self._tree, state)
        except OutputError as error:
            self._ledger.problem("log", "log", LOG_NAME, error.what)
            return False
        length = state.length if state else 0
        torn = os.stat(os.path.join(bytes(self._tree.path), LOG_NAME)).st_size - length
        if torn:
            message = f"its last {torn:,} bytes are torn: what they announce never came"
            self._ledger.note("log", "torn_tail", LOG_NAME, message)
        self._ledger.checked("log", f"{counted(length, 'byte')} of whole lines")
        return True

    def _check_files(self) -> None:
        total = self._store.made_count()
        for number, made in enumerate(self._store.made_files(), 1):
            if trouble := self._trouble(made):
                self._ledger.problem("files", trouble.kind, made.target, trouble.message)
            if number % _REPORT_EVERY == 0:
                self._progress(Progress("reading", number, total))
        what = "size, mtime and content" if self._content else "size and mtime"
        self._ledger.checked("files", f"{counted(total, 'file')} by {what}")

    def _trouble(self, made: Made) -> Trouble | None:
        try:
            if trouble := self._standing(made):
                return trouble
            return self._content_trouble(made) if self._content and made.hash else None
        except Refused as reason:
            return Trouble("changed", reason.message)
        except OSError as error:
            return trouble_of(error)

    def _standing(self, made: Made) -> Trouble | None:
        how = standing(self._tree, made)
        if how == "gone":
            return Trouble("missing", "is not there")
        if how == "changed":
            return Trouble("changed", self._difference(made))
        if made.mode == "symlink":
            return self._link_trouble(made)
        return self._origin_trouble(made) if made.mode == "hardlink" else None

    def _difference(self, made: Made) -> str:
        status = self._tree.lstat(made.target)
        if made.mode == "symlink":
            if status is None or not stat.S_ISLNK(status.st_mode):
                return "is no symbolic link any more"
            return f"leads to {display_path(self._tree.readlink(made.target))}"
        trouble = stat_trouble(status, made.size, made.mtime_ns) if status else None
        return trouble.message if trouble else "is not as it was made"

    @staticmethod
    def _link_trouble(made: Made) -> Trouble | None:
        """Return what is the matter with the file that an unchanged symbolic link leads to."""
        try:
            trouble = stat_trouble(os.stat(made.source), made.size, made.mtime_ns)
        except OSError as error:
            return Trouble(trouble_of(error).kind, "leads to a file that is not there or cannot be reached")
        return Trouble("changed", f"leads to a file that {trouble.message}") if trouble else None

    def _origin_trouble(self, made: Made) -> Trouble | None:
        """Return whether a hard link is still the archive's file."""
        try:
            origin = os.stat(made.source)
        except OSError:
            self._ledger.note("files", "last_copy", made.target, "the archive does not have it any more")
            return None
        status = self._tree.lstat(made.target)
        if status is not None and os.path.samestat(status, origin):
            return None
        return Trouble("not_linked", "the archive has another file in its place")

    def _content_trouble(self, made: Made) -> Trouble | None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        is_link = made.mode == "symlink"
        descriptor = os.open(made.source, flags) if is_link else self._tree.open_file(made.target, flags)
        try:
            same = has_content(descriptor, made.hash or "")
        finally:
            os.close(descriptor)
        return None if same else Trouble("content", f"has another content than {made.hash}")

    def _check_reports(self) -> None:
        targets = self._store.reports()
        for target in targets:
            if trouble := self._report_trouble(target):
                self._ledger.problem("reports", trouble.kind, target, trouble.message)
        self._ledger.checked(
            "reports", counted(len(targets), "manifest or summary", "manifests and summaries")
        )

    def _report_trouble(self, target: bytes) -> Trouble | None:
        try:
            if is_ours(self._tree, self._store, target):
                return None
        except OSError as error:
            return trouble_of(error)
        if self._tree.has(target):
            return Trouble("changed", "was edited")
        return Trouble("missing", "is not there")

    def _additional(self) -> Iterator[bytes]:
        """Iterate over what the log does not name; a directory without anything of ours is named as one."""
        pending = [b""]
        while pending:
            directory = pending.pop()
            for name in self._names(directory):
                path = directory + b"/" + name if directory else name
                if self._is_directory(path) and self._is_way(path):
                    pending.append(path)
                elif path != LOG_NAME and not self._is_known(path):
                    yield path

    def _names(self, directory: bytes) -> list[bytes]:
        try:
            return sorted(self._tree.names(directory))
        except (OSError, Refused):
            return []  # what of ours is in it was found missing

    def _is_directory(self, path: bytes) -> bool:
        try:
            status = self._tree.lstat(path)
        except OSError:
            return False  # a directory whose names can be read, and no more
        return status is not None and stat.S_ISDIR(status.st_mode)

    def _is_way(self, directory: bytes) -> bool:
        """Tell whether rebuild made a directory, or something in it."""
        return self._store.is_our_folder(directory) or self._store.has_made_below(directory)

    def _is_known(self, path: bytes) -> bool:
        return self._store.made_at(path) is not None or self._store.has_report(path)
