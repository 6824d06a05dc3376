"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["counted", "size_text"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return ``1 file``, ``2,000 files``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def size_text(size: int) -> str:
    """Return a size in bytes for people: ``512 B``, ``3.4 MB``, ``1,200.0 TB``."""
    if size < 1000:
        return f"{size} B"
    value = size / 1000
    for unit in ("kB", "MB", "GB"):
        # What rounds to 1,000.0 is shown as 1.0 of the next.
        if value < 999.95:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
