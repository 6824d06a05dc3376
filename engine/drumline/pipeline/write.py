"""Stage 4, write (× 1): turn slots into records, records into frames, and say in the cache where they are.

Protocol
--------
Takes numbers from `done` and returns them on `free` as soon as a slot's content is copied. Lines are
collected into frames. A flush appends the frames to the index, waits until they are on disk, and only then
commits their rows to the cache together with the length up to which the index is valid. After a kill, the
index is cut to that length: what was past it is done again, and nothing is there twice.

Frames of an earlier run with the same decisions are copied byte for byte; where some of their lines no longer
hold, the bytes of the others are. Otherwise the lines that still hold are decided again and written into new
frames.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn

from drumline.cache import Cache, FileRow, FrameRow, Split, checked_frame, file_row
from drumline.durable import output_errors
from drumline.errors import IndexFormatError
from drumline.failpoints import step
from drumline.index import (
    FRAME_LINES,
    Codec,
    IndexAppender,
    Written,
    codec_of,
    parse_record,
    parse_records,
    split_lines,
    unpack_frame,
)
from drumline.laps import Lap, Step
from drumline.machine import trim_heap
from drumline.pipeline.assemble import Assembler
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import Gauge, Kind, SlotTable, State
from drumline.records import Record, display_path, encode_record, redecide, relative_path
from drumline.runs import open_run
from drumline.tally import Tally

__all__ = ["write"]

_TAKE = 256
_FIRST_FLUSH_SEC, _LATER_FLUSH_SEC = 0.2, 2.0
_CHANGES_PER_FLUSH = 64
_TRIM_SEC = 5.0


@dataclass
class _Lines:
    """Lines of the frame that is being collected, with all that is to be known of them."""

    lines: list[bytes] = field(default_factory=list)
    rows: list[FileRow] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    carried: int = 0

    def add(self, records: list[Record], carried: bool) -> None:
        self.rows += map(file_row, records, count(len(self.lines)))
        self.lines += map(encode_record, records)
        self.tally.add_all(records)
        self.carried += carried and sum(record["errors"] is None for record in records)


class SourceFrame(NamedTuple):
    """A frame of an earlier run: its row, its bytes as they lie there, of which codec, and in which index."""

    row: FrameRow
    raw: bytes
    codec: Codec
    path: Path


class _Source:
    """Frames of earlier runs."""

    def __init__(self, job: Job, cache: Cache) -> None:
        self._job, self._cache = job, cache
        self._open: dict[str, tuple[int, Codec, Path]] = {}

    def read(self, number: int) -> SourceFrame:
        """Read a frame; its digest, or else all of it, is verified: damage never spreads to another run."""
        found = self._cache.frame(number)
        if found is None:
            raise IndexFormatError(
                f"the cache knows no frame {number}", "Delete cache.sqlite; it is rebuilt."
            )
        frame, digest, run = checked_frame(found[0]), *found[1:]
        descriptor, codec, path = self._file(run)
        raw = os.pread(descriptor, frame.length, frame.offset)
        source = SourceFrame(frame, raw, codec, path)
        if Written.of(raw, frame.offset).digest != digest:
            self.lines(source)  # ends the run unless the frame is whole
            if codec.compression == "none":  # lines that were altered may still be records
                error = IndexFormatError("a frame has other bytes than were written", "")
                self._forget(frame, path, error)
        return source

    def lines(self, source: SourceFrame) -> list[tuple[int, bytes]]:
        """Return a frame's lines, each with the number that the cache counts by."""
        frame, lines = source.row, self._unpacked(source)
        if len(lines) != frame.lines:
            error = IndexFormatError(f"a frame has {len(lines)} lines, not {frame.lines}", "")
            self._forget(frame, source.path, error)
        kept = frame.kept
        numbers = [number for number in range(kept.bit_length()) if kept >> number & 1]
        return list(zip(numbers, lines, strict=True))

    def _unpacked(self, source: SourceFrame) -> list[bytes]:
        """Return the lines of a frame; its checksum, or else each line, is verified."""
        frame, raw, codec, path = source
        try:
            lines = split_lines(unpack_frame(raw, frame.offset, frame.length, codec))
            if codec.compression == "none":  # no checksum: only the lines can tell
                parse_records(lines, path)
        except IndexFormatError as error:
            self._forget(frame, path, error)
        return lines

    def _forget(self, frame: FrameRow, path: Path, error: IndexFormatError) -> NoReturn:
        with self._cache.transaction():
            self._cache.forget_frame(frame.id)
        raise IndexFormatError(
            f"{display_path(path)!r} is damaged: {error.what}",
            f"Give the same command again: the {frame.lines} files whose records stood there are read anew.",
        ) from error

    def _file(self, run: str) -> tuple[int, Codec, Path]:
        if run not in self._open:
            path = open_run(self._job.settings.runs_root / run).index_path
            with output_errors(path):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._open[run] = (descriptor, codec_of(path), path)
        return self._open[run]


