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

__all__ = ["archive_has", "find_for_link", "is_trusted", "leads_into"]


def archive_has(tree: Tree, made: Made) -> bool:
    """Tell whether the archive still has the content of a file that rebuild placed.

    Parameters
    ----------
    tree
        Where it was placed.
    made
        The file, as the mapping log tells of it.

    Notes
    -----
    It has it where the original can be opened, is a regular file outside of the tree, and has the size and
    modification time that the log says; where the time differs or the original is doubted, where its content
    has the log's hash. A symbolic link holds no content that could be lost.
    """
    if made.mode == "symlink":
        return True
    try:
        with open_regular(made.source, buffering=0) as original:
            status = os.fstat(original.fileno())
            if status.st_size != made.size or _is_only_here(tree, made, original):
                return False
            if mtime_of(status) == made.mtime_ns and not made.doubted:
                return True
            return made.hash is not None and has_content(original.fileno(), made.hash)
    except (OSError, ValueError, Refused):
        return False


def is_trusted(sources: Sources, action: Action, made: Made) -> bool:
    """Tell whether a file of the plan may stand in for one made earlier, as far as content goes.

    Where the original of that one is doubted, size and time do not say that a planned file is what its index
    says, perhaps of an older run: its content is read.
    """
    if not made.doubted:
        return True
    try:
        with open_regular(sources.absolute(action), buffering=0) as original:
            return action.hash is not None and has_content(original.fileno(), action.hash)
    except (OSError, ValueError):
        return False


def leads_into(tree: Tree, source: bytes) -> bool:
    """Tell whether a path of the archive leads to a file of the tree; or to nothing, which proves no copy.

    Notes
    -----
    A program that replaces duplicates by symbolic links can make it so: the tree then holds the only copy.
    """
    try:
        with open_regular(source, buffering=0) as original:
            return tree.holds(original.fileno())
    except (OSError, ValueError):
        return True


def find_for_link(
    tree: Tree, sources: Sources, action: Action, instead_of: Made | None = None
) -> os.stat_result:
    """Return the stat of a file that a symbolic link in the tree is to lead to.

    Parameters
    ----------
    tree, sources, action
        What is to lead where.
    instead_of
        A file of the tree that goes then.

    Raises
    ------
    Refused
        When it is missing, unreadable, not the file that was indexed, or a file of the tree.
    """
    status = sources.stat(action)
    goes = instead_of is not None and _is_only_name(tree, instead_of, status)
    if goes or leads_into(tree, sources.absolute(action)):
        raise Refused("changed", "the archive has a link to a file of the tree in its place")
    return status


def _is_only_here(tree: Tree, made: Made, original: BinaryIO) -> bool:
    """Tell whether what stands at an original's path is the tree's: by a link, or by a mount."""
    return tree.holds(original.fileno()) or _is_only_name(tree, made, os.fstat(original.fileno()))


def _is_only_name(tree: Tree, made: Made, original: os.stat_result) -> bool:
    """Tell whether an original is the tree's very file, without a name of its own."""
    here = tree.lstat(made.target)
    return here is not None and here.st_nlink == 1 and os.path.samestat(here, original)
