"""Stage 2, discover (× 1): compare the archive with what is known, and queue what has to be read.

Protocol
--------
Takes directories from `listings` as walk finds them, and walks through those that walk leaves. Begins
with all slots, and takes what comes back from `free`. A file that the cache does not know, or knows with
another size or mtime, fills a slot and goes on `todo`. What the cache knows goes on `done` at once, and
costs one slot for a whole frame of records: the writer carries them over. Files that are gone go on
`done` too, last, when all others have been read: a file that was moved takes over the prediction of the
one that is gone.

When the slots run out, `free` is empty and this stage waits: that is the only back-pressure there is, and
it bounds the memory of the whole pipeline. When memory is short, the supervisor allows fewer slots in flight
(`Gauge.SLOTS_ALLOWED`): this stage holds back what it takes from `free` beyond that, gives its memory back,
and lets go of it when more are allowed again. While it waits, it counts the files still to come by their
names, so that there is a total, and a time left, long before the walk ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, NamedTuple

from drumline.cache import (
    Cache,
    Failure,
    KnownFile,
    Seal,
    checked_frame,
    digest_of,
)
from drumline.cache_file import row_errors, wrong_row
from drumline.errors import ArchiveError, FilesGoneError
from drumline.failpoints import step
from drumline.laps import Lap, Step, no_lap
from drumline.pipeline.job import Job
from drumline.pipeline.queues import LifelineCut, Queues
from drumline.pipeline.reading import Reading
from drumline.pipeline.slots import PATH_MAX, Gauge, Kind, SlotTable, State
from drumline.pipeline.walk import Walked, walk_settings
from drumline.records import display_path
from drumline.runs import started_ns
from drumline.settings import FFMPEG_FORMATS, SOUNDFILE_FORMATS
from drumline.walk import Directory, Entry, Walk
from drumline.wording import counted

__all__ = ["Carried", "GoneDirectory", "GoneFile", "NewFile", "Survey", "discover"]

_CHUNK = 32
"""Slots filled and handed on at once."""

_CLEAN: Final = {"tries": 0, "error": 0, "twin": 0, "owner": -1, "hash": b""}
"""What a slot's last file leaves behind, cleared."""

_SECOND_NS = 1_000_000_000

_HEED_SEC = 0.1
"""Time between two looks at how many slots are allowed, while none comes back."""

_GLANCE_SEC = 0.02
"""Time between two looks at whether all files have been read."""

_GONE_ASKED, _GONE_REFUSED = 0.05, 0.5
"""Share of the known files that may be gone before somebody has to confirm it, and before it looks like a
volume that is not mounted …"""

_GONE_NOTICED = 20
"""… but a handful of files may go at once."""


class NewFile(NamedTuple):
    """A file to read."""

    directory: bytes
    entry: Entry


class Carried(NamedTuple):
    """Lines of a frame that still hold, as a bit mask."""

    frame: int
    lines: int


class GoneFile(NamedTuple):
    """A known file that its directory no longer has."""

    directory: int
    name: bytes


class GoneDirectory(NamedTuple):
    """A known directory that the archive no longer has."""

    directory: int


Finding = NewFile | Carried | GoneFile | GoneDirectory


