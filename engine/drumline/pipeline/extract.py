"""Stage 2, extract (× N): read a file's bytes once; hash, decode and analyse them.

Protocol
--------
Takes numbers from `todo` through its row of `claims` (see `drumline.pipeline.slots`). A file whose content
is known takes over its twin's prediction and goes on `done`; a failure goes on `done` with its type; the
others go on `ready` with their features. While a file is being read, `current` and `started` tell the
supervisor which, and since when. A worker may die at any instruction and loses nothing: the supervisor
gives its slots to another.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
import xxhash

from drumline.audio import WHOLE_FILE_BYTES, AudioError, Decoder, Waveform
from drumline.cache import Cache
from drumline.errors import DrumlineError
from drumline.features import FeatureExtractor
from drumline.index import codec_of, parse_record, read_frame, split_lines
from drumline.laps import Lap, Step, no_lap
from drumline.pipeline.job import Job
from drumline.pipeline.queues import Queues
from drumline.pipeline.slots import NO_SLOT, SlotTable, State
from drumline.records import Record
from drumline.runs import open_run
from drumline.walk import mtime_of

__all__ = ["extract"]

_PIECE_BYTES = 1 << 20
_CACHED_FRAMES = 2  # about 1 MB each; copies of a folder lie in the same frames


class ChangedError(Exception):
    """A file changed while it was read."""


def hasher(algorithm: str) -> Callable[[], Any]:
    """Return the constructor of a content hash: xxh3_64, xxh64, md5 or sha256."""
    constructor: Callable[[], Any] = getattr(xxhash if algorithm.startswith("xxh") else hashlib, algorithm)
    return constructor


class _Content(NamedTuple):
    data: bytes | None
    digest: str
    size: int
    mtime_ns: int


class _Reader:
    """Reads a file once, and tells when it changed meanwhile."""

    def __init__(self, algorithm: str, lap: Lap = no_lap) -> None:
        self._hasher = hasher(algorithm)
        self._lap = lap

    def read(self, path: bytes) -> _Content:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(descriptor)
            digest = self._hasher()
            data = self._whole(descriptor, before.st_size) if before.st_size <= WHOLE_FILE_BYTES else None
            self._lap(Step.READ)
            if data is None:
                while piece := os.read(descriptor, _PIECE_BYTES):
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

    @staticmethod
    def _whole(descriptor: int, size: int) -> bytes:
        data = os.read(descriptor, size + 1)
        while len(data) < size and (piece := os.read(descriptor, size - len(data))):
            data += piece
        return data


class _Twins:
    """Finds the record of a file with the same content."""

    def __init__(self, job: Job) -> None:
        self._cache = Cache(job.cache_path, read_only=True)
        self._key = job.inference_key
        self._runs_root = job.settings.runs_root
        self._frames: OrderedDict[int, list[bytes]] = OrderedDict()

    def find(self, digest: str) -> Record | None:
        try:
            place = self._cache.twin(digest, self._key)
            if place is None:
                return None
            frame, line = place
            record = parse_record(self._lines(frame)[line], self._runs_root)
        except (DrumlineError, OSError, IndexError, sqlite3.Error):
            return None  # the run was removed by hand, or the cache is damaged: the file is simply read
        return record if record["hash"] == digest and record["probs"] else None

    def _lines(self, frame: int) -> list[bytes]:
        if frame not in self._frames:
            self._frames[frame] = self._read(frame)
            if len(self._frames) > _CACHED_FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(frame)
        return self._frames[frame]

    def _read(self, frame: int) -> list[bytes]:
        found = self._cache.frame(frame)
        if found is None:
            return []
        row, run = found
        path = open_run(self._runs_root / run).index_path
        with open(path, "rb") as stream:
            return split_lines(read_frame(stream.fileno(), row.place, row.length, codec_of(path)))


class _Worker:
    """One file at a time: slot in, slot out."""

    def __init__(self, job: Job, table: SlotTable, lap: Lap) -> None:
        self._table, self._job, self._lap = table, job, lap
        self._decoder = Decoder(job.bundle.front_end, lap)
        self._extractor = FeatureExtractor(job.bundle.front_end, lap)
        self._reader = _Reader(job.settings.hash_algorithm, lap)
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
        except FileNotFoundError:
            self._table.fail(slot, "vanished", "the file was gone when it was to be read")
        except MemoryError:
            self._table.fail(slot, "out_of_memory", "not enough memory to decode the file")
        except OSError as error:
            self._table.fail(slot, "unreadable", error.strerror or str(error))
        return False

    def _fill(self, slot: int) -> bool:
        fields = self._table.slots[slot]
        path = os.path.join(self._job.archive, fields["path"])
        content = self._reader.read(path)
        fields["size"], fields["mtime_ns"] = content.size, content.mtime_ns
        fields["hash"] = content.digest
        twin = self._twins.find(content.digest) if self._twins else None
        self._lap(Step.TWIN)
        if twin is not None:
            self._take_over(fields, twin)
            return False
        self._analyse(fields, self._decode(content.data, path))
        return True

    def _decode(self, data: bytes | None, path: bytes) -> Waveform:
        try:
            return self._decoder.decode_path(path) if data is None else self._decoder.decode(data, path)
        except (AudioError, OSError, MemoryError):
            raise
        except Exception as error:  # one bad file must cost one record, whatever a decoder raises
            raise AudioError("decode_error", _described(error)) from error

    def _analyse(self, fields: np.void, waveform: Waveform) -> None:
        analysis = self._extractor.extract(
            waveform.samples, fields["features"], audio_stats=self._job.settings.include_audio_stats
        )
        fields["format"], fields["sample_rate"] = waveform.format, waveform.sample_rate
        fields["channels"], fields["duration_sec"] = waveform.channels, waveform.duration_sec
        kept = astuple(analysis) if self._job.settings.include_audio_stats else (np.nan,) * 3
        fields["rms_db"], fields["spectral_centroid"], fields["spectral_rolloff"] = kept
        fields["state"] = State.READY

    def _take_over(self, fields: Any, twin: Record) -> None:
        fields["format"], fields["sample_rate"] = twin["format"], twin["sample_rate"]
        fields["channels"], fields["duration_sec"] = twin["channels"], twin["duration_sec"]
        fields["rms_db"] = _or_nan(twin["rms_db"])
        fields["spectral_centroid"] = _or_nan(twin["spectral_centroid"])
        fields["spectral_rolloff"] = _or_nan(twin["spectral_rolloff"])
        fields["probs"] = 0.0
        for label, probability in (twin["probs"] or {}).items():
            fields["probs"][self._labels[label]] = probability
        fields["twin"] = 1
        fields["state"] = State.DONE


def _described(error: Exception) -> str:
    # Unlike str(), this never raises.
    return "".join(traceback.format_exception_only(error)).strip()


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def extract(job: Job, table: SlotTable, queues: Queues, lap: Lap, number: int) -> None:
    """Work on files until there are no more; `number` is this worker's row of the claims."""
    worker = _Worker(job, table, lap)
    claims, states, owners = table.claims[number], table.view("state"), table.view("owner")
    lap(Step.START, 0)
    while (count := queues.todo.get_into(claims)) is not None:
        lap(Step.WAIT_INPUT, 0)
        slots = claims[:count].tolist()
        owners[slots], states[slots] = number, State.CLAIMED
        claims[:] = NO_SLOT
        for slot in slots:
            table.started[number], table.current[number] = time.monotonic(), slot
            queue = queues.ready if worker.work(slot) else queues.done
            table.current[number] = NO_SLOT
            queue.put([slot])
            lap(Step.HAND_ON)
