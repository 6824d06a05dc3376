"""The cache holds nothing that the indexes do not: it can be lost at any time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from drumline.cache import Cache
from drumline.index import read_frames
from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, assert_equal, runs_of, tree

SIDE_FILES = ("", "-wal", "-shm")


def delete(cache: Path) -> None:
    for suffix in SIDE_FILES:
        cache.with_name(cache.name + suffix).unlink(missing_ok=True)


def truncate(share: float) -> Callable[[Path], None]:
    def cut(cache: Path) -> None:
        with open(cache, "r+b") as stream:
            stream.truncate(int(cache.stat().st_size * share))

    return cut


def fill_with(content: bytes) -> Callable[[Path], None]:
    def fill(cache: Path) -> None:
        delete(cache)
        cache.write_bytes(content)

    return fill


def garble(cache: Path) -> None:
    """Overwrite all pages but the first."""
    data = bytearray(cache.read_bytes())
    data[4096:] = random.Random(3).randbytes(len(data) - 4096)
    cache.write_bytes(data)


def execute(cache: Path, sql: str) -> None:
    with sqlite3.connect(cache) as database:
        database.execute(sql)
    database.close()


def spoil_schema(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes().replace(b"CREATE TABLE frame", b"CREATE TABLE \xff\xferame", 1))


def change_version(cache: Path) -> None:
    execute(cache, "PRAGMA user_version = 99")


DAMAGE = {
    "deleted": delete,
    "empty": fill_with(b""),
    "garbage": fill_with(random.Random(1).randbytes(40_000)),
    "text": fill_with(b"SQLite format 3\0 but not really" * 1000),
    "cut in half": truncate(0.5),
    "cut within its last page": lambda cache: os.truncate(cache, cache.stat().st_size - 100),
    "cut at the start": truncate(0.05),
    "garbled": garble,
    "of another version": change_version,
    "without seals": lambda cache: execute(cache, "DROP TABLE seal"),
    "without a trigger": lambda cache: execute(cache, "DROP TRIGGER file_changed"),
    "with text in its schema that is none": spoil_schema,
    "without an index": lambda cache: execute(cache, "DROP INDEX file_by_hash"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt_and_everything_carried_over(tidy: Infer, damage: str) -> None:
    before = tidy.records()
    DAMAGE[damage](tidy.runs_root / "cache.sqlite")
    counts = tidy.counts(no_workers=True)
    assert (counts["carried_over"], counts["classified"]) == (40, 0)
    assert_equal(tidy.records(), before)


WRONG_ROWS = {
    "numbers of another frame": "UPDATE frame SET kept = x'0102'",
    "numbers that are text": "UPDATE frame SET kept = 'abc'",
    "no numbers at all": "UPDATE frame SET kept = zeroblob(100000)",
    "a tally that is none": "UPDATE frame SET tally = 'x'",
    "a count of lines that is none": "UPDATE frame SET lines = 'x'",
    "a fraction of an offset": "UPDATE frame SET offset = offset + 0.5",
    "a fraction of a length": "UPDATE frame SET length = length - 0.5",
    "a negative line": "UPDATE file SET line = -1",
    "a line of another file": "UPDATE file SET line = line + 7",
    "a line that no frame has": "UPDATE file SET line = 100000",
    "a line that is text": "UPDATE file SET line = 'x'",
    "a frame that is not there": "UPDATE file SET frame = 999",
    "a seal with a frame that is not there": "UPDATE seal SET places = CAST('x' AS BLOB) || places",
    "a seal with text for frames": "UPDATE seal SET places = 'x'",
    "a seal with text for a time": "UPDATE seal SET coarse_ns = 'x'",
    "a seal with a time that is far ahead": "UPDATE seal SET coarse_ns = 9223372036854775807",
    "a seal with fewer failures than none": "UPDATE seal SET failures = -1",
    "a seal of no lines": "UPDATE seal SET places = CAST(substr(places, 1, 8) || zeroblob(64) AS BLOB)",
    "a seal of another directory": "UPDATE seal SET places = (SELECT places FROM seal ORDER BY directory)",
    "names that are text": "UPDATE file SET name = CAST(name AS TEXT)",
    "a run's name that is no text": "UPDATE run SET name = CAST(x'ff' AS TEXT)",
    "hashes that are no text": "UPDATE file SET hash = CAST(x'ff' || name AS TEXT)",
    "a digest of other bytes": "UPDATE frame SET digest = x'0102030405060708'",
    "a digest that is text": "UPDATE frame SET digest = 'x'",
    "tallies that count nothing": "UPDATE frame SET tally = '{}'",
}


@pytest.mark.parametrize("change", WRONG_ROWS)
def test_rows_of_the_cache_that_cannot_be_are_made_anew_in_the_same_run(
    tidy: Infer, sounds: list[Path], change: str
) -> None:
    sounds[0].write_bytes(sounds[1].read_bytes() + b"\0")  # so that a frame is split
    execute(tidy.runs_root / "cache.sqlite", WRONG_ROWS[change])
    plan = tidy("--dry-run")
    assert plan.code == 0, plan.err
    counts = tidy.counts()
    assert (counts["carried_over"], counts["classified"]) == (39, 1)
    assert_equal(tidy.records(), tidy.fresh_records())


@pytest.mark.parametrize("change", WRONG_ROWS)
def test_an_unfinished_run_goes_on_where_rows_of_the_cache_cannot_be(
    calm: Infer, undisturbed: Records, change: str
) -> None:
    run = interrupt(calm)
    execute(calm.runs_root / "cache.sqlite", WRONG_ROWS[change])
    calm.counts()
    assert calm.run == run
    assert_equal(calm.records(), undisturbed)


def test_a_cache_that_is_damaged_deep_inside_is_made_anew_in_the_same_run(tidy: Infer) -> None:
    cache = tidy.runs_root / "cache.sqlite"
    data = bytearray(cache.read_bytes())
    for page in range(4096, len(data), 4096):
        if b".wav" in data[page : page + 4096]:
            data[page : page + 8] = b"\xff" * 8
    cache.write_bytes(data)
    assert tidy.counts(no_workers=True)["carried_over"] == 40


@pytest.mark.parametrize("damage", ["deleted", "garbage", "cut in half"])
def test_a_dry_run_with_a_damaged_cache_counts_what_the_run_then_does(tidy: Infer, damage: str) -> None:
    DAMAGE[damage](tidy.runs_root / "cache.sqlite")
    before = tree(tidy.runs_root)
    plan = tidy("--dry-run")
    assert plan.code == 0, plan.err
    assert tree(tidy.runs_root) == before
    counts = tidy.counts()
    assert plan.counts["carried_over"] == counts["carried_over"]
    assert plan.counts["to_read"] == counts["classified"]


def test_a_directory_in_place_of_the_cache_is_an_error_with_a_way_out(tidy: Infer) -> None:
    delete(tidy.runs_root / "cache.sqlite")
    (tidy.runs_root / "cache.sqlite").mkdir()
    result = tidy()
    assert result.code == 8
    assert "cache.sqlite" in result.err
    assert "Traceback" not in result.err


def test_a_run_directory_that_was_deleted_is_not_trusted(tidy: Infer) -> None:
    before = tidy.records()
    shutil.rmtree(tidy.run)
    assert tidy.counts()["classified"] == 40
    assert_equal(tidy.records(), before)


def test_of_two_runs_the_deleted_one_costs_nothing_when_the_other_holds_all(tidy: Infer) -> None:
    first = tidy.run
    tidy.counts("--threshold", "0.9")
    shutil.rmtree(first)
    assert tidy.counts("--threshold", "0.9", no_workers=True)["carried_over"] == 40


def test_when_the_newest_run_is_deleted_the_one_before_it_counts(tidy: Infer, sounds: list[Path]) -> None:
    """The newest holds an edited file: that one is read again, the others are carried over."""
    sounds[0].write_bytes(sounds[1].read_bytes() + b"\0")
    tidy.counts()
    shutil.rmtree(tidy.run)
    counts = tidy.counts()
    assert (counts["carried_over"], counts["classified"]) == (39, 1)
    assert_equal(tidy.records(), tidy.fresh_records())


def test_an_index_that_was_cut_short_is_not_trusted_beyond_its_end(tidy: Infer) -> None:
    before = tidy.records()
    index = tidy.run / "index.jsonl.zst"
    frames = list(read_frames(index))
    truncated = frames[1].offset + frames[1].length
    with open(index, "r+b") as stream:
        stream.truncate(truncated + 5)
    counts = tidy.counts()
    assert 0 < counts["classified"] < 40
    assert counts["carried_over"] + counts["classified"] == 40
    assert_equal(tidy.records(), before)


def test_an_index_that_is_damaged_in_the_middle_costs_what_follows(tidy: Infer) -> None:
    before = tidy.records()
    index = tidy.run / "index.jsonl.zst"
    frames = list(read_frames(index))
    data = bytearray(index.read_bytes())
    data[frames[1].offset + 20] ^= 0xFF
    index.write_bytes(data)
    delete(tidy.runs_root / "cache.sqlite")
    counts = tidy.counts()
    assert counts["carried_over"] == frames[0].data.count(b"\n")
    assert_equal(tidy.records(), before)


def test_damage_in_an_index_never_spreads_into_another_run(tidy: Infer) -> None:
    """The run ends and names it; the same command again reads anew what stood there."""
    before = tidy.records()
    index = tidy.run / "index.jsonl.zst"
    frame = list(read_frames(index))[1]
    data = bytearray(index.read_bytes())
    data[frame.offset + frame.length // 2] ^= 0xFF
    index.write_bytes(data)
    result = tidy(no_workers=True)
    assert (result.code, result.out) == (7, "")
    assert str(index) in result.err
    assert "the same command again" in result.err
    counts = tidy.counts()
    assert counts["classified"] == frame.data.count(b"\n")
    assert counts["carried_over"] == 40 - counts["classified"]
    assert_equal(tidy.records(), before)
    assert index.read_bytes() == data


def test_a_plain_index_whose_lines_were_altered_is_not_carried_over(
    calm: Infer, undisturbed: Records
) -> None:
    """Each line is still a record, so nothing but the digest tells."""
    calm.counts("--compress-index", "none")
    index = calm.run / "index.jsonl"
    data = index.read_bytes()
    place = data.index(b'"conf_top1":0.') + len(b'"conf_top1":0.')
    digit = b"1" if data[place : place + 1] != b"1" else b"2"
    index.write_bytes(data[:place] + digit + data[place + 1 :])
    result = calm("--compress-index", "none")
    assert (result.code, result.out) == (7, "")
    assert "other bytes than were written" in result.err
    calm.counts("--compress-index", "none")
    assert_equal(calm.records(), undisturbed)


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_damage_to_the_first_byte_of_an_index_heals_like_any_other(
    calm: Infer, undisturbed: Records, compression: str
) -> None:
    """What tells the compression is gone; the index's name tells it as well."""
    options = ("--compress-index", compression)
    calm.counts(*options)
    (index,) = calm.run.glob("index.*")
    data = bytearray(index.read_bytes())
    data[0] ^= 0x55
    index.write_bytes(data)
    result = calm(*options)
    assert (result.code, result.out) == (7, "")
    assert "the same command again" in result.err
    calm.counts(*options)
    assert_equal(calm.records(), undisturbed)