@dataclass
class Survey:
    """Compares an archive with what the cache knows of it.

    Memory: an entry for each frame and each directory, two bits for each known file of a frame that is not
    yet complete, a name for each file that is gone.

    Parameters
    ----------
    walk
        The archive.
    cache, scope
        What is known, and where; the cache is only read. None: nothing is known.
    run_id
        The run being written: its records are done already.
    retry_failed
        Whether a lasting failure is tried again.
    lap
        Is told when a directory has come, and when it has been compared.
    """

    walk: Walk | Walked
    cache: Cache | None
    scope: int
    run_id: int
    retry_failed: bool = False
    lap: Lap = no_lap
    files: int = 0
    size: int = 0
    resumed: int = 0
    gone: int = 0
    _left: dict[int, int] = field(default_factory=dict)
    _changed: dict[int, int] = field(default_factory=dict)
    _gone_files: list[GoneFile] = field(default_factory=list)

    def __post_init__(self) -> None:
        frames = list(map(checked_frame, self.cache.frames(self.scope).values())) if self.cache else []
        runs = self.cache.runs(self.scope) if self.cache else {}
        with row_errors("a run"):
            started = {number: started_ns(name) for number, (name, _, _) in runs.items()}
        self._lines = {frame.id: frame.kept for frame in frames}
        self._whole = {frame.id: frame.kept for frame in frames if frame.run != self.run_id}
        self._started = {frame.id: started[frame.run] for frame in frames}
        self._now = time.time_ns()
        self._unvisited = self.cache.directories(self.scope) if self.cache else {}
        self._kept = {Failure.NONE} | (set() if self.retry_failed else {Failure.LASTING})

    def present(self) -> Iterator[NewFile | Carried]:
        """Walk the archive: every file is in exactly one finding, or done already."""
        for directory in self.walk:
            self.lap(self.walk.step, directory.file_count if self.walk.step is Step.WALK else 0)
            yield from self._compare(directory)
            self.lap(Step.COMPARE, directory.file_count)
        yield from filter(None, [self._carried(frame) for frame in list(self._left)])
        self._keep_unreadable()
        if self.cache:
            self.gone += sum(map(self.cache.count_directory, self._unvisited.values()))

    def _keep_unreadable(self) -> None:
        """Take what lies in directories that cannot be read right now out of what is gone.

        Only the records that this very run holds already are dropped: their files were not found.
        """
        if not self.cache or not self.walk.unreadable:
            return
        roots = [path for path, _ in self.walk.unreadable]
        for path in [path for path in self._unvisited if any(_is_below(path, root) for root in roots)]:
            number = self._unvisited.pop(path)
            known = self.cache.files(number).items()
            self._gone_files += [
                GoneFile(number, name) for name, row in known if row.frame not in self._whole
            ]

    def vanished(self) -> Iterator[GoneFile | GoneDirectory]:
        """Name what is known and no longer there; valid after `present`."""
        yield from self._gone_files
        yield from map(GoneDirectory, self._unvisited.values())

    def _compare(self, directory: Directory) -> Iterator[NewFile | Carried]:
        self.files += directory.file_count
        self.size += directory.size
        number = self._unvisited.pop(directory.path, None)
        if number is not None and (seal := self._unbroken(number, directory)):
            found = [self._meet(frame, lines, True) for frame, lines in seal.places.items()]
            yield from filter(None, found)
        else:
            yield from self._compare_files(number, directory)

    def _unbroken(self, number: int, directory: Directory) -> Seal | None:
        """Return a directory's seal when it says that every file is known and holds.

        In doubt it is not believed: then the files are compared one by one.
        """
        seal = self.cache.seal(number) if self.cache else None
        if seal is None or directory.errors or seal.digest != digest_of(directory):
            return None
        if seal.failures and Failure.LASTING not in self._kept:
            return None
        with row_errors("a directory"):
            if any(lines & ~self._lines[frame] for frame, lines in seal.places.items()):
                raise wrong_row("a directory")
            read_ns = min(self._started[frame] for frame in seal.places)
            may_be_newer = seal.coarse_ns is not None and read_ns - 2 * _SECOND_NS <= seal.coarse_ns
        return None if may_be_newer else seal

    def _compare_files(self, number: int | None, directory: Directory) -> Iterator[NewFile | Carried]:
        known = self.cache.files(number) if self.cache and number is not None else {}
        for entry in directory.files:
            row = known.pop(entry.name, None)
            if row is not None:
                self._check(row)
            holds = row is not None and self._holds(row, entry)
            if not holds:
                yield NewFile(directory.path, entry)
            if row is not None and (carried := self._meet(row.frame, 1 << row.line, holds)):
                yield carried
        if number is not None:
            self._gone_files.extend(GoneFile(number, name) for name in known)
            self.gone += sum(map(self.walk.settings.is_wanted, known))
            for row in known.values():
                self._check(row)
            yield from filter(None, [self._meet(row.frame, 1 << row.line, False) for row in known.values()])

    def _check(self, row: KnownFile) -> None:
        """Raise `CacheError` unless the row points at a line that its frame has."""
        lines, line = self._lines.get(row.frame, 0), row.line
        if type(line) is not int or line < 0 or not lines >> line & 1:
            raise wrong_row("a file")

    def _holds(self, row: KnownFile, entry: Entry) -> bool:
        same = row.size == entry.size and row.mtime_ns == entry.mtime_ns
        return same and row.failed in self._kept and not entry.error and not self._may_be_newer(row)

    def _may_be_newer(self, row: KnownFile) -> bool:
        """Return whether the file may have changed after it was read without its time telling.

        FAT keeps times to 2 s, others to 1 s: within that time of being read, a file can change once more.
        """
        if row.mtime_ns % _SECOND_NS:
            return False
        return self._started[row.frame] - 2 * _SECOND_NS <= row.mtime_ns <= self._now

    def _meet(self, frame: int, lines: int, holds: bool) -> Carried | None:
        """Note that known files of a frame were met, or are gone; returns it when they were its last ones."""
        whole = self._whole.get(frame)
        if whole is None:  # this very run wrote it
            self.resumed += holds * lines.bit_count()
            return None
        self._left[frame] = left = self._left.get(frame, whole) & ~lines
        if not holds:
            self._changed[frame] = self._changed.get(frame, 0) | lines
        return None if left else self._carried(frame)

    def _carried(self, frame: int) -> Carried | None:
        """Return the lines of a frame that were met and still hold; None when none does."""
        lines = self._whole[frame] & ~self._left.pop(frame) & ~self._changed.pop(frame, 0)
        return Carried(frame, lines) if lines else None


