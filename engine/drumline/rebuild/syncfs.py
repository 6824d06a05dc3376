"""One flush for many files: `syncfs(2)`, which Python's `os` lacks."""

from __future__ import annotations

import ctypes
import os

__all__ = ["syncfs"]


def syncfs(descriptor: int) -> None:
    """Flush the file system that `descriptor` lies on, data and names; all of them where there is no syncfs.

    Raises
    ------
    OSError
        When something could not be written. Linux before 5.8, and systems without syncfs, do not tell.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        os.sync()
    elif function(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
