"""A stream hands messages on in their order, of any length, and says when it ends."""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drumline.pipeline import pipes
from drumline.pipeline.pipes import Lifeline, LifelineCut, Stream

SOON_SEC = 2.0


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(0, 12))
def test_messages_arrive_in_order_and_then_the_end(messages: list[bytes], ahead: int) -> None:
    lifeline = Lifeline()
    stream, received = Stream(lifeline), list[bytes | None]()
    for place, message in enumerate(messages):
        stream.send(message)
        if place >= ahead:
            received.append(stream.receive())
    stream.use(read=True)
    while len(received) <= len(messages):
        received.append(stream.receive())
    stream.use()
    lifeline.close()
    assert received == [*messages, None]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3 << 20), min_size=1, max_size=6))
def test_messages_longer_than_a_pipe_holds_arrive_whole(sizes: list[int]) -> None:
    lifeline = Lifeline()
    stream = Stream(lifeline)
    messages = [bytes([place]) * size for place, size in enumerate(sizes)]
    sender = threading.Thread(target=lambda: [stream.send(message) for message in messages], daemon=True)
    sender.start()
    received = [stream.receive() for _ in messages]
    sender.join(SOON_SEC)
    stream.use()
    lifeline.close()
    assert received == messages


def test_a_writer_goes_on_until_all_pipes_are_full(stream: Stream) -> None:
    """As far as walk is ahead before discover begins: further than one pipe holds."""
    message, sent = bytes(1 << 10), 0

    def send() -> None:
        nonlocal sent
        with suppress(BrokenPipeError):
            while True:
                stream.send(message)
                sent += 1

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    wanted, deadline = 2 * lane_bytes(stream), time.monotonic() + SOON_SEC
    while sent * len(message) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sent * len(message) >= wanted
    stream.use(write=True)
    sender.join(SOON_SEC)
    assert not sender.is_alive()


def lane_bytes(stream: Stream) -> int:
    """Return what one of a stream's pipes holds here: less where a user has many pipes already."""
    writer = stream._lanes[0].writer
    return fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else select.PIPE_BUF


def test_of_a_writer_that_is_killed_inside_a_message_the_whole_ones_arrive(stream: Stream) -> None:
    stream.send(b"whole")
    lane = stream._lanes[1]
    os.write(lane.writer, (8).to_bytes(4, "little") + b"half")
    stream.use(read=True)
    assert stream.receive() == b"whole"
    assert stream.receive() is None


def test_a_reader_that_waits_is_told_that_the_supervisor_is_gone(stream: Stream, lifeline: Lifeline) -> None:
    lifeline.hold()
    began = time.monotonic()
    for wait in (stream.receive, stream.wait_for_supervisor, stream.look_for_supervisor):
        with pytest.raises(LifelineCut):
            wait()
    assert time.monotonic() - began < SOON_SEC


def test_where_few_files_may_be_open_a_stream_needs_two(
    lifeline: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "open_files_limit", lambda: 24)
    before = len(os.listdir("/dev/fd"))
    stream = Stream(lifeline)
    assert len(os.listdir("/dev/fd")) - before == 2
    stream.use()