def _is_below(path: bytes, root: bytes) -> bool:
    return path == root or not root or path.startswith(root + b"/")


class _Dispatcher:
    """Fills slots with findings and hands their numbers on."""

    def __init__(
        self, job: Job, reading: Reading, table: SlotTable, queues: Queues, outlook: Iterator[int], lap: Lap
    ) -> None:
        self._archive, self._reading, self._table, self._queues = job.archive, reading, table, queues
        self._outlook, self._lap = outlook, lap
        self._held = list(reversed(range(len(table.slots))))
        self._free: list[int] = []
        self._heed_allowance()
        self._todo: list[int] = []
        self._done: list[int] = []

    def dispatch(self, findings: Sequence[Finding]) -> None:
        """Fill a slot with each finding and hand them on."""
        files = [finding for finding in findings if isinstance(finding, NewFile)]
        while files:
            slots = self._free_slots(len(files))
            self._files(slots, files[: len(slots)])
            files = files[len(slots) :]
        for finding in findings:
            if not isinstance(finding, NewFile):
                (slot,) = self._free_slots(1)
                self._known(slot, finding)
        self.hand_on()

    def _files(self, slots: list[int], findings: list[NewFile]) -> None:
        paths = [os.path.join(finding.directory, finding.entry.name) for finding in findings]
        self._table.fill(
            slots,
            **_CLEAN,
            kind=Kind.FILE,
            size=[finding.entry.size for finding in findings],
            mtime_ns=[finding.entry.mtime_ns for finding in findings],
            state=State.TODO,
        )
        to_read = []
        for slot, path, finding in zip(slots, paths, findings, strict=True):
            self._table.set_path(slot, path)
            if error := self._hindrance(path, finding.entry):
                self._table.fail(slot, *error)
                self._done.append(slot)
            else:
                to_read.append(path)
                self._todo.append(slot)
        self._reading.announce(to_read)

    def _hindrance(self, path: bytes, entry: Entry) -> tuple[str, str] | None:
        """Return the type and the text of what keeps a file from being read, as far as can be seen here."""
        if len(self._archive) + 1 + len(path) >= PATH_MAX:
            return "path_too_long", f"the path has more than the {PATH_MAX - 1} bytes that can be opened"
        return ("unreadable", entry.error) if entry.error else None

    def _known(self, slot: int, finding: Carried | GoneFile | GoneDirectory) -> None:
        fields = self._table.slots[slot]
        self._table.fill([slot], **_CLEAN)
        if isinstance(finding, Carried):
            fields["kind"], fields["frame"] = Kind.CARRY, finding.frame
            fields["lines"] = list(finding.lines.to_bytes(len(fields["lines"]), "little"))
        elif isinstance(finding, GoneFile):
            fields["kind"], fields["directory"] = Kind.GONE, finding.directory
            self._table.set_path(slot, finding.name)
        else:
            fields["kind"], fields["directory"] = Kind.GONE_DIRECTORY, finding.directory
        fields["state"] = State.DONE
        self._done.append(slot)

    def _free_slots(self, wanted: int) -> list[int]:
        """Return up to `wanted` free slots, at least one; waits for it."""
        self._heed_allowance()
        if not self._free:
            self.hand_on()
            self._lap(Step.COMPARE, 0)
            while not self._free:
                self._free = self._look_ahead() or self._returned(_HEED_SEC if self._held else None)
                self._heed_allowance()
            self._lap(Step.WAIT_OUTPUT, 0)  # looking ahead is what it does meanwhile
        slots, self._free = self._free[:wanted], self._free[wanted:]
        return slots

    def _returned(self, timeout: float | None) -> list[int]:
        slots = self._queues.free.get(_CHUNK, timeout)
        if slots is None:  # only the writer's death ends `free` before this stage does
            raise LifelineCut
        return slots

    def _heed_allowance(self) -> None:
        """Hold free slots back, or let go of held ones, so that no more are in flight than allowed."""
        allowed = int(self._table.counters[Gauge.SLOTS_ALLOWED])
        under_way = len(self._table.slots) - len(self._held) - len(self._free)
        room = max(0, allowed - under_way)
        if surplus := self._free[room:]:
            del self._free[room:]
            self._held += surplus
            self._table.give_back(surplus)
        while self._held and len(self._free) < room:
            self._free.append(self._held.pop())

    def _look_ahead(self) -> list[int] | None:
        """Count files to come until slots come back, where somebody sees how many there are.

        Where nothing has to be read, no slot is waited for.
        """
        counters = self._table.counters
        if not (counters[Gauge.QUEUED] and counters[Gauge.WATCHED]):
            return None
        while not (free := self._queues.free.get(_CHUNK, timeout=0)):
            count = next(self._outlook, None)
            if count is None:
                counters[Gauge.FORESEEN_ALL] = 1
                return None
            counters[Gauge.FORESEEN] += count
        return free

    def wait_for_readers(self) -> None:
        """Wait until all files that were queued have been read."""
        self.hand_on()
        while self._table.count(State.TODO, State.CLAIMED):
            self._free += self._returned(_GLANCE_SEC)
            self._heed_allowance()
        self._lap(Step.WAIT_OUTPUT, 0)

    def hand_on(self) -> None:
        """Put the filled slots on their queues."""
        with step("discover.hand-over"):
            self._queues.todo.put(self._todo)
            self._queues.done.put(self._done)
        self._table.counters[Gauge.QUEUED] += len(self._todo)
        self._todo.clear()
        self._done.clear()


