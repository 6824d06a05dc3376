"""Kill any process, at any time, as often as you like: the same command finishes the run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tests.pipeline.conftest import Infer, saved, sounds_of
from tests.pipeline.support import (
    Records,
    Running,
    Server,
    assert_equal,
    audio_files,
    copy,
    eventually,
    runs_of,
    tree,
)

SMALL_STEPS = {"frame_lines": 8, "take": 8, "flush": 0.02}
"""Many small frames, so that there is much to interrupt."""

KILLS = 5


def disturb(infer: Infer, undisturbed: Records, disturbance: Callable[[Running], None]) -> None:
    """Run, disturb, and look at what is left, until a run comes to its end; then compare."""
    kills = 0
    while True:
        running = infer.start(workers=2, slow=0.015 if kills < KILLS else 0, **SMALL_STEPS)
        running.stage("write")
        if kills < KILLS:
            disturbance(running)
        result = running.wait()
        if result.code == 0:
            break
        assert result.code in (-signal.SIGKILL, 10), result.err
        running.gone(5.0)
        done = assert_index_whole(infer)
        kills += 1
    assert kills >= 3, f"{done} done"
    assert result.counts["discovered"] == len(undisturbed)
    infer.run = Path(result.json()["run_directory"])
    assert_equal(infer.records(), undisturbed)
    assert runs_of(infer.runs_root) == [infer.run]
    assert infer.counts(no_workers=True)["discovered"] == len(undisturbed)


def assert_index_whole(infer: Infer) -> int:
    """Hold that what the cache counts on can be read, and return how many records that is."""
    with sqlite3.connect(f"file:{infer.runs_root / 'cache.sqlite'}?mode=ro", uri=True) as cache:
        ((name, valid),) = cache.execute("SELECT name, valid FROM run ORDER BY id DESC LIMIT 1")
    cache.close()
    index = infer.runs_root / name / "index.jsonl.zst"
    data = index.read_bytes() if index.exists() else b""
    assert len(data) >= valid
    paths = []
    while len(data) and valid > 0:
        frame = zstandard.ZstdDecompressor().decompressobj()
        paths += [json.loads(line)["relative_path"] for line in frame.decompress(data).splitlines()]
        assert frame.eof
        valid -= len(data) - len(frame.unused_data)
        data = frame.unused_data
    assert valid == 0
    return len(paths)


@pytest.mark.parametrize("seed", range(2))
def test_all_processes_killed_at_any_moment(calm: Infer, undisturbed: Records, seed: int) -> None:
    choose = random.Random(seed)

    def kill(running: Running) -> None:
        time.sleep(choose.uniform(0, 0.4))
        running.signal_group(signal.SIGKILL)

    disturb(calm, undisturbed, kill)


def test_the_supervisor_killed_at_any_moment_leaves_no_orphans(calm: Infer, undisturbed: Records) -> None:
    choose = random.Random(7)
    shared, archive = shared_memory(), tree(calm.archive)

    def kill(running: Running) -> None:
        time.sleep(choose.uniform(0, 0.4))
        running.signal(signal.SIGKILL)

    disturb(calm, undisturbed, kill)
    assert shared_memory() <= shared
    assert tree(calm.archive) == archive


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.mark.parametrize("stage", ["write", "predict"])
def test_a_stage_killed_at_any_moment(calm: Infer, undisturbed: Records, stage: str) -> None:
    choose = random.Random(stage)

    def kill(running: Running) -> None:
        running.stage(stage)
        time.sleep(choose.uniform(0, 0.3))
        running.kill_stage(stage)

    disturb(calm, undisturbed, kill)


def test_discover_killed_at_any_moment(calm: Infer, undisturbed: Records) -> None:
    """It is quick here: the directory at which it dies is chosen, not the time."""
    for directory in (1, 2, 5, 9):
        result = calm(die=f"after drumline.walk:Walk._place {directory}", **SMALL_STEPS)
        assert result.code == 10
        assert_index_whole(calm)
    finish(calm, undisturbed)


def test_workers_that_are_killed_are_replaced_and_cost_nothing(calm: Infer, undisturbed: Records) -> None:
    running = calm.start(workers=2, slow=0.015, **SMALL_STEPS)
    running.stage("predict")
    for place in range(3):
        running.kill_stage("extract", place)
        running.stage("extract", place + 2)
        eventually(lambda: "Z" not in running.members().values(), "end of zombies", 5.0)
    result = running.wait()
    assert result.code == 0, result.err
    assert result.counts["discovered"] == len(undisturbed)
    calm.run = Path(result.json()["run_directory"])
    assert_equal(calm.records(), undisturbed)


def finish(infer: Infer, undisturbed: Records) -> None:
    """Give the same command, and compare."""
    counts = infer.counts(**SMALL_STEPS)
    assert counts["discovered"] == len(undisturbed)
    assert_equal(infer.records(), undisturbed)
    assert runs_of(infer.runs_root) == [infer.run]


MOMENTS = [
    "after drumline.pipeline.run:make_job",
    "before drumline.walk:Walk._place 3",
    "before drumline.pipeline.walk:_Sender.send 1",
    "before drumline.pipeline.discover:_Dispatcher.hand_on 2",
    "before drumline.pipeline.predict:_start 2",
    "after drumline.pipeline.write:IndexAppender.append 3",
    "before drumline.pipeline.write:IndexAppender.sync 2",
    "after drumline.cache:Cache.add_frame 4",
    "after drumline.cache:Cache.set_valid 2",
    "after drumline.pipeline.write:_Writer._commit 3",
    "before drumline.pipeline.finish:write_json",
    "after drumline.pipeline.finish:write_json",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_each_step(calm: Infer, undisturbed: Records, moment: str) -> None:
    assert calm(die=moment, **SMALL_STEPS).code in (-signal.SIGKILL, 10)
    if moment.endswith("finish:write_json") and moment.startswith("after"):
        assert calm.counts(no_workers=True)["carried_over"] > 0
        assert_equal(calm.records(), undisturbed)
    else:
        assert_index_whole(calm)
        finish(calm, undisturbed)


@pytest.mark.parametrize(
    "moment",
    [
        "before drumline.pipeline.prepare:create_run",
        "before drumline.runs:write_json",
        "before drumline.cache:Cache.add_run",
        "after drumline.cache:Cache.add_run",
    ],
)
def test_a_kill_before_the_run_is_known_costs_an_empty_directory_at_most(
    calm: Infer, undisturbed: Records, moment: str
) -> None:
    assert calm(die=moment).code == -signal.SIGKILL
    calm.counts()
    assert_equal(calm.records(), undisturbed)
    assert len([run for run in runs_of(calm.runs_root) if (run / "summary.json").exists()]) == 1


CARRYING = [
    "after drumline.cache:Cache.carry_frame 1",
    "after drumline.cache:Cache.split_frame 1",
    "after drumline.pipeline.write:_Writer._copy_some 1",
    "after drumline.pipeline.write:IndexAppender.append 2",
    "after drumline.pipeline.write:_Writer._commit 1",
    "after drumline.cache:Cache.forget_file 1",
    "after drumline.cache:Cache.forget_directory 1",
    "before drumline.pipeline.finish:write_json",
    "before drumline.cache:Cache.drop_unused",
]


@pytest.fixture(scope="module")
def edited(restored: Callable[[], Infer]) -> tuple[Callable[[], Infer], Records]:
    """A classified archive that was edited since, and what a fresh run makes of it."""
    tidy = restored()
    sounds = sounds_of(tidy)
    shutil.rmtree(sounds[0].parent)
    left = [sound for sound in sounds if sound.exists()]
    left[0].unlink()
    left[1].write_bytes(left[2].read_bytes() + b"\0\0")
    left[3].rename(tidy.archive / f"moved{left[3].suffix}")
    expected = replace(tidy).fresh_records()
    return saved(tidy), expected


@pytest.mark.parametrize("moment", CARRYING)
def test_a_kill_while_records_are_carried_over(
    edited: tuple[Callable[[], Infer], Records], moment: str
) -> None:
    restore, expected = edited
    infer = restore()
    earlier = infer.run
    old = tree(earlier)
    assert infer(die=moment, **SMALL_STEPS).code in (-signal.SIGKILL, 10)
    infer.counts(**SMALL_STEPS)
    assert_equal(infer.records(), expected)
    assert tree(earlier) == old


def interrupted(infer: Infer, *options: str) -> list[Path]:
    """Interrupt a run when it is about half done, and return the files whose records are committed."""
    halfway = "after drumline.pipeline.write:_Writer._commit 8"
    # Frames end when they are full, not by the clock: of each one, more is left than what a test changes.
    full_frames = {**SMALL_STEPS, "flush": 60.0}
    assert infer(*options, die=halfway, slow=0.002, **full_frames).code == 10
    with sqlite3.connect(f"file:{infer.runs_root / 'cache.sqlite'}?mode=ro", uri=True) as cache:
        rows = cache.execute(
            "SELECT d.path, f.name FROM file f JOIN directory d ON d.id = f.directory"
        ).fetchall()
    cache.close()
    done = [infer.archive / os.fsdecode(os.path.join(*row)) for row in rows]
    assert 10 < len(done) < 110
    return sorted(done)


def change(infer: Infer) -> None:
    """Edit, delete, move and add files of an interrupted run, done and not done."""
    done = interrupted(infer)
    sounds = [infer.archive / os.fsdecode(path) for path in audio_files(infer.archive)]
    waiting = [sound for sound in sounds if sound not in set(done)]
    for some in (done, waiting):
        spare = some[0].read_bytes()
        some[1].write_bytes(spare + b"edited")
        some[2].unlink()
        some[3].rename(infer.archive / f"moved from {len(some)}.wav")
        os.utime(some[4], ns=(0, 10**18))
        (infer.archive / f"new {len(some)}.wav").write_bytes(spare + b"new")
    shutil.rmtree(done[5].parent)


def test_files_that_change_before_a_run_goes_on_have_one_record_each(infer: Infer) -> None:
    change(infer)
    infer.counts(**SMALL_STEPS)
    assert len(runs_of(infer.runs_root)) == 1
    assert_equal(infer.records(), infer.fresh_records())
    assert infer.counts(no_workers=True)["classified"] == 0


def test_a_file_that_changes_at_every_interruption_has_one_record(infer: Infer) -> None:
    done = interrupted(infer)
    for number in range(3):
        done[0].write_bytes(done[1].read_bytes() + bytes([number]))
        infer(die="after drumline.pipeline.write:_Writer._commit 2", slow=0.002, **SMALL_STEPS)
    infer.counts(**SMALL_STEPS)
    assert_equal(infer.records(), infer.fresh_records())


@pytest.fixture(scope="module", params=["zstd", "none"])
def superseded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server: Server,
    pristine: Path,
    model: Path,
) -> tuple[Callable[[], Infer], Records, tuple[str, ...]]:
    """An interrupted run whose files changed since, and what a fresh run makes of them."""
    options = ("--compress-index", request.param)
    place = tmp_path_factory.mktemp("superseded") / "place"
    place.mkdir()
    infer = Infer(server, copy(pristine, place / "archive"), place / "runs", model)
    done = interrupted(infer, *options)
    done[0].write_bytes(done[1].read_bytes() + b"edited")
    done[2].unlink()
    expected = replace(infer).fresh_records(*options)
    return saved(infer), expected, options


@pytest.mark.parametrize(
    "moment",
    [
        "before drumline.pipeline.finish:_drop_superseded",
        "after drumline.cache:Cache.move_frame 1",
        "after drumline.pipeline.finish:_rewrite 1",
        "before os:replace",
        "after os:replace",
        "after drumline.pipeline.finish:_drop_superseded",
    ],
)
def test_a_kill_while_superseded_records_are_dropped(
    superseded: tuple[Callable[[], Infer], Records, tuple[str, ...]], moment: str
) -> None:
    restore, expected, options = superseded
    infer = restore()
    assert infer(*options, die=moment, **SMALL_STEPS).code == -signal.SIGKILL
    infer.counts(*options)
    assert_equal(infer.records(), expected)
    assert runs_of(infer.runs_root) == [infer.run]
    assert not list(infer.run.glob(".*"))


def test_counts_add_up_when_carried_records_are_superseded(tidy: Infer, sounds: list[Path]) -> None:
    """Frames that hold records carried over, and failures, lose lines."""
    for sound in sounds[::2]:
        sound.write_bytes(b"")
    tidy.counts()
    decided = "--threshold", "0.9"
    assert tidy(*decided, die="before drumline.pipeline.finish:write_json").code == -signal.SIGKILL
    for sound in sounds[1:20:2]:
        sound.unlink()
    counts = tidy.counts(*decided)
    assert (counts["discovered"], counts["failed"]) == (30, 20)
    assert_equal(tidy.records(), tidy.fresh_records(*decided))


def cut_short(infer: Infer, *options: str) -> Path:
    """Kill a run after its first frames, and return its directory."""
    place = "after drumline.cache:Cache.set_valid 5"
    assert infer(*options, die=place, frame_lines=4, slow=0.002).code == 10
    return runs_of(infer.runs_root)[-1]


def test_an_unfinished_run_does_not_end_after_a_newer_one_that_is_complete(infer: Infer) -> None:
    """The newest complete run of an archive is the one that was finished last."""
    begun = cut_short(infer)
    infer.counts("--no-audio-stats", "--threshold", "0.9")
    other = infer.run
    infer.counts()
    assert infer.run.name > other.name > begun.name
    assert not (begun / "summary.json").exists()
    assert_equal(infer.records(), infer.fresh_records())


@pytest.mark.parametrize(
    "options",
    [
        ("--formats", "wav"),
        ("--follow-links", "none"),
        ("--one-file-system",),
        ("--max-file-mb", "9"),
        ("--no-dedup-hash",),
    ],
    ids=" ".join,
)
def test_a_run_ends_with_the_settings_that_its_run_json_says(infer: Infer, options: tuple[str, ...]) -> None:
    begun = cut_short(infer, *options)
    counts = infer.counts()
    assert infer.run != begun
    assert counts["carried_over"] > 0
    said = json.loads((infer.run / "run.json").read_text())["settings"]
    assert len(said["supported_formats"]) > 1
    assert (said["follow_links"], said["one_file_system"], said["max_file_mb"]) == ("all", False, 4000)
    assert said["dedup_hash"] is True


def test_verify_says_of_an_unfinished_run_whether_anything_goes_on_with_it(
    infer: Infer, server: Server
) -> None:
    begun = cut_short(infer)
    assert "command finishes it" in server.start("verify", begun).wait().out
    infer.counts("--threshold", "0.9")
    told = " ".join(server.start("verify", begun).wait().out.split())
    assert "command finishes it" not in told
    assert f"{infer.run.name} took its place" in told
