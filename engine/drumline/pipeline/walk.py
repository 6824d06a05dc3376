"""Stage 1, walk (× 1): look at every file of the archive, ahead of discover.

Protocol
--------
Walks the archive and sends what it finds on `listings`: many small directories in one message, but no
directory waits long for its message. When the pipe is full, it waits: that is how far ahead it goes. Where it
hardly does anything but wait, as in a first run, it ends, and discover walks through the directories that are
left: a process that waits costs memory. The last message says that it is the last, and what is left. A stream
that ends without it ends because this stage was killed: discover waits then, and the supervisor ends the run.

A process of its own, for in a rescan the system's looks at the files take as long as all else together. And
it is the first: it starts before most of drumline has been imported, and walks meanwhile. So this module
imports little, and what it needs of a run is known from the settings alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from drumline.errors import StageError
from drumline.failpoints import step
from drumline.machine import give_way, open_files_limit
from drumline.pipeline.pipes import Lifeline, Stream, pipe_errors
from drumline.pipeline.process import Reports, StageProcess, measured
from drumline.steps import Lap, Step
from drumline.walk import Directory, Walk, WalkSettings

if TYPE_CHECKING:
    from drumline.pipeline.profile import Profile
    from drumline.settings import InferSettings

__all__ = ["Walked", "Walking", "walk", "walk_settings", "walking"]

_FILES_AT_ONCE = 512
_WAIT_SEC = 0.01

_FAR_AHEAD_SEC, _FAR_AHEAD = 1.0, 4.0
"""It is far ahead when it has waited for so long, and so many times as long as it has walked."""

_MOST_LEFT = 10_000
"""Directories side by side that are left to discover: a list of more is as large as this process."""

_FEWEST_OPEN_FILES = 24
"""Pipes, processes, lock and cache; what else a stage opens takes the places of the pipes that it closes."""


def walk_settings(settings: InferSettings) -> WalkSettings:
    """Return what of the archive is met: all but our own output."""
    root = os.path.realpath(os.fsencode(settings.archive))
    formats = frozenset(name.encode() for name in settings.supported_formats)
    skip = _identity(settings.runs_root)
    return WalkSettings(root, formats, skip, settings.follow_links, settings.one_file_system)


def _identity(directory: Path) -> frozenset[tuple[int, int]]:
    try:
        found = os.stat(directory)
    except OSError:
        return frozenset()
    return frozenset({(found.st_dev, found.st_ino)})


class Message(NamedTuple):
    """What walk sends at once.

    Parameters
    ----------
    directories
        Directories with their files.
    skipped_links, skipped_special
        What was skipped so far.
    unreadable
        What else could not be listed, and why.
    last
        Whether it is the last message.
    pending
        Of the last one: directories that are left to whoever receives it, the next one last.
    """

    directories: list[Directory]
    skipped_links: int
    skipped_special: int
    unreadable: list[tuple[bytes, str]]
    last: bool
    pending: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return it as bytes: a head in JSON, paths with a NUL behind each, and what directories hold."""
        found = self.directories
        paths = b"".join([path + b"\0" for path in (*(each.path for each in found), *self.pending)])
        errors = [(place, directory.errors) for place, directory in enumerate(found) if directory.errors]
        unreadable = [(path.decode("latin-1"), error) for path, error in self.unreadable]
        lengths = [(len(directory.names), len(directory.numbers)) for directory in found]
        head = orjson.dumps(
            [len(paths), lengths, errors, self.skipped_links, self.skipped_special, unreadable, self.last],
            option=orjson.OPT_APPEND_NEWLINE,
        )
        held = [part for directory in found for part in (directory.names, directory.numbers)]
        return b"".join([head, paths, *held])

    @classmethod
    def decode(cls, message: bytes) -> Message:
        """Build from what `encode` gave."""
        start = message.index(b"\n") + 1
        paths_size, lengths, errors, links, special, unreadable, last = orjson.loads(message[:start])
        place = start + paths_size
        paths, found = message[start:place].split(b"\0")[:-1], list[Directory]()
        for path, (names, numbers) in zip(paths, lengths, strict=False):
            middle, end = place + names, place + names + numbers
            found.append(Directory(path, message[place:middle], message[middle:end]))
            place = end
        for number, told in errors:
            found[number] = found[number]._replace(errors=tuple(map(tuple, told)))
        told_unreadable = [(path.encode("latin-1"), why) for path, why in unreadable]
        return cls(found, links, special, told_unreadable, last, tuple(paths[len(lengths) :]))


