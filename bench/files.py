"""Small helpers to write files under names that not every file system takes."""

from __future__ import annotations

import os
from random import Random

import numpy as np
from numpy.typing import NDArray

__all__ = ["empty_directory", "spread", "store"]

Samples = NDArray[np.float32]


def empty_directory(out: str | os.PathLike[str]) -> bytes:
    """Make a directory, or take an empty one; returns its path as bytes.

    Raises
    ------
    FileExistsError
        Something is there already.
    """
    root = os.fsencode(out)
    os.makedirs(root, exist_ok=True)
    if os.listdir(root):
        raise FileExistsError(f"{os.fsdecode(root)} is not empty")
    return root


def store(root: bytes, path: bytes, content: bytes, number: int) -> bytes:
    """Write a new file and return the relative path it got.

    That is `path`, unless the file system refuses the name (no UTF-8, taken, differs by case alone);
    then `number` makes it unique.
    """
    try:
        _write(root, path, content)
    except OSError:
        stem, suffix = os.path.splitext(path.decode(errors="replace"))
        path = f"{stem[:-12] if len(path) > 240 else stem} ~{number}{suffix}".encode()
        _write(root, path, content)
    return path


def _write(root: bytes, path: bytes, content: bytes) -> None:
    full = os.path.join(root, path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(full, flags, 0o644)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(full), exist_ok=True)
        descriptor = os.open(full, flags, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def spread(sound: Samples, channels: int, random: Random) -> Samples:
    """Give a mono sound of shape (samples,) one or two channels: shape (samples, channels).

    The second channel comes a little later and softer, as in a recording with two microphones.
    """
    if channels == 1:
        return sound[:, None]
    late = min(random.randrange(24), len(sound) - 1)
    right = np.concatenate([np.zeros(late, np.float32), sound[: len(sound) - late]])
    return np.stack([sound, right * np.float32(random.uniform(0.6, 1.0))], axis=1)
