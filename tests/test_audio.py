"""`drumline.audio` gives the waveform of librosa.load, and an `AudioError` for what cannot be read."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import re
import shutil
import struct
import subprocess
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drumline import ffmpeg
from drumline.audio import AudioError, Decoder, Waveform, read_waveform
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from tests import librosa_reference as reference
from tests.librosa_reference import drum, encoded

FRONT_END = FrontEnd()
LENGTHS = (1, 2, 511, 512, 513, 2047, 2048, 49_999, 50_000, 50_001, 200_000)
RATES = (8000, 11_025, 22_050, 44_100, 48_000, 88_200, 96_000, 192_000)
CODED = [
    ("FLAC", "PCM_16", "flac"),
    ("FLAC", "PCM_24", "flac"),
    ("OGG", "VORBIS", "ogg"),
    ("OGG", "OPUS", "opus"),
    ("MP3", "MPEG_LAYER_III", "mp3"),
    ("CAF", "PCM_16", "caf"),
    ("CAF", "ALAC_16", "caf"),
    ("AU", "PCM_16", "au"),
    ("RF64", "PCM_24", "rf64"),
    ("W64", "FLOAT", "w64"),
    ("WAV", "ULAW", "wav"),
    ("WAV", "ALAW", "wav"),
    ("WAV", "MS_ADPCM", "wav"),
    ("WAV", "IMA_ADPCM", "wav"),
    ("WAVEX", "FLOAT", "wav"),
    ("AIFF", "ULAW", "aiff"),
    ("AIFF", "PCM_U8", "aiff"),
]
DETAILS = {"WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"), "AIFF": ("PCM_S8", "PCM_24")}
PLAIN = [(container, subtype, container.lower()) for container in DETAILS for subtype in DETAILS[container]]


@pytest.fixture
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a shell script as the ``ffmpeg`` on PATH."""

    def install(script: str) -> Decoder:
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        return Decoder(FRONT_END)

    return install


def decode(data: bytes, front_end: FrontEnd = FRONT_END, path: bytes = b"/nowhere") -> Waveform:
    return Decoder(front_end).decode(data, path)


def error_type(data: bytes) -> str:
    with pytest.raises(AudioError) as raised:
        decode(data)
    assert str(raised.value) == f"{raised.value.type}: {raised.value.message}"
    return raised.value.type


def assert_equals_librosa(data: bytes, front_end: FrontEnd = FRONT_END) -> Waveform:
    waveform = decode(data, front_end)
    expected = reference.load(data, front_end)
    assert waveform.samples.dtype == np.float32
    assert len(waveform.samples) == len(expected)
    np.testing.assert_allclose(waveform.samples, expected, rtol=0, atol=3e-7)
    return waveform


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", RATES)
def test_every_rate_length_and_channel_count_equals_librosa(rate: int, channels: int) -> None:
    for frames in LENGTHS:
        waveform = assert_equals_librosa(encoded(drum(frames, channels), rate, "WAV", "PCM_16"))
        assert (waveform.sample_rate, waveform.channels) == (rate, channels)
        assert waveform.duration_sec == pytest.approx(frames / rate)


@pytest.mark.parametrize(("container", "subtype", "name"), PLAIN + CODED)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_equals_librosa(container: str, subtype: str, name: str, channels: int) -> None:
    for frames, rate in ((1, 48_000), (513, 48_000), (30_000, 24_000), (70_000, 48_000)):
        if subtype == "OPUS" or rate == 48_000 or container != "MP3":
            waveform = assert_equals_librosa(encoded(drum(frames, channels), rate, container, subtype))
            assert (waveform.format, waveform.sample_rate, waveform.channels) == (name, rate, channels)


