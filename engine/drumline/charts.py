"""Bars and sparklines of text: as wide as the terminal, plain ASCII where it knows nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

__all__ = ["Bar", "Sparkline", "bar_text", "sparkline_text"]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"
_ASCII_LEVELS = " .:-=+*#@"
_WIDEST_BAR = 60


def bar_text(fraction: float, width: int, ascii_only: bool = False) -> str:
    """Return a bar that fills `fraction` (0..1) of `width` characters; what is not zero is seen."""
    eighths = min(round(max(fraction, 0.0) * width * 8), width * 8)
    if fraction > 0.0:
        eighths = max(eighths, 1)
    if ascii_only:
        return "#" * -(-eighths // 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def sparkline_text(counts: Sequence[int], ascii_only: bool = False) -> str:
    """Return one character for each count, as high as its share of the largest; what is not zero is seen."""
    levels, largest = (_ASCII_LEVELS if ascii_only else _LEVELS), max(counts, default=0)
    steps = len(levels) - 1
    return "".join(levels[min(-(-count * steps // largest), steps) if count else 0] for count in counts)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar in a table cell; it takes the width that is left.

    Parameters
    ----------
    fraction
        How much of the cell is filled, 0..1.
    style
        Of rich.
    """

    fraction: float
    style: str = "cyan"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, _WIDEST_BAR)
        yield Text(bar_text(self.fraction, width, options.ascii_only), self.style, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, min(options.max_width, _WIDEST_BAR))


@dataclass(frozen=True, slots=True)
class Sparkline:
    """A histogram in one line, one character for each count."""

    counts: Sequence[int]
    style: str = "cyan"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline_text(self.counts, options.ascii_only), self.style, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self.counts), len(self.counts))
