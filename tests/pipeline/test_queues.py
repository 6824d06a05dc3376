"""Queues of slot numbers: nothing is torn, and the end is seen, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.pipeline.pipes import Stream
from drumline.pipeline.queues import Lifeline, LifelineCut, Queues, SlotQueue
from tests.pipeline.support import prompt

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""The children of these tests touch nothing that another thread could hold."""

numbers = st.lists(st.integers(0, 2**32 - 1), max_size=3000)


@pytest.fixture
def queue() -> Iterator[SlotQueue]:
    lifeline = Lifeline()
    queue = SlotQueue(lifeline)
    yield queue
    queue.use()
    lifeline.close()


def forked(body: Callable[[], object]) -> int:
    """Run something in a process of its own; its result is the exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = int(body() or 0)
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@given(numbers, st.integers(1, 700))
def test_what_is_put_comes_out_in_order_in_pieces_of_any_size(slots: list[int], limit: int) -> None:
    lifeline = Lifeline()
    queue = SlotQueue(lifeline)
    queue.put(slots)
    queue.close_writer()
    found: list[int] = []
    while (piece := queue.get(limit)) is not None:
        assert 0 < len(piece) <= limit
        found += piece
    assert found == slots
    queue.use()
    lifeline.close()


def test_an_empty_queue_gives_nothing_when_the_time_is_up(queue: SlotQueue) -> None:
    begun = time.monotonic()
    assert queue.get(8, timeout=0.05) == []
    assert 0.04 < time.monotonic() - begun < prompt(1.0)
    assert queue.get(8, timeout=0) == []


def test_numbers_are_copied_straight_into_an_array(queue: SlotQueue) -> None:
    buffer = np.full(4, 77, np.uint32)
    queue.put([5, 6])
    assert queue.get_into(buffer) == 2
    assert buffer.tolist() == [5, 6, 77, 77]


def test_the_end_of_the_stream_is_seen_when_all_writers_have_closed_or_died(queue: SlotQueue) -> None:
    def write_and_die() -> None:
        queue.put([1, 2, 3])
        os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(write_and_die)
    queue.close_writer()
    assert ended(pid) == -signal.SIGKILL
    assert queue.get(8) == [1, 2, 3]
    assert queue.get(8) is None
    assert queue.get(8) is None


def test_a_reader_waits_while_one_writer_is_left(queue: SlotQueue) -> None:
    pid = forked(lambda: time.sleep(60))
    queue.close_writer()
    assert queue.get(8, timeout=0.05) == []
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    assert queue.get(8) is None


def test_numbers_are_never_torn_lost_or_doubled_between_many_processes() -> None:
    """Four writers, three readers, more numbers than a pipe holds."""
    each, writers, readers = 20_000, 4, 3
    lifeline = Lifeline()
    queue, sums = SlotQueue(lifeline), SlotQueue(lifeline)

    def write(writer: int) -> None:
        queue.close_reader()
        choose = np.random.default_rng(writer)
        left = np.arange(writer * each, (writer + 1) * each)
        while len(left):
            count = int(choose.integers(1, 1500))
            queue.put(left[:count])
            left = left[count:]

    def read(reader: int) -> int:
        queue.close_writer()
        seen = np.zeros(each * writers, np.uint8)
        while (slots := queue.get(int(np.random.default_rng(reader).integers(1, 300)))) is not None:
            seen[slots] += 1
        assert seen.max(initial=0) <= 1
        sums.put(np.flatnonzero(seen))
        return 0

    pids = [forked(lambda number=number: write(number)) for number in range(writers)]
    pids += [forked(lambda number=number: read(number)) for number in range(readers)]
    queue.use()
    sums.close_writer()
    found: list[int] = []
    while (piece := sums.get(4096)) is not None:
        found += piece
    assert [ended(pid) for pid in pids] == [0] * len(pids)
    assert sorted(found) == list(range(each * writers))
    sums.use()
    lifeline.close()


@pytest.mark.parametrize("wait", ["get", "put"])
def test_who_waits_notices_within_a_second_that_the_supervisor_is_gone(wait: str) -> None:
    lifeline = Lifeline()
    queue = SlotQueue(lifeline)

    def stage() -> int:
        lifeline.hold()
        try:
            if wait == "get":
                queue.get(8)
            else:
                queue.put(np.zeros(1 << 20, np.uint32))
        except LifelineCut:
            return 7
        return 0

    pid = forked(stage)
    time.sleep(0.05)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    cut = time.monotonic()
    os.close(lifeline.writer)
    assert ended(pid) == 7
    assert time.monotonic() - cut < prompt(1.0)
    queue.use()
    os.close(lifeline.reader)


def test_a_stage_keeps_only_the_ends_it_uses() -> None:
    lifeline = Lifeline()
    queues = Queues.create(lifeline, Stream(lifeline))
    queues.keep(reads=(queues.todo,), writes=(queues.ready, queues.done))
    ends = [(queue.reader >= 0, queue.writer >= 0) for queue in (queues.todo, queues.ready, queues.done)]
    assert ends == [(True, False), (False, True), (False, True)]
    assert (queues.free.reader, queues.free.writer) == (-1, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(queues.lifeline.writer)
    for queue in (queues.todo, queues.ready, queues.done, queues.free):
        queue.use()
        queue.use()
    os.close(queues.lifeline.reader)
