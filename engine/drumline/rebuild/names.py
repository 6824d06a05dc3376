"""Names in the tree: what is safe, what a file is called, and which names get in each other's way.

Paths are bytes. Two targets *collide* when a file system that ignores case or Unicode normal form would
take them for one; `collision_key` is equal for exactly these. In a key the separator is NUL, so that keys
sort depth first: a directory is followed by all that is in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import count

import xxhash

__all__ = [
    "MAX_TARGET",
    "RESERVED_LABEL_PREFIX",
    "collision_key",
    "flat_name",
    "is_safe",
    "label_directory",
    "spare_names",
]

RESERVED_LABEL_PREFIX = "_"
"""Names at the top of the tree that start so are rebuild's own."""

MAX_SOURCE = 4096
MAX_NAME = 255
MAX_TARGET = MAX_SOURCE + 512
"""Longest paths in bytes: what an archive may hold; with a label in front and a mark behind."""

_MAX_LABEL = 200
_MAX_FLAT = 200
_NOT_PLAIN = re.compile(r"[^a-z0-9]+")
_EXTENSION = re.compile(r"(?<=[^/])\.[A-Za-z0-9]{1,10}\Z")


def is_safe(path: bytes, longest: int = MAX_SOURCE) -> bool:
    """Tell whether `path` only leads downwards: relative, no ``.``, ``..``, empty or long part, no NUL."""
    # Looked for one by one: a regular expression takes three times as long, and this is asked of every file.
    framed = b"/" + path + b"/"
    if b"//" in framed or b"/./" in framed or b"/../" in framed or b"\0" in path or len(path) > longest:
        return False
    return len(path) <= MAX_NAME or max(map(len, path.split(b"/"))) <= MAX_NAME


def label_directory(label: str) -> bytes | None:
    """Return the directory name of a label; None for a label that can have none.

    Notes
    -----
    Names that start with an underscore or a dot, and ``errors``, are taken or hidden: such a label gets
    ``label_`` in front, without its underscores and dots. Labels that come to one name, as ``_x`` and
    ``label_x`` do, share its directory and its manifest.
    """
    usable = label.strip() and label.isprintable() and "/" not in label and label not in (".", "..")
    encoded = label.encode("utf-8", "replace")
    if not usable or len(encoded) > _MAX_LABEL:
        return None
    if label.startswith((RESERVED_LABEL_PREFIX, ".")) or label.casefold() == "errors":
        return b"label_" + encoded.lstrip(b"_.")
    return encoded


def collision_key(target: bytes) -> bytes:
    """Return what targets have in common that a case- or form-insensitive file system takes for one.

    Canonical caseless matching (Unicode 3.13, D145); bytes that are no UTF-8 stand for themselves.
    """
    if target.isascii():
        return target.lower().replace(b"/", b"\0")
    text = unicodedata.normalize("NFD", target.decode("utf-8", "surrogateescape")).casefold()
    return unicodedata.normalize("NFD", text).encode("utf-8", "surrogateescape").replace(b"/", b"\0")


def flat_name(relative: bytes) -> bytes:
    """Return a file's normalised name: ``Vendor Pack/Kick 01.WAV`` → ``vendor-pack_kick-01.wav``.

    Lower case, ASCII letters and digits, ``-`` for runs of anything else, ``_`` between the parts of the
    path, at most 200 bytes: of a longer one the end stays, with a hash of the whole path.
    """
    text = relative.decode("utf-8", "replace")
    found = _EXTENSION.search(text)
    extension = found.group().lower() if found else ""
    parts = (_plain(part) for part in text[: len(text) - len(extension)].split("/"))
    stem = "_".join(filter(None, parts)) or "file"
    room = _MAX_FLAT - len(extension)
    if len(stem) > room:
        stem = f"{stem[9 - room :].lstrip('-_')}~{_digest(relative)[:8]}"
    return (stem + extension).encode("ascii")


def _plain(part: str) -> str:
    if not part.isascii():
        part = "".join(
            char for char in unicodedata.normalize("NFKD", part) if not unicodedata.combining(char)
        )
    return _NOT_PLAIN.sub("-", part.lower()).strip("-")


def _digest(relative: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(relative)


def spare_names(target: bytes, relative: bytes) -> Iterator[bytes]:
    """Iterate over other names for a target whose own is taken: ``kick~1a2b3c4d.wav``, then longer ones.

    They depend on the file's own path only, so that new files in the archive rename no others.
    """
    digest = _digest(relative)
    for length in (8, 16, 32):
        yield _marked(target, digest[:length])
    for number in count(2):
        yield _marked(target, f"{digest}-{number}")


def _marked(target: bytes, mark: str) -> bytes:
    directory, slash, name = target.rpartition(b"/")
    stem, dot, extension = name.rpartition(b".")
    if not stem or len(extension) > 16:
        stem, dot, extension = name, b"", b""
    ending = b"~" + mark.encode() + dot + extension
    return directory + slash + _shortened(stem, MAX_NAME - len(ending)) + ending


def _shortened(stem: bytes, room: int) -> bytes:
    while room < len(stem) and room and stem[room] & 0xC0 == 0x80:  # not inside of a UTF-8 character
        room -= 1
    return stem[:room]
