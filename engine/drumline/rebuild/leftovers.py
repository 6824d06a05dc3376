"""What a killed rebuild left in the staging directory, where it is all that is left of a sample."""

from __future__ import annotations

import os
import stat

from drumline.content import has_content
from drumline.rebuild.actions import Refused
from drumline.rebuild.originals import archive_has
from drumline.rebuild.store import Made, Store
from drumline.rebuild.tree import Tree
from drumline.walk import mtime_of

__all__ = ["claim_leftovers"]

_COARSEST_NS = 2 * 10**9


def claim_leftovers(tree: Tree, store: Store) -> None:
    """Note staged copies as files that rebuild made, where the archive has lost what they are copies of.

    Notes
    -----
    A copy is flushed to disk, with its time, before it gets its name. When a rebuild was killed between the
    two and the archive is lost afterwards, it is a last copy like any other. All others are cleared away.
    """
    for target in tree.staged():
        if store.made_at(target) is None and (lost := _lost_original(tree, store, target)):
            store.note_made(lost._replace(target=target))
    store.flush()


def _lost_original(tree: Tree, store: Store, target: bytes) -> Made | None:
    """Return what the log announces with a staged copy's content, and neither tree nor archive has."""
    status = tree.lstat(target)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    time_ns = mtime_of(status)
    alike = store.unplaced_like(status.st_size, time_ns - _COARSEST_NS, time_ns + _COARSEST_NS)
    lost = (made for made in alike if not tree.has(made.target) and not archive_has(tree, made))
    return next((made for made in lost if _is_copy_of(tree, target, made)), None)


def _is_copy_of(tree: Tree, target: bytes, made: Made) -> bool:
    if made.hash is None:
        return True  # nobody knows better
    try:
        descriptor = tree.open_file(target, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, Refused):
        return False
    try:
        return has_content(descriptor, made.hash)
    finally:
        os.close(descriptor)
