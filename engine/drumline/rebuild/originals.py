"""Whether the archive still has what a file of the tree holds, so that this one may go."""

from __future__ import annotations

import os
from typing import BinaryIO

from drumline.content import has_content
from drumline.inputs import open_regular
from drumline.rebuild.actions import Action, Refused
from drumline.rebuild.store import Made
from drumline.rebuild.tree import Sources, Tree
from drumline.walk import mtime_of

__all__ = ["archive_has", "find_for_link", "leads_into"]


def archive_has(tree: Tree, made: Made, *, doubted: bool = False) -> bool:
    """Tell whether the archive still has the content of a file that rebuild placed.

    Parameters
    ----------
    tree
        Where it was placed.
    made
        The file, as the mapping log tells of it.
    doubted
        Whether size and time prove nothing: the original could not be read when it was indexed last.

    Notes
    -----
    It has it where the original can be opened, is a regular file outside of the tree, and has the size and
    modification time that the log says; where the time or the original is in doubt, where its content has the
    log's hash. A symbolic link holds no content that could be lost.
    """
    if made.mode == "symlink":
        return True
    try:
        with open_regular(made.source, buffering=0) as original:
            status = os.fstat(original.fileno())
            if status.st_size != made.size or _is_only_here(tree, made, original):
                return False
            if mtime_of(status) == made.mtime_ns and not doubted:
                return True
            return made.hash is not None and has_content(original.fileno(), made.hash)
    except (OSError, ValueError, Refused):
        return False


def leads_into(tree: Tree, source: bytes) -> bool:
    """Tell whether a path of the archive leads to a file of the tree; also where it leads nowhere.

    Notes
    -----
    A program that replaces duplicates by symbolic links can make it so: the tree then holds the only copy.
    """
    try:
        with open_regular(source, buffering=0) as original:
            return tree.holds(original.fileno())
    except (OSError, ValueError):
        return True


def find_for_link(tree: Tree, sources: Sources, action: Action) -> os.stat_result:
    """Return the stat of a file that a symbolic link in the tree is to lead to.

    Raises
    ------
    Refused
        When it is missing, unreadable, not the file that was indexed, or a file of the tree.
    """
    status = sources.find(action)[2]
    if leads_into(tree, sources.absolute(action)):
        raise Refused("changed", "the archive has a link to a file of the tree in its place")
    return status


def _is_only_here(tree: Tree, made: Made, original: BinaryIO) -> bool:
    """Tell whether what stands at an original's path is the tree's: by a link, or by a mount."""
    if tree.holds(original.fileno()):
        return True
    here, there = tree.lstat(made.target), os.fstat(original.fileno())
    return here is not None and here.st_nlink == 1 and os.path.samestat(here, there)
