"""Files that people name and others may have made: read only where they are regular and not too large.

A named pipe would be waited for, a device has no end, and a file of gigabytes is no settings file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from drumline.durable import way_out_of
from drumline.errors import DrumlineError

__all__ = ["LARGEST_JSON_BYTES", "open_regular", "read_json", "read_json_object", "read_regular"]

LARGEST_JSON_BYTES = 32 << 20
"""run.json, summary.json and a bundle's members: thousands of labels fit ten times over."""


def open_regular(path: str | bytes | Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read its bytes; `buffering` as for `open`.

    Raises
    ------
    OSError
        When it cannot be opened, or is something else; `strerror` says what.
    """
    return open(path, "rb", buffering=buffering, opener=_open_regular)


def _open_regular(path: str | bytes, _flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe waits for somebody to write.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file", path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | bytes | Path, largest: int) -> bytes:
    """Return the content of a regular file.

    Parameters
    ----------
    path
        The file.
    largest
        Bytes that it may hold.

    Raises
    ------
    OSError
        As `open_regular`, and when it holds more than `largest` bytes.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(min(size, largest) + 1)
        if len(data) > size:  # it grew meanwhile
            data += stream.read(largest + 1 - len(data))
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it holds more than {largest >> 20} MiB", path)
    return data


def read_json(path: Path, error: type[DrumlineError], what: str = "") -> Any:
    """Return what a JSON file holds.

    Parameters
    ----------
    path
        The file.
    error
        Raised when it cannot be read, holds no JSON, or more than `LARGEST_JSON_BYTES`.
    what
        What the file is, for the message: ``"label map"``.
    """
    named = f"the {what} {str(path)!r}" if what else f"{str(path)!r}"
    try:
        return orjson.loads(read_regular(path, LARGEST_JSON_BYTES))
    except OSError as cause:
        raise error(f"cannot read {named}: {cause.strerror}", way_out_of(cause, "Check the path.")) from cause
    except orjson.JSONDecodeError as cause:
        raise error(f"{named} is no JSON: {cause}") from cause


def read_json_object(path: Path, error: type[DrumlineError]) -> dict[str, Any]:
    """Return the object that a JSON file holds; raise `error` as `read_json` does, and for what is none."""
    value = read_json(path, error)
    if not isinstance(value, dict):
        raise error(f"{str(path)!r} holds no JSON object")
    return value
