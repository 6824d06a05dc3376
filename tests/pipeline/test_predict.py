"""The model's stage: a batch may be under way while the next one is gathered, and no file waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from drumline.inference import Outputs
from drumline.laps import no_lap
from drumline.pipeline import predict as stage
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import Gauge, SlotTable, State
from drumline.staging import Staging

SOON = 5.0
SAMPLES, CLASSES, LARGEST = 50, 3, 4


class FakeSession:
    """Says of each row what its first value is; batches end when they are asked for."""

    def __init__(self, overlaps: bool) -> None:
        self.runner = SimpleNamespace(overlaps=overlaps)
        self._lanes = [Staging(np.zeros((LARGEST, SAMPLES), np.float32)) for _ in range(2)]
        self._turn = 0
        self.events: list[str] = []

    def stage(self, count: int) -> Staging:
        assert count == LARGEST
        return self._lanes[self._turn]

    def start(self, rows: NDArray[np.float32]) -> Callable[[], Outputs]:
        number, self._turn = len(self.events), 1 - self._turn
        self.events.append(f"start {len(rows)}")

        def outputs() -> Outputs:
            self.events.append(f"end {number}")
            assert not rows[:, 46:].any(), "what is behind the samples"
            return Outputs(np.repeat(rows[:, :1], CLASSES, axis=1), None)

        return outputs


@pytest.fixture
def table() -> SlotTable:
    table = SlotTable.create(16, 1, (SAMPLES,), CLASSES, 2)
    table.counters[Gauge.BATCH_ALLOWED], table.counters[Gauge.SLOTS_ALLOWED] = LARGEST, 16
    for slot in range(16):
        reach = 1 + 3 * slot
        table.slots["features"][slot], table.slots["reach"][slot] = 99.0, reach
        table.slots["features"][slot, :reach] = slot
        table.slots["state"][slot] = State.READY
    return table


def running(table: SlotTable, queues: Queues, session: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(stage, "_open", lambda *_: session)
    settings, bundle = SimpleNamespace(batch_size=LARGEST), SimpleNamespace(name="fake")
    job = cast(Job, SimpleNamespace(settings=settings, bundle=bundle, answered_before=False))
    thread = threading.Thread(target=stage.predict, args=(job, table, queues, no_lap), daemon=True)
    thread.start()
    return thread


def taken(queues: Queues, count: int) -> list[int]:
    found: list[int] = []
    deadline = time.monotonic() + SOON
    while len(found) < count and time.monotonic() < deadline:
        found += queues.done.get(16, timeout=0.1) or []
    return found


@pytest.mark.parametrize("overlaps", [True, False])
def test_the_last_files_are_handed_on_although_others_may_still_come(
    table: SlotTable, queues: Queues, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    session = FakeSession(overlaps)
    thread = running(table, queues, session, monkeypatch)
    queues.ready.put([5, 2, 7])
    assert taken(queues, 3) == [5, 2, 7]
    assert table.view("probs")[:, 0][[5, 2, 7]].tolist() == [5.0, 2.0, 7.0]
    assert set(table.view("state")[[5, 2, 7]].tolist()) == {State.DONE}
    queues.ready.close_writer()
    thread.join(SOON)
    assert not thread.is_alive()


def test_the_next_batch_is_started_before_the_one_under_way_is_finished(
    table: SlotTable, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession(overlaps=True)
    queues.ready.put(list(range(16)))
    queues.ready.close_writer()
    thread = running(table, queues, session, monkeypatch)
    assert taken(queues, 16) == list(range(16))
    thread.join(SOON)
    assert not thread.is_alive()
    assert session.events[:3] == ["start 4", "start 4", "end 0"]
    assert sorted(session.events[-2:])[0].startswith("end")
    np.testing.assert_array_equal(table.view("probs")[:, 0], np.arange(16))


def test_on_the_cpu_a_batch_is_handed_on_before_the_next_one_is_gathered(
    table: SlotTable, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession(overlaps=False)
    queues.ready.put(list(range(16)))
    queues.ready.close_writer()
    running(table, queues, session, monkeypatch).join(SOON)
    assert [event.split()[0] for event in session.events] == ["start", "end"] * 4
