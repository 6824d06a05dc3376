"""What a killed rebuild left in the staging directory, where it is all that is left of a sample."""

from __future__ import annotations

import os
import stat

from drumline.content import digests_of
from drumline.rebuild.actions import Refused
from drumline.rebuild.originals import archive_has
from drumline.rebuild.standing import standing
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
        if not store.has_made_at(target) and (lost := _lost_original(tree, store, target)):
            store.note_made(lost._replace(target=target))
    store.flush()


def _lost_original(tree: Tree, store: Store, target: bytes) -> Made | None:
    """Return what the log announces with a staged copy's content, where neither tree nor archive has that."""
    status = tree.lstat(target)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    time_ns = mtime_of(status)
    alike = store.announced_like(_digests(tree, target), status.st_size, time_ns, _COARSEST_NS)
    first = None
    for made in alike:
        if standing(tree, made) == "ours" or archive_has(tree, made):
            return None
        first = first or made
    return first


def _digests(tree: Tree, target: bytes) -> list[str]:
    try:
        descriptor = tree.open_file(target, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, Refused):
        return []
    try:
        return digests_of(descriptor)
    finally:
        os.close(descriptor)