def test_a_twin_whose_record_is_damaged_is_no_twin(tidy: Infer, sounds: list[Path]) -> None:
    index = tidy.run / "index.jsonl.zst"
    index.write_bytes(bytes(index.stat().st_size))
    other = Infer(tidy.server, tidy.archive.with_name("other"), tidy.runs_root, tidy.model)
    other.archive.mkdir()
    shutil.copy(sounds[0], other.archive)
    counts = other.counts()
    assert (counts["known_content"], counts["classified"]) == (0, 1)


def test_all_that_was_deleted_is_done_again(tidy: Infer) -> None:
    before = tidy.records()
    shutil.rmtree(tidy.runs_root)
    assert tidy.counts()["classified"] == 40
    assert_equal(tidy.records(), before)


def test_a_foreign_run_directory_disturbs_nobody(tidy: Infer) -> None:
    for name, content in {"run_a": b"{", "run_b": b"[]", "run_zz": b'{"schema_version": 99}'}.items():
        (tidy.runs_root / name).mkdir()
        (tidy.runs_root / name / "run.json").write_bytes(content)
    delete(tidy.runs_root / "cache.sqlite")
    assert tidy.counts(no_workers=True)["carried_over"] == 40


def interrupt(infer: Infer, *options: str) -> Path:
    """Interrupt a run when about half of it is committed."""
    halfway = "after drumline.pipeline.write:_Writer._commit 6"
    assert infer(*options, die=halfway, slow=0.002, frame_lines=8, take=8, flush=0.02).code == 10
    (run,) = runs_of(infer.runs_root)
    return run


