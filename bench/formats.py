"""Samples → the bytes of an audio file, the same bytes every time.

WAV is written here, for its headers are what real archives differ in (plain and extensible formats,
chunks before and after the data); libsndfile writes the rest. What libsndfile puts in from the clock,
the serial number of an Ogg stream, is replaced.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile
from numpy.typing import NDArray

__all__ = ["FORMATS", "Format", "available", "encode"]

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store samples.

    Parameters
    ----------
    name
        ``"wav-24"``, ``"flac"`` …
    suffix
        With its dot, in lower case.
    writer
        (samples of shape (frames, channels) in [-1, 1], rate in Hz) → bytes.
    low_bytes
        Where the least significant bytes of the last four samples stand, if the file ends with plain
        samples of 16 bits or more: changing them gives new content at the cost of a copy.
    rates
        Rates in Hz that the format can hold; empty for any.
    """

    name: str
    suffix: str
    writer: Callable[[Samples, int], bytes]
    low_bytes: slice | None = None
    rates: tuple[int, ...] = ()

    def takes(self, rate: int) -> bool:
        """Tell whether the format can hold the rate."""
        return not self.rates or rate in self.rates


def _integers(samples: Samples, bits: int) -> bytes:
    """Little-endian PCM; 8 bits are unsigned, as WAV wants them."""
    full = 2 ** (bits - 1)
    scaled = np.clip(np.rint(samples.astype(np.float64) * full), -full, full - 1)
    values: NDArray[np.int32] = scaled.astype("<i4")
    if bits == 8:
        return (values + 128).astype(np.uint8).tobytes()
    if bits == 24:
        return values.reshape(-1, 1).view("u1").reshape(-1, 4)[:, :3].tobytes()
    return values.astype(f"<i{bits // 8}").tobytes()


