"""`drumline.pcm` reads plain WAV and AIFF as libsndfile does, and believes no header."""

from __future__ import annotations

import math
import struct
import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drumline.audio import _Bytes
from drumline.pcm import Mixer, parse_pcm, pcm_kernel
from tests.librosa_reference import drum, encoded

PLAIN = [
    (container, subtype)
    for container in ("WAV", "WAVEX", "AIFF")
    for subtype in ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
    if soundfile.check_format(container, subtype) and (container, subtype) != ("AIFF", "PCM_U8")
]
ENDLESS = 10**9


def by_soundfile(data: bytes) -> tuple[NDArray[np.float32], int]:
    samples, rate = soundfile.read(_Bytes(data), dtype="float32", always_2d=True)
    return samples, rate


def assert_equals_soundfile(data: bytes) -> None:
    pcm = parse_pcm(data)
    assert pcm is not None
    expected, rate = by_soundfile(data)
    assert (pcm.sample_rate, pcm.channels, pcm.frames) == (rate, expected.shape[1], len(expected))
    np.testing.assert_array_equal(pcm.read(ENDLESS), expected)


def chunk(name: bytes, content: bytes, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    return name + struct.pack("<I", size) + content + b"\0" * (len(content) % 2)


def fmt(
    tag: int = 1, channels: int = 1, rate: int = 44_100, bits: int = 16, block: int | None = None
) -> bytes:
    block = channels * bits // 8 if block is None else block
    bytes_per_second = min(rate * block, 2**32 - 1)
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, bytes_per_second, block, bits))


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


SAMPLES = np.arange(-50, 50, dtype="<i2").tobytes()
DATA = chunk(b"data", SAMPLES)
LIST = chunk(b"LIST", b"INFOISFT\x05\0\0\0drum\0")

READ_AS_SOUNDFILE_DOES = {
    "a chunk before the data": riff(fmt(), LIST, DATA),
    "a chunk before the format": riff(LIST, fmt(), DATA),
    "chunks after the data": riff(fmt(), DATA, LIST, chunk(b"smpl", bytes(60))),
    "a chunk of odd length": riff(fmt(), chunk(b"junk", b"abc"), DATA),
    "the same odd chunk many times": riff(fmt(), *[chunk(b"junk", b"abc")] * 50, DATA),
    "a chunk after the data that claims 4 GB": riff(fmt(), DATA, chunk(b"LIST", b"x", 2**32 - 1)),
    "data that claim 4 GB": riff(fmt(), chunk(b"data", SAMPLES, 2**32 - 1)),
    "data that claim one byte more": riff(fmt(), chunk(b"data", SAMPLES, len(SAMPLES) + 1)),
    "data cut in the middle of a frame": riff(fmt(channels=2), chunk(b"data", SAMPLES, 4000))[:-3],
    "data of an odd length": riff(fmt(bits=8), chunk(b"data", SAMPLES[:51])),
    "data of zero length": riff(fmt(), chunk(b"data", b"")),
    "a long format chunk": riff(chunk(b"fmt ", fmt()[8:] + bytes(2)), DATA),
    "a RIFF size of zero": b"RIFF\0\0\0\0" + riff(fmt(), DATA)[8:],
    "a RIFF size of 4 GB": b"RIFF\xff\xff\xff\xff" + riff(fmt(), DATA)[8:],
    "a wrong byte rate": riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 44_100, 7, 2, 16)), DATA),
    "six channels": riff(fmt(channels=6), chunk(b"data", SAMPLES[:192])),
    "a high rate": riff(fmt(rate=384_000), DATA),
}
LEFT_TO_LIBSNDFILE = {
    "no bytes": b"",
    "one byte": b"R",
    "only the first header": riff(),
    "no format": riff(DATA),
    "no data": riff(fmt()),
    "data before the format": riff(DATA, fmt()),
    "two data chunks": riff(fmt(), DATA, DATA),
    "two formats": riff(fmt(), fmt(channels=2), DATA),
    "a second data chunk cut in its header": riff(fmt(), DATA, b"data\x04"),
    "no channels": riff(fmt(channels=0), DATA),
    "65,535 channels": riff(fmt(channels=65_535, block=0), DATA),
    "0 Hz": riff(fmt(rate=0), DATA),
    "0 bits": riff(fmt(bits=0), DATA),
    "13 bits": riff(fmt(bits=13, block=2), DATA),
    "24 bits in 32": riff(fmt(bits=24, block=4), DATA),
    "16-bit floats": riff(fmt(tag=3), DATA),
    "a block size of 0": riff(fmt(block=0), DATA),
    "ADPCM": riff(fmt(tag=2, bits=4, block=256), DATA),
    "an extensible format that is too short": riff(fmt(tag=0xFFFE), DATA),
    "an unknown subformat": riff(chunk(b"fmt ", fmt(tag=0xFFFE)[8:] + bytes(24)), DATA),
    "a format chunk that claims 2 bytes": riff(chunk(b"fmt ", b"\1\0"), DATA),
    "a format chunk cut by the end": riff(fmt())[:30],
    "a thousand and more chunks": riff(fmt(), *[chunk(b"junk", b"")] * 2000, DATA),
    "big-endian RIFX": b"RIFX" + riff(fmt(), DATA)[4:],
    "RF64": b"RF64" + riff(fmt(), DATA)[4:],
}


