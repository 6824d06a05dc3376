"""What the training commands share: the extra that they need, and how they show how far they are."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from drumline.errors import RuntimeMissingError

__all__ = ["require", "telling"]


def require(*packages: str) -> None:
    """Raise `RuntimeMissingError` where one of the packages of the extra is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise RuntimeMissingError(
            f"this command needs {', '.join(missing)}",
            "Install it with: pip install 'path/to/drumline[train,cpu]'",
        )


class _Step(NamedTuple):
    phase: str
    done: int
    total: int


def telling(show: Any) -> Callable[[str, int, int], None]:
    """Return what tells `drumline.cli.meter.meter` a phase, how much of it is done, and all of it."""
    return lambda phase, done, total: None if show is None else show(_Step(phase, done, total))
