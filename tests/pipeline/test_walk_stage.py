"""What walk sends arrives as it was, whatever names, sizes and times files have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.synth import write_archive
from drumline.pipeline import walk as stage
from drumline.pipeline.infer import infer
from drumline.pipeline.pipes import Lifeline, LifelineCut, Stream
from drumline.pipeline.walk import Message, Walked, walk
from drumline.settings import InferSettings
from drumline.steps import Step, no_lap
from drumline.stub import create_stub
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
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WalkSettings:
    """One of 40 directories, each with a file, a link that is not followed and a pipe."""
    monkeypatch.chdir(tmp_path)  # for afterwards: walk changes into each directory
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


class Slow:
    """Sends what walk has, and takes as long over it as a pipe that is full."""

    def __init__(self, stream: Stream, monkeypatch: pytest.MonkeyPatch, waits: Iterator[float]) -> None:
        self.sent, self._send, self._waits = 0, stream.send, waits
        monkeypatch.setattr(stage, "_FAR_AHEAD_SEC", 0.05)
        monkeypatch.setattr(stage, "_FILES_AT_ONCE", 1)
        monkeypatch.setattr(stream, "send", self.send)

    def send(self, message: bytes) -> None:
        time.sleep(next(self._waits))
        self.sent += 1
        self._send(message)


def test_walk_ends_when_it_is_far_ahead_and_loses_nothing(
    archive: WalkSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(stream, monkeypatch, repeat(0.03))
    walk(archive, stream, no_lap)
    assert slow.sent < 20
    walked = Walked(archive, stream)
    assert list(walked) == list(Walk(archive))
    assert walked.step == Step.WALK


def test_a_discover_that_begins_late_does_not_end_walk(
    archive: WalkSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(stream, monkeypatch, chain([0.0, 0.6], repeat(0.0)))
    monkeypatch.setattr(stage, "_FAR_AHEAD_SEC", 0.4)  # longer than a busy machine keeps a process waiting
    walk(archive, stream, no_lap)
    assert slow.sent > 40
    walked = Walked(archive, stream)
    assert list(walked) == list(Walk(archive))
    assert walked.step == Step.WAIT_INPUT


def test_walk_stays_while_very_many_directories_are_left(
    archive: WalkSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(stream, monkeypatch, repeat(0.02))
    monkeypatch.setattr(stage, "_MOST_LEFT", 3)
    walk(archive, stream, no_lap)
    walked = Walked(archive, stream)
    assert list(walked) == list(Walk(archive))
    # Of 8 directories with 5 in each, no more than 3 are left first behind the fifth, not in the first.
    assert slow.sent > 20


def test_who_walks_on_sees_that_the_supervisor_is_gone(
    archive: WalkSettings, stream: Stream, lifeline: Lifeline
) -> None:
    stream.send(Message([], 0, 0, [], True, (b"0/000", b"0/008")).encode())
    walked = Walked(archive, stream)
    assert next(walked).path == b"0/008"
    lifeline.hold()
    with pytest.raises(LifelineCut):
        next(walked)


def test_a_run_in_which_walk_leaves_early_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, model = tmp_path / "archive", tmp_path / "stub"
    write_archive(archive, 60)
    (archive / "nowhere.wav").symlink_to("nothing")
    os.mkfifo(archive / "pipe.wav")
    create_stub(model)

    def counts(name: str) -> dict[str, int]:
        settings = InferSettings(archive=archive, runs_root=tmp_path / name, model_path=model, workers=1)
        found: dict[str, int] = infer(settings)["counts"]
        return found

    whole = [counts("whole"), counts("whole")]
    monkeypatch.setattr(stage, "_FAR_AHEAD_SEC", -1.0)
    monkeypatch.setattr(stage, "_FAR_AHEAD", -1.0)
    assert [counts("left"), counts("left")] == whole
    assert whole[1]["carried_over"] == whole[0]["discovered"] - whole[0]["failed"] > 50
