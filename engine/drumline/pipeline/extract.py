"""Stage 2, extract (× N): read a file's bytes once; hash, decode and analyse them.

Protocol
--------
Takes numbers from `todo` through its row of `claims` (see `drumline.pipeline.slots`). A file whose content
is known takes over its twin's prediction and goes on `done`; a failure goes on `done` with its type; the
others go on `ready` with their features. While a file is being read, `current` and `started` tell the
supervisor which, and since when. A worker may die at any instruction and loses nothing: the supervisor
gives its slots to another.

What one file may cost is bounded: `started` moves on only as fast as a file's bytes come in, so the
supervisor sees a hang; the address space has a limit; and should the supervisor be gone, processor time has
one as well.
A worker that ran out of memory leaves with `OUT_OF_MEMORY` and is replaced like a dead one: what it leaked is
then gone, and the next file is not to blame.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from drumline.audio import WHOLE_FILE_BYTES, AudioError, Decoder, Waveform
from drumline.cache import Cache, Twin
from drumline.content import hasher
from drumline.errors import DrumlineError
from drumline.failpoints import step
from drumline.index import GARBLED, codec_of, parse_record, read_frame, split_lines
from drumline.inputs import open_regular
from drumline.laps import Lap, Step, no_lap
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import NO_SLOT, SlotTable, State
from drumline.records import WORKER_ERRORS, Record
from drumline.rows import RowReader
from drumline.runs import open_run
from drumline.walk import mtime_of

__all__ = ["OUT_OF_MEMORY", "extract", "limit_memory"]

OUT_OF_MEMORY: Final = 12
"""Exit code of a worker that could not get the memory that a file needs."""

_PIECE_BYTES = 1 << 20
_SLOWEST = 1e6  # bytes/s: a disk that is slower than this counts as one that hangs
_MB = 1_000_000
# Times the limit of a file: the supervisor, which looks at the clock, is always sooner, as long as it lives.
_ALONE = 2.0
_CACHED_FRAMES = 2  # about 1 MB each; copies of a folder lie in the same frames


class ChangedError(Exception):
    """A file changed while it was read."""


class TooLargeError(Exception):
    """A file is larger than what is read."""


class _Content(NamedTuple):
    data: bytes | None
    digest: str
    size: int
    mtime_ns: int


class _Reader:
    """Reads a file once, and tells when it changed meanwhile.

    Parameters
    ----------
    algorithm
        Of the content hash.
    lap
        Told of each step.
    largest
        Bytes of the largest file that is read.
    progress
        Called with the number of bytes that came in.
    """

    def __init__(
        self,
        algorithm: str,
        lap: Lap = no_lap,
        largest: int = 1 << 62,
        progress: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._hasher, self._lap = hasher(algorithm), lap
        self._largest, self._progress = largest, progress

    def read(self, path: bytes) -> _Content:
        """Read a file that stays as it is meanwhile."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(descriptor)
            if before.st_size > self._largest:
                raise TooLargeError
            digest = self._hasher()
            data = self._whole(descriptor, before.st_size) if before.st_size <= WHOLE_FILE_BYTES else None
            self._lap(Step.READ)
            if data is None:
                for piece in self._pieces(descriptor, before.st_size):
                    digest.update(piece)
            else:
                digest.update(data)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ChangedError
        self._lap(Step.HASH)
        return _Content(data, digest.hexdigest(), after.st_size, mtime_of(after))

    def _whole(self, descriptor: int, size: int) -> bytes:
        pieces = list(self._pieces(descriptor, size))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _pieces(self, descriptor: int, size: int) -> Iterator[bytes]:
        """Read as much as the file had at first: one that grows on and on has no end."""
        left = size
        while left > 0 and (piece := os.read(descriptor, min(left, _PIECE_BYTES))):
            left -= len(piece)
            self._progress(len(piece))
            yield piece


class _Twins:
    """Finds the record of a file with the same content."""

    def __init__(self, job: Job) -> None:
        self._cache = Cache(job.cache_path, "read")
        self._key = job.inference_key
        self._runs_root = job.settings.runs_root
        self._retry = job.settings.retry_failed
        self._frames: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()

    def find(self, digest: str) -> Record | None:
        """Return a record of a file with this content, whose prediction can be taken over."""
        try:
            place = self._cache.twin(digest, self._key)
            if place is None:
                return None
            record = parse_record(self._lines(place)[place.frame.place(place.line)], self._runs_root)
        except (DrumlineError, OSError, sqlite3.Error, *GARBLED):
            return None  # the run was removed by hand, or the cache is damaged: the file is simply read
        return record if record["hash"] == digest and self._counts(record) else None

    def _counts(self, record: Record) -> bool:
        error = record["errors"]
        if error is None:
            return bool(record["probs"])
        return error["type"] in WORKER_ERRORS and not self._retry

    def _lines(self, twin: Twin) -> list[bytes]:
        key = twin.run, twin.frame.offset
        if key not in self._frames:
            self._frames[key] = self._read(twin)
            if len(self._frames) > _CACHED_FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(key)
        return self._frames[key]

    def _read(self, twin: Twin) -> list[bytes]:
        path = open_run(self._runs_root / twin.run).index_path
        with open_regular(path) as stream:
            return split_lines(
                read_frame(stream.fileno(), twin.frame.offset, twin.frame.length, codec_of(path))
            )


