"""How far a long command is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from drumline.rebuild.actions import Progress

__all__ = ["meter"]

_PLAIN_SECONDS = 3.0


@contextmanager
def meter(quiet: bool) -> Iterator[Any]:
    """Give a progress callback: a bar on a terminal, a line every few seconds elsewhere, none when quiet."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield None
    elif not console.is_terminal:
        yield _PlainMeter()
    else:
        from rich.progress import Progress as Bars

        # No refreshing thread: the rebuild forks.
        with Bars(console=console, transient=True, auto_refresh=False) as bars:
            yield _BarMeter(bars)


class _PlainMeter:
    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._told = time.monotonic()
            of = "" if progress.total is None else f" of {progress.total:,}"
            with suppress(OSError):  # nobody can be told any more
                click.echo(f"drumline: {progress.phase}: {progress.done:,}{of} files", err=True)


class _BarMeter:
    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.phase not in self._tasks:
            self._tasks[progress.phase] = self._bars.add_task(progress.phase, total=progress.total)
        self._bars.update(self._tasks[progress.phase], completed=progress.done, total=progress.total)
        self._bars.refresh()