@pytest.mark.parametrize("target", [8000, 16_000, 22_050, 48_000])
def test_every_target_rate_equals_librosa(target: int) -> None:
    front_end = FrontEnd(sample_rate=target, samples=target // 3, n_fft=512)
    for rate in (8000, 44_100, 96_000):
        assert_equals_librosa(encoded(drum(rate), rate, "WAV", "PCM_24"), front_end)


@pytest.mark.parametrize(
    ("container", "subtype", "rates"),
    [
        ("WAV", "PCM_16", (8000, 16_000, 44_100, 48_000, 96_000, 192_000)),
        ("FLAC", "PCM_24", (8000, 44_100, 48_000, 192_000)),
        ("OGG", "VORBIS", (8000, 44_100, 48_000)),
        ("OGG", "OPUS", (8000, 48_000)),
        ("MP3", "MPEG_LAYER_III", (8000, 44_100, 48_000)),
    ],
)
def test_features_of_every_format_rate_and_length_equal_librosa(
    container: str, subtype: str, rates: tuple[int, ...]
) -> None:
    extractor, out = FeatureExtractor(FRONT_END), np.empty(FRONT_END.shape, np.float32)
    for rate, frames in itertools.product(rates, (1, 512, 2047, 50_001, 200_000)):
        data = encoded(drum(frames, 2), rate, container, subtype)
        found = extractor.extract(decode(data).samples, out)
        loaded = reference.load(data, FRONT_END)
        expected = reference.features(loaded, FRONT_END)
        np.testing.assert_allclose(out, expected, rtol=0, atol=reference.MAX_DIFFERENCE_DB)
        expected_analysis = reference.analysis(loaded, FRONT_END)
        reference.assert_same_analysis(found, expected_analysis)


def test_recordings_equal_librosa() -> None:
    for path in reference.recordings(every=200):
        assert_equals_librosa(path.read_bytes())


@pytest.mark.parametrize(("container", "subtype", "name"), PLAIN + CODED)
def test_a_file_read_by_path_equals_its_bytes(
    container: str, subtype: str, name: str, tmp_path: Path
) -> None:
    data = encoded(drum(60_000, 2), 48_000, container, subtype)
    path = tmp_path / "drum.raw"  # soundfile takes this ending for headerless samples
    path.write_bytes(data)
    by_path, by_bytes = read_waveform(path, FRONT_END), decode(data)
    np.testing.assert_array_equal(by_path.samples, by_bytes.samples)
    for field in ("sample_rate", "channels", "duration_sec", "format"):
        assert getattr(by_path, field) == getattr(by_bytes, field)


@pytest.mark.parametrize("wrap", [bytearray, memoryview])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_any_buffer_can_be_decoded(wrap: type, container: str) -> None:
    data = encoded(drum(1000), 44_100, container, "PCM_16")
    np.testing.assert_array_equal(decode(wrap(data)).samples, decode(data).samples)


@pytest.mark.parametrize(
    ("container", "subtype"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")]
)
def test_a_long_file_is_decoded_only_at_its_start(container: str, subtype: str) -> None:
    seconds = 60
    data = encoded(np.tile(drum(48_000), (seconds, 1)), 48_000, container, subtype)
    tracemalloc.start()
    try:
        waveform = decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert waveform.duration_sec == pytest.approx(seconds, abs=0.1)
    assert len(waveform.samples) == FRONT_END.samples


def test_frames_that_a_flac_header_does_not_know_are_counted() -> None:
    data = bytearray(encoded(drum(100_000), 44_100, "FLAC", "PCM_16"))
    data[8 + 13] &= 0xF0
    data[8 + 14 : 8 + 18] = bytes(4)
    waveform = decode(bytes(data))
    assert waveform.duration_sec == pytest.approx(100_000 / 44_100)
    assert len(waveform.samples) == 50_000


def test_frames_that_a_header_claims_and_the_file_lacks_do_not_count() -> None:
    data = bytearray(encoded(drum(10_000), 44_100, "FLAC", "PCM_16"))
    data[8 + 13] |= 0x0F
    data[8 + 14 : 8 + 18] = b"\xff" * 4
    assert decode(bytes(data)).duration_sec == pytest.approx(10_000 / 44_100)


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")]
)
def test_the_whole_part_of_a_truncated_file_is_analysed(container: str, subtype: str) -> None:
    data = encoded(drum(40_000), 44_100, container, subtype)
    whole, part = decode(data), decode(data[: 3 * len(data) // 4])
    frames = len(part.samples)
    assert 10_000 < frames < 40_000
    assert part.duration_sec == pytest.approx(frames / 44_100)
    np.testing.assert_allclose(part.samples[: frames - 2000], whole.samples[: frames - 2000], atol=1e-3)


@pytest.mark.usefixtures("no_ffmpeg")
@pytest.mark.parametrize(("container", "subtype", "name"), PLAIN + CODED)
def test_a_file_cut_anywhere_gives_a_waveform_or_an_audio_error(
    container: str, subtype: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(drum(3000, 2), 48_000, container, subtype)
    for end in np.linspace(0, len(data) - 1, 25).astype(int):
        with contextlib.suppress(AudioError):
            assert 0 < len(decode(data[:end]).samples) <= FRONT_END.samples
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_ffmpeg")
@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.sampled_from(PLAIN + CODED),
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5),
)
def test_damaged_bytes_give_a_waveform_or_an_audio_error(
    form: tuple[str, str, str], damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(encoded(drum(800, 2), 48_000, *form[:2]))
    for position, value in damage:
        data[position : position + len(value)] = value
    try:
        waveform = decode(bytes(data))
    except AudioError:
        return
    assert np.isfinite(waveform.samples).all()
    assert 0 < len(waveform.samples) <= FRONT_END.samples
    assert math.isfinite(waveform.duration_sec)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"ID3", b"caff"])
)
def test_bytes_that_are_no_audio_give_an_audio_error(junk: bytes, magic: bytes) -> None:
    decoder = Decoder(FRONT_END)
    decoder._ffmpeg = None
    with contextlib.suppress(AudioError):
        decoder.decode(magic + junk, b"/nowhere")


