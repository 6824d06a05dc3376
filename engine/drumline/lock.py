"""One writer at a time: a lock that dies with its holder, and says who that is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import orjson

from drumline.durable import output_errors
from drumline.errors import BusyError, OutputError
from drumline.failpoints import step
from drumline.records import display_path

__all__ = ["exclusive", "holder_in_kernel"]

_RETRY_SEC = 0.05
_MODE = 0o666
_NOTE_BYTES, _DOING_CHARACTERS = 4096, 500
_NOTE_BEGIN = b'{"pid":'


@contextmanager
def exclusive(path: Path, what: str, doing: str, patience_sec: float = 5.0) -> Iterator[None]:
    """Hold the lock file `path` while the enclosed code runs.

    Parameters
    ----------
    path
        The lock file; made when it is missing, and left behind. It says who holds it: process, since when,
        and what that is doing; it is empty when nobody does.
    what
        What is locked, for the message.
    doing
        What we are going to do, for the message that others get.
    patience_sec
        How long to wait, in seconds: the processes of a run that was just killed need a moment to notice.

    Raises
    ------
    BusyError
        When another process holds it; the message says which, since when, and why.
    OutputError
        When the file cannot be made or written, or its file system knows no locks.
    """
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        _check_is_lock(descriptor, path)
        _acquire(descriptor, what, time.monotonic() + patience_sec)
        note = {
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "doing": doing[:_DOING_CHARACTERS],
        }
        with output_errors(path), step("lock.write"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, orjson.dumps(note, option=orjson.OPT_APPEND_NEWLINE), 0)
        try:
            yield
        finally:
            # Or else who comes third would be told of us while the second writes its note.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _check_is_lock(descriptor: int, path: Path) -> None:
    """Raise `OutputError` when a pipe, a directory or another name of somebody's file stands in its place."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        with output_errors(path):
            found = os.pread(descriptor, _NOTE_BYTES, 0)
        if not found or status.st_nlink == 1 or found.startswith(_NOTE_BEGIN):
            return
    raise OutputError(f"{display_path(path)!r} is no lock: something else is there", "Move it elsewhere.")


def _acquire(descriptor: int, what: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                way_out = "Its file system must know locks: choose another place."
                raise OutputError(f"cannot lock {what}: {error.strerror}", way_out) from error
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{what} is in use by {_holder(descriptor)}",
                    "Wait until it has ended, then give the same command again.",
                ) from error
            time.sleep(_RETRY_SEC)
        else:
            return


def _holder(descriptor: int) -> str:
    """Tell from the lock file who holds it; a holder that was killed lives on in what it has started."""
    try:
        note = orjson.loads(os.pread(descriptor, _NOTE_BYTES, 0))
        pid, since, doing = int(note["pid"]), datetime.fromisoformat(note["since"]), str(note["doing"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    left = "" if _is_alive(pid) else ", or rather by what is left of it"
    return f"process {pid} ({doing}) since {since:%Y-%m-%d %H:%M:%S} UTC{left}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def holder_in_kernel(descriptor: int) -> str:
    """Tell who holds the flock of an open file that cannot say so itself, a directory.

    Returns
    -------
    str
        Process and command line, as Linux knows them; "another process" where that cannot be told.
    """
    try:
        status = os.fstat(descriptor)
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        locks = Path("/proc/locks").read_text().splitlines()
        pid = next(_flock_owner(line) for line in locks if line.split()[5:6] == [f"{device}:{status.st_ino}"])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, StopIteration):
        return "another process"
    command = b" ".join(words).decode("utf-8", "replace").strip()
    return f"process {pid} ({command[:_DOING_CHARACTERS]})"


def _flock_owner(line: str) -> int:
    """Read the process of a line of /proc/locks: number, kind, how binding, of whom, process, file, range."""
    return int(line.split()[4])
