"""Files that look like audio and hold none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

__all__ = ["BROKEN"]


def _wav(code: int, claimed_bytes: int, data: bytes) -> bytes:
    """Return a 16-bit stereo WAV whose header claims what it likes."""
    fmt = struct.pack("<HHIIHH", code, 2, 44_100, 176_400, 4, 16)
    riff = struct.pack("<I", min(claimed_bytes + 36, 0xFFFFFFFF))
    return b"RIFF" + riff + b"WAVEfmt \x10\0\0\0" + fmt + b"data" + struct.pack("<I", claimed_bytes) + data


def _text(random: Random) -> bytes:
    return b"This sample was removed at the request of the rights holder.\n" * random.randrange(1, 40)


def _noise(random: Random) -> bytes:
    # The first byte keeps readers from taking the noise for an MPEG frame.
    return b"\1" + random.randbytes(random.randrange(100, 4000))


BROKEN: dict[str, Callable[[Random], bytes]] = {
    "empty": lambda _: b"",
    "truncated-header": lambda _: b"RIFF\x24\x10\0\0WAVEfmt \x10\0",
    "text": _text,
    "claims-gigabytes": lambda _: _wav(1, 0xFFFFFFF0, b""),
    "noise": _noise,
    "unknown-codec": lambda _: _wav(0x7A7A, 320, b"\x55" * 320),
}
"""Ways in which a file is broken: name → its bytes, with a random generator for what varies."""