@pytest.mark.parametrize(("container", "subtype"), PLAIN)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_plain_encoding_equals_soundfile_sample_for_sample(
    container: str, subtype: str, channels: int
) -> None:
    for frames in (1, 2, 511, 5000):
        assert_equals_soundfile(encoded(drum(frames, channels, loudest=1.0), 48_000, container, subtype))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_the_extremes_of_the_scale_equal_soundfile(subtype: str) -> None:
    assert_equals_soundfile(encoded(np.array([-1.0, 1.0, 0.0, -1e-9, 0.5]), 44_100, "WAV", subtype))


@pytest.mark.parametrize("data", READ_AS_SOUNDFILE_DOES.values(), ids=READ_AS_SOUNDFILE_DOES)
def test_odd_but_readable_headers_equal_soundfile(data: bytes) -> None:
    assert_equals_soundfile(data)


@pytest.mark.parametrize("data", LEFT_TO_LIBSNDFILE.values(), ids=LEFT_TO_LIBSNDFILE)
def test_what_is_not_plain_is_left_to_libsndfile(data: bytes) -> None:
    assert parse_pcm(data) is None


@pytest.mark.parametrize(
    ("compression", "order"),
    [(b"NONE", ">"), (b"twos", ">"), (b"sowt", "<"), (b"fl32", None), (b"ima4", None)],
)
def test_aiff_c_byte_orders_equal_soundfile(compression: bytes, order: str | None) -> None:
    values = np.arange(-60, 60, dtype=f"{order}i2" if order else ">f4")
    bits = 8 * values.itemsize
    rate = struct.pack(">HQ", 16383 + 15, 44_100 << 48)
    comm = struct.pack(">HIH", 2, 60, bits) + rate + compression + b"\0\0"
    ssnd = bytes(8) + values.tobytes()
    body = b"AIFC" + b"COMM" + struct.pack(">I", len(comm)) + comm
    body += b"SSND" + struct.pack(">I", len(ssnd)) + ssnd
    data = b"FORM" + struct.pack(">I", len(body)) + body
    if compression == b"ima4":
        assert parse_pcm(data) is None
    else:
        assert_equals_soundfile(data)


@pytest.mark.parametrize(
    "exponent", [0, 1, 16383, 16383 + 14, 16383 + 24, 16383 + 63, 16383 + 64, 32767, 65535]
)
def test_an_aiff_rate_that_is_no_rate_is_left_to_libsndfile(exponent: int) -> None:
    data = bytearray(encoded(drum(10), 44_100, "AIFF", "PCM_16"))
    position = data.index(b"COMM") + 16
    data[position : position + 2] = struct.pack(">H", exponent)
    pcm = parse_pcm(bytes(data))
    assert pcm is None or 0 < pcm.sample_rate < 2**24


def test_only_the_frames_asked_for_are_read() -> None:
    data = encoded(drum(1000, 2), 44_100, "WAV", "PCM_24")
    pcm = parse_pcm(data)
    assert pcm is not None
    np.testing.assert_array_equal(pcm.read(10), by_soundfile(data)[0][:10])
    assert pcm.read(0).shape == (0, 2)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_parsed(wrap: Any) -> None:
    data = encoded(drum(100, 2), 44_100, "AIFF", "PCM_24")
    pcm = parse_pcm(wrap(data))
    assert pcm is not None
    np.testing.assert_array_equal(pcm.read(ENDLESS), by_soundfile(data)[0])


@pytest.mark.parametrize("channels", [1, 2, 64])
def test_memory_follows_the_bytes_that_are_there_not_the_claim(channels: int) -> None:
    data = riff(fmt(channels=channels, bits=24), chunk(b"data", bytes(192), 2**32 - 1))
    tracemalloc.start()
    try:
        pcm = parse_pcm(data)
        assert pcm is not None
        pcm.read(ENDLESS)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


def test_a_large_file_of_empty_chunks_ends_at_once() -> None:
    assert parse_pcm(riff(bytes(8) * 2_000_000)) is None