class _Worker:
    """One file at a time: slot in, slot out."""

    def __init__(self, job: Job, table: SlotTable, lap: Lap, number: int) -> None:
        self._table, self._job, self._lap, self._number = table, job, lap, number
        self._rows = RowReader(job.bundle.front_ends, lap)
        largest = job.settings.max_file_mb * _MB
        self._reader = _Reader(job.settings.hash_algorithm, lap, largest, self._note_progress)
        self._twins = _Twins(job) if job.settings.dedup_hash else None
        self._labels = {label: place for place, label in enumerate(job.bundle.labels)}

    def work(self, slot: int) -> bool:
        """Fill a slot; True when it needs a prediction."""
        try:
            return self._fill(slot)
        except AudioError as error:
            self._lap(Step.DECODE)
            self._table.fail(slot, error.type, error.message)
        except ChangedError:
            self._table.fail(slot, "changed", "the file changed while it was read")
        except TooLargeError:
            limit = self._job.settings.max_file_mb
            self._table.fail(slot, "too_large", f"larger than {limit:,} MB (max_file_mb)")
        except FileNotFoundError:
            self._table.fail(slot, "vanished", "the file was gone when it was to be read")
        except OSError as error:
            self._table.fail(slot, "unreadable", error.strerror or str(error))
        return False

    def _fill(self, slot: int) -> bool:
        fields = self._table.slots[slot]
        path = os.path.join(self._job.archive, *self._table.paths([slot]))
        with step("extract.read"):
            content = self._reader.read(path)
        fields["size"], fields["mtime_ns"] = content.size, content.mtime_ns
        fields["hash"] = content.digest
        twin = self._twins.find(content.digest) if self._twins else None
        self._lap(Step.TWIN)
        if twin is not None:
            self._take_over(slot, fields, twin)
            return False
        self._analyse(fields, self._decode(content.data, path))
        return True

    def _decode(self, data: bytes | None, path: bytes) -> dict[int, Waveform]:
        def decode(decoder: Decoder) -> Waveform:
            return decoder.decode_path(path) if data is None else decoder.decode(data, path)

        try:
            return self._rows.waveforms(decode)
        except (AudioError, OSError, MemoryError):
            raise
        except BaseException as error:  # one bad file must cost one record, whatever a decoder raises
            raise AudioError("decode_error", _described(error)) from error

    def _analyse(self, fields: np.void, waveforms: dict[int, Waveform]) -> None:
        waveform, analysis = self._rows.fill(
            waveforms, fields["features"], audio_stats=self._job.settings.include_audio_stats
        )
        fields["reach"] = self._rows.reach(waveform)
        fields["format"], fields["sample_rate"] = waveform.format, waveform.sample_rate
        fields["channels"], fields["duration_sec"] = waveform.channels, waveform.duration_sec
        if self._job.settings.include_audio_stats:
            fields["rms_db"] = analysis.rms_db
            fields["spectral_centroid"] = analysis.spectral_centroid
            fields["spectral_rolloff"] = analysis.spectral_rolloff
        else:
            fields["rms_db"] = fields["spectral_centroid"] = fields["spectral_rolloff"] = np.nan
        fields["state"] = State.READY

    def begin(self, slot: int) -> None:
        """Say which file is at hand, and since when."""
        self._table.started[self._number], self._table.current[self._number] = time.monotonic(), slot
        self._allow_processor_time()

    def _note_progress(self, size: int) -> None:
        started, number = self._table.started, self._number
        started[number] = min(time.monotonic(), started[number] + size / _SLOWEST)
        if size == _PIECE_BYTES:  # what is read in one piece needs no more than it has
            self._allow_processor_time()

    def _allow_processor_time(self) -> None:
        # The signal ends the process: it arrives also inside of a decoder that never returns to Python.
        signal.setitimer(signal.ITIMER_PROF, _ALONE * self._job.settings.file_timeout_sec)

    def _take_over(self, slot: int, fields: Any, twin: Record) -> None:
        if error := twin["errors"]:
            self._table.fail(slot, error["type"], f"{error['message']} (a file of the same content)")
            return
        fields["format"], fields["sample_rate"] = twin["format"], twin["sample_rate"]
        fields["channels"], fields["duration_sec"] = twin["channels"], twin["duration_sec"]
        fields["rms_db"] = _or_nan(twin["rms_db"])
        fields["spectral_centroid"] = _or_nan(twin["spectral_centroid"])
        fields["spectral_rolloff"] = _or_nan(twin["spectral_rolloff"])
        fields["probs"] = 0.0
        for label, probability in (twin["probs"] or {}).items():
            fields["probs"][self._labels[label]] = probability
        fields["gate"] = _or_nan(twin.get("gate"))
        fields["twin"] = 1
        fields["state"] = State.DONE


def _described(error: BaseException) -> str:
    # Unlike str(), this never raises.
    return "".join(traceback.format_exception_only(error)).strip()


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def limit_memory(size: int) -> None:
    """Let this process have `size` bytes of address space more than now, which only Linux tells."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            now = int(stream.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = now + size if hard == resource.RLIM_INFINITY else min(now + size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):
        return


def extract(job: Job, table: SlotTable, queues: Queues, lap: Lap, number: int) -> None:
    """Work on files until there are no more; `number` is this worker's row of the claims."""
    worker = _Worker(job, table, lap, number)
    limit_memory(job.settings.worker_memory_mb * _MB)
    claims, states, owners = table.claims[number], table.view("state"), table.view("owner")
    lap(Step.START, 0)
    while (count := queues.todo.get_into(claims)) is not None:
        lap(Step.WAIT_INPUT, 0)
        slots = claims[:count].tolist()
        owners[slots], states[slots] = number, State.CLAIMED
        claims[:] = NO_SLOT
        for slot in slots:
            worker.begin(slot)
            queue = queues.ready if worker.work(slot) else queues.done
            table.current[number] = NO_SLOT
            with step("extract.hand-over"):
                queue.put([slot])
            lap(Step.HAND_ON)
