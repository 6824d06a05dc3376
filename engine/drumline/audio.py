"""The bytes of an audio file → the mono waveform that is analysed.

Three decoders, in this order: `drumline.pcm` for plain WAV and AIFF, libsndfile (soundfile) for what it
knows, the ``ffmpeg`` program for the rest. Only the start of the file that is analysed is decoded. What
can be decoded of a damaged file is analysed; a file that gives nothing is an `AudioError`.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from drumline.frontend import FrontEnd
from drumline.laps import Lap, Step, no_lap
from drumline.machine import end_with_parent
from drumline.pcm import Buffer, parse_pcm
from drumline.records import ErrorType

__all__ = ["WHOLE_FILE_BYTES", "AudioError", "Decoder", "Waveform", "read_waveform"]

WHOLE_FILE_BYTES = 64 << 20
"""Larger files are hashed in pieces and decoded from the path."""

_C = ctypes.CDLL(None)
_LOWEST_RATE, _HIGHEST_RATE = 100, 4_000_000
# Frames decoded past the last one needed: with them, resampling the start gives bit for bit what resampling
# the whole file gives (measured for 8 kHz to 1 MHz).
_RESAMPLER_MARGIN = 1024
# Full scale is 1; bytes that are no samples read as floats of any magnitude, and their square overflows.
_LARGEST_MAGNITUDE = 1e15
_BLOCK_FRAMES, _BLOCK_VALUES = 1 << 14, 1 << 20
# Where a header does not know its frames, libsndfile says more than this; they are counted, up to a limit.
_UNKNOWN_FRAMES, _MOST_COUNTED = 1 << 40, 1 << 28
_NOT_RECOGNISED, _UNKNOWN_ENCODING = 1, 64
_APPLE_DOUBLE = bytes.fromhex("00051607")
_FFMPEG_TIMEOUT_S, _FFMPEG_MARGIN_S = 10.0, 1.0
_FFMPEG_OUTPUT_BYTES, _FFMPEG_LOG_BYTES = 64 << 20, 1 << 16


class AudioError(Exception):
    """What is wrong with one audio file.

    Parameters
    ----------
    type
        From here ``unsupported_format``, ``decode_error``, ``empty_audio``, ``needs_ffmpeg`` or
        ``invalid_samples``.
    message
        The cause, in one sentence.
    """

    def __init__(self, type: ErrorType, message: str) -> None:  # noqa: A002  (the record's field name)
        super().__init__(type, message)
        self.type: ErrorType = type
        self.message = message

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


@dataclass(frozen=True, slots=True)
class Waveform:
    """The analysed start of a file.

    Parameters
    ----------
    samples
        Mono, shape (n,), float32, at the front end's sample rate and at most its `samples` many; neither
        normalised nor padded.
    sample_rate, channels
        Of the file; Hz.
    duration_sec
        Of the whole file, as its header has it where the file is longer than what is decoded.
    format
        Lower case: ``"wav"``, ``"flac"``, ``"m4a"`` …
    """

    samples: NDArray[np.float32]
    sample_rate: int
    channels: int
    duration_sec: float
    format: str


@dataclass(frozen=True, slots=True)
class _Start:
    """The start of a file, mixed to mono at the file's own rate; `frames` counts the whole file."""

    mono: NDArray[np.float32]
    sample_rate: int
    channels: int
    frames: int
    format: str


