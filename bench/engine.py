"""The drumline command as the harness calls it: in a process of its own, as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ENGINE", "EngineError", "call", "shown_command"]

ENGINE: tuple[str, ...] = (sys.executable, "-m", "drumline")
"""How drumline is started."""

Argument = str | os.PathLike[str]


class EngineError(RuntimeError):
    """A drumline command ended with an exit code that is not 0."""

    def __init__(self, command: str, exit_code: int) -> None:
        super().__init__(f"'drumline {command}' ended with exit code {exit_code}")
        self.exit_code = exit_code


def call(*arguments: Argument, engine: tuple[str, ...] = ENGINE) -> dict[str, Any]:
    """Run a drumline command with ``--json`` and return what it prints; its live output goes to stderr.

    Raises
    ------
    EngineError
        The command failed, or was stopped by Ctrl-C, which is left to it.
    """
    command = [*engine, *(os.fspath(argument) for argument in arguments), "--json"]
    with _interrupt_left_to_child():
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise EngineError(str(arguments[0]), done.returncode)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@contextmanager
def _interrupt_left_to_child() -> Iterator[None]:
    # subprocess.run kills its child on Ctrl-C, and drumline would not get to stop in order.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shown_command() -> str:
    """Return how a person would type drumline here: as short as it works without an activated environment."""
    script = Path(sys.executable).parent / "drumline"
    if not script.exists():
        return f"{Path(sys.executable).name} -m drumline"
    relative = os.path.relpath(script)
    return relative if not relative.startswith("..") else str(script)
