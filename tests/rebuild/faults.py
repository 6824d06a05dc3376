"""Faults at the n-th call that changes something: a kill, or an error.

Run as ``python -m tests.rebuild.faults BASE MODE``, it kills a rebuild, and then an undo, at every one of its
calls, each in a process of its own, and checks what a person would: the same command completes the work, and
nothing is left behind that undo does not know.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drumline.rebuild import undo
from tests.rebuild.archives import CLAP, KICK, SNARE, Archive, snapshot

CALLS = (
    "write",
    "mkdir",
    "link",
    "symlink",
    "rename",
    "unlink",
    "rmdir",
    "fsync",
    "ftruncate",
    "utime",
    "fchmod",
    "copy_file_range",
)
"""What changes something; opening a file to create it counts too."""


@contextmanager
def at_call(number: int, strike: Callable[[], None]) -> Iterator[list[str]]:
    """Let `strike` happen instead of the `number`-th changing call; gives the list of calls so far."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in (*CALLS, "open") if hasattr(os, name)}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if name != "open" or (len(arguments) > 1 and arguments[1] & os.O_CREAT):
                calls.append(name)
                if len(calls) == number:
                    strike()
            return real[name](*arguments, **more)

        return call

    for name in real:
        setattr(os, name, counted(name))
    try:
        yield calls
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def kill() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in another process that is killed at its `number`-th call; tell whether it came so far."""
    child = os.fork()
    if child == 0:
        with at_call(number, kill):
            work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status), status
    return status != 0


def small_archive(base: Path) -> Archive:
    """Make an archive that needs directories, marks and two labels."""
    archive = Archive(base)
    archive.add(b"a/kick.wav", KICK)
    archive.add(b"a/Kick.wav", KICK)
    archive.add(b"b/rim.wav", SNARE)
    archive.add(b"clap.wav", CLAP)
    return archive


def torture(base: Path, mode: str) -> tuple[int, int]:
    """Kill a second rebuild (files to remove, to replace, to make) and an undo at every call."""
    archive = small_archive(base)
    run = archive.run()

    def first() -> None:
        archive.rebuild(run, copy_mode="symlink", labels=("Snare",))

    def second() -> None:
        archive.rebuild(run, copy_mode=mode)

    second()
    wanted = archive.tree()
    undo(archive.out)
    before = snapshot(os.fsencode(base))
    rebuilds = undos = 0
    while _killed_rebuild(archive, first, second, rebuilds + 1, wanted):
        rebuilds += 1
        assert snapshot(os.fsencode(base)) == before, rebuilds
    second()
    while killed_at(undos + 1, lambda: undo(archive.out)):
        undos += 1
        if archive.out.exists() and any(archive.out.iterdir()):
            undo(archive.out)
        shutil.rmtree(archive.out, ignore_errors=True)
        assert snapshot(os.fsencode(base)) == before, undos
        second()
    return rebuilds, undos


def _killed_rebuild(
    archive: Archive, first: Callable[[], None], second: Callable[[], None], number: int, wanted: object
) -> bool:
    """Kill a rebuild; then the same one completes it (odd numbers), or undo takes all of it away (even)."""
    first()
    killed = killed_at(number, second)
    if number % 2:
        second()
        assert archive.tree() == wanted, number
    undo(archive.out)
    assert not archive.out.exists(), number
    return killed


if __name__ == "__main__":
    print(*torture(Path(sys.argv[1]), sys.argv[2]))