class _Writer:
    def __init__(self, job: Job, table: SlotTable, lap: Lap) -> None:
        self._job, self._table, self._lap = job, table, lap
        self._cache = Cache(job.cache_path)
        self._index = IndexAppender(job.run.index_path, job.codec, job.valid)
        self._source = _Source(job, self._cache)
        self._assembler = Assembler(job, table, lap)
        self._pending = _Lines()
        self._frames: list[tuple[Written, _Lines]] = []
        self._carried: list[tuple[int, int]] = []
        self._split: list[Split] = []
        self._gone: list[tuple[int, bytes | None]] = []
        self._flushed = self._trimmed = time.monotonic()
        self._interval = _FIRST_FLUSH_SEC

    def accept(self, slots: list[int]) -> None:
        """Copy what slots hold."""
        kinds = self._table.view("kind")[slots].tolist()
        self._records([slot for slot, kind in zip(slots, kinds, strict=True) if kind == Kind.FILE])
        for slot, kind in zip(slots, kinds, strict=True):
            if kind == Kind.CARRY:
                self._carry(slot)
            elif kind != Kind.FILE:
                self._forget(slot, kind)

    def _records(self, slots: list[int]) -> None:
        if not slots:
            return
        records = self._assembler.records(slots)
        self._add(records, carried=False)
        labels = Counter(record["assigned_label"] for record in records if record["errors"] is None)
        counters = self._table.counters
        counters[Gauge.WRITTEN] += len(slots)
        counters[Gauge.FAILED] += len(slots) - labels.total()
        counters[Gauge.TWINS] += int(self._table.view("twin")[slots].sum())
        counters[Gauge.WRITTEN_BYTES] += int(self._table.view("size")[slots].sum())
        self._assembler.count_labels(labels)

    def _add(self, records: list[Record], carried: bool) -> None:
        while records:
            room = FRAME_LINES - len(self._pending.lines)
            self._pending.add(records[:room], carried)
            self._lap(Step.ENCODE, len(records[:room]))
            if len(self._pending.lines) == FRAME_LINES:
                self._close_frame()
            records = records[room:]

    def _close_frame(self) -> None:
        if self._pending.lines:
            frame = self._job.codec.compress(b"".join(self._pending.lines))
            self._lap(Step.COMPRESS, len(self._pending.lines))
            self._frames.append((self._index.append(frame), self._pending))
            self._lap(Step.WRITE, len(self._pending.lines))
            self._pending = _Lines()

    def _carry(self, slot: int) -> None:
        fields = self._table.slots[slot]
        source = self._source.read(int(fields["frame"]))
        mask = int.from_bytes(fields["lines"].tobytes(), "little")
        if not self._may_be_copied(source.row, mask):
            self._decide_again(source, mask)
        elif mask == source.row.kept:
            self._carried.append((source.row.id, self._index.append(source.raw).offset))
        else:
            self._split.append(self._copy_some(source, mask))
        self._table.counters[Gauge.CARRIED] += mask.bit_count()
        self._lap(Step.CARRY, mask.bit_count())

    def _redecided(self, record: Record) -> Record:
        return redecide(record, self._job.decisions, self._job.settings.top_k)

    def _may_be_copied(self, frame: FrameRow, mask: int) -> bool:
        # Small frames, from slow hours, are written anew together, or they would stay small for ever.
        return frame.run in self._job.carriable and mask.bit_count() >= FRAME_LINES // 2

    def _decide_again(self, source: SourceFrame, mask: int) -> None:
        lines = self._source.lines(source)
        held = [parse_record(line, source.path) for number, line in lines if mask >> number & 1]
        self._add([self._redecided(record) for record in held], carried=True)

    def _copy_some(self, source: SourceFrame, mask: int) -> Split:
        """Copy the lines of `mask` as bytes; what is left out is parsed, to be taken out of the counts."""
        lines = self._source.lines(source)
        left_out = [parse_record(line, source.path) for number, line in lines if not mask >> number & 1]
        frame = self._job.codec.compress(b"".join(line for number, line in lines if mask >> number & 1))
        tally = self._cache.frame_tally(source.row.id).without(Tally.of(left_out))
        dropped = list(map(relative_path, left_out))
        return Split(source.row, mask, self._index.append(frame), tally, dropped)

    def _forget(self, slot: int, kind: int) -> None:
        fields = self._table.slots[slot]
        (name,) = self._table.paths([slot]) if kind == Kind.GONE else (None,)
        self._gone.append((int(fields["directory"]), name))

    def patience(self) -> float:
        """Seconds until the next flush is due."""
        return max(0.0, self._flushed + self._interval - time.monotonic())

    def due(self) -> bool:
        """Whether enough is waiting, or has waited long enough, to be put on disk."""
        waiting = len(self._carried) + len(self._split) + len(self._gone)
        return bool(self._frames) or waiting >= _CHANGES_PER_FLUSH or self.patience() == 0.0

    def flush(self, *, partly: bool = False) -> None:
        """Put frames on disk and commit their rows; `partly` leaves a frame that is not full for later."""
        if not partly:
            self._close_frame()
        if self._frames or self._carried or self._split or self._gone:
            self._index.sync()
            self._lap(Step.WRITE, 0)
            self._commit()
            self._lap(Step.CACHE, sum(len(lines.rows) for _, lines in self._frames))
            self._interval = _LATER_FLUSH_SEC
        self._frames, self._carried, self._split, self._gone = [], [], [], []
        self._flushed = time.monotonic()
        if self._flushed - self._trimmed >= _TRIM_SEC:
            trim_heap()
            self._trimmed = time.monotonic()

    def _commit(self) -> None:
        job = self._job
        with self._cache.transaction():
            for number, place in self._carried:
                self._cache.carry_frame(number, job.run_id, place)
            for split in self._split:
                self._cache.split_frame(job.scope, job.run_id, split)
            for written, lines in self._frames:
                self._cache.add_frame(job.scope, job.run_id, written, lines.carried, lines.tally, lines.rows)
            for directory, name in self._gone:
                if name is None:
                    self._cache.forget_directory(directory)
                else:
                    self._cache.forget_file(directory, name)
            self._cache.set_valid(job.run_id, self._index.end)

    def close(self) -> None:
        self._index.close()
        self._cache.close()


def write(job: Job, table: SlotTable, queues: Queues, lap: Lap) -> None:
    """Write until there are no more slots."""
    writer = _Writer(job, table, lap)
    lap(Step.START, 0)
    while (slots := queues.done.get(_TAKE, timeout=writer.patience())) is not None:
        lap(Step.WAIT_INPUT, 0)
        slots = table.take(slots, State.DONE, State.WRITING)
        writer.accept(slots)
        table.view("state")[slots] = State.FREE
        # A broken pipe: discover has left, and nobody needs free slots any more.
        with step("write.hand-over"), suppress(BrokenPipeError):
            queues.free.put(slots)
        lap(Step.HAND_ON, len(slots))
        if writer.due():
            writer.flush(partly=writer.patience() > 0.0)
    writer.flush()
    writer.close()