class _Sender:
    """Collects directories into messages."""

    def __init__(self, found: Walk, stream: Stream) -> None:
        self._found, self._stream = found, stream
        self._directories: list[Directory] = []
        self._files = self._unreadable = 0
        self._sent = self._walked_sec = self._waited_sec = 0.0
        self._begun = time.monotonic()
        self._is_heard = False

    def add(self, directory: Directory) -> None:
        self._directories.append(directory)
        self._files += directory.file_count

    def due(self) -> bool:
        """Whether enough is waiting, or has waited long enough."""
        return self._files >= _FILES_AT_ONCE or time.monotonic() - self._sent > _WAIT_SEC

    @property
    def is_far_ahead(self) -> bool:
        """Whether it has hardly done anything but wait."""
        return self._waited_sec > max(_FAR_AHEAD_SEC, _FAR_AHEAD * self._walked_sec)

    def send(self, *, last: bool = False) -> None:
        """Send what has been collected; with the last message, what is left as well."""
        found, unreadable = self._found, self._found.unreadable[self._unreadable :]
        left = tuple(found.pending) if last else ()
        skipped = found.skipped_links, found.skipped_special
        message = Message(self._directories, *skipped, unreadable, last, left).encode()
        ready = time.monotonic()
        with step("walk.hand-over"):
            self._stream.send(message)
        self._directories, self._files = [], 0
        self._unreadable += len(unreadable)
        self._note(ready, time.monotonic())

    def _note(self, ready: float, sent: float) -> None:
        self._walked_sec += ready - max(self._begun, self._sent)
        if self._is_heard:
            self._waited_sec += sent - ready
        # The first wait is for discover to begin, whatever it has to do before.
        self._is_heard = self._is_heard or sent - ready > _WAIT_SEC
        self._sent = sent


class Walked(Iterator[Directory]):
    """The directories that walk sends or leaves, with what `drumline.walk.Walk` tells beside them.

    Parameters
    ----------
    settings
        What walk was asked for.
    stream
        Where its messages come from.

    Attributes
    ----------
    step
        What the time until the next directory goes to: waiting for walk, or walking oneself.
    """

    def __init__(self, settings: WalkSettings, stream: Stream) -> None:
        self.settings, self.step = settings, Step.WAIT_INPUT
        self.skipped_links = self.skipped_special = 0
        self.unreadable: list[tuple[bytes, str]] = []
        self._stream = stream
        self._directories = self._received()

    def __next__(self) -> Directory:
        return next(self._directories)

    def _received(self) -> Iterator[Directory]:
        rest: Walk | None = None
        while rest is None:
            directories, rest = self._taken()
            yield from directories
        if rest.pending:
            self.step = Step.WALK
            yield from self._walked_on(rest)

    def _taken(self) -> tuple[list[Directory], Walk | None]:
        """Take a message: its directories, and after the last one the walk through what is left."""
        received = self._stream.receive()
        if received is None:
            self._stream.wait_for_supervisor()
        message = Message.decode(received)
        self.skipped_links, self.skipped_special = message.skipped_links, message.skipped_special
        self.unreadable += message.unreadable
        return message.directories, Walk(self.settings, pending=message.pending) if message.last else None

    def _walked_on(self, rest: Walk) -> Iterator[Directory]:
        links, special = self.skipped_links, self.skipped_special
        for directory in chain(rest, [None]):  # what it meets behind the last directory, it tells at its end
            self._stream.look_for_supervisor()
            self.skipped_links = links + rest.skipped_links
            self.skipped_special = special + rest.skipped_special
            self.unreadable += rest.unreadable
            rest.unreadable.clear()
            if directory:
                yield directory


def walk(settings: WalkSettings, listings: Stream, lap: Lap) -> None:
    """Walk the archive and send what is there."""
    found = Walk(settings, enter=True)
    sender = _Sender(found, listings)
    lap(Step.START, 0)
    with suppress(BrokenPipeError):  # discover has left: the run ends
        for directory in found:
            sender.add(directory)
            lap(Step.WALK, directory.file_count)
            if sender.due():
                sender.send()
                lap(Step.WAIT_OUTPUT, 0)
                if sender.is_far_ahead and len(found.pending) <= _MOST_LEFT:
                    break
        sender.send(last=True)
    lap(Step.HAND_ON, 0)


@dataclass(frozen=True)
class Walking:
    """A walk under way, with what it shares with the stages that are started later.

    Parameters
    ----------
    process
        The stage.
    reports
        Where stages say why they end.
    lifeline, listings
        See `drumline.pipeline.pipes`.
    """

    process: StageProcess
    reports: Reports
    lifeline: Lifeline
    listings: Stream


@contextmanager
def walking(settings: InferSettings, profile: Profile | None) -> Iterator[Walking]:
    """Walk the archive in a process of its own, which ends with the context at the latest.

    Raises
    ------
    StageError
        When it cannot be started, or so few files may be open that a run could not go on.
    """
    _check_open_files()
    with ExitStack() as opened:
        with pipe_errors():
            lifeline = Lifeline()
            opened.callback(lifeline.close)
            reports = Reports()
            opened.callback(reports.close)
            listings = Stream(lifeline)
            opened.callback(listings.use)

        def body() -> None:
            if settings.nice:
                give_way()
            lifeline.hold()
            listings.use(write=True)
            with measured(profile, "walk") as lap:
                walk(walk_settings(settings), listings, lap)

        process = StageProcess.start("walk", body, reports)
        opened.callback(process.end)
        yield Walking(process, reports, lifeline, listings)


def _check_open_files() -> None:
    limit = open_files_limit()
    if limit is not None and limit < _FEWEST_OPEN_FILES:
        raise StageError(
            f"no more than {limit} files may be open, and a run needs {_FEWEST_OPEN_FILES}",
            "Raise the limit of open files (ulimit -n).",
        )
