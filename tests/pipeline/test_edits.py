"""Whatever people do to an archive between runs, the index is that of a run that knows nothing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.broken import BROKEN
from tests.pipeline.conftest import Infer
from tests.pipeline.support import assert_equal, audio_files

Edit = Callable[[Path, random.Random, int], None]


def _some(archive: Path, choose: random.Random) -> Path:
    return archive / os.fsdecode(choose.choice(audio_files(archive)))


def _folder(archive: Path, choose: random.Random) -> Path:
    folders = sorted(path for path in archive.rglob("*") if path.is_dir())
    return choose.choice(folders)


def touch(archive: Path, choose: random.Random, number: int) -> None:
    os.utime(_some(archive, choose), ns=(0, 10**18 + number))


def edit(archive: Path, choose: random.Random, number: int) -> None:
    _some(archive, choose).write_bytes(_some(archive, choose).read_bytes() + number.to_bytes(4, "little"))


def ruin(archive: Path, choose: random.Random, number: int) -> None:
    _some(archive, choose).write_bytes(BROKEN["empty" if number % 2 else "claims-gigabytes"](choose))


def delete(archive: Path, choose: random.Random, number: int) -> None:
    if len(audio_files(archive)) > 15:
        _some(archive, choose).unlink()


def copy(archive: Path, choose: random.Random, number: int) -> None:
    shutil.copy(_some(archive, choose), archive / f"copy {number}.wav")


def move(archive: Path, choose: random.Random, number: int) -> None:
    _some(archive, choose).rename(_folder(archive, choose) / f"moved {number}.wav")


def move_folder(archive: Path, choose: random.Random, number: int) -> None:
    _folder(archive, choose).rename(archive / f"folder {number}")


def swap(archive: Path, choose: random.Random, number: int) -> None:
    one, other = _some(archive, choose), _some(archive, choose)
    one.rename(archive / "between")
    if one != other:
        other.rename(one)
    (archive / "between").rename(other)


def link(archive: Path, choose: random.Random, number: int) -> None:
    (archive / f"link {number}.wav").symlink_to(_some(archive, choose) if number % 3 else "nowhere")


EDITS: list[Edit] = [touch, edit, ruin, delete, copy, move, move_folder, swap, link]
ways = st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 99)), min_size=1, max_size=8)
rounds = st.lists(st.tuples(ways, st.sampled_from(["finish", "kill", "lose cache"])), min_size=1, max_size=3)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rounds)
def test_edits_and_rescans_in_any_order(
    restored: Callable[[], Infer], plan: list[tuple[list[tuple[Edit, int]], str]]
) -> None:
    infer = restored()
    number = 0
    for edits, then in plan:
        for change, seed in edits:
            number += 1
            change(infer.archive, random.Random(seed), number)
        if then == "kill":
            infer("--accept-missing", die="after drumline.cache:Cache.set_valid 2", frame_lines=4, flush=0.0)
        elif then == "lose cache":
            (infer.runs_root / "cache.sqlite").unlink(missing_ok=True)
        else:
            infer.counts("--accept-missing", frame_lines=8)
    infer.counts("--accept-missing", frame_lines=8)
    assert_equal(infer.records(), infer.fresh_records())
