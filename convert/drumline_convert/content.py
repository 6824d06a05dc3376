"""The content of recordings: read once, with the hash that a manifest names it by."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from drumline.audio import WHOLE_FILE_BYTES, Decoder, Waveform
from drumline.inputs import open_regular

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
        The file.
    constructor
        Of the hash: ``xxhash.xxh3_64`` (a manifest's) or another that `hashlib` or `xxhash` has.

    Raises
    ------
    OSError
        When it cannot be read, or is a pipe or a device.
    """
    digest = constructor()
    with open_regular(path, buffering=0) as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
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
        When it cannot be read, or is a pipe or a device.
    AudioError
        When it cannot be decoded.
    """
    with open_regular(path) as stream:
        data = stream.read(WHOLE_FILE_BYTES + 1)
    if len(data) > WHOLE_FILE_BYTES:
        return hash_file(path), decoder.decode_path(os.fsencode(path))
    return content_hash(data), decoder.decode(data, os.fsencode(path))
