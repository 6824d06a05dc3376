"""What walk sends arrives as it was, whatever names, sizes and times files have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.pipeline import walk as stage
from drumline.pipeline.pipes import Lifeline, Stream
from drumline.pipeline.walk import Message, Walked, walk
from drumline.steps import Step, no_lap
from drumline.walk import Directory, Entry, Walk, WalkSettings

NAMES = st.binary(max_size=12).map(lambda name: name.replace(b"\0", b"\n"))
NUMBERS = st.integers(1 - 2**63, 2**63 - 1)
ENTRIES = st.builds(Entry, NAMES, NUMBERS, NUMBERS, st.sampled_from(["", "Permission denied", "né"]))


def packed(path: bytes, entries: list[Entry]) -> Directory:
    names, sizes, times = ([entry[column] for entry in entries] for column in range(3))
    errors = tuple((place, entry.error) for place, entry in enumerate(entries) if entry.error)
    return Directory.of(path, names, sizes, times)._replace(errors=errors)  # type: ignore[arg-type]


DIRECTORIES = st.builds(packed, NAMES, st.lists(ENTRIES, max_size=5))
MESSAGES = st.builds(
    Message,
    st.lists(DIRECTORIES, max_size=4),
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(st.tuples(NAMES, st.text(max_size=5).filter(str.isprintable)), max_size=2),
    st.booleans(),
    st.lists(NAMES, max_size=3).map(tuple),
)


@given(MESSAGES)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert Message.decode(message.encode()) == message


@given(NAMES, st.lists(ENTRIES, max_size=9))
def test_files_come_out_of_a_directory_as_they_went_in(path: bytes, entries: list[Entry]) -> None:
    directory = packed(path, entries)
    assert directory.files == entries
    assert directory.file_count == len(entries)
    assert directory.size == sum(entry.size for entry in entries)


@pytest.fixture
def stream() -> Iterator[Stream]:
    lifeline = Lifeline()
    stream = Stream(lifeline)
    yield stream
    stream.use()
    lifeline.close()


def test_directories_come_one_by_one_and_the_rest_adds_up(stream: Stream) -> None:
    found = [packed(b"", []), packed(b"a", [Entry(b"1.wav", 2, 3)])]
    first = Message(found, 1, 0, [(b"x", "no")], False)
    second = Message([packed(b"b", [])], 2, 5, [(b"\xff", "no")], True)
    for message in (first, second):
        stream.send(message.encode())
    walked = Walked(WalkSettings(b"/", frozenset()), stream)
    assert list(walked) == first.directories + second.directories
    assert (walked.skipped_links, walked.skipped_special) == (2, 5)
    assert walked.unreadable == [(b"x", "no"), (b"\xff", "no")]


@pytest.fixture
def archive(tmp_path: Path) -> WalkSettings:
    """One of 40 directories, each with a file, a link that is not followed and a pipe."""
    for number in range(40):
        directory = tmp_path / f"{number % 8}" / f"{number:03d}"
        directory.mkdir(parents=True)
        (directory / "kick.wav").write_bytes(bytes(number))
        (directory / "link.wav").symlink_to("kick.wav")
        os.mkfifo(directory / "pipe.wav")
    return WalkSettings(os.fsencode(tmp_path), frozenset({b"wav"}), links="none")


def test_a_walk_goes_on_where_another_left_it(archive: WalkSettings) -> None:
    whole = list(Walk(archive))
    for taken in range(len(whole) + 1):
        first = Walk(archive)
        begun = [next(first) for _ in range(taken)]
        rest = Walk(archive, pending=first.pending)
        assert begun + list(rest) == whole
        assert (first.skipped_links + rest.skipped_links, first.skipped_special + rest.skipped_special) == (
            40,
            40,
        )


def test_what_walk_leaves_is_walked_through_by_who_receives_it(archive: WalkSettings, stream: Stream) -> None:
    first, whole = Walk(archive), list(Walk(archive))
    begun = [next(first) for _ in range(7)]
    skipped = first.skipped_links, first.skipped_special
    stream.send(Message(begun, *skipped, [(b"x", "no")], True, tuple(first.pending)).encode())
    walked = Walked(archive, stream)
    steps = [(directory, walked.step) for directory in walked]
    assert steps == [(directory, Step.WAIT_INPUT) for directory in begun] + [
        (directory, Step.WALK) for directory in whole[7:]
    ]
    assert (walked.skipped_links, walked.skipped_special) == (40, 40)
    assert walked.unreadable == [(b"x", "no")]


def test_directories_that_cannot_be_listed_any_more_are_told_at_the_end(
    archive: WalkSettings, stream: Stream
) -> None:
    stream.send(Message([], 0, 0, [], True, (b"nowhere", b"0/000")).encode())
    walked = Walked(archive, stream)
    assert [directory.path for directory in walked] == [b"0/000"]
    assert walked.unreadable == [(b"nowhere", "No such file or directory")]


def test_walk_ends_when_it_is_far_ahead_and_loses_nothing(
    archive: WalkSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_FAR_AHEAD_SEC", 0.05)
    monkeypatch.setattr(stage, "_FILES_AT_ONCE", 1)
    send, sent = stream.send, list[bytes]()

    def send_slowly(message: bytes) -> None:
        time.sleep(0.03)
        sent.append(message)
        send(message)

    monkeypatch.setattr(stream, "send", send_slowly)
    walk(archive, stream, no_lap)
    assert len(sent) < 20
    walked = Walked(archive, stream)
    assert list(walked) == list(Walk(archive))
    assert walked.step == Step.WALK


def test_walk_that_does_not_wait_leaves_nothing(
    archive: WalkSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_FAR_AHEAD_SEC", 0.0)
    walk(archive, stream, no_lap)
    walked = Walked(archive, stream)
    assert list(walked) == list(Walk(archive))
    assert walked.step == Step.WAIT_INPUT
