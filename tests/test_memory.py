"""How much may be under way follows the memory that is left."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.machine import trim_heap
from drumline.memory import Memory, Ration, Thrift, affordable_slots, ration, read_memory

MB = 1_000_000
FULL = Ration(slots=320, batch=64, workers=8)


def machine(root: Path, available: int, **groups: dict[str, object]) -> Path:
    """Write the proc and sys of a machine; groups by path, with dots for slashes."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {64_000 * MB // 1024} kB\nMemAvailable:  {available // 1024} kB\n"
    )
    for path, files in groups.items():
        directory = root / "sys/fs/cgroup" / path.replace("__", "/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name.replace("__", ".")).write_text(f"{text}\n")
    return root


def test_with_plenty_everything_is_allowed_and_with_nothing_a_handful() -> None:
    assert ration(Memory(8_000 * MB), FULL, 0) == FULL
    assert ration(Memory(None), FULL, 0) == FULL
    assert ration(Memory(0), FULL, 0) == Ration(4, 1, 1)
    assert ration(Memory(8_000 * MB, 600 * MB, 600 * MB), FULL, 3) == Ration(4, 1, 3)


def test_between_comfort_and_scarcity_a_share_is_allowed() -> None:
    memory = Memory(8_000 * MB, limit=600 * MB, in_use=506 * MB)  # between 150 and 37.5 MB
    allowed = ration(memory, FULL, 2)
    assert 150 <= allowed.slots <= 170
    assert allowed.batch == allowed.slots // 3
    assert allowed.workers == 2


def test_the_tighter_of_machine_and_group_counts() -> None:
    assert Memory(50 * MB, 600 * MB, 100 * MB).free == 50 * MB
    assert Memory(5_000 * MB, 600 * MB, 590 * MB).free == 10 * MB
    assert Memory(None, 600 * MB, 700 * MB).free == 0


def test_workers_start_as_memory_has_room_for_them_and_none_is_ended() -> None:
    assert ration(Memory(5_000 * MB, 600 * MB, 300 * MB), FULL, 0).workers == 3
    assert ration(Memory(5_000 * MB, 600 * MB, 300 * MB), FULL, 3).workers == 4
    assert ration(Memory(5_000 * MB, 600 * MB, 590 * MB), FULL, 5).workers == 5


@given(
    free=st.integers(0, 10**10),
    less=st.integers(0, 10**10),
    limit=st.none() | st.integers(0, 10**11),
    slots=st.integers(1, 16_384),
)
def test_less_memory_never_allows_more_and_something_is_always_allowed(
    free: int, less: int, limit: int | None, slots: int
) -> None:
    full = Ration(slots, 64, 8)
    more, fewer = (ration(Memory(free - min(by, free), limit), full, 0) for by in (0, less))
    for low, high, most in zip(fewer, more, full, strict=True):
        assert 1 <= low <= high <= most


def test_the_table_takes_a_quarter_of_all_memory_and_holds_a_handful_at_least() -> None:
    assert affordable_slots(Memory(None, total=400 * MB), 20_000) == 5_000
    assert affordable_slots(Memory(None, limit=40 * MB, total=400 * MB), 20_000) == 500
    assert affordable_slots(Memory(0, total=1), 20_000) == 4
    assert affordable_slots(Memory(None), 20_000) > 1 << 32


def test_a_shortage_that_may_pass_takes_nothing_from_the_table() -> None:
    short = Memory(20 * MB, limit=600 * MB, in_use=599 * MB, total=8_000 * MB)
    assert affordable_slots(short, 20_000) == 600 * MB // 4 // 20_000
    assert ration(short, FULL, 0) == Ration(4, 1, 1)


def test_what_is_allowed_falls_at_once_and_comes_back_step_by_step() -> None:
    memory = [Memory(9_000 * MB)]
    thrift = Thrift(FULL, lambda: memory[0])
    assert thrift.look(2).slots == 320
    memory[0] = Memory(10 * MB)
    assert thrift.look(2)[:2] == (4, 1)
    memory[0] = Memory(9_000 * MB)
    assert [thrift.look(2).slots for _ in range(8)] == [8, 16, 32, 64, 128, 256, 320, 320]
    assert thrift.look(8) == FULL
    assert thrift.fewest_slots == 4
    assert thrift.short_sec > 0.0


def test_workers_that_are_withheld_count_as_short_once_one_was_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("drumline.memory.time.monotonic", lambda: next(clock))
    thrift = Thrift(FULL, lambda: Memory(9_000 * MB, 600 * MB, 400 * MB))
    assert (thrift.allowed.slots, thrift.allowed.workers) == (FULL.slots, 1)
    short = []
    for running in (0, 1, 7, 8):
        thrift.look(running)
        short.append(thrift.short_sec)
    assert short == [0.0, 1.0, 2.0, 2.0]


def test_groups_of_version_2_count_up_to_the_root_without_what_can_be_taken_back(tmp_path: Path) -> None:
    inner = {"memory__max": 500 * MB, "memory__current": 450 * MB}
    cache = f"inactive_file {70 * MB}\nactive_file {30 * MB}\nslab_reclaimable {50 * MB}"
    inner["memory__stat"] = f"anon 1\n{cache}"
    outer = {"memory__max": 700 * MB, "memory__current": 460 * MB}
    outer["memory__stat"] = f"inactive_file {10 * MB}"
    machine(tmp_path, 900 * MB, user__app=inner, user=outer)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/app\n")
    memory = read_memory(tmp_path)
    assert (memory.limit, memory.in_use) == (500 * MB, 300 * MB)
    assert memory.free == 200 * MB
    (tmp_path / "sys/fs/cgroup/user/memory.current").write_text(str(699 * MB))
    assert read_memory(tmp_path).free == 11 * MB


def test_groups_of_version_1_count_also_where_only_their_own_part_is_mounted(tmp_path: Path) -> None:
    group = {"memory__limit_in_bytes": 300 * MB, "memory__usage_in_bytes": 250 * MB}
    machine(
        tmp_path,
        900 * MB,
        memory={**group, "memory__stat": f"total_inactive_file {90 * MB}\ntotal_active_file {60 * MB}"},
    )
    (tmp_path / "proc/self/cgroup").write_text("9:cpu:/x\n4:memory,hugetlb:/docker/abc\n0::/docker/abc\n")
    assert read_memory(tmp_path) == Memory(
        900 * MB // 1024 * 1024, 300 * MB, 100 * MB, total=64_000 * MB // 1024 * 1024
    )


@pytest.mark.parametrize(
    ("most", "high", "limit"),
    [("max", 400 * MB, 400 * MB), (600 * MB, 400 * MB, 400 * MB), (300 * MB, "max", 300 * MB)],
)
def test_where_a_group_is_slowed_down_is_a_limit_as_well(
    tmp_path: Path, most: object, high: object, limit: int
) -> None:
    group = {"memory__max": most, "memory__high": high, "memory__current": 100 * MB}
    machine(tmp_path, 900 * MB, app=group)
    (tmp_path / "proc/self/cgroup").write_text("0::/app\n")
    assert read_memory(tmp_path)[1:3] == (limit, 100 * MB)


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096), ""])
def test_a_group_without_a_limit_is_none(tmp_path: Path, limit: str) -> None:
    machine(tmp_path, 900 * MB, app={"memory__max": limit, "memory__current": 5})
    (tmp_path / "proc/self/cgroup").write_text("0::/app\n")
    assert read_memory(tmp_path).limit is None
    assert read_memory(tmp_path).free == 900 * MB // 1024 * 1024


def test_this_machine_tells_what_it_has() -> None:
    memory = read_memory()
    assert memory.available is not None
    assert memory.total is not None
    assert 0 < memory.available <= memory.total


def test_a_machine_without_proc_is_asked_in_another_way(tmp_path: Path) -> None:
    available = read_memory(tmp_path).available
    assert available is None or available > 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_a_trimmed_heap_gives_back_what_is_free_between_what_stays() -> None:
    lines = [bytes(1000 + number % 7) for number in range(100_000)]
    held = lines[::100]
    lines.clear()
    before = psutil.Process().memory_info().rss
    trim_heap()
    assert before - psutil.Process().memory_info().rss > 30_000_000
    assert len(held) == 1000
