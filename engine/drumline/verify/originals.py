"""The archive's files against what the index says of them."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from drumline.content import has_content
from drumline.errors import ArchiveError
from drumline.machine import usable_cpus
from drumline.records import Record, absolute_path, display_path, relative_path
from drumline.verify.findings import Kind, Ledger
from drumline.walk import mtime_of
from drumline.wording import counted

__all__ = ["Originals", "Trouble", "stat_trouble", "trouble_of"]

_NEVER_SEEN: Final = frozenset({"vanished", "changed", "unreadable", "path_too_long"})
"""Errors of records that say nothing sure of size, mtime and content."""


class Trouble(NamedTuple):
    """What is the matter with one file."""

    kind: Kind
    message: str


def trouble_of(error: OSError) -> Trouble:
    """Return what an `OSError` says about a file; raise it again when it says nothing of that."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return Trouble("missing", "is not there") if gone else Trouble("unreadable", error.strerror or str(error))


def stat_trouble(status: os.stat_result, size: int, mtime_ns: int) -> Trouble | None:
    """Return how a file differs from a regular one of this size and mtime."""
    if not stat.S_ISREG(status.st_mode):
        return Trouble("changed", "is no regular file any more")
    if status.st_size != size:
        return Trouble("changed", f"has {status.st_size:,} bytes, not {size:,}")
    if mtime_of(status) != mtime_ns:
        return Trouble("changed", "was modified since")
    return None


class Originals:
    """Compares files with their records.

    Parameters
    ----------
    root
        Archive root; None: where each record says.
    content
        Whether content is read and hashed.
    ledger
        Where problems go.

    Raises
    ------
    ArchiveError
        When the root is not there: a volume that is not mounted must not look like missing files.
    """

    def __init__(self, root: bytes | None, content: bool, ledger: Ledger) -> None:
        if root is not None and not os.path.isdir(root):
            raise ArchiveError(
                f"the archive {display_path(root)!r} is not there", "Mount its volume, then try again."
            )
        self._root, self._content, self._ledger = root, content, ledger
        self._pool = ThreadPoolExecutor(usable_cpus()) if content else None
        self.files = 0

    def compare(self, records: list[Record]) -> None:
        """Compare the files of some records."""
        seen = [record for record in records if not _never_seen(record)]
        found = self._pool.map(self._trouble, seen) if self._pool else map(self._trouble, seen)
        for record, trouble in zip(seen, found, strict=True):
            self.files += 1
            if trouble:
                self._ledger.problem("archive", trouble.kind, relative_path(record), trouble.message)

    def close(self) -> None:
        """End what was begun; say what was looked at."""
        if self._pool:
            self._pool.shutdown()
        what = "size, mtime and content" if self._content else "size and mtime"
        self._ledger.checked("archive", f"{counted(self.files, 'file')} by {what}")

    def _trouble(self, record: Record) -> Trouble | None:
        path = absolute_path(record, self._root)
        try:
            trouble = stat_trouble(os.stat(path), record["size"], record["mtime_ns"])
            if trouble or not self._content or record["hash"] is None:
                return trouble
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                same = has_content(descriptor, record["hash"])
            finally:
                os.close(descriptor)
        except OSError as error:
            return trouble_of(error)
        return None if same else Trouble("content", f"has another content than {record['hash']}")


def _never_seen(record: Record) -> bool:
    return record["errors"] is not None and record["errors"]["type"] in _NEVER_SEEN
