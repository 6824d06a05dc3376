"""The content of recordings: read once, with the hash that a manifest names it by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from drumline.audio import WHOLE_FILE_BYTES, Decoder, Waveform

__all__ = ["MANIFEST_HASH", "content_hash", "hash_file", "hash_files", "read_recording"]

MANIFEST_HASH = "xxh3_64"
"""What a manifest's hashes are made by, as `InferSettings.hash_algorithm` calls it."""

_PIECE_BYTES = 1 << 20
_THREADS = 4


def content_hash(data: bytes) -> str:
    """Return the XXH3-64 of `data` as a manifest has it: 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(data)


def hash_file(path: Path, constructor: Callable[[], Any] = xxhash.xxh3_64) -> str:
    """Return the hash of a file's bytes.

    Parameters
    ----------
    path
        The file; a named pipe or a device is not waited for.
    constructor
        Of the hash: ``xxhash.xxh3_64`` (a manifest's) or another that `hashlib` or `xxhash` has.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    digest = constructor()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while piece := os.read(descriptor, _PIECE_BYTES):
            digest.update(piece)
    finally:
        os.close(descriptor)
    return str(digest.hexdigest())


def hash_files(paths: Iterable[Path]) -> Iterator[str | OSError]:
    """Iterate over the hashes of `paths`, in their order; a file that cannot be read gives its error."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(_hash_or_error, paths)


def _hash_or_error(path: Path) -> str | OSError:
    try:
        return hash_file(path)
    except OSError as error:
        return error


def read_recording(path: Path, decoder: Decoder) -> tuple[str, Waveform]:
    """Return the content hash of a file and the waveform that the engine makes of it.

    Raises
    ------
    OSError
        When it cannot be read.
    AudioError
        When it cannot be decoded.
    """
    if path.stat().st_size > WHOLE_FILE_BYTES:
        return hash_file(path), decoder.decode_path(os.fsencode(path))
    data = path.read_bytes()
    return content_hash(data), decoder.decode(data, os.fsencode(path))
