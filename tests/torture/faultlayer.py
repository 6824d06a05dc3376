"""The fault layer from Python's side: builds it, starts a fork server under it, and steers it.

`tests/torture/faults.c` says what it does. It lies between every process of a command and the C library, so
SQLite's calls fail as Python's do.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.pipeline.support import Server
from tests.torture.attacks import Arena

__all__ = ["ERRORS", "KILL", "FaultLayer", "fault_layer", "impossible"]

KILL: Final = -1
SHORT: Final = 0

ERRORS: Final = {
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EDQUOT": errno.EDQUOT,
    "EROFS": errno.EROFS,
    "EMFILE": errno.EMFILE,
    "short write": SHORT,
}
"""What a call can get. Those that have no EMFILE get EIO instead (mapping ENOMEM), or no short write, EIO."""

_KINDS: Final = ("write", "sync", "rename", "open", "map", "cut", "name")


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("onwards", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
        ("struck", ctypes.c_uint32),
        ("by_kind", ctypes.c_uint32 * 8),
        ("error", ctypes.c_int32),
        ("record", ctypes.c_int32),
        ("root", ctypes.c_char * 1024),
        ("where", ctypes.c_char * 1200),
    )


class FaultLayer:
    """A fork server under the fault layer.

    Attributes
    ----------
    server
        Commands that it starts are under the layer.
    calls
        How many calls there were under `armed` the last time.
    struck
        How many of them failed.
    where
        The first that did: call and path.
    by_kind
        Kind of call → how many there were.
    """

    server: Server
    calls: int
    struck: int
    where: str
    by_kind: dict[str, int]

    def __init__(self, arena: Arena, place: Path) -> None:
        library, control = place / "faults.so", place / "control"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        control.write_bytes(bytes(mmap.PAGESIZE))
        self.record_path = place / "record"
        self._record = os.open(self.record_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(control, "r+b") as stream:
            self._page = mmap.mmap(stream.fileno(), mmap.PAGESIZE)
        self._control: Any = _Control.from_buffer(self._page)
        additions = {"LD_PRELOAD": str(library), "DRUMLINE_FAULTS": str(control)}
        self.server = arena.open_server("server under faults", additions=additions, pass_fds=[self._record])

    @contextmanager
    def armed(
        self, root: Path, number: int = 0, error: int = 0, *, onwards: bool = False, record: bool = False
    ) -> Iterator[None]:
        """Let the `number`-th call below `root` fail, or that and all later ones; 0: only count."""
        control = self._control
        os.ftruncate(self._record, 0)
        control.calls = control.struck = 0
        control.by_kind[:] = [0] * 8
        control.root, control.where = os.fsencode(os.path.realpath(root)), b""
        control.number, control.error, control.onwards = number, error, int(onwards)
        control.record = self._record if record else 0
        control.armed = 1
        try:
            yield
        finally:
            control.armed = 0
            self.calls, self.struck = control.calls, control.struck
            self.where = os.fsdecode(control.where)
            self.by_kind = dict(zip(_KINDS, control.by_kind, strict=False))


def fault_layer(arena: Arena) -> FaultLayer:
    """Return the arena's fault layer."""
    layer: FaultLayer = arena.shared("layer", lambda place: FaultLayer(arena, place))
    return layer


def impossible() -> str:
    """Say why there is no fault layer here; empty when there is."""
    if sys.platform != "linux":
        return "the fault layer needs Linux"
    return "" if shutil.which("cc") else "there is no C compiler (cc) to build the fault layer with"
