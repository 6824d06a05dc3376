"""drumline: classify very large archives of drum one-shots and rebuild them as organised trees."""

from __future__ import annotations

__version__ = "0.1.0"
