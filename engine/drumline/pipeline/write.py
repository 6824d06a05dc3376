"""Stage 4, write (× 1): turn slots into records, records into frames, and say in the cache where they are.

Protocol
--------
Takes numbers from `done` and returns them on `free` as soon as a slot's content is copied. Lines are
collected into frames. A flush appends the frames to the index, waits until they are on disk, and only then
commits their rows to the cache together with the length up to which the index is valid. After a kill, the
index is cut to that length: what was past it is done again, and nothing is there twice.

Whole frames of an earlier run with the same decisions are copied byte for byte. Otherwise the lines that
still hold are decided again and written into new frames.
"""

from __future__ import annotations

import os
import time
from collections import Counter as Tallying
from dataclasses import dataclass, field
from pathlib import Path

from drumline.cache import Cache, FileRow, FrameRow
from drumline.durable import output_errors
from drumline.errors import IndexFormatError
from drumline.index import FRAME_LINES, Codec, codec_of, parse_record, read_frame, split_lines
from drumline.pipeline.assemble import Assembler, file_row
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import Counter, Kind, SlotTable, State
from drumline.records import Record, encode_record, redecide
from drumline.tally import Tally

__all__ = ["IndexAppender", "write"]

_TAKE = 256
_FIRST_FLUSH_SEC, _LATER_FLUSH_SEC = 0.2, 2.0
_FRAMES_PER_FLUSH = 64


@dataclass
class _Lines:
    """Lines of the frame that is being collected, with all that is to be known of them."""

    lines: list[bytes] = field(default_factory=list)
    rows: list[FileRow] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    carried: int = 0

    def add(self, record: Record, carried: bool) -> None:
        self.rows.append(file_row(record, len(self.lines)))
        self.lines.append(encode_record(record))
        self.tally.add(record)
        self.carried += carried and record["errors"] is None


