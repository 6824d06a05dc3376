"""Durable writes: what was reported as written is on disk, and nobody ever sees half a file."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from drumline.errors import OutputError
from drumline.failpoints import step

__all__ = [
    "draft_of",
    "make_directories",
    "new_directory",
    "new_file",
    "output_errors",
    "sync_directory",
    "way_out_of",
    "write_bytes",
    "write_json",
]

_WAY_OUT = {
    errno.ENOSPC: "Free some space or choose another place, then give the same command again.",
    errno.EDQUOT: "Your quota is used up: free some space, then give the same command again.",
    errno.EIO: "Check the disk, then give the same command again.",
    errno.EACCES: "Check the permissions, or choose another place.",
    errno.EPERM: "Check the permissions, or choose another place.",
    errno.EROFS: "The file system is read-only: choose another place.",
    errno.ENFILE: "The machine has too many files open: give the same command again when others have ended.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), then give the same command again.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EEXIST: "A file of that name is in the way: choose another place.",
    errno.ENOTDIR: "A file stands where a directory should be: choose another place.",
    errno.ELOOP: "A link, or a circle of links, stands there: remove it, or choose another place.",
}


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` of the enclosed writes into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise OutputError(f"cannot write {os.fspath(path)!r}: {cause}", way_out_of(error)) from error


def way_out_of(error: OSError, otherwise: str = "Give the same command again when the cause is gone.") -> str:
    """Return what can be done about an error of the system; of one that is not known, `otherwise`."""
    return _WAY_OUT.get(error.errno or 0, otherwise)


def sync_directory(directory: str | bytes | os.PathLike[str]) -> None:
    """Make names created in or removed from `directory` durable, as far as its file system lets us.

    Some network and FUSE file systems cannot sync a directory, and say so by EINVAL.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with step("durable.sync-directory"):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def make_directories(directory: Path) -> list[Path]:
    """Make a directory and what it is in, durably; return those that were made, the outermost first.

    What could not be made known to the disk is taken back.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    made: list[Path] = []
    # The innermost one that stands may be of a call that was killed before it synced its name.
    _sync_name(missing[-1].parent if missing else directory)
    try:
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                made.append(path)
            _sync_name(path)
        directory.mkdir(exist_ok=True)  # fails where something else stands there
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
        raise
    return made


def _sync_name(directory: Path) -> None:
    # What may be written but not read cannot be synced.
    with suppress(PermissionError):
        sync_directory(directory.parent)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Give a directory to write in, which becomes `out` when the enclosed code has ended well.

    Raises
    ------
    OutputError
        When something stands at `out`, or it cannot be written.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise OutputError(f"{str(out)!r} exists already", "Choose another place: nothing is overwritten.")
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    with output_errors(out):
        make_directories(out.parent)
        draft.mkdir()
    try:
        yield draft
        with output_errors(out):
            _publish(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _publish(draft: Path, out: Path) -> None:
    """Give a directory its name; one that does not reach the disk is taken back, for another try."""
    with step("durable.publish"):
        os.rename(draft, out)
    try:
        sync_directory(out.parent)
    except BaseException:
        os.rename(out, draft)
        raise


def draft_of(path: Path) -> Path:
    """Return where `write_bytes` writes what is to stand at `path`; what a kill left there is overwritten."""
    return path.with_name(f".{path.name}.tmp")


def new_file(path: Path) -> int:
    """Make a file in place of whatever stands at `path`, which is not written to; return its descriptor.

    What stands there may be a link to somebody's file, or a named pipe that would be waited for.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_bytes(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace `path` by `data` atomically and durably; one process at a time may do so.

    Parameters
    ----------
    path, data
        Where, and what.
    mode
        Permissions of the file; None: those of a new one.

    Raises
    ------
    OutputError
        When any step fails: either what stood at `path` before is still there, or all of `data`.
    """
    temporary = draft_of(path)
    with output_errors(path):
        try:
            with open(new_file(temporary), "wb") as stream:
                if mode is not None:
                    os.fchmod(stream.fileno(), mode)
                with step("durable.write"):
                    stream.write(data)
                    stream.flush()
                with step("durable.sync"):
                    os.fsync(stream.fileno())
            with step("durable.replace"):
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON by `write_bytes`."""
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
