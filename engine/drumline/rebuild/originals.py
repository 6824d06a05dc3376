"""Whether the archive still has what a file of the tree holds, so that this one may go."""

from __future__ import annotations

import os

from drumline.content import has_content
from drumline.inputs import open_regular
from drumline.rebuild.store import Made
from drumline.walk import mtime_of

__all__ = ["archive_has"]


def archive_has(made: Made, *, doubted: bool = False) -> bool:
    """Tell whether the archive still has the content of a file that rebuild placed.

    Parameters
    ----------
    made
        The file, as the mapping log tells of it.
    doubted
        Whether size and time prove nothing: the original could not be read when it was indexed last.

    Notes
    -----
    It has it where the original can be opened, is a regular file, and has the size and modification time that
    the log says; where the time or the original is in doubt, where its content has the log's hash. A symbolic
    link holds no content that could be lost.
    """
    if made.mode == "symlink":
        return True
    try:
        with open_regular(made.source, buffering=0) as original:
            status = os.fstat(original.fileno())
            if status.st_size != made.size:
                return False
            if mtime_of(status) == made.mtime_ns and not doubted:
                return True
            return made.hash is not None and has_content(original.fileno(), made.hash)
    except (OSError, ValueError):
        return False
