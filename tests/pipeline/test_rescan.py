"""A second run reads what is new or changed, and its index is that of a run that knows nothing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drumline.verify import verify_run
from tests.pipeline.conftest import Infer
from tests.pipeline.support import assert_equal, last_run, path_of, runs_of, tree

LATER_NS = 10**9


def rescan(infer: Infer, **expected: int) -> None:
    """Classify again without decoding anything, and compare with a run that knows nothing."""
    counts = infer.counts(no_decoding=True, frame_lines=16)
    assert {name: counts[name] for name in expected} == expected
    assert_equal(infer.records(), infer.fresh_records())


def test_an_unchanged_archive_is_carried_over_byte_for_byte_and_no_worker_starts(infer: Infer) -> None:
    first = infer.counts(frame_lines=16, flush=60.0)
    before = tree(last_run(infer.runs_root))
    second = infer.counts(no_workers=True, frame_lines=16)
    old, new = runs_of(infer.runs_root)
    assert second["carried_over"] == first["classified"]
    assert (second["classified"], second["failed"]) == (0, first["failed"])
    assert tree(old) == before
    assert sorted(_frames(new)) == sorted(_frames(old))


def test_what_is_known_of_an_unchanged_archive_is_compared_by_directories(infer: Infer) -> None:
    first = infer.counts()
    again = infer.counts(broken="drumline.cache:Cache.files", no_workers=True)
    assert again["carried_over"] == first["classified"]


def test_frames_whose_digest_holds_are_copied_without_being_unpacked(infer: Infer) -> None:
    first = infer.counts(frame_lines=16, flush=60.0)
    again = infer.counts(broken="drumline.pipeline.write:unpack_frame", no_workers=True, frame_lines=16)
    assert again["carried_over"] == first["classified"]


def _frames(run: Path) -> list[bytes]:
    from drumline.index import read_frames

    return [frame.data for frame in read_frames(run / "index.jsonl.zst")]


def test_small_frames_are_written_anew_together_and_large_ones_copied(infer: Infer) -> None:
    infer.counts(frame_lines=8)
    before = infer.records()
    assert len(_frames(last_run(infer.runs_root))) >= 15
    infer.counts(no_workers=True, frame_lines=64)
    assert [data.count(b"\n") for data in _frames(infer.run)] == [64, 56]
    assert_equal(infer.records(), before)
    old = _frames(infer.run)
    infer.counts(no_workers=True, frame_lines=64)
    assert sorted(_frames(infer.run)) == sorted(old)


def test_lines_that_hold_are_copied_as_they_are_where_others_of_their_frame_do_not(
    tidy: Infer, sounds: list[Path]
) -> None:
    """They are neither parsed nor decided again, and stay together in their frame."""
    tidy.counts("--fresh", frame_lines=16, flush=60.0)
    before = set(_lines(last_run(tidy.runs_root)))
    frames = len(_frames(last_run(tidy.runs_root)))
    sounds[2].write_bytes(sounds[6].read_bytes() + b"\0")
    sounds[20].unlink()
    os.utime(sounds[25], ns=(0, sounds[25].stat().st_mtime_ns + LATER_NS))
    counts = tidy.counts(broken="drumline.pipeline.write:redecide", frame_lines=16)
    assert (counts["carried_over"], counts["classified"], counts["gone"]) == (len(sounds) - 3, 2, 1)
    assert len(before & set(_lines(tidy.run))) == len(sounds) - 3
    assert len(_frames(tidy.run)) <= frames + 2
    assert_equal(tidy.records(), tidy.fresh_records())


def _lines(run: Path) -> list[bytes]:
    return [line for data in _frames(run) for line in data.splitlines()]


def test_a_frame_may_lose_lines_again_and_again(tidy: Infer, sounds: list[Path]) -> None:
    for number in range(6):
        sounds[7 * number % len(sounds)].write_bytes(b"no sound %d" % number)
        os.utime(sounds[11 * number % len(sounds)], ns=(0, number))
        if number % 2:
            sounds[13 * number % len(sounds)].unlink(missing_ok=True)
        tidy.counts("--yes", frame_lines=16)
        report = verify_run(tidy.run, archive=True, content=True)
        assert report.ok, report.findings
        assert not report.notes, report.notes
    assert_equal(tidy.records(), tidy.fresh_records())
    assert tidy.counts(no_workers=True, frame_lines=16)["classified"] == 0


def test_rescans_add_up_over_many_runs(infer: Infer) -> None:
    first = infer.counts(frame_lines=16)
    expected = infer.records()
    for _ in range(3):
        counts = infer.counts(no_workers=True)
        assert counts["carried_over"] == first["classified"]
        assert_equal(infer.records(), expected)
    assert len(runs_of(infer.runs_root)) == 4


def test_touched_files_take_over_their_own_prediction(tidy: Infer, sounds: list[Path]) -> None:
    for sound in sounds[::9]:
        os.utime(sound, ns=(0, sound.stat().st_mtime_ns + LATER_NS))
    touched = len(sounds[::9])
    rescan(tidy, known_content=touched, classified=touched, carried_over=len(sounds) - touched)


def test_a_file_whose_clock_went_back_is_read_again(tidy: Infer, sounds: list[Path]) -> None:
    os.utime(sounds[0], ns=(0, sounds[0].stat().st_mtime_ns - LATER_NS))
    rescan(tidy, known_content=1, carried_over=len(sounds) - 1)


def test_a_change_within_the_same_coarse_tick_of_the_clock_is_noticed(
    tidy: Infer, sounds: list[Path]
) -> None:
    """FAT keeps times to two seconds: size and time may stay as they are although the content changes."""
    tick = int(time.time()) * 10**9
    os.utime(sounds[0], ns=(tick, tick))
    tidy.counts()
    content = bytearray(sounds[0].read_bytes())
    content[-1] ^= 1
    sounds[0].write_bytes(content)
    os.utime(sounds[0], ns=(tick, tick))
    tidy.counts()
    assert_equal(tidy.records(), tidy.fresh_records())


def test_whole_seconds_long_past_are_believed(tidy: Infer, sounds: list[Path]) -> None:
    for sound in sounds:
        os.utime(sound, ns=(10**18, 10**18))
    tidy.counts()
    assert tidy.counts(no_workers=True)["carried_over"] == 40


@pytest.mark.parametrize("hours", [-1, 1])
def test_times_that_a_time_zone_moved_cost_no_decoding(tidy: Infer, sounds: list[Path], hours: int) -> None:
    """FAT keeps local time: with daylight saving, or in another zone, all files seem to have changed."""
    for sound in sounds:
        os.utime(sound, ns=(0, sound.stat().st_mtime_ns // (2 * 10**9) * 2 * 10**9))
    tidy.counts()
    for sound in sounds:
        os.utime(sound, ns=(0, sound.stat().st_mtime_ns + hours * 3600 * 10**9))
    counts = tidy.counts(no_decoding=True)
    assert (counts["known_content"], counts["classified"], counts["failed"]) == (40, 40, 0)
    assert tidy.counts(no_workers=True)["carried_over"] == 40


def test_a_moved_file_takes_over_its_prediction(tidy: Infer, sounds: list[Path]) -> None:
    (tidy.archive / "new place").mkdir()
    sounds[3].rename(tidy.archive / "new place" / "renamed.wav")
    rescan(tidy, known_content=1, gone=1, carried_over=len(sounds) - 1)


def test_two_files_that_swap_their_names_swap_their_predictions(tidy: Infer, sounds: list[Path]) -> None:
    one, other = sounds[1], next(sound for sound in sounds[2:] if sound.suffix == sounds[1].suffix)
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)
    os.utime(one, ns=(0, one.stat().st_mtime_ns + LATER_NS))
    os.utime(other, ns=(0, other.stat().st_mtime_ns + 2 * LATER_NS))
    assert tidy.counts()["gone"] == 0
    assert_equal(tidy.records(), tidy.fresh_records())


def test_a_moved_directory_takes_over_all_its_predictions(tidy: Infer, sounds: list[Path]) -> None:
    directory = tidy.archive / sounds[0].relative_to(tidy.archive).parts[0]
    moved = [sound for sound in sounds if directory in sound.parents]
    assert 0 < len(moved) < len(sounds)
    directory.rename(tidy.archive / "zz moved")
    rescan(tidy, known_content=len(moved), gone=len(moved), carried_over=len(sounds) - len(moved))


def test_moved_files_find_their_twins_however_late_they_are_read(tidy: Infer) -> None:
    """What is gone is forgotten last."""
    tidy.archive.joinpath("zz").mkdir()
    for directory in list(tidy.archive.iterdir()):
        if directory.name != "zz":
            directory.rename(tidy.archive / "zz" / directory.name)
    counts = tidy.counts("--accept-missing", no_decoding=True, slow_reading=0.005, flush=0.0, frame_lines=4)
    assert (counts["known_content"], counts["gone"]) == (40, 40)
    assert_equal(tidy.records(), tidy.fresh_records())


def test_deleted_files_leave_the_index(tidy: Infer, sounds: list[Path]) -> None:
    for sound in sounds[::10]:
        sound.unlink()
    gone = len(sounds[::10])
    rescan(tidy, gone=gone, classified=0, discovered=len(sounds) - gone)


def test_a_deleted_directory_leaves_the_index(tidy: Infer, sounds: list[Path]) -> None:
    directory = sounds[0].parent
    gone = sum(directory in sound.parents for sound in sounds)
    shutil.rmtree(directory)
    rescan(tidy, gone=gone, classified=0, discovered=len(sounds) - gone)
    rescan(tidy, gone=0, classified=0, discovered=len(sounds) - gone)


def test_a_duplicate_takes_over_its_twins_prediction(tidy: Infer, sounds: list[Path]) -> None:
    shutil.copy(sounds[0], tidy.archive / f"a copy{sounds[0].suffix}")
    rescan(tidy, known_content=1, classified=1, carried_over=len(sounds))


def test_an_edited_file_is_classified_again_and_nothing_else(tidy: Infer, sounds: list[Path]) -> None:
    sounds[5].write_bytes(sounds[6].read_bytes() + b"\0")
    before = tidy.records()
    counts = tidy.counts()
    assert (counts["classified"], counts["carried_over"]) == (1, len(sounds) - 1)
    assert_equal(tidy.records(), tidy.fresh_records())
    edited = os.fsencode(sounds[5].relative_to(tidy.archive))
    assert tidy.records()[edited]["hash"] != before[edited]["hash"]


def test_a_mended_file_loses_its_failure(tidy: Infer, sounds: list[Path]) -> None:
    whole = sounds[7].read_bytes()
    sounds[7].write_bytes(whole[:10])
    assert tidy.counts()["failed"] == 1
    sounds[7].write_bytes(whole)
    assert tidy.counts()["failed"] == 0
    assert_equal(tidy.records(), tidy.fresh_records())


def test_a_lasting_failure_is_tried_again_only_when_asked(tidy: Infer, sounds: list[Path]) -> None:
    sounds[7].write_bytes(b"no sound at all")
    assert tidy.counts()["failed"] == 1
    assert tidy.counts(no_workers=True)["failed"] == 1
    written = _counter(tidy, "--retry-failed")
    assert written == 1


def test_a_failure_that_may_pass_is_tried_again(tidy: Infer, sounds: list[Path]) -> None:
    (tidy.archive / "link.wav").symlink_to(tidy.archive / "not there yet.bin")
    assert tidy.counts()["failed"] == 1
    shutil.copy(sounds[0], tidy.archive / "not there yet.bin")
    assert tidy.counts()["failed"] == 0
    assert_equal(tidy.records(), tidy.fresh_records())


def _counter(infer: Infer, *options: str) -> int:
    """Return how many files a dry run would read."""
    result = infer("--dry-run", *options)
    infer.counts(*options)
    to_read: int = result.counts["to_read"]
    return to_read


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: (root / "kit.wav").mkdir(),
        lambda root: (root / "empty directory").mkdir(),
        lambda root: (root / "notes.txt").write_text("no sound"),
    ],
    ids=["directory named like a file", "empty directory", "clutter"],
)
def test_what_is_no_sound_changes_nothing(
    tidy: Infer, sounds: list[Path], edit: Callable[[Path], None]
) -> None:
    edit(tidy.archive)
    assert tidy.counts(no_workers=True)["carried_over"] == len(sounds)


def test_a_directory_in_place_of_a_file_and_a_file_in_place_of_a_directory(
    tidy: Infer, sounds: list[Path]
) -> None:
    spare = sounds[0].read_bytes()
    sounds[1].unlink()
    sounds[1].mkdir()
    (sounds[1] / f"inside{sounds[0].suffix}").write_bytes(spare)
    directory = sounds[-1].parent
    shutil.rmtree(directory)
    if directory != tidy.archive:
        directory.with_suffix(sounds[0].suffix).write_bytes(spare)
    rescan(tidy, known_content=2)


def test_with_deduplication_off_a_touched_file_is_decoded(tidy: Infer, sounds: list[Path]) -> None:
    os.utime(sounds[0], ns=(0, 10**18))
    counts = tidy.counts("--no-dedup-hash")
    assert (counts["known_content"], counts["classified"]) == (0, 1)
    assert_equal(tidy.records(), tidy.fresh_records())


def test_an_archive_that_is_mounted_elsewhere_is_not_decoded_again(tidy: Infer, sounds: list[Path]) -> None:
    before = tidy.records()
    tidy.archive = tidy.archive.rename(tidy.archive.with_name("elsewhere"))
    counts = tidy.counts(no_decoding=True)
    assert counts["known_content"] == len(sounds)
    assert_equal(tidy.records(), before, "abs_path")
    assert {path_of(record) for record in tidy.records().values()} == set(before)


def test_an_interrupted_fresh_run_goes_on_with_the_same_command(tidy: Infer) -> None:
    """And ignores what earlier runs knew."""
    halfway = "after drumline.pipeline.write:_Writer._commit 3"
    assert tidy("--fresh", die=halfway, slow=0.002, frame_lines=4, take=4, flush=0.0).code == 10
    begun = last_run(tidy.runs_root)
    counts = tidy.counts("--fresh")
    assert tidy.run == begun
    assert (counts["carried_over"], counts["classified"]) == (0, 40)
    assert len(runs_of(tidy.runs_root)) == 2


def test_a_run_goes_on_only_where_it_is_fresh_if_that_is_asked(tidy: Infer, sounds: list[Path]) -> None:
    for sound in sounds[:20]:
        sound.write_bytes(sound.read_bytes() + b"\0")
    halfway = "after drumline.pipeline.write:_Writer._commit 3"
    assert tidy(die=halfway, slow=0.002, frame_lines=4, take=4, flush=0.0).code == 10
    begun = last_run(tidy.runs_root)
    assert tidy.counts("--fresh")["classified"] == 40
    assert tidy.run != begun


def test_fresh_ignores_what_is_known_and_leaves_earlier_runs_alone(tidy: Infer, sounds: list[Path]) -> None:
    before = tree(last_run(tidy.runs_root))
    counts = tidy.counts("--fresh")
    assert counts["carried_over"] == counts["known_content"] == 0
    assert counts["classified"] == len(sounds)
    assert tree(runs_of(tidy.runs_root)[0]) == before
    assert tidy.counts(no_workers=True)["carried_over"] == len(sounds)
