"""Reading a file: once, whole, and never half of what is being changed."""

from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import xxhash

from drumline.audio import WHOLE_FILE_BYTES, Decoder
from drumline.content import hasher
from drumline.frontend import FrontEnd
from drumline.pipeline import extract
from drumline.pipeline.extract import ChangedError, TooLargeError, _Reader
from drumline.settings import InferSettings

CONTENT = b"RIFF" + bytes(range(256)) * 40


@pytest.fixture
def file(tmp_path: Path) -> bytes:
    path = tmp_path / "sound.wav"
    path.write_bytes(CONTENT)
    return os.fsencode(path)


def change_while_reading(monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    """Change the file after the first piece of it was read."""
    read = os.read

    def changing(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        monkeypatch.undo()
        change()  # type: ignore[operator]
        return data

    monkeypatch.setattr(os, "read", changing)


def test_a_file_is_read_with_its_hash_and_its_facts(file: bytes) -> None:
    content = _Reader("xxh3_64").read(file)
    assert content.data == CONTENT
    assert content.digest == xxhash.xxh3_64_hexdigest(CONTENT)
    assert (content.size, content.mtime_ns) == (len(CONTENT), os.stat(file).st_mtime_ns)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("xxh3_64", xxhash.xxh3_64_hexdigest(CONTENT)),
        ("xxh64", xxhash.xxh64_hexdigest(CONTENT)),
        ("md5", hashlib.md5(CONTENT).hexdigest()),
        ("sha256", hashlib.sha256(CONTENT).hexdigest()),
    ],
)
def test_each_hash_is_what_its_name_says(file: bytes, algorithm: str, expected: str) -> None:
    assert _Reader(algorithm).read(file).digest == expected
    assert hasher(algorithm)(CONTENT).hexdigest() == expected


def test_a_large_file_is_hashed_in_pieces_and_not_kept(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "WHOLE_FILE_BYTES", 1000)
    monkeypatch.setattr(extract, "_PIECE_BYTES", 77)
    content = _Reader("xxh3_64").read(file)
    assert content.data is None
    assert content.digest == xxhash.xxh3_64_hexdigest(CONTENT)


def test_an_empty_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    path.touch()
    content = _Reader("xxh3_64").read(os.fsencode(path))
    assert (content.data, content.size) == (b"", 0)


def test_a_file_that_grows_while_it_is_read_is_refused(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow() -> None:
        with open(file, "ab") as stream:
            stream.write(b"more")

    change_while_reading(monkeypatch, grow)
    with pytest.raises(ChangedError):
        _Reader("xxh3_64").read(file)


def test_a_file_that_grows_without_end_is_not_read_without_end(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "WHOLE_FILE_BYTES", 0)
    read = os.read

    def growing(descriptor: int, size: int) -> bytes:
        with open(file, "ab") as stream:
            stream.write(b"more" * 1000)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(ChangedError):
        _Reader("xxh3_64").read(file)


def test_a_file_larger_than_the_limit_is_not_read(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "read")
    with pytest.raises(TooLargeError):
        _Reader("xxh3_64", largest=len(CONTENT) - 1).read(file)


def test_a_file_that_is_cut_while_it_is_read_is_refused(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    change_while_reading(monkeypatch, lambda: os.truncate(file, 10))
    with pytest.raises(ChangedError):
        _Reader("xxh3_64").read(file)


def test_a_file_that_is_rewritten_while_it_is_read_is_refused(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rewrite() -> None:
        with open(file, "r+b") as stream:
            stream.write(b"x" * len(CONTENT))
        os.utime(file, ns=(0, 10**18))

    change_while_reading(monkeypatch, rewrite)
    with pytest.raises(ChangedError):
        _Reader("xxh3_64").read(file)


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace() -> None:
        with open(file + b".new", "wb") as stream:
            stream.write(b"new content")
        os.replace(file + b".new", file)

    change_while_reading(monkeypatch, replace)
    assert _Reader("xxh3_64").read(file).data == CONTENT


def test_reads_that_come_in_small_pieces_are_put_together(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 100)))
    assert _Reader("xxh3_64").read(file).data == CONTENT


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert _Reader("xxh3_64").read(os.fsencode(tmp_path / "pipe.wav")).data == b""


def test_no_file_stays_open(file: bytes) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        _Reader("xxh3_64").read(file)
        with pytest.raises(IsADirectoryError):
            _Reader("xxh3_64").read(os.path.dirname(file))
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_the_worst_file_that_is_read_whole_takes_less_than_half_of_a_workers_memory(tmp_path: Path) -> None:
    """Eight bits and many channels at the highest rate: each byte becomes a float, and all are needed."""
    size, channels, rate = WHOLE_FILE_BYTES - 44, 15, 4_000_000
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels, channels, 8)
    path = tmp_path / "worst.wav"
    path.write_bytes(
        b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", size)
    )
    os.truncate(path, WHOLE_FILE_BYTES)
    tracemalloc.start()
    try:
        content = _Reader("xxh3_64").read(os.fsencode(path))
        assert content.data is not None
        Decoder(FrontEnd()).decode(content.data, os.fsencode(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 100_000_000 < peak < InferSettings(archive=tmp_path).worker_memory_mb * 1_000_000 / 2
