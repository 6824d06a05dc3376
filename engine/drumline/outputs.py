"""What may be written where: nothing that is somebody's is replaced, and nothing is put into an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from drumline.errors import OutputError
from drumline.inputs import open_regular

__all__ = ["check_apart", "check_output", "check_outside", "lies_in", "upwards"]


def check_output(path: Path, kind: str, is_kind: Callable[[BinaryIO], bool], option: str = "--out") -> None:
    """Raise `OutputError` unless nothing, an empty file, or a file of the same kind stands at `path`.

    Parameters
    ----------
    path
        Where a command is going to write.
    kind
        What it writes, for the message: ``"manifest"``.
    is_kind
        Tells of an open file, which is not empty, whether it is such a one.
    option
        What the path was given with.
    """
    if not os.path.lexists(path):
        return
    try:
        with open_regular(path) as stream:
            ours = os.fstat(stream.fileno()).st_size == 0 or is_kind(stream)
    except OSError as error:
        raise _in_the_way(path, error.strerror or str(error), option) from error
    if not ours:
        raise _in_the_way(path, f"it is no {kind}", option)


def _in_the_way(path: Path, why: str, option: str) -> OutputError:
    return OutputError(
        f"{str(path)!r} exists already and is not replaced: {why}", f"Give another path with {option}."
    )


def check_outside(out: Path, archive: bytes | Path | None) -> None:
    """Raise `OutputError` when `out` lies in an archive."""
    if archive is not None and lies_in(os.fsencode(out), os.fsencode(archive)):
        raise OutputError(
            f"{str(out)!r} lies in the archive {os.fsdecode(archive)!r}, which is never written to",
            "Give a directory outside of the archive with --out.",
        )


def check_apart(out: Path, archive: bytes | Path) -> None:
    """Raise `OutputError` when `out` and an archive lie in one another."""
    check_outside(out, archive)
    if lies_in(os.fsencode(archive), os.fsencode(out)):
        raise OutputError(
            f"the archive {os.fsdecode(archive)!r} lies in {str(out)!r}",
            "Give a directory that does not hold the archive with --out.",
        )


def lies_in(inner: bytes, outer: bytes) -> bool:
    """Tell whether one path is another or lies below it, whatever links lead there."""
    place = os.path.realpath(outer)
    return any(path == place or _same(path, place) for path in upwards(os.path.realpath(inner)))


def upwards(path: bytes) -> Iterator[bytes]:
    """Iterate over a path and all directories above it."""
    while True:
        yield path
        parent = os.path.dirname(path)
        if parent == path:
            return
        path = parent


def _same(path: bytes, other: bytes) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
