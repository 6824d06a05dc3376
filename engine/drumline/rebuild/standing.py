"""What became of a file that rebuild made: whether it is still ours, and whether it may go."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Literal

from drumline.rebuild.actions import Action, Refused
from drumline.rebuild.originals import archive_has, leads_into
from drumline.rebuild.store import Made, Store
from drumline.rebuild.tree import Tree
from drumline.walk import mtime_of

__all__ = ["WHY_IT_STAYS", "Standing", "fate", "has_same_content", "holds_others", "replaces", "standing"]

_TIME_UNITS_NS = (2 * 10**9, 10**9, 10**7, 10**3, 100, 1)

Standing = Literal["ours", "gone", "changed", "last_copy"]
"""ours: as it was made, and not the last copy; gone: somebody removed it; changed: somebody edited or
replaced it; last_copy: the archive does not have its content any more."""

WHY_IT_STAYS: dict[Standing, str] = {
    "changed": "changed since it was made",
    "last_copy": "the archive does not have it any more, or not as it was",
}


def standing(tree: Tree, made: Made) -> Literal["ours", "gone", "changed"]:
    """Tell what became of a file that rebuild made.

    Notes
    -----
    Ours: a link that still points where it did, or a regular file with the size and modification time that it
    was given.
    """
    try:
        status = tree.lstat(made.target)
    except Refused:
        return "changed"
    if status is None:
        return "gone"
    if made.mode == "symlink":
        link = stat.S_ISLNK(status.st_mode) and tree.readlink(made.target) == made.source
        return "ours" if link else "changed"
    if not stat.S_ISREG(status.st_mode) or status.st_size != made.size:
        return "changed"
    return "ours" if _same_time(mtime_of(status), made.mtime_ns) else "changed"


def fate(tree: Tree, made: Made, *, even_last: bool) -> Standing:
    """Tell whether a file may be removed ("ours"), or why not.

    Parameters
    ----------
    even_last
        Whether even a last copy may go.

    Notes
    -----
    A hard link to the archive's file is ours although somebody edited that file: it stays in the archive.
    """
    how = standing(tree, made)
    if how == "ours" and not even_last and not archive_has(tree, made):
        return "last_copy"
    if how == "changed" and made.mode == "hardlink" and _is_linked_to_original(tree, made):
        return "ours"
    return how


def _is_linked_to_original(tree: Tree, made: Made) -> bool:
    try:
        status = tree.lstat(made.target)
        if status is None or status.st_nlink == 1:
            return False
        return os.path.samestat(status, os.stat(made.source)) and not leads_into(tree, made.source)
    except (OSError, ValueError, Refused):
        return False


def holds_others(tree: Tree, store: Store, directory: bytes, goes: Callable[[bytes], bool]) -> bool:
    """Tell whether a directory, or one of rebuild's below it, holds anything but files that go.

    Parameters
    ----------
    tree, store
        Where it stands, and what the log says of it.
    directory
        Relative to the tree; nothing, or no directory, holds nothing.
    goes
        Tells whether a file is to be removed.
    """
    for name in tree.names(directory):
        path = directory + b"/" + name
        if store.is_our_folder(path):
            status = tree.lstat(path)
            if status is None or not stat.S_ISDIR(status.st_mode) or holds_others(tree, store, path, goes):
                return True
        elif not goes(path):
            return True
    return False


def has_same_content(made: Made, action: Action) -> bool:
    """Tell whether a file made earlier has the content of a planned one; what has no hash is not known to."""
    return made.hash is not None and (made.hash, made.size) == (action.hash, action.size)


def replaces(made: Made, action: Action, root: bytes) -> bool:
    """Tell whether a planned file may take the place of one made earlier, whatever the archive has.

    It has the same content, or it is the same file of the archive, below `root`: edited by its owner and
    indexed again, so that the copy follows it.
    """
    same_file = made.source == os.path.join(root, action.source)
    return same_file or has_same_content(made, action)


def _same_time(found_ns: int, given_ns: int) -> bool:
    """Tell whether a time is the one that was given to the file system, which may have rounded it.

    FAT keeps 2 s, some file systems 1 s, exFAT 10 ms, others 1 µs, NTFS 100 ns. Which one it is shows in the
    time itself: a time that is a multiple of 2 s may have been rounded to that.
    """
    granularity = next(unit for unit in _TIME_UNITS_NS if found_ns % unit == 0)
    return abs(found_ns - given_ns) < granularity