class IndexAppender:
    """Appends frames to an index and makes them durable.

    Parameters
    ----------
    path
        The index.
    codec
        How it is compressed.
    valid
        Length to cut it to first, in bytes: a torn tail is behind it.
    """

    def __init__(self, path: Path, codec: Codec, valid: int = 0) -> None:
        self.path, self.codec, self.end = path, codec, valid
        with output_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._descriptor, valid)
            os.lseek(self._descriptor, valid, os.SEEK_SET)

    def append(self, frame: bytes) -> int:
        """Write a frame and return its place."""
        place, view = self.end, memoryview(frame)
        with output_errors(self.path):
            while view:
                view = view[os.write(self._descriptor, view) :]
        self.end += len(frame)
        return place

    def sync(self) -> None:
        """Wait until all frames are on disk."""
        with output_errors(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class _Source:
    """Frames of earlier runs."""

    def __init__(self, job: Job, cache: Cache) -> None:
        self._cache, self._runs_root = cache, job.settings.runs_root
        self._open: dict[str, tuple[int, Codec]] = {}

    def frame(self, number: int) -> FrameRow:
        found = self._cache.frame(number)
        if found is None:
            raise IndexFormatError(
                f"the cache knows no frame {number}", "Delete cache.sqlite; it is rebuilt."
            )
        self._run = found[1]
        return found[0]

    def raw(self, frame: FrameRow) -> bytes:
        return os.pread(self._file()[0], frame.length, frame.place)

    def lines(self, frame: FrameRow) -> list[bytes]:
        descriptor, codec = self._file()
        return split_lines(read_frame(descriptor, frame.place, frame.length, codec))

    def _file(self) -> tuple[int, Codec]:
        if self._run not in self._open:
            path = next((self._runs_root / self._run).glob("index.jsonl*"))
            self._open[self._run] = (os.open(path, os.O_RDONLY | os.O_CLOEXEC), codec_of(path))
        return self._open[self._run]


class _Writer:
    def __init__(self, job: Job, table: SlotTable) -> None:
        self._job, self._table = job, table
        self._cache = Cache(job.cache_path)
        self._index = IndexAppender(job.run.index_path, job.codec, job.valid)
        self._source = _Source(job, self._cache)
        self._assembler = Assembler(job, table)
        self._pending = _Lines()
        self._frames: list[tuple[int, int, _Lines]] = []
        self._carried: list[tuple[int, int]] = []
        self._gone: list[tuple[int, bytes | None]] = []
        self._flushed = time.monotonic()
        self._interval = _FIRST_FLUSH_SEC

    def accept(self, slots: list[int]) -> None:
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
        labels: Tallying[str] = Tallying()
        failed = 0
        for record in self._assembler.records(slots):
            self._add(record, carried=False)
            labels[record["assigned_label"]] += record["errors"] is None
            failed += record["errors"] is not None
        counters = self._table.counters
        counters[Counter.WRITTEN] += len(slots)
        counters[Counter.FAILED] += failed
        counters[Counter.TWINS] += int(self._table.view("twin")[slots].sum())
        counters[Counter.WRITTEN_BYTES] += int(self._table.view("size")[slots].sum())
        self._assembler.count_labels(labels)

    def _add(self, record: Record, carried: bool) -> None:
        self._pending.add(record, carried)
        if len(self._pending.lines) == FRAME_LINES:
            self._close_frame()

    def _close_frame(self) -> None:
        if self._pending.lines:
            frame = self._job.codec.compress(b"".join(self._pending.lines))
            self._frames.append((self._index.append(frame), len(frame), self._pending))
            self._pending = _Lines()

    def _carry(self, slot: int) -> None:
        fields = self._table.slots[slot]
        frame = self._source.frame(int(fields["frame"]))
        lines = int.from_bytes(fields["lines"].tobytes(), "little")
        if frame.run in self._job.carriable and lines == (1 << frame.lines) - 1:
            self._carried.append((frame.id, self._index.append(self._source.raw(frame))))
        else:
            for place, line in enumerate(self._source.lines(frame)):
                if lines >> place & 1:
                    self._add(self._decided(line), carried=True)
        self._table.counters[Counter.CARRIED] += lines.bit_count()

    def _decided(self, line: bytes) -> Record:
        record = parse_record(line, self._job.run.index_path)
        return redecide(record, self._job.decisions, self._job.settings.top_k)

    def _forget(self, slot: int, kind: int) -> None:
        fields = self._table.slots[slot]
        name = bytes(fields["path"]) if kind == Kind.GONE else None
        self._gone.append((int(fields["directory"]), name))

    def patience(self) -> float:
        """Seconds until the next flush is due."""
        return max(0.0, self._flushed + self._interval - time.monotonic())

    def due(self) -> bool:
        full = (
            len(self._frames)
            or len(self._carried) >= _FRAMES_PER_FLUSH
            or len(self._gone) >= _FRAMES_PER_FLUSH**2
        )
        return bool(full) or self.patience() == 0.0

    def flush(self) -> None:
        self._close_frame()
        if self._frames or self._carried or self._gone:
            self._index.sync()
            self._commit()
            self._interval = _LATER_FLUSH_SEC
        self._frames, self._carried, self._gone = [], [], []
        self._flushed = time.monotonic()

    def _commit(self) -> None:
        job = self._job
        with self._cache.transaction():
            for number, place in self._carried:
                self._cache.carry_frame(number, job.run_id, place)
            for place, length, lines in self._frames:
                self._cache.add_frame(
                    job.scope, job.run_id, place, length, lines.carried, lines.tally, lines.rows
                )
            for directory, name in self._gone:
                if name is None:
                    self._cache.forget_directory(directory)
                else:
                    self._cache.forget_file(directory, name)
            self._cache.set_valid(job.run_id, self._index.end)

    def close(self) -> None:
        self._index.close()
        self._cache.close()


def write(job: Job, table: SlotTable, queues: Queues) -> None:
    """Write until there are no more slots."""
    writer = _Writer(job, table)
    while (slots := queues.done.get(_TAKE, timeout=writer.patience())) is not None:
        slots = table.take(slots, State.DONE, State.WRITING)
        writer.accept(slots)
        table.view("state")[slots] = State.FREE
        queues.free.put(slots)
        if writer.due():
            writer.flush()
    writer.flush()
    writer.close()