@pytest.mark.usefixtures("no_ffmpeg")
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("empty_audio", b""),
        ("empty_audio", encoded(drum(1)[:0], 44_100, "WAV", "PCM_16")),
        ("empty_audio", encoded(drum(1)[:0], 44_100, "AIFF", "PCM_24")),
        ("empty_audio", encoded(drum(1)[:0], 44_100, "CAF", "PCM_16")),
        ("needs_ffmpeg", b"\0\0\0\x20ftypM4A " + bytes(200)),
        ("unsupported_format", b"hello"),
        ("unsupported_format", bytes.fromhex("0005160700020000") + bytes(100)),
        ("decode_error", encoded(drum(9), 44_100, "WAV", "PCM_16")[:40]),
        ("decode_error", encoded(drum(9), 44_100, "FLAC", "PCM_16")[:60]),
        ("decode_error", encoded(drum(9), 7, "WAV", "PCM_16")),
        ("decode_error", encoded(drum(9), 1_000_000_000, "WAV", "PCM_16")),
        ("decode_error", encoded(drum(9), 50, "AU", "PCM_16")),
        ("invalid_samples", encoded(np.array([0.0, np.nan]), 44_100, "WAV", "FLOAT")),
        ("invalid_samples", encoded(np.array([[0.0, np.inf], [0.0, -np.inf]]), 44_100, "WAV", "FLOAT")),
        ("invalid_samples", encoded(np.array([[np.inf, -np.inf]]), 48_000, "AIFF", "DOUBLE")),
        ("invalid_samples", encoded(np.array([0.0, 1e300]), 44_100, "WAV", "DOUBLE")),
        ("invalid_samples", encoded(np.array([0.0, np.nan]), 44_100, "AU", "FLOAT")),
    ],
)
def test_what_cannot_be_analysed_has_its_error_type(kind: str, data: bytes) -> None:
    assert error_type(data) == kind


@pytest.mark.parametrize(("largest", "told"), [(1e25, "reach 1e+25"), (np.inf, "not all finite")])
def test_samples_beyond_all_measure_are_told_from_what_is_no_number(largest: float, told: str) -> None:
    with pytest.raises(AudioError, match=re.escape(told)):
        decode(encoded(np.array([0.0, largest]), 44_100, "WAV", "FLOAT"))


@pytest.mark.usefixtures("no_ffmpeg")
def test_without_ffmpeg_the_error_says_how_to_get_it() -> None:
    with pytest.raises(AudioError, match="install ffmpeg"):
        decode(b"\0\0\0\x20ftypM4A " + bytes(200))


def test_a_wrong_block_size_is_read_as_libsndfile_reads_it() -> None:
    data = bytearray(encoded(drum(1000), 44_100, "WAV", "PCM_16"))
    data[32:34] = struct.pack("<H", 8)
    try:
        expected = reference.load(bytes(data), FRONT_END)
    except soundfile.LibsndfileError:
        assert error_type(bytes(data)) == "decode_error"
    else:
        np.testing.assert_array_equal(decode(bytes(data)).samples, expected)


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_a_path_that_is_no_file_is_an_os_error_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match=r"\[Errno"):
        read_waveform(path, FRONT_END)