def discover(job: Job, table: SlotTable, queues: Queues, lap: Lap) -> None:
    """Hand on every file of the archive, known or not; then name what is gone."""
    cache, settings = Cache(job.cache_path, "read"), walk_settings(job.settings)
    walked = Walked(settings, queues.listings)
    survey = Survey(walked, cache, job.scope, job.run_id, job.settings.retry_failed, lap)
    known = cache.count_files(job.scope)
    reading = Reading(job.archive, job.settings.storage, job.settings.file_timeout_sec)
    dispatcher = _Dispatcher(job, reading, table, queues, Walk(settings).counts(), lap)
    lap(Step.START, 0)
    for findings in _chunks(reading.ordered(survey.present(), _path_to_read)):
        dispatcher.dispatch(findings)
        _count(table, survey)
    _count(table, survey)
    _refuse_an_empty_archive(job, survey)
    _refuse_a_vanished_archive(job, survey.gone, known)
    if known < job.known_before:  # asked for --fresh, or by another model: the paths are not compared
        _refuse_a_vanished_archive(job, job.known_before - survey.files, job.known_before)
    table.counters[Gauge.DISCOVERY_DONE] = 1
    if survey.gone:
        dispatcher.wait_for_readers()
    for vanished in _chunks(survey.vanished()):
        dispatcher.dispatch(vanished)
    lap(Step.COMPARE, 0)


