"""What long steps call to say how far they are; `drumline_convert.cli_common.meter` shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["PhaseProgress", "Progress"]

Progress: TypeAlias = Callable[[int, int], None]
"""Takes how much is done, and all of it."""

PhaseProgress: TypeAlias = Callable[[str, int, int], None]
"""Takes what is being done, how much of it is done, and all of it."""
