"""What is refused, by name, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drumline.durable import way_out_of
from drumline.errors import ArchiveError, OutputError
from drumline.machine import filesystem_type
from drumline.outputs import check_apart, lies_in, upwards
from drumline.rebuild.leftovers import claim_leftovers
from drumline.rebuild.log import LOG_NAME, LogState, load_log
from drumline.rebuild.settings import CopyMode
from drumline.rebuild.store import Store
from drumline.rebuild.tree import Sources, Tree, not_a_tree
from drumline.wording import counted

__all__ = [
    "check_device",
    "check_log",
    "check_places",
    "check_room",
    "looking_at",
    "open_archive",
    "open_tree",
]

_NOBODYS = {b".DS_Store", b"lost+found", LOG_NAME}
_WITHOUT_LINKS = {"vfat", "msdos", "exfat"}
_MARGIN_BYTES = 16 << 20
_BYTES_PER_FILE = 1_024
"""Room for a file's lines in the mapping log and in its manifest."""


@contextmanager
def looking_at(out: Path) -> Iterator[None]:
    """Turn an `OSError` of the enclosed looks at the output directory into an `OutputError` that names it."""
    try:
        yield
    except OSError as error:
        name = f", at {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
        raise OutputError(
            f"cannot look at {str(out)!r}{name}: {error.strerror or error}",
            way_out_of(error, "Check its permissions, or give another directory with --out."),
        ) from error


def open_tree(out: Path, store: Store) -> tuple[Tree, LogState | None] | None:
    """Open and lock the output directory and load its log; None when it is not there yet.

    Raises
    ------
    OutputError
        When it is no directory, or holds something and was not made by drumline.
    BusyError
        When another process works in it.
    """
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise OutputError(f"{str(out)!r} is no directory", "Give a new or empty directory with --out.")
    tree = Tree(out)
    try:
        state = load_log(tree, store)
        check_log(tree, state)
        claim_leftovers(tree, store)
        return tree, state
    except BaseException:
        tree.close()
        raise


def check_log(tree: Tree, state: LogState | None) -> None:
    """Raise `OutputError` when a directory holds something that its log, if it has one, cannot name."""
    if state is not None and state.length:
        return
    if others := sum(name not in _NOBODYS for name in tree.names()):
        empty = "" if state is None else f" (its {LOG_NAME.decode()} is empty)"
        holds = counted(others, "entry", "entries")
        raise not_a_tree(tree.path, f"was not made by drumline{empty} and holds {holds}")


def check_places(out: Path, archive_root: bytes | None, run_directory: Path | None) -> None:
    """Raise `OutputError` when tree and archive lie in one another, or the tree lies in the run.

    The run may lie in the tree's directory: that one is then not empty, and refused for that.
    """
    tree = os.fsencode(out)
    if archive_root is not None:
        check_apart(out, archive_root)
    if run_directory is not None and lies_in(tree, os.fsencode(run_directory)):
        raise OutputError(
            f"{str(out)!r} lies in the run {str(run_directory)!r}, which is never changed",
            "Give a directory outside of the run with --out.",
        )


def open_archive(root: bytes) -> Sources:
    """Open the archive.

    Raises
    ------
    ArchiveError
        When it is not there: a volume that is not mounted must not look like missing files.
    """
    try:
        return Sources(root)
    except OSError as error:
        raise ArchiveError(
            f"cannot open the archive {os.fsdecode(root)!r}: {error.strerror}",
            "Mount its volume, or say with --archive-root where the archive is now.",
        ) from error


def _existing(out: Path) -> bytes:
    return next(path for path in upwards(os.path.realpath(os.fsencode(out))) if os.path.exists(path))


def check_device(out: Path, mode: CopyMode, source_device: int, source: bytes) -> None:
    """Raise `OutputError` when the file system of the tree cannot do what `mode` needs.

    Hard links and shared blocks do not cross file systems, and FAT knows no links at all.
    """
    kind = filesystem_type(_existing(out))
    if mode in ("hardlink", "symlink", "reflink") and kind in _WITHOUT_LINKS:
        raise OutputError(
            f"{str(out)!r} is on a file system ({kind}) that knows no {mode}s",
            "Use --copy-mode copy, or give an --out on another file system.",
        )
    if mode not in ("hardlink", "reflink") or os.stat(_existing(out)).st_dev == source_device:
        return
    raise OutputError(
        f"{mode} needs one file system, but {os.fsdecode(source)!r} and {str(out)!r} are on different ones",
        "Use --copy-mode copy or symlink, or give an --out on the archive's file system.",
    )


def check_room(out: Path, mode: CopyMode, files: int, data_bytes: int) -> None:
    """Raise `OutputError` when the file system has no room for what is planned.

    Parameters
    ----------
    files, data_bytes
        Files to be made, and the sum of their sizes.
    """
    system = os.statvfs(_existing(out))
    needed = files * _BYTES_PER_FILE + _MARGIN_BYTES
    if mode == "copy":
        needed += data_bytes + files * system.f_frsize // 2
    free = system.f_bavail * system.f_frsize
    if needed > free:
        links = ", or use --copy-mode hardlink, which needs hardly any" if mode == "copy" else ""
        raise OutputError(
            f"{str(out)!r} needs {needed / 1e9:,.2f} GB, but its file system has {free / 1e9:,.2f} GB free",
            f"Free some space, or choose another --out{links}.",
        )
    if mode not in ("hardlink", "none") and system.f_files and files > system.f_favail:
        raise OutputError(
            f"{str(out)!r} needs {files:,} files, but its file system has room for {system.f_favail:,} more",
            "Use --copy-mode hardlink, or choose another --out.",
        )