def _path_to_read(finding: Finding) -> bytes | None:
    return os.path.join(finding.directory, finding.entry.name) if isinstance(finding, NewFile) else None


def _chunks(findings: Iterator[Finding]) -> Iterator[list[Finding]]:
    return iter(lambda: list(islice(findings, _CHUNK)), [])


def _refuse_an_empty_archive(job: Job, survey: Survey) -> None:
    if survey.files:
        return
    root = display_path(job.archive)
    if survey.walk.unreadable:
        raise ArchiveError(
            f"no audio file found in {root!r}: {survey.walk.unreadable[0][1]}", "Check the permissions."
        )
    wanted = job.settings.supported_formats
    if others := _of_other_formats(job):
        raise ArchiveError(
            f"no audio file found in {root!r} that ends with {', '.join(wanted)}",
            f"{counted(others, 'audio file')} there {'has' if others == 1 else 'have'} another extension:"
            " --formats, 'supported_formats' in config.yml, says which count.",
        )
    raise ArchiveError(
        f"no audio file found in {root!r}",
        "Check the path and that the volume is mounted; --formats ('supported_formats' in config.yml)"
        " lists the extensions that count.",
    )


def _of_other_formats(job: Job) -> int:
    """Count the audio files whose extensions were not asked for."""
    every = frozenset(name.encode() for name in SOUNDFILE_FORMATS + FFMPEG_FORMATS)
    settings = walk_settings(job.settings)
    if every <= settings.formats:
        return 0
    return sum(directory.file_count for directory in Walk(replace(settings, formats=every)))


def _refuse_a_vanished_archive(job: Job, gone: int, known: int) -> None:
    settings = job.settings
    if settings.accept_missing or gone < _GONE_NOTICED or gone <= _GONE_ASKED * known:
        return
    what = f"{gone:,} of {known:,} known files are no longer in {display_path(job.archive)!r}"
    if job.earlier_device not in (None, job.archive_identity[0]):
        what += ", which is on another device than at the last run"
    if gone > _GONE_REFUSED * known:
        raise ArchiveError(
            what, "Is the volume mounted? If they were removed on purpose, give --accept-missing."
        )
    if not settings.yes:
        raise FilesGoneError(what, "If they were removed or moved on purpose, give --yes.")


def _count(table: SlotTable, survey: Survey) -> None:
    counters = table.counters
    counters[Gauge.DISCOVERED], counters[Gauge.DISCOVERED_BYTES] = survey.files, survey.size
    counters[Gauge.RESUMED], counters[Gauge.GONE] = survey.resumed, survey.gone
    counters[Gauge.SKIPPED_LINKS] = survey.walk.skipped_links
    counters[Gauge.SKIPPED_SPECIAL] = survey.walk.skipped_special
    counters[Gauge.UNREADABLE_DIRECTORIES] = len(survey.walk.unreadable)
