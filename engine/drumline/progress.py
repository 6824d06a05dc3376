"""Progress: what a person sees while the pipeline runs.

`Progress` is silent. `PlainProgress` prints a line every few seconds, for logs. `PanelProgress` keeps one
live panel. None of them starts a thread: the supervisor forks, and calls them when it has time. Where nothing
can be shown any more (a closed terminal, a log on a full disk), the work goes on unseen.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple, TextIO

__all__ = [
    "PanelProgress",
    "PlainProgress",
    "Progress",
    "Snapshot",
    "duration_text",
    "make_progress",
    "withheld_text",
]

_RATE_WINDOW_SEC = 5.0
_PLAIN_SEC = 5.0
_PANEL_SEC = 0.125

_DONE_TO_FILES = {"extract": "read", "predict": "classified", "write": "written"}
"""Stage → what it does to a file, in a user's words."""


class Snapshot(NamedTuple):
    """The state of a pipeline at one moment.

    `done` = `carried` + `written`, of `found` files so far (all of them once `found_all`); `failed` are among
    the written; `labels` counts assigned labels; `waiting` how many of the `slots` wait for each stage;
    `slots_allowed` how many may be in flight with the memory there is, and `workers` of the `workers_wanted`
    were started with it (none before a file has to be read).
    """

    found: int
    found_all: bool
    done: int
    carried: int
    failed: int
    written: int
    written_bytes: int
    labels: dict[str, int]
    waiting: dict[str, int]
    slots: int
    slots_allowed: int
    workers: int
    workers_wanted: int
    elapsed_sec: float


class Rates(NamedTuple):
    """Speed over the last seconds."""

    files_per_sec: float
    bytes_per_sec: float
    seconds_left: float | None