class Decoder:
    """Decodes files; one per process.

    Parameters
    ----------
    front_end
        Says which rate and how many samples are needed.
    lap
        Is told when a file has been decoded, and when resampled.
    """

    def __init__(self, front_end: FrontEnd, lap: Lap = no_lap) -> None:
        self.front_end = front_end
        self._lap = lap
        self._ffmpeg = shutil.which("ffmpeg")

    def decode(self, data: Buffer, path: bytes) -> Waveform:
        """Decode a file whose bytes are in memory.

        Parameters
        ----------
        data
            The whole file.
        path
            Where it lies, for ``ffmpeg``, which needs a file.

        Raises
        ------
        AudioError
            The file cannot be analysed.
        """
        with np.errstate(all="ignore"):
            start = self._plain_start(data)
            if start is None:
                _refuse_what_is_no_audio(bytes(data[:4]))
                start = self._coded_start(_Bytes(data), path)
            return self._waveform(start)

    def decode_path(self, path: bytes) -> Waveform:
        """Decode a file that is too big for memory.

        Raises
        ------
        AudioError
            The file cannot be analysed.
        OSError
            It cannot be read.
        """
        # By descriptor: soundfile takes a path that ends in .raw for headerless samples.
        with _opened(path) as file, np.errstate(all="ignore"):
            _refuse_what_is_no_audio(os.pread(file, 4, 0))
            return self._waveform(self._coded_start(file, path))

    def _plain_start(self, data: Buffer) -> _Start | None:
        pcm = parse_pcm(data)
        if pcm is None or pcm.frames == 0:
            return None
        mono = _mixed(pcm.read(self._frames_needed(pcm.sample_rate)))
        return _Start(mono, pcm.sample_rate, pcm.channels, pcm.frames, pcm.format)

    def _coded_start(self, source: _Bytes | int, path: bytes) -> _Start:
        try:
            with _silenced(), _Stream(source, closefd=False) as stream:
                return self._stream_start(stream)
        except soundfile.LibsndfileError as error:
            return self._ffmpeg_start(path, error)
        except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
            raise AudioError("decode_error", _one_line(error)) from error

    def _stream_start(self, stream: _Stream) -> _Start:
        rate, channels, frames = stream.samplerate, stream.channels, stream.frames
        needed = self._frames_needed(rate)
        mono = _read_mono(stream, needed)
        if len(mono) < needed:
            frames = len(mono)
        elif frames >= _UNKNOWN_FRAMES:
            frames = len(mono) + _count_frames(stream)
        return _Start(mono, rate, channels, frames, _format_name(stream.format, stream.subtype))

    def _ffmpeg_start(self, path: bytes, cause: soundfile.LibsndfileError) -> _Start:
        reason = _one_line(cause.error_string)
        if self._ffmpeg is None:
            if cause.code not in (_NOT_RECOGNISED, _UNKNOWN_ENCODING):
                raise AudioError("decode_error", f"libsndfile: {reason}") from cause
            way_out = "install ffmpeg so that it is on PATH (apt install ffmpeg, brew install ffmpeg)"
            raise AudioError("needs_ffmpeg", f"libsndfile: {reason}; {way_out}") from cause
        output, log = _run_bounded(self._ffmpeg_command(path))
        pcm = parse_pcm(output)
        if pcm is None:
            error_type: ErrorType = "unsupported_format" if cause.code == _NOT_RECOGNISED else "decode_error"
            raise AudioError(error_type, f"libsndfile: {reason}; ffmpeg cannot decode it either") from cause
        needed = self._frames_needed(pcm.sample_rate)
        mono, frames = _mixed(pcm.read(needed)), pcm.frames
        if len(mono) == needed:
            frames = max(frames, round(_duration_in_log(log) * pcm.sample_rate))
        return _Start(mono, pcm.sample_rate, pcm.channels, frames, _extension(path))

    def _ffmpeg_command(self, path: bytes) -> list[str | bytes]:
        """Return the command that writes the start of `path` as a float WAV file."""
        seconds = self.front_end.samples / self.front_end.sample_rate + _FFMPEG_MARGIN_S
        # A play list names addresses; without the white list ffmpeg would go there.
        options = ["-nostdin", "-hide_banner", "-nostats", "-threads", "1", "-protocol_whitelist", "file"]
        options += ["-timelimit", str(math.ceil(_FFMPEG_TIMEOUT_S))]  # should we be killed meanwhile
        output = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
        return [str(self._ffmpeg), *options, "-t", f"{seconds:.6f}", "-i", b"file:" + path, *output]

    def _frames_needed(self, sample_rate: int) -> int:
        """Return how many frames of a file at `sample_rate` decide the analysed samples."""
        if not _LOWEST_RATE <= sample_rate <= _HIGHEST_RATE:
            raise AudioError("decode_error", f"the header claims a sample rate of {sample_rate} Hz")
        if sample_rate == self.front_end.sample_rate:
            return self.front_end.samples
        ratio = sample_rate / self.front_end.sample_rate
        return math.ceil(self.front_end.samples * ratio) + math.ceil(_RESAMPLER_MARGIN * max(1.0, ratio))

    def _waveform(self, start: _Start) -> Waveform:
        mono = start.mono
        if not len(mono):
            raise AudioError("empty_audio", "the file has no samples")
        if not max(mono.max(), -mono.min()) < _LARGEST_MAGNITUDE:
            raise AudioError("invalid_samples", "the samples are not all finite numbers")
        self._lap(Step.DECODE)
        samples = self._resampled(mono, start.sample_rate)
        self._lap(Step.RESAMPLE)
        duration = start.frames / start.sample_rate
        return Waveform(samples, start.sample_rate, start.channels, duration, start.format)

    def _resampled(self, mono: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """Return `mono` at the front end's rate, as long as librosa's ceil(n · ratio), at most `samples`."""
        target, limit = self.front_end.sample_rate, self.front_end.samples
        if sample_rate == target:
            return mono[:limit]
        length = min(limit, math.ceil(len(mono) * target / sample_rate))
        resampled: NDArray[np.float32] = soxr.resample(mono, sample_rate, target, quality="HQ")[:length]
        if len(resampled) < length:
            resampled = np.pad(resampled, (0, length - len(resampled)))
        return resampled


def read_waveform(path: str | bytes | os.PathLike[str], front_end: FrontEnd) -> Waveform:
    """Decode one file; see `Decoder`."""
    return Decoder(front_end).decode_path(os.fsencode(path))


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is only read forwards: soundfile would seek after each read, and not all codecs can."""

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """A file in memory that stays where it is when libsndfile seeks before its start, as a file does."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with suppress(ValueError, OverflowError):
            return super().seek(offset, whence)
        return self.tell()


def _refuse_what_is_no_audio(magic: bytes) -> None:
    if not magic:
        raise AudioError("empty_audio", "the file has no bytes")
    if magic == _APPLE_DOUBLE:
        raise AudioError("unsupported_format", "macOS metadata (AppleDouble), not audio")


def _read_mono(stream: _Stream, needed: int) -> NDArray[np.float32]:
    """Return up to `needed` frames, fewer where the stream ends or is damaged, mixed to mono."""
    block_frames = min(_BLOCK_FRAMES, max(1, _BLOCK_VALUES // stream.channels))
    blocks = []
    with suppress(soundfile.LibsndfileError):
        while needed > 0:
            asked = min(needed, block_frames)
            block = stream.read(asked, dtype="float32", always_2d=True)
            blocks.append(_mixed(block))
            needed -= len(block)
            if len(block) < asked:
                break
    if not blocks:
        raise AudioError("decode_error", "the file is damaged from its first sample on")
    return np.concatenate(blocks)


def _count_frames(stream: _Stream) -> int:
    """Return how many frames are left, by decoding them; a lower bound where they are very many."""
    block = np.empty((max(1, _BLOCK_VALUES // stream.channels), stream.channels), np.float32)
    count = 0
    with suppress(soundfile.LibsndfileError):
        while count < _MOST_COUNTED and (read := len(stream.read(out=block))):
            count += read
    return count


def _mixed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the channels, shape (frames,), from (frames, channels)."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    # Thirty times faster than mean(axis=1), which is slow along a short axis.
    mono = samples[:, 0] + samples[:, 1]
    for channel in range(2, channels):
        mono += samples[:, channel]
    mono *= np.float32(1.0 / channels)
    return mono


def _format_name(container: str, subtype: str) -> str:
    """Return libsndfile's names as one short one."""
    if subtype == "OPUS":
        return "opus"
    return {"WAVEX": "wav"}.get(container, container.lower())


def _extension(path: bytes) -> str:
    return os.fsdecode(os.path.splitext(path)[1][1:]).lower() or "unknown"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _opened(path: bytes) -> Iterator[int]:
    # Without O_NONBLOCK, a named pipe would be waited for.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _silenced() -> Iterator[None]:
    """Send what C code prints to nowhere: libsndfile's decoders comment on damaged files, some on stdout."""
    try:
        saved = {stream: os.dup(stream) for stream in (1, 2)}
    except OSError:
        yield
        return
    _flush_c_streams()
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in saved:
            os.dup2(nowhere, stream)
        os.close(nowhere)
        yield
    finally:
        _flush_c_streams()
        for stream, copy in saved.items():
            os.dup2(copy, stream)
            os.close(copy)


def _flush_c_streams() -> None:
    # What stays in the C library's buffer would come out later.
    _C.fflush(None)


def _duration_in_log(log: bytes) -> float:
    """Return the duration that ffmpeg reports, in seconds, 0 where it knows none."""
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
        raise AudioError("decode_error", f"ffmpeg cannot be run: {_one_line(error.strerror)}") from error


def _drain(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Read both pipes until they end or the output is long enough; too late is an `AudioError`."""
    deadline = time.monotonic() + _FFMPEG_TIMEOUT_S
    received = {process.stdout: bytearray(), process.stderr: bytearray()}
    output, log = received.values()
    with selectors.DefaultSelector() as selector:
        for stream in received:
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, received[stream])
        while selector.get_map() and len(output) < _FFMPEG_OUTPUT_BYTES:
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0.0 else []
            if not ready:
                raise AudioError("decode_error", f"ffmpeg did not end within {_FFMPEG_TIMEOUT_S:g} s")
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                key.data.extend(chunk)
                del log[_FFMPEG_LOG_BYTES:]
                if not chunk:
                    selector.unregister(key.fileobj)
    return bytes(output), bytes(log)
