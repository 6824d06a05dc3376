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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from drumline.ffmpeg import HEAD_BYTES, Ffmpeg, FfmpegError, may_be_read
from drumline.frontend import FrontEnd
from drumline.laps import Lap, Step, no_lap
from drumline.pcm import Buffer, Mixer, Mono, mix, parse_pcm, pcm_kernel
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

    mono: Mono
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
        self._mixer = Mixer(pcm_kernel())
        self._ffmpeg = Ffmpeg.installed(front_end.samples / front_end.sample_rate)

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
                start = self._coded_start(_Bytes(data), bytes(data[:HEAD_BYTES]), path)
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
            return self._waveform(self._coded_start(file, os.pread(file, HEAD_BYTES, 0), path))

    def _plain_start(self, data: Buffer) -> _Start | None:
        pcm = parse_pcm(data)
        if pcm is None or pcm.frames == 0:
            return None
        mono = self._mixer(pcm, self._frames_needed(pcm.sample_rate))
        return _Start(mono, pcm.sample_rate, pcm.channels, pcm.frames, pcm.format)

    def _coded_start(self, source: _Bytes | int, head: bytes, path: bytes) -> _Start:
        _refuse_what_is_no_audio(head)
        try:
            with _silenced(), _Stream(source, closefd=False) as stream:
                return self._stream_start(stream)
        except soundfile.LibsndfileError as error:
            return self._ffmpeg_start(head, path, error)
        except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
            raise AudioError("decode_error", _one_line(error)) from error

    def _stream_start(self, stream: _Stream) -> _Start:
        rate, channels, frames = stream.samplerate, stream.channels, stream.frames
        needed = self._frames_needed(rate)
        mono = _read_mono(stream, needed)
        if len(mono.samples) < needed:
            frames = len(mono.samples)
        elif frames >= _UNKNOWN_FRAMES:
            frames = len(mono.samples) + _count_frames(stream)
        return _Start(mono, rate, channels, frames, _format_name(stream.format, stream.subtype))

    def _ffmpeg_start(self, head: bytes, path: bytes, cause: soundfile.LibsndfileError) -> _Start:
        reason = f"libsndfile: {_one_line(cause.error_string)}"
        if not may_be_read(head, path):
            raise AudioError(_refusal(cause), reason) from cause
        if self._ffmpeg is None:
            if cause.code not in (_NOT_RECOGNISED, _UNKNOWN_ENCODING):
                raise AudioError("decode_error", reason) from cause
            way_out = "install ffmpeg so that it is on PATH (apt install ffmpeg, brew install ffmpeg)"
            raise AudioError("needs_ffmpeg", f"{reason}; {way_out}") from cause
        try:
            decoded = self._ffmpeg.decode(path)
        except FfmpegError as error:
            raise AudioError("decode_error", str(error)) from error
        pcm = parse_pcm(decoded.wav)
        if pcm is None:
            raise AudioError(_refusal(cause), f"{reason}; ffmpeg cannot decode it either") from cause
        needed = self._frames_needed(pcm.sample_rate)
        mono, frames = self._mixer(pcm, needed), pcm.frames
        if len(mono.samples) == needed:
            frames = max(frames, round(decoded.duration_sec * pcm.sample_rate))
        return _Start(mono, pcm.sample_rate, pcm.channels, frames, _extension(path))

    def _frames_needed(self, sample_rate: int) -> int:
        """Return how many frames of a file at `sample_rate` decide the analysed samples."""
        if not _LOWEST_RATE <= sample_rate <= _HIGHEST_RATE:
            raise AudioError("decode_error", f"the header claims a sample rate of {sample_rate} Hz")
        if sample_rate == self.front_end.sample_rate:
            return self.front_end.samples
        ratio = sample_rate / self.front_end.sample_rate
        return math.ceil(self.front_end.samples * ratio) + math.ceil(_RESAMPLER_MARGIN * max(1.0, ratio))

    def _waveform(self, start: _Start) -> Waveform:
        mono, peak = start.mono
        if not len(mono):
            raise AudioError("empty_audio", "the file has no samples")
        if not math.isfinite(peak):
            raise AudioError("invalid_samples", "the samples are not all finite numbers")
        if peak >= _LARGEST_MAGNITUDE:
            raise AudioError("invalid_samples", f"the samples reach {peak:.3g}, where full scale is 1")
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


def _refuse_what_is_no_audio(head: bytes) -> None:
    if not head:
        raise AudioError("empty_audio", "the file has no bytes")
    if head.startswith(_APPLE_DOUBLE):
        raise AudioError("unsupported_format", "macOS metadata (AppleDouble), not audio")


def _refusal(cause: soundfile.LibsndfileError) -> ErrorType:
    return "unsupported_format" if cause.code == _NOT_RECOGNISED else "decode_error"


def _read_mono(stream: _Stream, needed: int) -> Mono:
    """Return up to `needed` frames, fewer where the stream ends or is damaged, mixed to mono."""
    block_frames = min(_BLOCK_FRAMES, max(1, _BLOCK_VALUES // stream.channels))
    blocks = []
    with suppress(soundfile.LibsndfileError):
        while needed > 0:
            asked = min(needed, block_frames)
            block = stream.read(asked, dtype="float32", always_2d=True)
            blocks.append(mix(block))
            needed -= len(block)
            if len(block) < asked:
                break
    if not blocks:
        raise AudioError("decode_error", "the file is damaged from its first sample on")
    samples = np.concatenate([block.samples for block in blocks])
    return Mono(samples, float(np.max([block.peak for block in blocks])))


def _count_frames(stream: _Stream) -> int:
    """Return how many frames are left, by decoding them; a lower bound where they are very many."""
    block = np.empty((max(1, _BLOCK_VALUES // stream.channels), stream.channels), np.float32)
    count = 0
    with suppress(soundfile.LibsndfileError):
        while count < _MOST_COUNTED and (read := len(stream.read(out=block))):
            count += read
    return count


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
