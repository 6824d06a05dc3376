"""The ``ffmpeg`` program: which files it is worth starting for, and the start of one decoded by it.

Starting it costs a thousand times what refusing a file costs, and tens of megabytes beside it. Most files
that libsndfile refuses in an archive of samples are no audio at all, so it is started only for what carries
the mark of a format that it reads, or an extension whose format has no mark or is none of libsndfile's.
"""

from __future__ import annotations

import math
import os
import re
import selectors
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from typing import Self

from drumline.machine import end_with_parent
from drumline.settings import SOUNDFILE_FORMATS

__all__ = ["HEAD_BYTES", "Decoded", "Ffmpeg", "FfmpegError", "may_be_read"]

HEAD_BYTES = 4096
"""How much of a file's start `may_be_read` looks at."""

_TIMEOUT_S, _MARGIN_S = 10.0, 1.0
_OUTPUT_BYTES, _LOG_BYTES = 64 << 20, 1 << 16
# Files of these names, and those without an extension, begin with a mark. What comes in frames need not:
# decoders look for the first one.
_MARKED = frozenset(("", *SOUNDFILE_FORMATS)) - {"mp1", "mp2", "mp3", "flac", "ogg", "oga", "opus"}
_MARKS: dict[int, tuple[bytes, ...]] = {
    0: (
        b"fLaC",
        b"OggS",
        b"ID3",
        b"FORM",
        b"caff",
        b".snd",
        b"RF64",
        b"BW64",
        b"riff",
        b"Creative Voice File",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF: wma
        b"\x1aE\xdf\xa3",  # Matroska, WebM
        b"ADIF",
        b"\x0bw",  # AC-3
        b"#!AMR",
        b"MAC ",
        b"MPCK",
        b"MP+",
        b"TTA1",
        b"wvpk",
        b"DSD ",
        b"FRM8",
        b".ra\xfd",
        b".RMF",
        b"OFR ",
        b"ajkg",  # Shorten
        b"TAG",  # ID3 version 1, where MPEG audio was joined
        b"APETAGEX",
        b"LYRICSBEGIN",
        b"\x7f\xfe\x80\x01",  # DTS, by word size and byte order
        b"\xfe\x7f\x01\x80",
        b"\x1f\xff\xe8\x00",
        b"\xff\x1f\x00\xe8",
        b"FLV\1",
        b"G@\0",  # MPEG transport stream
        b"CWS",  # Flash
        b"FWS",
        b"nut/multimedia container",
        b".SoX",
        b"XoS.",
    ),
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"\xf8\x72\x6f\xba"),  # MP4, QuickTime; TrueHD
    8: (b"AVI ", b"CDXA"),
}
# Format tags of RIFF WAVE (RFC 2361 and later registrations) of codecs that one of the libraries reads.
_WAVE_CODECS = frozenset(
    tag
    for (tag,) in struct.iter_unpack(
        ">H",
        bytes.fromhex("""
            0001 0002 0003 0006 0007 000A 0010 0011 0014 0015 0016 0017 0020 0022 0028 0030 0031 0032
            0036 0038 0040 0041 0042 0045 0050 0055 0057 0058 0061 0062 0064 0065 0069 0075 0083 00FF
            0111 0112 0130 0135 0140 0160 0161 0162 0163 0164 0165 0166 0170 0180 0200 0215 0216 0270
            028E 028F 0350 0401 0402 0500 0501 1500 1501 1600 1602 2000 2001 2048 2222 4143 4180 5346
            564C 566F 5756 594A 674F 6750 6751 676F 6770 6771 6C75 706D 729A 7A21 7A22 8180 A100 A101
            A102 A103 A104 A105 A106 A107 A109 F1AC FFFE
        """),
    )
)
_WAVE_FORMAT_BYTES = 14


class FfmpegError(Exception):
    """The program cannot be run, or does not end in time."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What ffmpeg made of a file.

    Parameters
    ----------
    wav
        The file's start as a float WAV file; empty or cut where it cannot be decoded.
    duration_sec
        Of the whole file, 0 where ffmpeg knows none.
    """

    wav: bytes
    duration_sec: float


