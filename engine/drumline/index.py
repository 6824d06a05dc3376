"""The index on disk: independent compressed frames of whole lines.

A frame is a zstd frame (with content checksum), a gzip member, or, uncompressed, just its lines. Frames
follow one another without anything between, so a crash can tear only the last one, any zstd or gzip tool
reads the rest, and a frame can be copied into another index byte for byte.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, Protocol, get_args

import orjson
import xxhash
import zstandard

from drumline.durable import new_file, output_errors, sync_directory, way_out_of
from drumline.errors import IndexFormatError
from drumline.failpoints import step
from drumline.inputs import open_regular
from drumline.records import SCHEMA_VERSION, Record, display_path, misfit

__all__ = [
    "FRAME_LINES",
    "GARBLED",
    "MAX_FRAME_BYTES",
    "MAX_LINE_BYTES",
    "Codec",
    "Compression",
    "Frame",
    "FrameError",
    "IndexAppender",
    "Inflated",
    "Written",
    "codec_of",
    "garbled",
    "measured_frames",
    "parse_record",
    "parse_records",
    "read_frame",
    "read_frames",
    "read_index",
    "read_pieces",
    "record_errors",
    "split_lines",
    "unpack_frame",
]

Compression = Literal["zstd", "gzip", "none"]

FRAME_LINES = 512
"""Lines in a full frame; also what a kill can cost at most, per run."""

MAX_FRAME_BYTES = 256 << 20
"""A frame that claims to hold more than this is no frame of ours."""

MAX_LINE_BYTES = 1 << 20
"""A line that is longer, with its newline, is no record of ours: a path takes some kilobytes, and a thousand
labels take some more."""

_BUFFER_BYTES = 1 << 20
# So few at a time that even a bomb gives no more than 128 MB at once.
_PIECE_BYTES = 1 << 12
_WINDOW_BYTES = 1 << 27
_USUAL_BYTES = 16 << 20  # a frame of 512 records has some hundred kB
# RFC 8878: a frame's header, and that of each of its blocks with a bit for the last one, kind and size.
_LARGEST_HEADER, _BLOCK_HEADER = 18, 3
_REPEATED_BYTE, _RESERVED_BLOCK = 1, 3
_MAGIC: dict[str, bytes] = {"zstd": b"\x28\xb5\x2f\xfd", "gzip": b"\x1f\x8b\x08"}
_SUFFIX = {"zstd": ".jsonl.zst", "gzip": ".jsonl.gz", "none": ".jsonl"}


class Frame(NamedTuple):
    """A whole frame: where its bytes lie in the file, and its lines."""

    offset: int
    length: int
    data: bytes

    def lines(self) -> list[bytes]:
        """Return its lines, as `split_lines` does."""
        return split_lines(self.data)


class Written(NamedTuple):
    """Where the bytes of a frame lie in an index, and their digest, by which they are known to be whole."""

    offset: int
    length: int
    digest: bytes

    @classmethod
    def of(cls, raw: bytes, offset: int) -> Written:
        """Build from the bytes."""
        return cls(offset, len(raw), xxhash.xxh3_64_digest(raw))


class FrameError(Exception):
    """What is wrong with the bytes of a frame."""


class Inflated(NamedTuple):
    """What a frame holds, how many bytes it took, and whether its end was among them."""

    data: bytes
    length: int
    whole: bool


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: Any, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """How the frames of one index are compressed."""

    compression: Compression

    @property
    def suffix(self) -> str:
        """File name suffix: ``.jsonl.zst``, ``.jsonl.gz`` or ``.jsonl``."""
        return _SUFFIX[self.compression]

    def compress(self, lines: bytes) -> bytes:
        """Return `lines` as one frame."""
        if self.compression == "zstd":
            return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(lines)
        if self.compression == "gzip":
            return gzip.compress(lines, compresslevel=6, mtime=0)
        return lines

    @property
    def magic(self) -> bytes:
        """What every frame begins with; empty for plain lines."""
        return _MAGIC.get(self.compression, b"")

    def inflate(self, pieces: Iterable[bytes]) -> Inflated:
        """Decompress one frame.

        Parameters
        ----------
        pieces
            The bytes from its first on, and perhaps beyond its end: see `read_pieces`.

        Raises
        ------
        FrameError
            When it is damaged, or holds more than `MAX_FRAME_BYTES`.
        """
        decompressor, parts, fed, size = self._decompressor(), [], 0, 0
        for piece in pieces:
            try:
                parts.append(decompressor.decompress(piece))
            except (zstandard.ZstdError, zlib.error) as error:
                raise FrameError(str(error)) from error
            fed, size = fed + len(piece), size + len(parts[-1])
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame holds more than {MAX_FRAME_BYTES >> 20} MiB: no index of ours")
            if decompressor.eof:
                break
        return Inflated(b"".join(parts), fed - len(decompressor.unused_data), decompressor.eof)

    def inflate_known(self, raw: bytes) -> Inflated:
        """Decompress a frame of which all bytes are there; raise as `inflate` does."""
        try:
            if self.compression == "zstd":
                content = zstandard.get_frame_parameters(raw).content_size
                if 0 < content <= _USUAL_BYTES:
                    # It says how much it holds, so one step does: four times as fast as growing. Of a frame
                    # that says that it is empty, that step looks at nothing.
                    at_once = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
                    return Inflated(at_once.decompress(raw, allow_extra_data=False), len(raw), True)
        except zstandard.ZstdError as error:
            raise FrameError(str(error)) from error
        return self.inflate(read_pieces(BytesIO(raw)))

    def measure(self, descriptor: int, offset: int) -> int:
        """Return the length of the frame at `offset` of a file by the sizes that its blocks say they have.

        0 where they cannot tell: at the end of the file, in a frame that is torn or damaged, with another
        codec than zstd.
        """
        if self.compression != "zstd":
            return 0
        head = os.pread(descriptor, _LARGEST_HEADER, offset)
        try:
            place = offset + zstandard.frame_header_size(head)
            checksum = 4 * zstandard.get_frame_parameters(head).has_checksum
        except zstandard.ZstdError:
            return 0
        last = False
        while not last:
            block = int.from_bytes(os.pread(descriptor, _BLOCK_HEADER, place), "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == _RESERVED_BLOCK or not block:
                return 0
            place += _BLOCK_HEADER + (1 if kind == _REPEATED_BYTE else size)
        return place + checksum - offset if place + checksum <= os.fstat(descriptor).st_size else 0

    def _decompressor(self) -> _Decompressor:
        """Return a decompressor that stops at the end of one frame."""
        if self.compression == "zstd":
            return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
        return zlib.decompressobj(wbits=31)


def codec_of(path: Path) -> Codec:
    """Tell an index's compression from its first bytes, or from its name when these tell nothing.

    An index whose first bytes are damaged is so read like one that is damaged anywhere else.

    Raises
    ------
    IndexFormatError
        When it cannot be read, or neither its first bytes nor its name are those of an index.
    """
    try:
        with open_regular(path) as stream:
            head = stream.read(4)
    except OSError as error:
        raise IndexFormatError(
            f"cannot read the index {str(path)!r}: {error.strerror}",
            way_out_of(error, "Check the disk and the permissions."),
        ) from error
    for codec in map(Codec, get_args(Compression)):
        if codec.magic and head.startswith(codec.magic):
            return codec
    if head.startswith(b"{"):
        return Codec("none")
    by_name = next((name for name in get_args(Compression) if path.name.endswith(_SUFFIX[name])), None)
    if head and by_name is None:
        raise IndexFormatError(
            f"{str(path)!r} is no index: neither zstd, gzip nor JSON lines",
            "Give a run directory or its index.jsonl.zst; one that was damaged, 'drumline repair' mends.",
        )
    return Codec(by_name or "none")


def read_pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """Iterate over what is left of `stream` in pieces that no bomb makes too large."""
    return iter(partial(stream.read, _PIECE_BYTES), b"")


def read_frames(path: Path, start: int = 0) -> Iterator[Frame]:
    """Iterate over the whole frames of an index; one that is cut off at its end is left out.

    Parameters
    ----------
    path
        Index, in any compression.
    start
        Offset of the first frame that is wanted.

    Raises
    ------
    IndexFormatError
        When the index cannot be opened, or a frame is damaged rather than cut off by the end of the file.
    OSError
        When the disk fails while it is read.

    Notes
    -----
    Memory is bounded by the largest frame. The caller learns of a torn tail by comparing the end of the
    last frame with the file's size.
    """
    codec = codec_of(path)
    with open_regular(path, _BUFFER_BYTES) as stream:
        stream.seek(start)
        yield from (
            _plain_frames(stream, start) if codec.compression == "none" else _frames(stream, codec, start)
        )


def measured_frames(path: Path) -> Iterator[tuple[int, int]]:
    """Iterate over offset and length of the frames of an index, without unpacking them.

    Ends where that cannot be told any more: at the end, at a torn or damaged frame, with another codec than
    zstd at once.
    """
    codec, offset = codec_of(path), 0
    with open_regular(path) as stream:
        while length := codec.measure(stream.fileno(), offset):
            yield offset, length
            offset += length


def _frames(stream: IO[bytes], codec: Codec, offset: int) -> Iterator[Frame]:
    while True:
        if length := codec.measure(stream.fileno(), offset):
            with suppress(FrameError):  # what is wrong is told below
                data = codec.inflate_known(os.pread(stream.fileno(), length, offset)).data
                yield Frame(offset, length, data)
                offset += length
                continue
        stream.seek(offset)  # within the buffer, mostly: decompressors are given more than they take
        try:
            data, length, whole = codec.inflate(read_pieces(stream))
        except FrameError as error:
            raise IndexFormatError(
                f"the index {display_path(stream.name)!r} is damaged at byte {offset}: {error}",
                "What stands before is whole. 'drumline repair' keeps all that is, 'drumline infer' of the "
                "archive makes a new index.",
            ) from error
        if not whole:
            return
        yield Frame(offset, length, data)
        offset += length


def _plain_frames(stream: IO[bytes], offset: int) -> Iterator[Frame]:
    lines = list[bytes]()
    for line in iter(lambda: stream.readline(MAX_LINE_BYTES), b""):
        if not line.endswith(b"\n"):
            if len(line) == MAX_LINE_BYTES:
                raise _too_long(Path(os.fsdecode(stream.name)))
            break
        lines.append(line)
        if len(lines) == FRAME_LINES:
            yield (frame := Frame(offset, sum(map(len, lines)), b"".join(lines)))
            offset, lines = offset + frame.length, []
    if lines:
        yield Frame(offset, sum(map(len, lines)), b"".join(lines))


def read_frame(descriptor: int, offset: int, length: int, codec: Codec) -> bytes:
    """Read the lines of the frame of `length` bytes at `offset`.

    Raises
    ------
    IndexFormatError
        When there is no whole frame of exactly that length.
    """
    return unpack_frame(os.pread(descriptor, length, offset), offset, length, codec)


def unpack_frame(raw: bytes, offset: int, length: int, codec: Codec) -> bytes:
    """Unpack the frame of `length` bytes that was read from `offset`; raise as `read_frame` does."""
    try:
        if codec.compression == "none":
            frame = Inflated(raw, len(raw), raw.endswith(b"\n"))
        else:
            frame = codec.inflate_known(raw)
    except FrameError as error:
        raise _no_frame(offset, length, f": {error}") from error
    if frame.length != length or not frame.whole:
        raise _no_frame(offset, length)
    return frame.data


def _no_frame(offset: int, length: int, why: str = "") -> IndexFormatError:
    return IndexFormatError(
        f"no whole frame of {length} bytes at byte {offset}{why}",
        "The index was changed after drumline wrote it: 'drumline verify' tells more.",
    )


_COPIED_BYTES = 1 << 20
_APPENDED = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


def _open_own(path: Path, valid: int) -> int:
    """Open an index for writing; what has another name too, as in a backup or a repair, is left to that."""
    descriptor = os.open(path, _APPENDED, 0o666)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    _copy_own(path, valid)
    return os.open(path, _APPENDED, 0o666)


def _copy_own(path: Path, valid: int) -> None:
    """Put a copy of the first `valid` bytes of a file in its place."""
    copy = path.with_name(f".{path.name}.own")
    try:
        with open(path, "rb") as old, open(new_file(copy), "wb") as new:
            left = valid
            while left and (data := old.read(min(left, _COPIED_BYTES))):
                left -= new.write(data)
            new.flush()
            os.fsync(new.fileno())
        os.replace(copy, path)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class IndexAppender:
    """Appends frames to an index and makes them durable.

    Parameters
    ----------
    path
        The index.
    codec
        How it is compressed.
    valid
        Length to cut it to first, in bytes: a torn tail is behind it.
    """

    def __init__(self, path: Path, codec: Codec, valid: int = 0) -> None:
        self.path, self.codec, self.end = path, codec, valid
        with output_errors(path):
            self._descriptor = _open_own(path, valid)
            try:
                with step("index.cut"):
                    os.ftruncate(self._descriptor, valid)
            except BaseException:
                os.close(self._descriptor)
                raise

    def append(self, frame: bytes) -> Written:
        """Write a frame behind the last whole one."""
        offset, written = self.end, 0
        with output_errors(self.path), step("index.write"):
            while written < len(frame):
                written += os.pwrite(self._descriptor, memoryview(frame)[written:], offset + written)
        self.end += len(frame)
        return Written.of(frame, offset)

    def sync(self) -> None:
        """Wait until all frames are on disk."""
        with output_errors(self.path), step("index.sync"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def split_lines(data: bytes) -> list[bytes]:
    """Split a frame into its lines, each with its newline, also where the last one lacks it."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line + b"\n" for line in lines]