@pytest.mark.parametrize("damage", ["deleted", "garbage", "cut in half", "of another version"])
def test_an_unfinished_run_without_its_cache_goes_on(calm: Infer, undisturbed: Records, damage: str) -> None:
    run = interrupt(calm)
    DAMAGE[damage](calm.runs_root / "cache.sqlite")
    result = calm("--file-timeout", "20", slow=0.0)
    assert result.code == 0, result.err
    calm.run = run
    assert runs_of(calm.runs_root) == [run]
    assert_equal(calm.records(), undisturbed)


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_a_torn_index_without_its_cache_goes_on_from_its_last_whole_frame(
    calm: Infer, undisturbed: Records, compression: str, tmp_path: Path
) -> None:
    options = ("--compress-index", compression)
    run = interrupt(calm, *options)
    (index,) = run.glob("index.*")
    whole = index.read_bytes()
    ends = [0, *(_ends(whole) if compression == "none" else _frame_ends(index))]
    saved = shutil.copytree(calm.runs_root, tmp_path / "saved")
    cuts = {ends[-1] - 1, ends[-2], ends[-2] + 1}
    cuts.add(random.Random(compression).randrange(ends[-3], ends[-2]))
    for cut in sorted(cuts):
        shutil.rmtree(calm.runs_root)
        shutil.copytree(saved, calm.runs_root)
        index.write_bytes(whole[:cut])
        delete(calm.runs_root / "cache.sqlite")
        calm.counts(*options)
        assert calm.run == run
        assert_equal(calm.records(), undisturbed)