def _chunk(name: bytes, body: bytes) -> bytes:
    """Return one RIFF chunk; an odd body is padded, its size is not."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _riff(fmt: bytes, data: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    chunks = _chunk(b"fmt ", fmt) + before + _chunk(b"data", data) + after
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def _fmt(code: int, channels: int, rate: int, bits: int) -> bytes:
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits)


def _pcm(bits: int) -> Callable[[Samples, int], bytes]:
    def write(samples: Samples, rate: int) -> bytes:
        return _riff(_fmt(1, samples.shape[1], rate, bits), _integers(samples, bits))

    return write


def _float(bits: int) -> Callable[[Samples, int], bytes]:
    def write(samples: Samples, rate: int) -> bytes:
        fact = _chunk(b"fact", struct.pack("<I", len(samples)))
        return _riff(_fmt(3, samples.shape[1], rate, bits), samples.astype(f"<f{bits // 8}").tobytes(), fact)

    return write


def _extensible(samples: Samples, rate: int) -> bytes:
    """24-bit PCM under WAVE_FORMAT_EXTENSIBLE."""
    pcm = b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    channels = samples.shape[1]
    fmt = _fmt(0xFFFE, channels, rate, 24) + struct.pack("<HHI", 22, 24, 3 if channels == 2 else 4) + pcm
    return _riff(fmt, _integers(samples, 24))


def _tagged(samples: Samples, rate: int) -> bytes:
    """16-bit PCM between the chunks that samplers and editors leave, one of them of odd size."""
    before = _chunk(b"bext", b"drumline demo".ljust(602, b"\0")) + _chunk(b"JUNK", b"\0" * 27)
    name = b"INAM" + struct.pack("<I", 10) + b"one-shot\0\0"
    after = _chunk(b"LIST", b"INFO" + name) + _chunk(b"smpl", b"\0" * 36) + _chunk(b"acid", b"\0" * 24)
    return _riff(_fmt(1, samples.shape[1], rate, 16), _integers(samples, 16), before, after)


def _cut(samples: Samples, rate: int) -> bytes:
    """16-bit PCM of which the last tenth, that the header still claims, is lost."""
    whole = _pcm(16)(samples, rate)
    return whole[: -2 * samples.shape[1] * (len(samples) // 10)]


def _libsndfile(container: str, subtype: str) -> Callable[[Samples, int], bytes]:
    def write(samples: Samples, rate: int) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
        return buffer.getvalue()

    return write


def _ogg(subtype: str) -> Callable[[Samples, int], bytes]:
    write = _libsndfile("OGG", subtype)
    return lambda samples, rate: _with_serial(write(samples, rate), 0x6472756D)


def _with_serial(stream: bytes, serial: int) -> bytes:
    """Give every page of an Ogg stream this serial number and the checksum that goes with it (RFC 3533)."""
    pages = bytearray(stream)
    start = 0
    while start < len(pages):
        segments = pages[start + 26]
        end = start + 27 + segments + sum(pages[start + 27 : start + 27 + segments])
        struct.pack_into("<I", pages, start + 14, serial)
        struct.pack_into("<I", pages, start + 22, 0)
        struct.pack_into("<I", pages, start + 22, _ogg_checksum(bytes(pages[start:end])))
        start = end
    return bytes(pages)


@cache
def _ogg_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return tuple(table)


def _ogg_checksum(page: bytes) -> int:
    value, table = 0, _ogg_table()
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ table[(value >> 24) ^ byte]
    return value


_MP3_RATES = (22_050, 32_000, 44_100, 48_000)

_ALL = (
    Format("wav-8", ".wav", _pcm(8)),
    Format("wav-16", ".wav", _pcm(16), slice(-8, None, 2)),
    Format("wav-24", ".wav", _pcm(24), slice(-12, None, 3)),
    Format("wav-32", ".wav", _pcm(32), slice(-16, None, 4)),
    Format("wav-float", ".wav", _float(32), slice(-16, None, 4)),
    Format("wav-double", ".wav", _float(64), slice(-32, None, 8)),
    Format("wav-extensible", ".wav", _extensible, slice(-12, None, 3)),
    Format("wav-tagged", ".wav", _tagged),
    Format("wav-cut", ".wav", _cut),
    Format("wav-ulaw", ".wav", _libsndfile("WAV", "ULAW")),
    Format("wav-alaw", ".wav", _libsndfile("WAV", "ALAW")),
    Format("aiff-16", ".aif", _libsndfile("AIFF", "PCM_16"), slice(-7, None, 2)),
    Format("aiff-24", ".aiff", _libsndfile("AIFF", "PCM_24"), slice(-10, None, 3)),
    Format("flac", ".flac", _libsndfile("FLAC", "PCM_16")),
    Format("ogg", ".ogg", _ogg("VORBIS")),
    Format("opus", ".opus", _ogg("OPUS"), rates=(48_000,)),
    Format("mp3", ".mp3", _libsndfile("MP3", "MPEG_LAYER_III"), rates=_MP3_RATES),
    Format("caf", ".caf", _libsndfile("CAF", "PCM_24")),
    Format("au", ".au", _libsndfile("AU", "PCM_16")),
    Format("rf64", ".wav", _libsndfile("RF64", "PCM_16")),
    Format("w64", ".w64", _libsndfile("W64", "PCM_16")),
)


def _writable(form: Format) -> bool:
    """Tell whether the libsndfile that is installed can write the format."""
    try:
        return bool(form.writer(np.zeros((256, 1), np.float32), 48_000))
    except (soundfile.SoundFileError, ValueError):
        return False


FORMATS: tuple[str, ...] = tuple(form.name for form in _ALL)
"""Names of all formats, whether this machine's libsndfile can write them or not."""


@cache
def available() -> dict[str, Format]:
    """Return the formats that this machine can write, by name."""
    return {form.name: form for form in _ALL if _writable(form)}


def encode(samples: Samples, rate: int, name: str) -> bytes:
    """Encode samples of shape (frames, channels) in [-1, 1]; equal input gives equal bytes.

    Raises
    ------
    KeyError
        This machine's libsndfile cannot write the format.
    """
    return available()[name].writer(samples, rate)