class Progress:
    """Shows nothing; the base of those that do."""

    interval_sec = float("inf")

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._history: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees how far it is."""
        return self.interval_sec < float("inf")

    def due(self) -> bool:
        """Return whether it is time to show something."""
        return time.monotonic() - self._shown >= self.interval_sec

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self._shown = time.monotonic()
        with suppress(OSError):
            self._show(snapshot, self._rates(snapshot))

    def note(self, text: str) -> None:
        """Show a remark."""
        with suppress(OSError):
            self._remark(text)

    def close(self) -> None:
        """Give the terminal back."""
        with suppress(OSError):
            self._close()

    def _remark(self, text: str) -> None:
        pass

    def _close(self) -> None:
        pass

    def _show(self, snapshot: Snapshot, rates: Rates) -> None:
        pass

    def _rates(self, snapshot: Snapshot) -> Rates:
        history = self._history
        history.append((snapshot.elapsed_sec, snapshot.done, snapshot.written_bytes))
        while len(history) > 2 and history[1][0] < snapshot.elapsed_sec - _RATE_WINDOW_SEC:
            history.popleft()
        seconds = max(history[-1][0] - history[0][0], 1e-9)
        files = (history[-1][1] - history[0][1]) / seconds
        left = snapshot.found - snapshot.done
        seconds_left = left / files if snapshot.found_all and files else None
        return Rates(files, (history[-1][2] - history[0][2]) / seconds, seconds_left)


class PlainProgress(Progress):
    """Prints a line every few seconds."""

    interval_sec = _PLAIN_SEC

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def _remark(self, text: str) -> None:
        print(f"drumline: {text}", file=self._stream, flush=True)

    def _show(self, snapshot: Snapshot, rates: Rates) -> None:
        of = f"{snapshot.found:,}" if snapshot.found_all else f"{snapshot.found:,}+"
        left = "" if rates.seconds_left is None else f", {duration_text(rates.seconds_left)} left"
        short = f", {text}" if (text := _short_text(snapshot)) else ""
        failures = f", {snapshot.failed:,} failed" if snapshot.failed else ""
        self._remark(
            f"{snapshot.done:,} of {of} files, {rates.files_per_sec:,.0f} files/s, "
            f"{rates.bytes_per_sec / 1e6:,.1f} MB/s{failures}{left}{short}"
        )


class PanelProgress(Progress):
    """Keeps one live panel on a terminal."""

    interval_sec = _PANEL_SEC

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._title, self._note = title, ""
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._live.start()

    def _remark(self, text: str) -> None:
        """Show it from now on, below the panel."""
        from rich.text import Text

        self._note = text
        self._live.update(Text(text), refresh=True)

    def _close(self) -> None:
        self._live.stop()

    def _show(self, snapshot: Snapshot, rates: Rates) -> None:
        self._live.update(self._panel(snapshot, rates), refresh=True)

    def _panel(self, snapshot: Snapshot, rates: Rates) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        lines = [
            _bar_line(snapshot, rates),
            _speed_line(snapshot, rates),
            *_label_lines(snapshot),
            _queue_line(snapshot),
        ]
        if short := _short_text(snapshot):
            lines.append(Text(short, style="yellow"))
        if self._note:
            lines.append(Text(self._note, style="bold yellow"))
        return Panel(
            Group(*lines),
            title=Text(self._title, "bold"),
            title_align="left",
            expand=False,
            padding=(0, 1),
        )


def _bar_line(snapshot: Snapshot, rates: Rates) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    of = f"{snapshot.found:,}" + ("" if snapshot.found_all else "+")
    left = "finding files" if not snapshot.found_all else ""
    if rates.seconds_left is not None:
        left = f"{duration_text(rates.seconds_left)} left"
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(snapshot.found or 1, snapshot.done, width=36), f"{snapshot.done:,} of {of} files", left
    )
    return line


def _speed_line(snapshot: Snapshot, rates: Rates) -> Any:
    from rich.text import Text

    text = Text(f"{rates.files_per_sec:,.0f} files/s   {rates.bytes_per_sec / 1e6:,.1f} MB/s")
    text.append(f"   {duration_text(snapshot.elapsed_sec)} so far", style="dim")
    if snapshot.carried:
        text.append(f"   {snapshot.carried:,} carried over", style="cyan")
    if snapshot.failed:
        text.append(f"   {snapshot.failed:,} failed", style="red")
    return text


def _label_lines(snapshot: Snapshot) -> list[Any]:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts = {label: count for label, count in snapshot.labels.items() if count}
    if not counts:
        return []
    table = Table.grid(padding=(0, 1))
    largest = max(counts.values())
    for label, count in sorted(counts.items(), key=lambda item: -item[1])[:10]:
        table.add_row(
            Text(label),
            ProgressBar(largest, count, width=24, complete_style="green", finished_style="green"),
            f"{count:,}",
        )
    return [table]


def _queue_line(snapshot: Snapshot) -> Any:
    from rich.text import Text

    waiting = "   ".join(f"{_DONE_TO_FILES[stage]} {count:,}" for stage, count in snapshot.waiting.items())
    return Text(f"waiting to be  {waiting}   (at most {snapshot.slots_allowed:,} files at once)", style="dim")


def _short_text(snapshot: Snapshot) -> str:
    slots, workers = (snapshot.slots_allowed, snapshot.slots), (snapshot.workers, snapshot.workers_wanted)
    withheld = withheld_text(slots, workers)
    return f"memory is short: {withheld}" if withheld else ""


def withheld_text(slots: tuple[int, int], workers: tuple[int, int]) -> str:
    """Say what there is less of than is wanted; empty where nothing is.

    Parameters
    ----------
    slots, workers
        How many there are, and how many are wanted. Without any worker, none was needed yet.
    """
    parts = [f"{slots[0]:,} of {slots[1]:,} slots"] if slots[0] < slots[1] else []
    parts += [f"{workers[0]:,} of {workers[1]:,} workers"] if 0 < workers[0] < workers[1] else []
    return " and ".join(parts)


def duration_text(seconds: float) -> str:
    """Return a duration for people: ``0.4 s``, ``18 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def make_progress(title: str, *, quiet: bool = False) -> Progress:
    """Return what suits stderr: a panel on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        return Progress()
    return PanelProgress(title) if sys.stderr.isatty() else PlainProgress(sys.stderr)