def read_index(path: Path) -> Iterator[Record]:
    """Iterate over the records of an index, in any compression; a torn tail ends it silently.

    Raises
    ------
    IndexFormatError
        When a whole frame holds something that is no record, or a record of another schema version.
    """
    for frame in read_frames(path):
        for line in frame.lines():
            yield parse_record(line, path)


def parse_record(line: bytes, path: Path) -> Record:
    """Parse one line; `path` is named in errors."""
    if len(line) > MAX_LINE_BYTES:
        raise _too_long(path)
    try:
        record = orjson.loads(line)
        version = record["schema_version"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise IndexFormatError(
            f"{str(path)!r} holds a line that is no record: {line[:80]!r}",
            "It was changed after drumline wrote it: 'drumline repair' keeps the sound records.",
        ) from error
    if type(version) is int and version != SCHEMA_VERSION:
        raise IndexFormatError(
            f"{str(path)!r} has records of version {version}; this drumline reads version {SCHEMA_VERSION}",
            "Use the drumline that wrote it, or classify the archive again.",
        )
    if name := misfit(record):
        raise IndexFormatError(
            f"{str(path)!r} holds a garbled record: its {name!r} is missing or not of its kind",
            "It was changed after drumline wrote it: 'drumline repair' keeps the sound records.",
        )
    return record  # type: ignore[no-any-return]


def parse_records(lines: list[bytes], path: Path) -> list[Record]:
    """Parse lines of an index all at once, in two thirds of the time; raise as `parse_record` does."""
    try:
        records = orjson.loads(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        records = []
    # A line may be no record although all of them together are a list.
    whole = all(
        line.startswith(b"{") and line.endswith(b"}\n") and len(line) <= MAX_LINE_BYTES for line in lines
    )
    if whole and len(records) == len(lines) and all(map(_is_record, records)):
        return records  # type: ignore[no-any-return]
    return [parse_record(line, path) for line in lines]


def _is_record(value: Any) -> bool:
    return type(value) is dict and value.get("schema_version") == SCHEMA_VERSION and misfit(value) is None


def _too_long(path: Path) -> IndexFormatError:
    return IndexFormatError(
        f"{str(path)!r} holds a line of more than {MAX_LINE_BYTES >> 20} MiB: no record of ours",
        "It was not written by drumline: 'drumline infer' of the archive makes an index.",
    )


GARBLED: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What looking at a garbled record, cache row, run.json or summary raises: see `garbled`."""


@contextmanager
def record_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a garbled record of `path` into an `IndexFormatError`.

    For loops that only look at records: a field that is missing, or of another type than it should be.
    """
    try:
        yield
    except GARBLED as error:
        raise IndexFormatError(
            f"{str(path)!r} holds a garbled record: {garbled(error)}",
            "It was changed after drumline wrote it: 'drumline repair' keeps the sound records.",
        ) from error


def garbled(error: Exception) -> str:
    """Say in words what it means that looking at a record, or at run.json, raised `error`."""
    if isinstance(error, KeyError):
        return f"{str(error.args[0])[:80]!r} is missing or unknown"
    return "a field is not of the kind that it should be"
