"""Failpoints: named moments at which a command can be killed, failed or held, to see what that does.

The environment variable ``DRUMLINE_FAILPOINTS`` says where and how::

    index.write.before=kill@3; cache.commit.before=errno:ENOSPC@2+; predict.hand-over.after=pause:0.5

A failpoint is a step of `STEPS` and ``before`` or ``after``. It strikes when it is reached for the third
time (``@3``; without a number the first), once, or from then on (``@3+``), counted over all processes of the
command together. Without the variable a step costs one function call.

===============  ==============================================
``kill``         the process that comes here is killed
``kill-group``   all processes of the command are killed
``errno:NAME``   the step fails with this error
``pause:SEC``    the process waits here
===============  ==============================================
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from drumline.errors import UsageError

__all__ = ["STEPS", "VARIABLE", "arm", "step"]

VARIABLE: Final = "DRUMLINE_FAILPOINTS"

STEPS: Final = {
    "lock.write": "the holder of a runs root writes its name into the lock",
    "run.make": "the directory of a run is made",
    "run.add": "a new run is made known to the cache",
    "durable.write": "run.json, summary.json or a bundle's file is written beside its place",
    "durable.sync": "… and put on disk",
    "durable.replace": "… and takes its place",
    "durable.publish": "a new directory, as a bundle's, gets its name",
    "durable.sync-directory": "new or removed names are put on disk",
    "index.cut": "the index is opened and cut to its valid length",
    "index.write": "a frame is appended to the index",
    "index.sync": "the index is put on disk",
    "index.replace": "an index without superseded records takes the old one's place",
    "cache.commit": "a transaction of the cache is committed",
    "cache.remove": "the old cache is removed, for a new one is whole",
    "cache.replace": "the new cache takes its place",
    "walk.hand-over": "walk hands on directories",
    "discover.hand-over": "discover hands on files",
    "extract.read": "a worker reads a file",
    "extract.hand-over": "a worker hands on a file",
    "predict.hand-over": "predict hands on a batch",
    "write.hand-over": "write gives slots back",
    "log.cut": "what is torn at the end of a tree's mapping log is cut off",
    "log.write": "the mapping log of a tree is appended to",
    "log.sync": "the mapping log is put on disk",
    "tree.make-directory": "a directory is made in a tree",
    "tree.copy": "a copy grows in the staging directory",
    "tree.sync": "copies are put on disk",
    "tree.publish": "a copy or a link gets its name in a tree",
    "tree.remove": "a file is removed from a tree",
    "tree.remove-directory": "a directory is removed from a tree",
    "report.publish": "a manifest or a summary takes its place in a tree",
    "repair.set-aside": "repair gives a damaged file another name",
    "repair.replace": "the repaired index takes the damaged one's place",
}
"""Step → what happens in it."""

_ENTRY: Final = re.compile(
    r"(?P<step>[\w.-]+)\.(?P<moment>before|after)="
    r"(?P<action>kill|kill-group|errno|pause)(:(?P<value>[\w.]+))?(@(?P<number>[1-9]\d{0,4})(?P<onwards>\+)?)?"
)

_armed: dict[str, list[_Failpoint]] = {}


class _Failpoint:
    """A failpoint that is armed.

    Its count is a pipe that holds one byte for each time it may still be passed: that counts over forks
    without a lock, and exactly one process reads the byte that strikes.
    """

    def __init__(self, action: str, value: str, number: int, onwards: bool) -> None:
        self._action, self._value, self._onwards = action, value, onwards
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.write(writer, b"." * (number - 1) + b"!")
        os.close(writer)

    def reach(self) -> None:
        """Strike, where this is the time to."""
        token = os.read(self._reader, 1)
        if token == b"!" or (not token and self._onwards):
            self._strike()

    def _strike(self) -> None:
        if self._action == "pause":
            time.sleep(float(self._value))
        elif self._action == "errno":
            code = getattr(errno, self._value)
            raise OSError(code, os.strerror(code))
        elif self._action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            os.killpg(0, signal.SIGKILL)


def arm(text: str) -> None:
    """Arm what `text` says, for this process and those that it forks.

    Raises
    ------
    UsageError
        When it names no failpoint, or something that cannot be done at one.
    """
    for entry in filter(None, map(str.strip, text.split(";"))):
        match = _ENTRY.fullmatch(entry)
        if match is None or match["step"] not in STEPS or not _is_possible(match["action"], match["value"]):
            raise UsageError(
                f"{VARIABLE} says {entry!r}, which is no failpoint", "docs/torture.md lists them all."
            )
        place = f"{match['step']}.{match['moment']}"
        failpoint = _Failpoint(
            match["action"], match["value"] or "", int(match["number"] or 1), bool(match["onwards"])
        )
        _armed.setdefault(place, []).append(failpoint)


def _is_possible(action: str, value: str | None) -> bool:
    if action == "errno":
        return value in errno.errorcode.values()
    if action == "pause":
        return value is not None and re.fullmatch(r"\d+(\.\d+)?", value) is not None
    return value is None


def step(name: str) -> AbstractContextManager[None]:
    """Enclose a step of `STEPS`: it has a failpoint before it, and one after it when it did not fail."""
    return _around(name) if _armed else _NOTHING


@contextmanager
def _around(name: str) -> Iterator[None]:
    _reach(f"{name}.before")
    yield
    _reach(f"{name}.after")


def _reach(place: str) -> None:
    for failpoint in _armed.get(place, ()):
        failpoint.reach()


_NOTHING: Final = nullcontext()