def test_a_name_that_is_no_unicode_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/kick \xff\xfe.flac"
    try:
        Path(os.fsdecode(path)).write_bytes(encoded(drum(100), 44_100, "FLAC", "PCM_16"))
    except OSError:
        pytest.skip("this file system knows only Unicode names")
    assert len(read_waveform(path, FRONT_END).samples) == 100


@pytest.mark.usefixtures("no_ffmpeg")
def test_neither_good_nor_bad_files_leave_descriptors_open(tmp_path: Path) -> None:
    good = encoded(drum(100), 44_100, "FLAC", "PCM_16")
    path = tmp_path / "drum.flac"
    before = len(os.listdir("/dev/fd"))
    for data in (good, good[:50], b"junk") * 5:
        path.write_bytes(data)
        for read in (lambda: decode(data), lambda: read_waveform(path, FRONT_END)):  # noqa: B023
            with contextlib.suppress(AudioError):
                read()
    assert len(os.listdir("/dev/fd")) == before


def test_what_the_decoder_prints_is_kept_from_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(drum(20_000), 44_100, "MP3", "MPEG_LAYER_III"))
    data[1000:1200] = bytes(200)
    decode(bytes(data[:-700]))
    os.write(2, b"stderr works")
    assert capfd.readouterr() == ("", "stderr works")


def test_what_the_decoder_prints_does_not_get_into_what_a_program_reads(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Libsndfile prints a line on stdout for each bad block of an SDS file, by the C library's buffer."""
    data = bytearray(encoded(drum(20_000), 44_100, "SDS", "PCM_16"))
    for place in range(100, len(data), 50):
        data[place] ^= 0x7F
    with contextlib.suppress(AudioError):
        decode(bytes(data))
    ctypes.CDLL(None).fflush(None)
    os.write(1, b"stdout works")
    assert capfd.readouterr() == ("stdout works", "")


def wav_of_codec(tag: int, before: bytes = b"") -> bytes:
    chunks = b"WAVE" + before + b"fmt \x10\0\0\0" + struct.pack("<HHIIHH", tag, 2, 44_100, 176_400, 4, 16)
    chunks += b"data" + struct.pack("<I", 320) + b"\x55" * 320
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def m4a(path: Path, samples: NDArray[np.float64]) -> Path:
    soundfile.write(path.with_suffix(".wav"), samples, 44_100)
    command = [
        "ffmpeg",
        "-y",
        "-v",
        "error",
        "-nostdin",
        "-i",
        path.with_suffix(".wav"),
        "-c:a",
        "alac",
        path,
    ]
    subprocess.run(command, check=True, timeout=30)
    return path


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("frames", [2000, 50_000, 150_000])
def test_an_m4a_file_is_decoded_by_ffmpeg(frames: int, tmp_path: Path) -> None:
    samples = drum(frames, 2)
    path = m4a(tmp_path / "-kick %d [1].m4a", samples)
    waveform = decode(path.read_bytes(), path=os.fsencode(path))
    expected = decode(path.with_suffix(".wav").read_bytes())
    np.testing.assert_allclose(waveform.samples, expected.samples, atol=1e-6)
    assert (waveform.sample_rate, waveform.channels, waveform.format) == (44_100, 2, "m4a")
    assert waveform.duration_sec == pytest.approx(frames / 44_100, abs=0.01)
    np.testing.assert_array_equal(read_waveform(path, FRONT_END).samples, waveform.samples)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_what_neither_library_nor_ffmpeg_reads_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "note.wav"
    path.write_text("this is no audio\n" * 10)
    with pytest.raises(AudioError, match="unsupported_format"):
        read_waveform(path, FRONT_END)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"this is no audio\n" * 10, id="text"),
        pytest.param(bytes(5000), id="zeros"),
        pytest.param(b"<!DOCTYPE html><html>", id="html"),
        pytest.param(b"RIFF\x24\x10\0\0WAVEfmt \x10\0", id="cut in the format chunk"),
        pytest.param(b"RIFF\x24\x10\0\0WAVE", id="no format chunk"),
        pytest.param(wav_of_codec(0x7A7A), id="codec that nobody knows"),
    ],
)
def test_ffmpeg_is_not_started_for_what_it_cannot_read(fake_ffmpeg, tmp_path: Path, data: bytes) -> None:
    decoder = fake_ffmpeg(f"touch {tmp_path}/started")
    with pytest.raises(AudioError, match=r"unsupported_format|decode_error"):
        decoder.decode(data, b"/archive/kick.wav")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x20ftypM4A " + bytes(200), b"kick.wav"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(200), b"kick.wav"),
        (b"\xff\xf1" + bytes(200), b"kick.wav"),
        (b"no mark that anybody knows", b"kick.DSF"),
        (b"no mark that anybody knows", b"kick.tak"),
        (bytes(700) + b"\xff\xfb", b"kick.wav"),
        (b"\n\xff\xfb", b"kick.mp3"),
        (b"\x7f\xfe\x80\x01", b"kick.wav"),
        (wav_of_codec(0x00FF), b"kick.wav"),
        (wav_of_codec(0x0160), b"kick.wav"),
        (wav_of_codec(0x0160, before=b"JUNK\x03\0\0\0abc\0"), b"kick.wav"),
        (wav_of_codec(0x0160, before=b"JUNK\0\x20\0\0" + bytes(0x2000)), b"kick.wav"),
    ],
    ids=[
        "m4a",
        "wma",
        "adts",
        "by its name",
        "a name of the user's",
        "mpeg behind zeros",
        "mpeg behind a byte",
        "dts",
        "aac in wav",
        "wma in wav",
        "after a chunk",
        "after a long chunk",
    ],
)
def test_ffmpeg_is_started_for_what_it_may_read(
    fake_ffmpeg, tmp_path: Path, data: bytes, name: bytes
) -> None:
    decoder = fake_ffmpeg(f"touch {tmp_path}/started")
    with pytest.raises(AudioError, match="ffmpeg cannot decode it either"):
        decoder.decode(data, b"/archive/" + name)
    assert (tmp_path / "started").exists()


