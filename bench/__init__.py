"""Synthesised archives, the plain way to classify them, and what is measured against it."""
