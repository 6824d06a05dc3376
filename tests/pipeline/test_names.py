"""File names are bytes, and an archive holds more than files."""

from __future__ import annotations

import base64
import os
import socket
import unicodedata
from pathlib import Path

import pytest

from tests.pipeline.conftest import Infer
from tests.pipeline.support import assert_equal, path_of, records_of, tree

ODD = [
    b"no utf-8 \xff\xfe.wav",
    b"\xc3\x28 half a sequence.wav",
    b"new\nline.wav",
    b"tab\tand\rreturn.wav",
    b"quote ' and \" and \\.wav",
    "emoji 🥁.wav".encode(),
    b"-n leading dash.wav",
    b"--json.wav",
    b" leading and trailing space .wav",
    b".hidden.wav",
    b"%s %d {} $(x) `y`.wav",
    unicodedata.normalize("NFC", "Bébé.wav").encode(),
    unicodedata.normalize("NFD", "Bébé.wav").encode(),
    b"Case.wav",
    b"case.wav",
    b"CASE.WAV",
    b"x" * 251 + b".wav",
    "ス".encode() * 83 + b".wav",
    b"two.dots.wav",
    b".wav",
    "\u202eright to left.wav".encode(),
    b"\x1b[31mred.wav",
]


@pytest.fixture
def sound(sounds: list[Path]) -> bytes:
    """A sound that each test varies by a byte behind its end."""
    return sounds[0].read_bytes()


@pytest.fixture
def here(tidy: Infer) -> bytes:
    """An empty directory in the archive."""
    directory = os.fsencode(tidy.archive) + b"/odd \xff directory\n"
    os.mkdir(directory)
    return directory


def put(directory: bytes, name: bytes, sound: bytes, number: int = 0) -> None:
    with open(os.path.join(directory, name), "xb") as stream:
        stream.write(sound + number.to_bytes(2, "little"))


def names(infer: Infer) -> dict[bytes, dict[str, object]]:
    """Return the records below the odd directory, by name."""
    return {os.path.basename(path): record for path, record in infer.records().items() if b"\xff d" in path}


def test_odd_names_are_kept_exactly(tidy: Infer, here: bytes, sound: bytes) -> None:
    written = []
    for number, name in enumerate(ODD):
        try:
            put(here, name, sound, number + 1)
        except FileExistsError:  # a file system that knows no case, or no difference of accents
            continue
        written.append(name)
    before = tree(tidy.archive)
    assert tidy.counts()["classified"] == len(written)
    records = names(tidy)
    assert sorted(records) == sorted(os.listdir(here)) == sorted(written)
    assert tree(tidy.archive) == before
    for record in records.values():
        assert record["errors"] is None
        absolute = record["abs_path_b64"] and base64.b64decode(str(record["abs_path_b64"]))
        assert absolute == os.path.join(os.fsencode(tidy.archive), path_of(record))
    assert tidy.counts(no_workers=True, frame_lines=8)["carried_over"] == 40 + len(written)
    assert names(tidy) == records


def test_odd_names_survive_the_loss_of_the_cache_and_of_files(tidy: Infer, here: bytes, sound: bytes) -> None:
    for number, name in enumerate(ODD[:8]):
        put(here, name, sound, number + 1)
    tidy.counts()
    before = names(tidy)
    (tidy.runs_root / "cache.sqlite").unlink()
    assert tidy.counts(no_workers=True)["discovered"] == 48
    os.unlink(os.path.join(here, ODD[0]))
    assert tidy.counts(no_workers=True)["gone"] == 1
    del before[ODD[0]]
    assert names(tidy) == before


def test_what_is_no_regular_file_is_passed_over(tidy: Infer, here: bytes, sound: bytes) -> None:
    os.mkfifo(here + b"/pipe.wav")
    os.mkdir(here + b"/kick.wav")
    put(here + b"/kick.wav", b"inside.wav", sound, 1)
    put(here, b"._resource fork.wav", sound, 2)
    put(here, b"notes.txt", sound, 3)
    put(here, b"wav", sound, 4)
    plug = socket.socket(socket.AF_UNIX)
    home = os.getcwd()
    os.chdir(here)
    try:
        plug.bind("socket.wav")
    finally:
        os.chdir(home)
        plug.close()
    summary = tidy.counts()
    assert list(names(tidy)) == [b"inside.wav"]
    assert summary["skipped_special"] == 2


def test_links_to_files_are_files_and_links_to_directories_are_not_followed(
    tidy: Infer, here: bytes, sound: bytes, tmp_path: Path
) -> None:
    put(here, b"real.wav", sound, 1)
    put(os.fsencode(tmp_path), b"outside.wav", sound, 2)
    os.symlink(b"real.wav", here + b"/link.wav")
    os.symlink(os.fsencode(tmp_path / "outside.wav"), here + b"/link outside.wav")
    os.symlink(b"nowhere", here + b"/dangling.wav")
    os.symlink(b"circle.wav", here + b"/circle.wav")
    os.symlink(b".", here + b"/loop")
    os.symlink(b"..", here + b"/loop.wav")
    os.symlink(os.fsencode(tmp_path), here + b"/elsewhere")
    counts = tidy.counts()
    records = names(tidy)
    assert sorted(records) == [b"circle.wav", b"dangling.wav", b"link outside.wav", b"link.wav", b"real.wav"]
    assert records[b"link.wav"]["hash"] == records[b"real.wav"]["hash"]
    assert counts["failed"] == 2
    for name in (b"dangling.wav", b"circle.wav"):
        error = records[name]["errors"]
        assert isinstance(error, dict)
        assert error["type"] == "unreadable"
    assert counts["skipped_links"] == 1
    assert tidy.counts()["carried_over"] == 43


