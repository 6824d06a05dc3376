"""The compiled parts, which are there where a C compiler was when drumline was installed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["compiled"]


def compiled(name: str, version: int) -> ModuleType | None:
    """Return the kernel ``drumline._<name>``; None where there is none, or only one of another version."""
    try:
        kernel = import_module(f"drumline._{name}")
    except ImportError:
        return None
    return kernel if getattr(kernel, "VERSION", None) == version else None