HEADER_WORDS = st.sampled_from(
    [
        b"\xff\xff\xff\xff",
        bytes(4),
        b"\xff\xff\xff\x7f",
        b"data",
        b"fmt ",
        b"COMM",
        b"SSND",
        b"LIST",
        b"\2\0\0\0",
    ]
)
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.integers(0, 89), st.binary(min_size=1, max_size=1)),
        st.tuples(st.just("word"), st.integers(0, 86), HEADER_WORDS),
        st.tuples(
            st.just("insert"), st.integers(12, 60), st.sampled_from([LIST, DATA, b"\0", b"fact\0\0\0\0"])
        ),
        st.tuples(st.just("cut"), st.integers(0, 200), st.just(b"")),
    ),
    max_size=4,
)


def mutated(data: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for kind, position, value in mutations:
        tail = position if kind == "insert" else position + len(value)
        data = data[:position] + value + (b"" if kind == "cut" else data[tail:])
    return data


@settings(
    derandomize=True, deadline=None, max_examples=600, suppress_health_check=[HealthCheck.filter_too_much]
)
@given(st.sampled_from(PLAIN), st.integers(1, 3), st.integers(0, 40), MUTATIONS)
@example(("WAVEX", "PCM_U8"), 2, 9, [("word", 64, b"\2\0\0\0")])
def test_what_both_decode_of_a_damaged_header_is_equal(
    form: tuple[str, str], channels: int, frames: int, mutations: list[tuple[str, int, bytes]]
) -> None:
    data = mutated(encoded(drum(40, channels)[:frames], 44_100, *form), mutations)
    pcm = parse_pcm(data)
    assume(pcm is not None)
    assert pcm is not None
    found = pcm.read(ENDLESS)
    try:
        expected, rate = by_soundfile(data)
    except soundfile.LibsndfileError:
        return
    assert rate == pcm.sample_rate
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    found = pcm_kernel()
    if found is None:
        pytest.skip("drumline was installed without a C compiler")
    return found


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    form=st.sampled_from(PLAIN),
    channels=st.integers(1, 3),
    held=st.integers(0, 70),
    asked=st.integers(0, 80),
    seed=st.integers(0, 2**32),
)
def test_the_kernel_mixes_as_numpy_does_to_the_last_bit(
    kernel: ModuleType, form: tuple[str, str], channels: int, held: int, asked: int, seed: int
) -> None:
    noise = np.random.default_rng(seed).uniform(-1.0, 1.0, (held, channels)).astype(np.float32)
    pcm = parse_pcm(encoded(noise, 44_100, *form))
    assume(pcm is not None)
    assert pcm is not None
    plain, compiled = Mixer(None)(pcm, asked), Mixer(kernel)(pcm, asked)
    np.testing.assert_array_equal(compiled.samples, plain.samples)
    assert compiled.peak == plain.peak


def test_the_kernel_takes_what_nearly_all_files_are(kernel: ModuleType) -> None:
    taken = {
        (container, subtype, channels)
        for container, subtype in PLAIN
        for channels in (1, 2, 3)
        if (pcm := parse_pcm(encoded(drum(40, channels), 44_100, container, subtype))) and pcm.is_common
    }
    subtypes = ("PCM_16", "PCM_24", "PCM_32", "FLOAT")
    assert taken == {(c, s, n) for c in ("WAV", "WAVEX") for s in subtypes for n in (1, 2)}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 17, 40])
def test_a_sample_that_is_no_finite_number_makes_no_finite_peak(
    kernel: ModuleType, value: float, place: int
) -> None:
    samples = np.zeros(41, np.float32)
    samples[place] = value
    pcm = parse_pcm(riff(fmt(3, 1, bits=32), chunk(b"data", samples.tobytes())))
    assert pcm is not None
    assert [math.isfinite(Mixer(way)(pcm, ENDLESS).peak) for way in (None, kernel)] == [False, False]


REFUSED = """
0 2 mono 51, 1 2 mono 50, 0 3 mono 34, 99 2 mono 1, 101 2 mono 0, -1 2 mono 1, 4611686018427387904 2 mono 1,
0 2 stereo 26, 0 4 float_stereo 13, 0 8 float 1, 0 2 float 1, 0 1 mono 1, 0 5 mono 1
"""


@pytest.mark.parametrize("case", REFUSED.replace("\n", "").split(","))
def test_samples_that_do_not_lie_in_the_data_are_refused(kernel: ModuleType, case: str) -> None:
    offset, width, kind, frames = case.split()
    sizes = int(offset), int(width), "float" in kind, "stereo" in kind
    with pytest.raises(ValueError, match="do not lie"):
        kernel.mix(bytes(100), *sizes, np.zeros(int(frames), np.float32))