def test_hard_links_have_a_record_each(tidy: Infer, here: bytes, sound: bytes) -> None:
    put(here, b"one.wav", sound, 1)
    os.link(here + b"/one.wav", here + b"/other.wav")
    tidy.counts()
    records = names(tidy)
    assert records[b"one.wav"]["hash"] == records[b"other.wav"]["hash"]
    assert records[b"one.wav"]["probs"] == records[b"other.wav"]["probs"]


def test_a_runs_root_inside_the_archive_is_no_part_of_it(tidy: Infer, sounds: list[Path]) -> None:
    tidy.runs_root = tidy.archive / "results"
    assert tidy.counts()["discovered"] == 40
    (tidy.runs_root / "left behind.wav").write_bytes(sounds[0].read_bytes())
    assert tidy.counts(no_workers=True)["discovered"] == 40
    other = tidy.elsewhere("other results")
    assert other.counts()["discovered"] == 41


def test_an_archive_inside_the_runs_root_works(tidy: Infer) -> None:
    tidy.runs_root = tidy.archive.parent
    assert tidy.counts()["discovered"] == 40
    assert tidy.counts(no_workers=True)["discovered"] == 40


def test_paths_of_the_archive_and_of_the_runs_root_may_be_any_bytes(tidy: Infer) -> None:
    before = tidy.records()
    moved = Path(os.fsdecode(os.fsencode(tidy.archive.parent) + b"/\xff archive\n"))
    tidy.archive = tidy.archive.rename(moved)
    tidy.runs_root = Path(os.fsdecode(os.fsencode(tidy.archive.parent) + b"/\xfe runs"))
    result = tidy()
    assert result.code == 0, result.err
    (run,) = tidy.runs_root.glob("run_*")
    records = records_of(run)
    assert_equal(records, before, "abs_path", "abs_path_b64")
    for path, record in records.items():
        assert base64.b64decode(record["abs_path_b64"]) == os.path.join(os.fsencode(moved), path)
    assert base64.b64decode(result.json()["archive_root_b64"]) == os.fsencode(moved)
    again = tidy(no_workers=True)
    assert again.code == 0, again.err
    assert again.counts["carried_over"] == 40


def test_the_archive_may_be_given_by_a_link_or_a_relative_path(tidy: Infer) -> None:
    """It is one archive, whatever it is called."""
    link = tidy.archive.with_name("a link")
    link.symlink_to(tidy.archive)
    real = tidy.archive
    for other in (link, real / ".." / real.name, Path(os.path.relpath(real, Path.cwd()))):
        tidy.archive = other
        assert tidy.counts(no_workers=True)["carried_over"] == 40


def deep(top: bytes, length: int) -> int:
    """Make nested directories until a path has this length; returns a descriptor of the last."""
    descriptor = os.open(top, os.O_RDONLY)
    left = length - len(top)
    while left > 1:
        name = b"d" * min(left - 1, 200) if left - 1 != 201 else b"d" * 100
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor, left = below, left - 1 - len(name)
    return descriptor


def put_at(descriptor: int, name: bytes, content: bytes) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=descriptor)
    os.write(file, content)
    os.close(file)


def test_paths_that_are_too_long_are_failed_records(tidy: Infer, sound: bytes) -> None:
    """A directory can be listed up to 4095 bytes; what is in it can have a longer path than may be opened."""
    descriptor = deep(os.fsencode(tidy.archive), 4080)
    for number in range(3):
        put_at(descriptor, b"n" * 250 + b"%d" % number + b".wav", sound)
    put_at(descriptor, b"short.wav", sound + b"\0")
    os.close(descriptor)
    counts = tidy.counts()
    assert (counts["discovered"], counts["failed"], counts["carried_over"]) == (44, 3, 40)
    long = {path: record for path, record in tidy.records().items() if len(path) > 2000}
    assert len(long) == 4
    assert {record["errors"]["type"] for record in long.values() if record["errors"]} == {"path_too_long"}
    before = tidy.records()
    assert tidy.counts()["discovered"] == 44
    assert_equal(tidy.records(), before)


def test_directories_that_are_too_deep_are_counted(tidy: Infer, sound: bytes) -> None:
    descriptor = deep(os.fsencode(tidy.archive), 4400)
    put_at(descriptor, b"kick.wav", sound)
    os.close(descriptor)
    counts = tidy.counts()
    assert (counts["discovered"], counts["unreadable_directories"]) == (40, 1)
