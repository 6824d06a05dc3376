"""A fork server: drumline commands in process groups of their own, milliseconds after they were asked for.

It has imported what the command imports, so that tests that start and kill hundreds of commands take little
time; nothing has run in it. Orphans of a killed command become its children, so it can reap them, and tests
see whether any is left.

Requests and answers are JSON lines: ``{"argv", "patches", "out", "err", "begun"}`` on stdin; ``{"pid"}`` and
later ``{"pid", "code"}`` on stdout. It begins with its own ``{"pid"}``. The file ``begun`` appears when the
command begins. A request with ``"terminal"`` runs in that terminal, and has its messages there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

import drumline.cli
import drumline.cli.infer
import drumline.cli.report
import drumline.pipeline.extract
import drumline.pipeline.predict
import drumline.pipeline.run
from tests.pipeline import mischief

_PR_SET_CHILD_SUBREAPER = 36


def _serve() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ours: set[int] = set()
    _answer(pid=os.getpid())
    requests = b""
    while True:
        ready, _, _ = select.select([0, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            _reap(ours)
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, requests = (requests + data).split(b"\n")
            for line in lines:
                pid = _start(json.loads(line))
                ours.add(pid)
                _answer(pid=pid)


def _reap(ours: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if pid in ours:
            ours.discard(pid)
            _answer(pid=pid, code=os.waitstatus_to_exitcode(status))


def _answer(**values: int) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _become(request)
    return pid


def _become(request: dict[str, Any]) -> NoReturn:
    code = 71
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        terminal = request.get("terminal")
        # Opened by the leader of a session that has none, it becomes the session's terminal.
        os.dup2(os.open(terminal or os.devnull, os.O_RDWR), 0)
        for number, name in ((1, "out"), (2, "err")):
            path = terminal if terminal and name == "err" else request[name]
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(target, number)
            os.close(target)
        mischief.apply(request["patches"])
        os.close(os.open(request["begun"], os.O_CREAT, 0o600))
        drumline.cli.main([os.fsdecode(part) for part in request["argv"]])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # its terminal was closed
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
