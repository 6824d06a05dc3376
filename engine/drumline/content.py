"""Content hashes: how they are made, and whether a file holds the content that one stands for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

import xxhash

__all__ = ["digests_of", "has_content", "hasher"]

_BLOCK_BYTES: Final = 1 << 20

# By length, as neither an index without run.json nor a mapping log says which hash it has.
_HASHES: Final[dict[int, tuple[Callable[[], Any], ...]]] = {
    16: (xxhash.xxh3_64, xxhash.xxh64),
    32: (lambda: hashlib.md5(usedforsecurity=False),),
    64: (hashlib.sha256,),
}


def hasher(algorithm: str) -> Callable[[], Any]:
    """Return the constructor of a content hash: xxh3_64, xxh64, md5 or sha256."""
    constructor: Callable[[], Any] = getattr(xxhash if algorithm.startswith("xxh") else hashlib, algorithm)
    return constructor


def has_content(descriptor: int, digest: str) -> bool:
    """Tell whether an open file has the content with this hash: xxh3_64, xxh64, md5 or sha256."""
    return digest in _digests(descriptor, _HASHES.get(len(digest), ()))


def digests_of(descriptor: int) -> list[str]:
    """Return every hash of an open file's content that an index may have of it."""
    return _digests(descriptor, [make for several in _HASHES.values() for make in several])


def _digests(descriptor: int, algorithms: Iterable[Callable[[], Any]]) -> list[str]:
    hashes = [make() for make in algorithms]
    while block := os.read(descriptor, _BLOCK_BYTES):
        for found in hashes:
            found.update(block)
    return [found.hexdigest() for found in hashes]
