"""One bad file costs one failed record, never the run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, assert_equal, audio_files, prompt


@pytest.fixture
def bad(tidy: Infer, sounds: list[Path]) -> Infer:
    """An unclassified archive of 40 good sounds, to which bad ones are added by `add`."""
    shutil.rmtree(tidy.runs_root)
    return tidy


def add(infer: Infer, *names: str) -> None:
    """Add files that are good sounds but for their names, each with a content of its own."""
    sound = infer.archive / os.fsdecode(audio_files(infer.archive)[0])
    for number, name in enumerate(names):
        path = infer.archive / name
        path.write_bytes(sound.read_bytes() + b"\0" * (number + 1))


def failures(records: Records) -> dict[str, str]:
    return {
        os.fsdecode(path): record["errors"]["type"] for path, record in records.items() if record["errors"]
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_that_always_kills_its_worker_is_one_failed_record(bad: Infer, workers: int) -> None:
    add(bad, "killer.wav", "m killer.wav", "zz killer.wav")
    counts = bad.counts(workers=workers, bad_names=True)
    assert (counts["failed"], counts["classified"]) == (3, 40)
    records = bad.records()
    assert failures(records) == dict.fromkeys(["killer.wav", "m killer.wav", "zz killer.wav"], "worker_crash")
    assert "SIGKILL" in records[b"killer.wav"]["errors"]["message"]


def test_an_archive_of_killers_alone_comes_to_its_end(bad: Infer) -> None:
    names = [f"killer {number}.wav" for number in range(25)]
    add(bad, *names)
    for directory in [path for path in bad.archive.iterdir() if path.is_dir()]:
        shutil.rmtree(directory)
    assert bad.counts(workers=2, bad_names=True)["failed"] == 25
    assert failures(bad.records()) == dict.fromkeys(names, "worker_crash")


def test_a_file_that_is_never_decoded_is_given_up(bad: Infer) -> None:
    add(bad, "hang.wav")
    result = bad("--file-timeout", "0.5", workers=2, bad_names=True)
    assert result.code == 0, result.err
    bad.run = Path(result.json()["run_directory"])
    assert failures(bad.records()) == {"hang.wav": "timeout"}
    assert "0.5 s" in bad.records()[b"hang.wav"]["errors"]["message"]
    assert result.counts["classified"] == 40
    assert 1.0 <= result.seconds < prompt(5)


@pytest.mark.parametrize("storage", ["ssd", "hdd"])
def test_a_file_that_never_opens_is_given_up_and_holds_up_no_stage(bad: Infer, storage: str) -> None:
    add(bad, "stuck.wav")
    result = bad("--file-timeout", "1", "--io", storage, workers=2, slow_open="300 stuck.wav")
    assert result.code == 0, result.err
    bad.run = Path(result.json()["run_directory"])
    assert failures(bad.records()) == {"stuck.wav": "timeout"}
    assert result.counts["classified"] == 40
    assert result.seconds < prompt(8)


def test_a_decoder_that_crashes_or_eats_memory_is_one_typed_record_each(bad: Infer) -> None:
    add(bad, "a crasher.wav", "b glutton.wav", "c greedy.wav")
    assert bad.counts("--worker-memory-mb", "300", workers=2, bad_names=True)["classified"] == 40
    records = bad.records()
    assert failures(records) == {
        "a crasher.wav": "worker_crash",
        "b glutton.wav": "out_of_memory",
        "c greedy.wav": "out_of_memory",
    }
    assert "SIGSEGV" in records[b"a crasher.wav"]["errors"]["message"]
    assert "300 MB" in records[b"b glutton.wav"]["errors"]["message"]


def test_memory_that_one_file_leaves_behind_fails_no_other(bad: Infer) -> None:
    """Each keeps 400 MB: what a worker has lost is gone with it, and the file is tried anew."""
    add(bad, *(f"hoarder {number}.wav" for number in range(3)))
    assert bad.counts(workers=1, bad_names=True)["failed"] == 0


def test_a_copy_of_what_killed_two_workers_is_not_tried_until_asked(bad: Infer) -> None:
    add(bad, "killer.wav")
    assert bad.counts(bad_names=True)["failed"] == 1
    killer = bad.archive / "killer.wav"
    shutil.copy(killer, bad.archive / "copy of the killer.wav")
    killer.rename(bad.archive / "moved killer.wav")
    before = len(audio_files(bad.archive))
    result = bad(die="before drumline.audio:Decoder.decode")
    assert result.code == 0, result.err
    assert (result.counts["failed"], result.counts["discovered"]) == (2, before)
    bad.run = Path(result.json()["run_directory"])
    assert set(failures(bad.records()).values()) == {"worker_crash"}
    assert bad.counts("--retry-failed")["failed"] == 0


def test_a_sound_copy_is_preferred_to_one_that_killed_workers(bad: Infer) -> None:
    """What kills may be the moment, not the content."""
    add(bad, "killer.wav")
    assert bad.counts(bad_names=True)["failed"] == 1
    (bad.archive / "killer.wav").rename(bad.archive / "sound.wav")
    assert bad.counts("--retry-failed")["failed"] == 0
    shutil.copy(bad.archive / "sound.wav", bad.archive / "again.wav")
    assert bad.counts(no_decoding=True)["failed"] == 0


def test_workers_are_replaced_within_five_seconds(bad: Infer, sounds: list[Path]) -> None:
    running = bad.start(workers=2, slow=0.2)
    running.stage("extract", 1)
    killed = time.monotonic()
    running.kill_stage("extract", 0)
    running.kill_stage("extract", 1)
    running.stage("extract", 3)
    assert time.monotonic() - killed < prompt(5.0)
    running.signal_group(signal.SIGKILL)


def test_a_hanging_decoder_ends_also_where_nobody_ends_it(bad: Infer, tmp_path: Path) -> None:
    """Only Linux ends a child with its parent; elsewhere the processor time that a file may take does."""
    marker = tmp_path / "begun"
    running = bad.start("--file-timeout", "1", hang=str(marker), no_death_signal=True)
    running.reach(marker.exists, "work")
    running.signal(signal.SIGKILL)
    running.gone(10.0)


def test_what_decoding_raises_is_a_failed_record(bad: Infer) -> None:
    add(bad, "greedy.wav", "odd.wav", "verbose.wav", "leaving.wav")
    assert bad.counts(bad_names=True)["failed"] == 4
    records = bad.records()
    assert failures(records) == {
        "greedy.wav": "out_of_memory",
        "leaving.wav": "decode_error",
        "odd.wav": "decode_error",
        "verbose.wav": "decode_error",
    }
    message = records[b"verbose.wav"]["errors"]["message"]
    assert message.startswith("RuntimeError: line")
    assert len(message.encode()) <= 300


def test_all_kinds_of_bad_files_at_once(bad: Infer) -> None:
    add(bad, "a killer.wav", "b hang.wav", "c greedy.wav", "d odd.wav")
    counts = bad.counts("--file-timeout", "0.5", workers=2, bad_names=True)
    assert (counts["failed"], counts["classified"]) == (4, 40)
    before = bad.records()
    assert set(failures(before).values()) == {"worker_crash", "timeout", "out_of_memory", "decode_error"}
    assert bad.counts(no_workers=True)["failed"] == 4
    assert_equal(bad.records(), before)
    assert bad.counts("--retry-failed")["failed"] == 0


def test_a_worker_killed_once_has_its_file_tried_again(bad: Infer, tmp_path: Path) -> None:
    counts = bad.counts(workers=2, kill_once=str(tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    assert (counts["failed"], counts["classified"]) == (0, 40)


def test_a_file_that_vanishes_before_it_is_read(bad: Infer) -> None:
    add(bad, "vanishing.wav")
    command = 'case "$1" in *vanishing*) rm -f "$1";; esac'
    assert bad.counts(before_reading=command)["failed"] == 1
    assert failures(bad.records()) == {"vanishing.wav": "vanished"}
    counts = bad.counts(no_workers=True)
    assert (counts["discovered"], counts["gone"], counts["failed"]) == (40, 1, 0)


def test_a_file_that_is_replaced_by_something_else_before_it_is_read(bad: Infer) -> None:
    add(bad, "pipe.wav", "directory.wav")
    command = (
        'case "$1" in *pipe.wav) rm -f "$1"; mkfifo "$1";; *directory.wav) rm -f "$1"; mkdir "$1";; esac'
    )
    result = bad(before_reading=command)
    assert result.code == 0, result.err
    bad.run = Path(result.json()["run_directory"])
    assert failures(bad.records()) == {"pipe.wav": "empty_audio", "directory.wav": "unreadable"}


def test_a_file_that_is_rewritten_before_it_is_read_has_the_record_of_what_was_read(bad: Infer) -> None:
    add(bad, "rewritten.wav", "other.wav")
    command = 'case "$1" in *rewritten*) cat "${1%rewritten.wav}other.wav" > "$1";; esac'
    bad.counts(before_reading=command)
    records = bad.records()
    assert records[b"rewritten.wav"]["hash"] == records[b"other.wav"]["hash"]
    assert records[b"rewritten.wav"]["size"] == (bad.archive / "rewritten.wav").stat().st_size
    assert bad.counts(no_workers=True)["classified"] == 0


def test_a_huge_sparse_file_is_read_in_pieces(bad: Infer) -> None:
    add(bad, "huge.wav")
    os.truncate(bad.archive / "huge.wav", 200 << 20)
    bad.counts()
    record = bad.records()[b"huge.wav"]
    assert record["size"] == 200 << 20
    assert record["errors"] is None
    assert record["hash"]


def test_a_file_larger_than_the_limit_is_not_read(bad: Infer) -> None:
    add(bad, "sparse.wav", "small.wav")
    os.truncate(bad.archive / "sparse.wav", 100 * 10**9)
    result = bad()
    assert result.code == 0, result.err
    assert result.seconds < prompt(15)
    bad.run = Path(result.json()["run_directory"])
    assert failures(bad.records()) == {"sparse.wav": "too_large"}
    assert "4,000 MB" in bad.records()[b"sparse.wav"]["errors"]["message"]
    assert bad.records()[b"sparse.wav"]["size"] == 100 * 10**9


def test_a_file_that_was_too_large_is_read_when_the_limit_allows_it(bad: Infer) -> None:
    add(bad, "large.wav")
    os.truncate(bad.archive / "large.wav", 3_000_000)
    assert bad.counts("--max-file-mb", "2")["failed"] == 1
    assert bad.counts("--max-file-mb", "3")["failed"] == 0


def test_a_disk_that_is_slow_but_goes_on_is_no_timeout(bad: Infer) -> None:
    add(bad, "large.wav")
    os.truncate(bad.archive / "large.wav", 6 << 20)
    assert bad.counts("--file-timeout", "1.5", slow_disk=0.5)["failed"] == 0


def test_any_time_of_change_is_kept_exactly(bad: Infer) -> None:
    found = {}
    for nanoseconds in (0, 1, 10**18 + 1, 7 * 10**18, -1_500_000_000 * 10**9):
        add(bad, f"{nanoseconds}.wav")
        path = bad.archive / f"{nanoseconds}.wav"
        os.utime(path, ns=(0, nanoseconds))
        found[os.fsencode(path.name)] = path.stat().st_mtime_ns
    bad.counts()
    records = bad.records()
    assert {name: records[name]["mtime_ns"] for name in found} == found
    assert bad.counts(no_workers=True)["carried_over"] == 45


def test_times_that_no_clock_shows_cost_no_record(bad: Infer) -> None:
    """A disk may hold years up to 2446: they are more nanoseconds than 63 bits hold."""
    add(bad, "far.wav")
    try:
        os.utime(bad.archive / "far.wav", ns=(0, 12 * 10**18))
    except OSError:
        pytest.skip("not on this file system")
    assert bad.counts()["classified"] == 41
    assert bad.counts(no_workers=True)["carried_over"] == 41
