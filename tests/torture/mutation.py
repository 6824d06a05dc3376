"""Audio files that are wrong in ways that mean something: sound ones of every format, and what befalls them.

A mutator knows containers: it finds chunks, counts and format fields, and makes them lie. Everything follows
from the random generator that is passed in.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import numpy as np
import soundfile

__all__ = ["Seed", "make_seeds", "mutated"]

_FORMS = {
    "wav": (
        ("WAV", "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610 G721_32"),
        ("WAVEX", "PCM_16 PCM_24 FLOAT"),
        ("RF64", "PCM_16 FLOAT"),
    ),
    "w64": (("W64", "PCM_16 FLOAT"),),
    "aif": (("AIFF", "PCM_S8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW IMA_ADPCM"),),
    "flac": (("FLAC", "PCM_S8 PCM_16 PCM_24"),),
    "ogg": (("OGG", "VORBIS OPUS"),),
    "mp3": (("MP3", "MPEG_LAYER_III"),),
    "caf": (("CAF", "PCM_16 FLOAT ALAC_16 ULAW"),),
    "au": (("AU", "PCM_16 FLOAT ULAW G721_32"),),
    "voc": (("VOC", "PCM_U8 PCM_16"),),
    "iff": (("SVX", "PCM_S8 PCM_16"),),
    "nist": (("NIST", "PCM_16"),),
    "pvf": (("PVF", "PCM_16"),),
    "sds": (("SDS", "PCM_16"),),
    "xi": (("XI", "DPCM_16"),),
    "paf": (("PAF", "PCM_16"),),
    "sf": (("IRCAM", "PCM_16"),),
    "htk": (("HTK", "PCM_16"),),
    "avr": (("AVR", "PCM_16"),),
}
"""Extension → (container, encodings) of libsndfile."""

_COUNTS = (0, 1, 2, 3, 7, 0x40, 0x41, 0xFF, 0x100, 0x400, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
_SIZES = (0, 1, 2, 7, 0xFF, 0xFFFF, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
_LONG_SIZES = (0, 1, 15, 23, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_RATES = (0, 1, 99, 100, 4_000_000, 4_000_001, 2**31 - 1, 2**31, 4_000_000_000, 2**32 - 1)
_NAMES = (b"LIST", b"fmt ", b"data", b"fact", b"cue ", b"smpl", b"bext", b"id3 ", b"PEAK", b"JUNK", b"ds64")
_NAMES += (
    b"COMM",
    b"SSND",
    b"MARK",
    b"INST",
    b"APPL",
    b"FORM",
    b"RIFF",
    b"desc",
    b"pakt",
    b"kuki",
    b"\0\0\0\0",
)
_MOST_BYTES = 1 << 20


class Seed(NamedTuple):
    """A sound file: its extension, its bytes, and whether its samples are floats."""

    extension: str
    data: bytes
    is_float: bool


def make_seeds() -> list[Seed]:
    """Make a short sound in every format that libsndfile here can write, in one and in two channels."""
    random = np.random.default_rng(1)
    seeds = []
    for extension, forms in _FORMS.items():
        for container, encodings in forms:
            for encoding in filter(lambda name: soundfile.check_format(container, name), encodings.split()):
                for channels in (1, 2):
                    rate = 48_000 if encoding == "OPUS" else 44_100
                    decay = np.exp(-np.arange(1200) / 200)[:, None]
                    sound = (random.normal(0, 0.3, (1200, channels)) * decay).astype(np.float32)
                    target = io.BytesIO()
                    try:
                        soundfile.write(target, sound, rate, encoding, format=container)
                    except (soundfile.LibsndfileError, ValueError):
                        continue  # mono only, or a rate that it does not have
                    seeds.append(Seed(extension, target.getvalue(), encoding in ("FLOAT", "DOUBLE")))
    return seeds


class _Chunk(NamedTuple):
    """Where a chunk begins, where its size is written and how, and where it ends."""

    start: int
    size_at: int
    size_form: str
    end: int


def _chunks(data: bytes) -> list[_Chunk]:
    """Find the chunks of RIFF, RF64, FORM, W64 and CAF files; empty for others."""
    head = data[:4]
    if head in (b"RIFF", b"RF64", b"FORM"):
        return _walk(data, 12, 4, "<I" if head != b"FORM" else ">I", 0, 2)
    if head == b"riff":
        return _walk(data, 40, 16, "<Q", 24, 8)
    if head == b"caff":
        return _walk(data, 8, 4, ">Q", 0, 1)
    return []


def _walk(data: bytes, place: int, name: int, form: str, counted: int, even: int) -> list[_Chunk]:
    found, width = [], struct.calcsize(form)
    while place + name + width <= len(data) and len(found) < 50:
        size = struct.unpack_from(form, data, place + name)[0] - counted
        end = min(place + name + width + max(size, 0), len(data))
        end = min(end + -(end - place) % even, len(data))
        found.append(_Chunk(place, place + name, form, end))
        place = max(end, place + 1)
    return found


def mutated(seed: Seed, others: list[Seed], random: Random) -> tuple[str, bytes]:
    """Return (what was done, the bytes) of a seed that was changed in one to four ways."""
    data, done = bytearray(seed.data), []
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        change = random.choice(_FLOAT_CHANGES if seed.is_float else _CHANGES)
        change(data, random, others)
        done.append(change.__name__.strip("_"))
        del data[_MOST_BYTES:]
    if data[:4] == b"OggS" and random.random() < 0.7:
        _mend_ogg_checksums(data)
    return "+".join(done), bytes(data)


Change = Callable[[bytearray, Random, list[Seed]], None]


def _put(data: bytearray, place: int, form: str, value: int) -> None:
    packed = struct.pack(form, value & (1 << 8 * struct.calcsize(form)) - 1)
    data[place : place + len(packed)] = packed


def _size(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """A chunk claims another size: nothing, gigabytes, a little too much."""
    chunks = _chunks(bytes(data))
    if not chunks:
        _word(data, random, _others)
        return
    chunk = random.choice(chunks)
    true = chunk.end - chunk.size_at
    sizes = _LONG_SIZES if chunk.size_form.endswith("Q") else _SIZES
    value = random.choice((*sizes, true + 1, true - 1, true * 2, len(data)))
    _put(data, chunk.size_at, chunk.size_form, value)


def _container_size(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """The container claims another size."""
    _put(data, 4, ">I" if data[:4] == b"FORM" else "<I", random.choice(_SIZES))


def _format_field(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """Channels, rate, bits or block size are what no file has."""
    place = data.find(b"fmt ")
    if place >= 0:
        place += 24 if data[:4] == b"riff" else 8
        offset, form, values = random.choice(
            (
                (0, "<H", _COUNTS),
                (2, "<H", _COUNTS),
                (4, "<I", _RATES),
                (12, "<H", _COUNTS),
                (14, "<H", _COUNTS),
            )
        )
    elif (place := data.find(b"COMM")) >= 0:
        place += 8
        offset, form, values = random.choice(
            (
                (0, ">H", _COUNTS),
                (2, ">I", _SIZES),
                (6, ">H", _COUNTS),
                (8, ">H", _COUNTS),
                (10, ">Q", _LONG_SIZES),
            )
        )
    elif data[:4] == b"fLaC":
        place, (offset, form, values) = (
            4,
            random.choice(
                (
                    (0, ">I", _SIZES),
                    (4, ">I", _SIZES),
                    (14, ">I", _SIZES),
                    (18, ">I", _SIZES),
                    (22, ">I", _SIZES),
                )
            ),
        )
    elif data[:4] == b".snd":
        place, (offset, form, values) = (
            4,
            random.choice(
                (
                    (0, ">I", _SIZES),
                    (4, ">I", _SIZES),
                    (8, ">I", _COUNTS),
                    (12, ">I", _RATES),
                    (16, ">I", _COUNTS),
                )
            ),
        )
    else:
        _word(data, random, _others)
        return
    _put(data, place + offset, form, random.choice(values))


def _repeat(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """A chunk is there again, up to a thousand times, at any place."""
    if chunks := _chunks(bytes(data)):
        chunk, place = random.choice(chunks), random.choice(chunks).start
        times = random.choice((1, 2, 1000)) if chunk.end - chunk.start < 1000 else 1
        data[place:place] = bytes(data[chunk.start : chunk.end]) * times


def _remove(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """A chunk is missing."""
    if chunks := _chunks(bytes(data)):
        chunk = random.choice(chunks)
        del data[chunk.start : chunk.end]


def _insert(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """A chunk that nobody expects, of a size that it has not."""
    chunks = _chunks(bytes(data))
    place = random.choice(chunks).start if chunks else random.randrange(len(data) + 1)
    content = random.randbytes(random.choice((0, 1, 3, 4, 7, 40, 200)))
    form = ">I" if data[:4] in (b"FORM", b"caff") else "<I"
    size = random.choice((len(content), len(content) + 1, *_SIZES))
    data[place:place] = random.choice(_NAMES) + struct.pack(form, size) + content


def _nest(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """Lists in lists in lists."""
    depth, form = random.choice((3, 100, 3000)), ">I" if data[:4] == b"FORM" else "<I"
    nested = b""
    for _ in range(depth):
        nested = b"LIST" + struct.pack(form, (len(nested) + 4) & 0xFFFFFFFF) + b"INFO" + nested
        if depth > 100:
            break
    chunks = _chunks(bytes(data))
    place = random.choice(chunks).start if chunks else min(12, len(data))
    data[place:place] = nested if depth <= 100 else b"LIST\xff\xff\xff\x7fINFO" * depth


def _cut(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """The end is missing."""
    chunks = _chunks(bytes(data))
    near = [place for chunk in chunks for place in (chunk.start, chunk.size_at, chunk.end)]
    del data[
        random.choice((*near, random.randrange(len(data) + 1), random.randrange(min(len(data), 60) + 1))) :
    ]


def _append(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """More stands behind the end: rubbish, silence, or the file once more."""
    data += random.choice((random.randbytes(500), bytes(5000), bytes(data), b"TAG" + b"x" * 125))


def _word(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """A number in the header is one of those at which counting ends."""
    form = random.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    place = random.randrange(max(1, min(len(data), 300)))
    _put(data, place, form, random.choice((*_COUNTS, *_SIZES, *_LONG_SIZES)))
    del data[_MOST_BYTES:]


def _flip(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """Some bits are wrong, anywhere."""
    for _ in range(random.choice((1, 3, 20)) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _shuffle(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """A piece is moved or copied to another place."""
    if data:
        start = random.randrange(len(data))
        piece = bytes(data[start : start + random.choice((1, 4, 16, 300))])
        place = random.randrange(len(data))
        data[place : place + random.choice((0, len(piece)))] = piece


def _splice(data: bytearray, random: Random, others: list[Seed]) -> None:
    """The head of one format with the body of another."""
    other, place = random.choice(others).data, random.randrange(len(data) + 1)
    data[place:] = other[random.randrange(len(other)) :]


def _tag(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """ID3 tags in front: endless, of another version, a thousand of them."""
    size = random.choice((b"\x7f\x7f\x7f\x7f", b"\0\0\0\0", b"\0\0\1\0", b"\xff\xff\xff\xff"))
    tag = b"ID3" + random.choice((b"\2\0", b"\3\0", b"\4\0", b"\xff\xff")) + random.choice((b"\0", b"\xff"))
    data[:0] = (tag + size + random.choice((b"", b"TIT2\xff\xff\xff\xff\0\0", bytes(128)))) * random.choice(
        (1, 2, 1000)
    )


def _samples(data: bytearray, random: Random, _others: list[Seed]) -> None:
    """Samples that are no numbers, or beyond all measure."""
    values = (np.nan, np.inf, -np.inf, 3e38, 1e-45)
    form = random.choice(("<f4", ">f4", "<f8", ">f8"))
    piece = np.array([random.choice(values)] * random.choice((1, 50)), form).tobytes()
    place = random.randrange(max(1, len(data) - len(piece)))
    data[place : place + len(piece)] = piece


_CHANGES: tuple[Change, ...] = (
    *(_size, _size, _container_size, _format_field, _format_field, _repeat, _remove, _insert, _nest),
    *(_cut, _append, _word, _word, _flip, _shuffle, _splice, _tag),
)
_FLOAT_CHANGES: tuple[Change, ...] = (*_CHANGES, *[_samples] * 4)


def _mend_ogg_checksums(data: bytearray) -> None:
    """Make the pages' checksums true again, or a reader would drop what was changed."""
    place = data.find(b"OggS")
    while 0 <= place <= len(data) - 27:
        segments = data[place + 26]
        lengths = data[place + 27 : place + 27 + segments]
        end = place + 27 + segments + sum(lengths)
        data[place + 22 : place + 26] = bytes(4)
        data[place + 22 : place + 26] = struct.pack("<I", _ogg_checksum(bytes(data[place:end])))
        place = data.find(b"OggS", max(end, place + 4))


def _ogg_table() -> list[int]:
    table = []
    for value in range(256):
        register = value << 24
        for _ in range(8):
            register = (register << 1) ^ (0x04C11DB7 if register & 0x80000000 else 0)
        table.append(register & 0xFFFFFFFF)
    return table


_OGG_TABLE = _ogg_table()


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of polynomial 0x04c11db7, neither reflected nor inverted (RFC 3533, section 6)."""
    register = 0
    for byte in page:
        register = ((register << 8) & 0xFFFFFFFF) ^ _OGG_TABLE[(register >> 24) ^ byte]
    return register
