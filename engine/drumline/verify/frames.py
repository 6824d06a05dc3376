"""Whole frames, and what lies between them: unlike `read_frames`, a scan goes on behind damage.

Behind damage, the next offset with a frame's magic number where a whole frame of lines can be read is where
the index goes on. A zstd frame has a checksum, a gzip member a CRC: a frame that decodes is what was written.
Uncompressed, it goes on behind the next newline.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple, get_args

import zstandard

from drumline.durable import way_out_of
from drumline.errors import IndexFormatError
from drumline.index import (
    FRAME_LINES,
    MAX_LINE_BYTES,
    Codec,
    Compression,
    FrameError,
    codec_of,
    read_pieces,
)
from drumline.inputs import open_regular

__all__ = ["Stretch", "codec_named", "scan"]

_BUFFER_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 18


class Stretch(NamedTuple):
    """A part of an index: a whole frame with its lines, or, where `data` is None, bytes that are none.

    `checked` tells whether a checksum vouches for the lines.
    """

    offset: int
    length: int
    data: bytes | None
    checked: bool = True


def codec_named(path: Path) -> Codec:
    """Tell an index's compression from its name: its first bytes, which tell it otherwise, may be damaged."""
    for compression in get_args(Compression):
        if path.name.endswith(Codec(compression).suffix):
            return Codec(compression)
    return codec_of(path)


def scan(path: Path, codec: Codec) -> Iterator[Stretch]:
    """Iterate over an index from its first byte to its last.

    Raises
    ------
    IndexFormatError
        When the system does not let it be read.
    """
    try:
        with open_regular(path, _BUFFER_BYTES) as stream:
            size, offset = os.fstat(stream.fileno()).st_size, 0
            while offset < size:
                stretch = _frame_at(stream, offset, codec) or _gap(stream, offset, size, codec)
                yield stretch
                offset += stretch.length
    except OSError as error:
        raise IndexFormatError(
            f"cannot read the index {str(path)!r}: {error.strerror}",
            way_out_of(error, "Check the disk and the permissions."),
        ) from error


def _frame_at(stream: IO[bytes], offset: int, codec: Codec) -> Stretch | None:
    stream.seek(offset)
    if codec.compression == "none":
        return _plain_frame(stream, offset)
    try:
        data, length, whole = codec.inflate(read_pieces(stream))
    except FrameError:
        return None
    if not whole or not data.endswith(b"\n"):
        return None
    return Stretch(offset, length, data, codec.compression != "zstd" or _has_checksum(stream, offset))


def _plain_frame(stream: IO[bytes], offset: int) -> Stretch | None:
    lines: list[bytes] = []
    while len(lines) < FRAME_LINES and (line := stream.readline(MAX_LINE_BYTES)).endswith(b"\n"):
        lines.append(line)
    data = b"".join(lines)
    return Stretch(offset, len(data), data) if data else None


def _has_checksum(stream: IO[bytes], offset: int) -> bool:
    stream.seek(offset)
    return zstandard.get_frame_parameters(stream.read(_HEADER_BYTES)).has_checksum


def _gap(stream: IO[bytes], offset: int, size: int, codec: Codec) -> Stretch:
    if codec.compression == "none":
        return Stretch(offset, _line_end(stream, offset) - offset, None)
    starts = (start for start in _candidates(stream, offset + 1, codec) if _frame_at(stream, start, codec))
    return Stretch(offset, next(starts, size) - offset, None)


def _line_end(stream: IO[bytes], offset: int) -> int:
    """Return the offset behind the next newline, or the file's end; the line may be of any length."""
    stream.seek(offset)
    while block := stream.readline(_BUFFER_BYTES):
        offset += len(block)
        if block.endswith(b"\n"):
            break
    return offset


def _candidates(stream: IO[bytes], start: int, codec: Codec) -> Iterator[int]:
    """Iterate over the offsets of the magic number from `start` on."""
    while True:
        stream.seek(start)
        block = stream.read(_BUFFER_BYTES)
        found = block.find(codec.magic)
        while found >= 0:
            yield start + found
            found = block.find(codec.magic, found + 1)
        if len(block) < len(codec.magic):
            return
        start += len(block) - len(codec.magic) + 1
