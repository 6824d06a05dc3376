"""What walk sends arrives as it was, whatever names, sizes and times files have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drumline.pipeline.pipes import Lifeline, Stream
from drumline.pipeline.walk import Message, Walked
from drumline.walk import Directory, Entry, WalkSettings

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


def test_directories_come_one_by_one_and_the_rest_adds_up() -> None:
    lifeline = Lifeline()
    stream = Stream(lifeline)
    found = [packed(b"", []), packed(b"a", [Entry(b"1.wav", 2, 3)])]
    first = Message(found, 1, 0, [(b"x", "no")], False)
    second = Message([packed(b"b", [])], 2, 5, [(b"\xff", "no")], True)
    for message in (first, second):
        stream.send(message.encode())
    walked = Walked(WalkSettings(b"/", frozenset()), stream)
    assert list(walked) == first.directories + second.directories
    assert (walked.skipped_links, walked.skipped_special) == (2, 5)
    assert walked.unreadable == [(b"x", "no"), (b"\xff", "no")]
    stream.use()
    lifeline.close()