def may_be_read(head: bytes, path: bytes) -> bool:
    """Return whether ffmpeg may decode what libsndfile refuses.

    Parameters
    ----------
    head
        The first `HEAD_BYTES` of the file, all of it where it is shorter.
    path
        Where its extension is that of a format without a mark, or of one that libsndfile does not know,
        the bytes need not say anything.
    """
    if os.fsdecode(os.path.splitext(path)[1][1:].lower()) not in _MARKED:
        return True
    return _is_marked(head) or _is_marked(head.lstrip(b"\0"))  # encoders and cutters leave zeros


class Ffmpeg:
    """The program, ready to decode.

    Parameters
    ----------
    program
        Where it lies.
    seconds
        How much of each file's start is wanted; a second more is decoded.
    """

    def __init__(self, program: str, seconds: float) -> None:
        self.program = program
        self._seconds = seconds + _MARGIN_S

    @classmethod
    def installed(cls, seconds: float) -> Self | None:
        """Return the program that is on PATH, None where there is none."""
        program = shutil.which("ffmpeg")
        return None if program is None else cls(program, seconds)

    def decode(self, path: bytes) -> Decoded:
        """Decode the start of a file.

        Raises
        ------
        FfmpegError
            The program cannot be run, or does not end in time.
        """
        output, log = _run_bounded(self._command(path))
        return Decoded(output, _duration_in_log(log))

    def _command(self, path: bytes) -> list[str | bytes]:
        # A play list names addresses; without the white list ffmpeg would go there.
        options = ["-nostdin", "-hide_banner", "-nostats", "-threads", "1", "-protocol_whitelist", "file"]
        options += ["-timelimit", str(math.ceil(_TIMEOUT_S))]  # should we be killed meanwhile
        output = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
        return [self.program, *options, "-t", f"{self._seconds:.6f}", "-i", b"file:" + path, *output]


def _is_marked(head: bytes) -> bool:
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return _wave_may_be_read(head)
    return _is_mpeg_frame(head) or any(head.startswith(marks, offset) for offset, marks in _MARKS.items())


def _is_mpeg_frame(head: bytes) -> bool:
    """Return whether a frame of MPEG audio or AAC (ADTS, LATM) begins here: eleven bits say so."""
    return len(head) > 1 and (head[0], head[1] & 0xE0) in ((0xFF, 0xE0), (0x56, 0xE0))


def _wave_may_be_read(head: bytes) -> bool:
    """Return whether a WAV file has a format chunk, and of a codec that somebody knows."""
    place = 12
    while place + 8 + _WAVE_FORMAT_BYTES <= len(head):
        kind, length = struct.unpack_from("<4sI", head, place)
        place += 8
        if kind == b"fmt ":
            return int.from_bytes(head[place : place + 2], "little") in _WAVE_CODECS
        place += length + length % 2
    return len(head) == HEAD_BYTES  # it may come later


def _duration_in_log(log: bytes) -> float:
    match = re.search(rb"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)", log)
    if match is None:
        return 0.0
    hours, minutes, seconds = (float(part) for part in match.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def _run_bounded(command: list[str | bytes]) -> tuple[bytes, bytes]:
    """Run a program and return the first bytes of its output and of its log; then it is stopped."""
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        # In a session of its own: Ctrl-C would make it end early, and well, with a part of the sound.
        # It ends with us: a worker that takes too long is killed, and what it waits for would go on.
        with subprocess.Popen(
            command,
            stdin=nothing,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            preexec_fn=end_with_parent,
        ) as process:
            try:
                return _drain(process)
            finally:
                process.kill()
    except OSError as error:
        raise FfmpegError(f"ffmpeg cannot be run: {error.strerror}") from error


def _drain(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Read both pipes until they end or the output is long enough; too late is an `FfmpegError`."""
    deadline = time.monotonic() + _TIMEOUT_S
    received = {process.stdout: bytearray(), process.stderr: bytearray()}
    output, log = received.values()
    with selectors.DefaultSelector() as selector:
        for stream in received:
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, received[stream])
        while selector.get_map() and len(output) < _OUTPUT_BYTES:
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0.0 else []
            if not ready:
                raise FfmpegError(f"ffmpeg did not end within {_TIMEOUT_S:g} s")
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                key.data.extend(chunk)
                del log[_LOG_BYTES:]
                if not chunk:
                    selector.unregister(key.fileobj)
    return bytes(output), bytes(log)
