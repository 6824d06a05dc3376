"""Discover keeps to the slots that memory allows, whether or not it has free ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from drumline.laps import no_lap
from drumline.pipeline.discover import Carried, _Dispatcher
from drumline.pipeline.queues import LifelineCut, Queues
from drumline.pipeline.slots import Gauge, SlotTable, State

SLOTS = 40
FOUND = [Carried(frame, 1) for frame in range(100)]


@pytest.fixture
def table() -> SlotTable:
    table = SlotTable.create(SLOTS, 1, (4, 4), 2, 2)
    table.counters[Gauge.SLOTS_ALLOWED] = SLOTS
    return table


def dispatcher(table: SlotTable, queues: Queues) -> _Dispatcher:
    job: Any = SimpleNamespace(archive=b"/archive")
    reading: Any = SimpleNamespace()
    return _Dispatcher(job, reading, table, queues, iter(()), no_lap)


def dispatched(queues: Queues) -> list[int]:
    return queues.done.get(SLOTS, timeout=0) or []


def test_an_allowance_that_falls_is_heeded_while_free_slots_are_at_hand(
    table: SlotTable, queues: Queues
) -> None:
    stage = dispatcher(table, queues)
    stage.dispatch(FOUND[:2])
    under_way = dispatched(queues)
    table.counters[Gauge.SLOTS_ALLOWED] = 4
    queues.free.close_writer()  # so that it is refused a fifth slot, not kept waiting for it
    with pytest.raises(LifelineCut):
        stage.dispatch(FOUND[2:10])
    assert len(under_way + dispatched(queues)) == 4


def test_slots_that_come_back_while_the_last_files_are_read_are_held_back_as_well(
    table: SlotTable, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = dispatcher(table, queues)
    stage.dispatch(FOUND[:SLOTS])
    table.counters[Gauge.SLOTS_ALLOWED] = 4
    queues.free.put(dispatched(queues))
    looks = iter([1, 1, 0])
    monkeypatch.setattr(SlotTable, "count", lambda *_: next(looks))
    stage.wait_for_readers()
    assert len(stage._free) <= 4


def test_a_writer_that_died_ends_the_wait_for_readers_at_once(table: SlotTable, queues: Queues) -> None:
    stage = dispatcher(table, queues)
    table.view("state")[0] = State.TODO
    queues.free.close_writer()
    with pytest.raises(LifelineCut):
        stage.wait_for_readers()
