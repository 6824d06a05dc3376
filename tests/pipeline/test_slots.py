"""The slot table: one block of shared memory, whose size does not depend on the archive."""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from drumline.errors import StageError
from drumline.pipeline.slots import (
    CLAIM_SLOTS,
    ERROR_TYPES,
    NO_SLOT,
    PATH_BYTES,
    Gauge,
    Kind,
    SlotTable,
    State,
)
from drumline.records import ErrorType

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""The children of these tests touch nothing that another thread could hold."""

SHAPE, CLASSES, LABELS = (40, 98), 41, 7


def make(slots: int = 20, workers: int = 2) -> SlotTable:
    return SlotTable.create(slots, workers, SHAPE, CLASSES, LABELS)


def test_a_slot_has_room_for_any_path_hash_and_tensor_and_little_more() -> None:
    table = make()
    assert table.slots["features"].shape == (20, *SHAPE)
    assert table.slots["features"].dtype == np.float32
    assert table.slots["probs"].shape == (20, CLASSES)
    room = 40 * 98 * 4 + CLASSES * 4 + PATH_BYTES
    assert room < table.slots.dtype.itemsize < room + 1024


def test_memory_grows_with_slots_and_with_nothing_else() -> None:
    sizes = [make(slots).slots.nbytes for slots in (100, 200, 300)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 100 * make().slots.dtype.itemsize


def test_a_new_table_is_free_and_nobody_claims_anything() -> None:
    table = make()
    assert table.count(State.FREE) == 20
    assert table.count(*set(State) - {State.FREE}) == 0
    assert table.claims.shape == (2, CLAIM_SLOTS)
    assert (table.claims == NO_SLOT).all()
    assert (table.current == NO_SLOT).all()
    assert not table.counters.any()
    assert len(table.counters) == len(Gauge)
    assert len(table.label_counts) == LABELS


def test_a_number_that_arrives_twice_is_dropped_the_second_time() -> None:
    table = make()
    table.view("state")[[3, 5, 7]] = State.READY
    assert table.take([3, 5, 3, 5, 9], State.READY, State.PREDICTING) == [3, 5]
    assert table.take([5, 7, 3], State.READY, State.PREDICTING) == [7]
    assert table.take([], State.READY, State.PREDICTING) == []
    assert table.count(State.PREDICTING) == 3


@pytest.mark.parametrize("error", get_args(ErrorType))
def test_every_kind_of_failure_fits_a_slot(error: str) -> None:
    table = make()
    table.fail(4, error, "why")
    assert ERROR_TYPES[table.slots["error"][4]] == error
    assert table.slots["message"][4] == b"why"
    assert table.slots["state"][4] == State.DONE


@pytest.mark.parametrize("message", ["", "é" * 500, "\udcff broken", "line\nline", "nul \0 inside"])
def test_any_message_fits_a_slot(message: str) -> None:
    table = make()
    table.fail(4, "decode_error", message)
    stored = bytes(table.slots["message"][4])
    assert len(stored) <= 240
    assert message.encode("utf-8", "backslashreplace").startswith(stored)


def test_all_processes_see_one_table() -> None:
    table = make()
    pid = os.fork()
    if pid == 0:
        table.set_path(1, b"\xff odd\n.wav")
        table.slots["kind"][1] = Kind.GONE
        table.view("features")[1] = 0.5
        table.counters[Gauge.WRITTEN] = 2**40
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.paths([1]) == [b"\xff odd\n.wav"]
    assert table.slots["kind"][1] == Kind.GONE
    assert (table.view("features")[1] == 0.5).all()
    assert not table.view("features")[2].any()
    assert table.counters[Gauge.WRITTEN] == 2**40


def test_the_longest_path_is_kept_whole() -> None:
    table = make()
    table.set_path(0, b"x" * PATH_BYTES)
    assert table.paths([0]) == [b"x" * PATH_BYTES]


def test_a_shorter_path_leaves_nothing_of_the_longer_one_before() -> None:
    table = make()
    for path in (b"a long one.wav", b"b.wav"):
        table.set_path(0, path)
    assert table.paths([0, 1]) == [b"b.wav", b""]


def test_fields_of_many_slots_are_set_at_once() -> None:
    table = make()
    table.fill([2, 0], size=[20, 10], owner=-1)
    assert table.view("size")[:3].tolist() == [10, 0, 20]
    assert table.view("owner")[:3].tolist() == [-1, 0, -1]


def test_too_little_memory_is_an_error_with_a_way_out() -> None:
    with pytest.raises(StageError, match="shared memory") as caught:
        SlotTable.create(1 << 40, 1, SHAPE, CLASSES, LABELS)
    assert "--batch-size" in caught.value.way_out


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="this system takes no memory back")
def test_memory_of_a_slot_that_is_held_back_goes_back_and_its_neighbours_keep_theirs() -> None:
    table = make()
    table.slots["features"] = 1.0
    for slot in range(20):
        table.set_path(slot, b"kick.wav")
    table.give_back([3, 4])
    given = table.slots["features"][[3, 4]]
    assert not given.all()
    assert (given == 0.0).sum() * 4 > given.nbytes // 2
    kept = [slot for slot in range(20) if slot not in (3, 4)]
    assert table.slots["features"][kept].all()
    assert set(table.paths(kept)) == {b"kick.wav"}
    assert table.count(State.FREE) == 20
    table.slots["features"][3] = 2.0
    assert (table.slots["features"][3] == 2.0).all()


class RefusingMemory(mmap.mmap):
    """Shared memory of which the kernel takes nothing back, as in some sandboxes."""

    def madvise(self, *_advice: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_memory_that_the_system_does_not_take_back_stays() -> None:
    table = replace(make(), block=RefusingMemory(-1, mmap.PAGESIZE))
    table.slots["features"] = 1.0
    table.give_back([3, 4])
    assert table.slots["features"].all()
