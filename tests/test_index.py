"""The index: frames, torn tails, damage."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drumline.errors import IndexFormatError, OutputError
from drumline.index import (
    FRAME_LINES,
    MAX_LINE_BYTES,
    Codec,
    IndexAppender,
    Written,
    codec_of,
    measured_frames,
    parse_records,
    read_frame,
    read_frames,
    read_index,
    record_errors,
    split_lines,
)
from drumline.records import encode_record
from tests.making import make_record, records, write_index

SUFFIXES = ["jsonl.zst", "jsonl.gz", "jsonl"]
each_compression = pytest.mark.parametrize("suffix", SUFFIXES)
RECORDS = [make_record(b"kick %d.wav" % number, size=number) for number in range(8)]


@given(st.lists(records, max_size=7), st.sampled_from(SUFFIXES), st.integers(1, 3))
def test_records_survive_any_compression(
    tmp_path_factory: pytest.TempPathFactory, written: list, suffix: str, frame_lines: int
) -> None:
    path = tmp_path_factory.mktemp("index") / f"index.{suffix}"
    write_index(path, written, frame_lines)
    assert list(read_index(path)) == written


@each_compression
def test_a_torn_tail_costs_only_the_last_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    ends = write_index(path, RECORDS)
    content = path.read_bytes()
    for length in range(ends[-2], ends[-1]):
        path.write_bytes(content[:length])
        read = list(read_index(path))
        whole_lines = content[:length].count(b"\n") if suffix == "jsonl" else 6
        assert read == RECORDS[:whole_lines], f"cut at byte {length}"


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_garbage_behind_the_last_frame_is_named_after_all_records_were_read(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"index.{suffix}"
    ends = write_index(path, RECORDS)
    with open(path, "ab") as stream:
        stream.write(b"\x00garbage without a newline")
    records = read_index(path)
    assert [next(records) for _ in RECORDS] == RECORDS
    with pytest.raises(IndexFormatError, match=f"damaged at byte {ends[-1]}"):
        next(records)


@pytest.mark.parametrize("suffix", SUFFIXES[:1])
def test_a_flipped_bit_is_found_by_the_frames_checksum(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    ends = write_index(path, RECORDS)
    content = bytearray(path.read_bytes())
    content[ends[1] - 6] ^= 0x10
    path.write_bytes(content)
    records = read_index(path)
    assert [next(records) for _ in range(3)] == RECORDS[:3]
    with pytest.raises(IndexFormatError, match=f"damaged at byte {ends[0]}"):
        next(records)


@each_compression
def test_frames_follow_one_another_and_can_be_read_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    write_index(path, [*RECORDS] * FRAME_LINES)
    frames, place = list(read_frames(path)), 0
    with open(path, "rb") as stream:
        for frame in frames:
            assert frame.offset == place
            data = read_frame(stream.fileno(), frame.offset, frame.length, codec_of(path))
            assert data == frame.data
            place += frame.length
    assert place == path.stat().st_size


def test_frames_are_measured_without_unpacking_them(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl.zst"
    write_index(path, [*RECORDS] * FRAME_LINES)
    whole = [(frame.offset, frame.length) for frame in read_frames(path)]
    assert list(measured_frames(path)) == whole
    assert [frame.offset for frame in read_frames(path, whole[-1][0])] == [whole[-1][0]]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert list(measured_frames(path)) == whole[:-1]
    path.write_bytes(content + b"no frame at all")
    assert list(measured_frames(path)) == whole


@pytest.mark.parametrize("level", [1, 19])
@pytest.mark.parametrize("checksum", [True, False])
@given(data=st.binary(max_size=300) | st.integers(0, 400_000).map(bytes))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_a_frame_of_any_writer_is_measured(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, level: int, checksum: bool
) -> None:
    path = tmp_path_factory.mktemp("measured") / "index.jsonl.zst"
    frame = zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(data)
    stream = zstandard.ZstdCompressor(level=level, write_checksum=checksum).compressobj()
    other = stream.compress(data) + stream.flush()
    path.write_bytes(frame + other + frame[:-1])
    assert list(measured_frames(path)) == [(0, len(frame)), (len(frame), len(other))]


def test_a_frame_that_says_that_it_is_empty_and_is_not_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl.zst"
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(b"a line\n"))
    assert frame[5] == 7  # behind magic number and flags stands the size
    frame[5] = 0
    path.write_bytes(frame)
    with pytest.raises(IndexFormatError, match="damaged"):
        list(read_frames(path))
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(b""))
    assert [frame.data for frame in read_frames(path)] == [b""]


def test_lines_that_are_parsed_together_fail_as_those_that_are_parsed_alone(tmp_path: Path) -> None:
    good = [encode_record(record) for record in RECORDS]
    assert parse_records(good, tmp_path) == RECORDS
    assert parse_records([], tmp_path) == []
    for bad in (
        b"\n",
        b"[]\n",
        b'{"schema_version": 9}\n',
        b'{"schema_version": "1"}\n',
        good[0][:-2] + b"\n",
        good[0][:-1] + b"," + good[1],
    ):
        with pytest.raises(IndexFormatError):
            parse_records([good[0], bad, *good[1:]], tmp_path)
    place = good[1].index(b",") + 1
    halves = [good[1][: place - 1] + b"\n", good[1][place:], good[0][:-1] + b"," + good[2]]
    with pytest.raises(IndexFormatError):  # together they are a list of as many records as there are lines
        parse_records(halves, tmp_path)


@each_compression
def test_a_frame_can_be_copied_into_another_index(tmp_path: Path, suffix: str) -> None:
    one, other = tmp_path / f"one.{suffix}", tmp_path / f"other.{suffix}"
    ends = write_index(one, RECORDS)
    other.write_bytes(one.read_bytes() + one.read_bytes()[: ends[0]])
    assert list(read_index(other)) == RECORDS + RECORDS[:3]


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_frame_is_only_read_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    ends = write_index(path, RECORDS)
    codec = codec_of(path)
    with open(path, "rb") as stream:
        for offset, length in [(0, ends[0] - 1), (0, ends[1]), (3, ends[0]), (ends[-1], 10)]:
            with pytest.raises(IndexFormatError, match="whole frame"):
                read_frame(stream.fileno(), offset, length, codec)


def test_any_gzip_reader_reads_the_gzip_index(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl.gz"
    write_index(path, RECORDS)
    with gzip.open(path) as stream:
        assert stream.read() == b"".join(map(encode_record, RECORDS))


@pytest.mark.skipif(shutil.which("zstd") is None, reason="there is no zstd program")
def test_the_zstd_program_reads_the_zstd_index(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl.zst"
    write_index(path, RECORDS)
    output = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    assert output == b"".join(map(encode_record, RECORDS))


def test_compression_is_told_by_content_before_name(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl.zst"
    write_index(tmp_path / "index.jsonl.gz", RECORDS)
    os.replace(tmp_path / "index.jsonl.gz", path)
    assert codec_of(path) == Codec("gzip")
    assert list(read_index(path)) == RECORDS


@each_compression
def test_an_empty_index_has_no_records(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    path.write_bytes(b"")
    assert list(read_index(path)) == []
    assert f".{suffix}" == codec_of(path).suffix


@each_compression
def test_an_index_whose_first_byte_is_damaged_is_damaged_and_no_stranger(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    write_index(path, RECORDS)
    data = bytearray(path.read_bytes())
    data[0] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(IndexFormatError, match="drumline repair"):
        list(read_index(path))


@pytest.mark.parametrize("content", [b"RIFF....WAVE", b"\x00" * 40, b"hello"])
def test_a_file_that_is_no_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kick.wav").write_bytes(content)
    with pytest.raises(IndexFormatError, match=r"kick\.wav"):
        list(read_index(tmp_path / "kick.wav"))


@pytest.mark.parametrize("line", [b"{}", b"[]", b"{", b'"text"', b"3", b"{\xff}"])
def test_a_line_that_is_no_record_is_an_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "index.jsonl.gz"
    path.write_bytes(Codec("gzip").compress(line + b"\n"))
    with pytest.raises(IndexFormatError, match="no record"):
        list(read_index(path))


def test_an_index_of_another_version_is_refused_with_a_way_out(tmp_path: Path) -> None:
    write_index(tmp_path / "index.jsonl", [make_record(schema_version=99)])
    with pytest.raises(IndexFormatError, match="version 99") as error:
        list(read_index(tmp_path / "index.jsonl"))
    assert "drumline" in error.value.way_out


def test_a_missing_index_is_named() -> None:
    with pytest.raises(IndexFormatError, match="nowhere"):
        list(read_index(Path("nowhere.jsonl")))


@given(st.lists(records))
def test_lines_split_as_they_were_joined(written: list) -> None:
    lines = [encode_record(record) for record in written]
    assert split_lines(b"".join(lines)) == lines


def test_garbled_records_are_index_errors_and_others_pass_through() -> None:
    with pytest.raises(IndexFormatError, match="garbled"), record_errors(Path("index")):
        raise KeyError("size")
    with pytest.raises(OSError, match="disk"), record_errors(Path("index")):
        raise OSError("disk")
    with contextlib.suppress(RuntimeError), record_errors(Path("index")):
        raise RuntimeError


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_frame_that_was_half_written_is_overwritten_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl.zst"
    lines = encode_record(RECORDS[0])
    with contextlib.closing(IndexAppender(path, Codec("zstd"))) as appender:
        frame = appender.codec.compress(lines)
        with no_file_beyond(len(frame) // 2), pytest.raises(OutputError):
            appender.append(frame)
        assert appender.append(frame) == Written.of(frame, 0)
        assert appender.append(frame) == Written.of(frame, len(frame))
    assert list(read_index(path)) == [RECORDS[0]] * 2


def test_an_index_that_cannot_be_cut_is_closed(tmp_path: Path) -> None:
    opened = len(os.listdir("/dev/fd"))
    with no_file_beyond(100), pytest.raises(OutputError):
        IndexAppender(tmp_path / "index.jsonl.zst", Codec("zstd"), valid=1000)
    assert len(os.listdir("/dev/fd")) == opened


def test_a_line_may_have_the_largest_length_and_no_more(tmp_path: Path) -> None:
    path, record = tmp_path / "index.jsonl", make_record()
    spare = MAX_LINE_BYTES - len(encode_record({**record, "label_top1": ""}))
    longest = {**record, "label_top1": "x" * spare}
    path.write_bytes(encode_record(longest))
    assert list(read_index(path)) == [longest]
    path.write_bytes(encode_record({**record, "label_top1": "x" * (spare + 1)}))
    with pytest.raises(IndexFormatError, match="more than 1 MiB"):
        list(read_index(path))


def test_a_frame_has_its_lines_and_the_empty_ones_and_the_one_without_its_newline() -> None:
    assert split_lines(b"") == []
    assert split_lines(b"a\n\nb\r\n\x85c") == [b"a\n", b"\n", b"b\r\n", b"\x85c\n"]


@each_compression
def test_an_empty_line_is_no_record_whoever_reads_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index.{suffix}"
    line = encode_record(RECORDS[0])
    path.touch()
    path.write_bytes(codec_of(path).compress(line + b"\n" + line))
    with pytest.raises(IndexFormatError, match="no record"):
        list(read_index(path))
    (frame,) = read_frames(path)
    assert frame.lines() == [line, b"\n", line]


def test_an_index_is_never_written_through_a_link_or_into_a_pipe(tmp_path: Path) -> None:
    sample, path = tmp_path / "kick.wav", tmp_path / "index.jsonl.zst"
    sample.write_bytes(b"RIFF of somebody")
    path.symlink_to(sample)
    with pytest.raises(OutputError, match=r"index\.jsonl\.zst"):
        IndexAppender(path, Codec("zstd"))
    assert sample.read_bytes() == b"RIFF of somebody"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputError, match=r"index\.jsonl\.zst"):
        IndexAppender(path, Codec("zstd"))


@pytest.mark.parametrize("valid", [0, 5, 1 << 20])
def test_an_index_with_another_name_is_written_on_in_a_copy(tmp_path: Path, valid: int) -> None:
    other, path = tmp_path / "backup", tmp_path / "index.jsonl.zst"
    content = os.urandom(1 << 21)
    other.write_bytes(content)
    os.link(other, path)
    with contextlib.closing(IndexAppender(path, Codec("zstd"), valid)) as appender:
        appender.append(b"more")
    assert other.read_bytes() == content
    assert path.read_bytes() == content[:valid] + b"more"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["backup", "index.jsonl.zst"]