@pytest.mark.parametrize(
    "tail", [b"\0" * 5000, b"torn", b"\x28\xb5\x2f\xfd\x24"], ids=["zeros", "text", "magic"]
)
def test_what_is_behind_the_valid_part_of_an_index_is_cut_off(
    calm: Infer, undisturbed: Records, tail: bytes
) -> None:
    run = interrupt(calm)
    with open(run / "index.jsonl.zst", "ab") as stream:
        stream.write(tail)
    calm.counts()
    assert calm.run == run
    assert_equal(calm.records(), undisturbed)


def test_many_archives_share_a_runs_root_and_all_come_back(tidy: Infer, sounds: list[Path]) -> None:
    other = Infer(tidy.server, tidy.archive.with_name("other"), tidy.runs_root, tidy.model)
    shutil.copytree(sounds[0].parent, other.archive)
    number = other.counts()["discovered"]
    delete(tidy.runs_root / "cache.sqlite")
    assert tidy.counts(no_workers=True)["carried_over"] == 40
    assert other.counts(no_workers=True)["carried_over"] == number


def test_the_rebuilt_cache_says_what_the_lost_one_said(tidy: Infer) -> None:
    path = tidy.runs_root / "cache.sqlite"
    before = _content(path)
    delete(path)
    assert tidy(die="after drumline.pipeline.run:open_cache").code == -signal.SIGKILL
    assert _content(path) == before


def _content(path: Path) -> list[tuple[object, ...]]:
    cache = Cache(path)
    files = []
    for directory, number in sorted(cache.directories(1).items()):
        for name, known in sorted(cache.files(number).items()):
            row = cache.frame(known.frame)
            assert row is not None
            files.append((directory, name, *known[:3], row[0][2:], row[1], known.line))
    cache.close()
    return files


def _ends(lines: bytes) -> list[int]:
    return [place + 1 for place, byte in enumerate(lines) if byte == ord("\n")]


def _frame_ends(index: Path) -> list[int]:
    return [frame.offset + frame.length for frame in read_frames(index)]


@pytest.mark.parametrize(
    "place", ["run.make.after", "durable.write.before", "durable.replace.before", "run.add.before"]
)
def test_a_run_that_was_killed_while_it_was_made_leaves_no_directory_for_good(
    calm: Infer, undisturbed: Records, place: str
) -> None:
    assert calm(failpoints=f"{place}=kill").code == -signal.SIGKILL
    assert len(runs_of(calm.runs_root)) == 1
    calm.counts()
    assert runs_of(calm.runs_root) == [calm.run]
    assert_equal(calm.records(), undisturbed)


def test_a_directory_that_only_looks_like_an_unborn_run_is_left_alone(tidy: Infer) -> None:
    mine = tidy.runs_root / "run_20200101T000000Z"
    mine.mkdir()
    (mine / "run.json").write_text("{}")
    (mine / "notes.txt").write_text("mine")
    tidy.counts("--threshold", "0.9")
    assert sorted(path.name for path in mine.iterdir()) == ["notes.txt", "run.json"]