def test_ffmpeg_gets_the_file_and_the_length_it_needs(fake_ffmpeg, tmp_path: Path) -> None:
    wav = tmp_path / "answer.wav"
    samples = drum(150_000, 2)
    wav.write_bytes(encoded(samples, 48_000, "WAV", "FLOAT"))
    arguments = tmp_path / "arguments"
    decoder = fake_ffmpeg(
        f'printf "%s\\n" "$@" > {arguments}; echo "  Duration: 00:01:02.50, start" >&2; cat {wav}'
    )
    waveform = decoder.decode(b"not known", b"/archive/kick.WMA")
    expected = decode(wav.read_bytes())
    np.testing.assert_array_equal(waveform.samples, expected.samples)
    assert (waveform.format, waveform.channels, waveform.duration_sec) == ("wma", 2, 62.5)
    given_arguments = arguments.read_text().split("\n")
    assert {"file:/archive/kick.WMA", "-nostdin", "pipe:1"} <= set(given_arguments)
    assert 1.0 < float(given_arguments[given_arguments.index("-t") + 1]) < 5.0


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "kill -9 $$", "echo broken >&2"])
def test_an_ffmpeg_that_fails_is_an_audio_error(fake_ffmpeg, script: str) -> None:
    with pytest.raises(AudioError, match="ffmpeg cannot decode it either"):
        fake_ffmpeg(script).decode(b"not known", b"/archive/kick.wma")


def test_an_ffmpeg_that_cannot_be_started_is_an_audio_error(fake_ffmpeg) -> None:
    decoder = fake_ffmpeg("exit 0")
    Path(shutil.which("ffmpeg")).unlink()
    with pytest.raises(AudioError, match="cannot be run"):
        decoder.decode(b"not known", b"/archive/kick.wma")


def test_an_ffmpeg_that_hangs_is_stopped_in_time(fake_ffmpeg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "_TIMEOUT_S", 0.3)
    decoder = fake_ffmpeg("exec sleep 60")
    started = time.monotonic()
    with pytest.raises(AudioError, match="did not end"):
        decoder.decode(b"not known", b"/archive/kick.wma")
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_an_ffmpeg_that_writes_for_ever_is_stopped(
    fake_ffmpeg, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(ffmpeg, "_OUTPUT_BYTES", 1 << 20)
    monkeypatch.setattr(ffmpeg, "_TIMEOUT_S", 1.0)
    decoder = fake_ffmpeg(f"exec yes {stream}")
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(AudioError):
            decoder.decode(b"not known", b"/archive/kick.wma")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 3.0
