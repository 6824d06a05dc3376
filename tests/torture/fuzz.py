"""Feed infer audio files that are wrong in every way, and see that each costs one record and nothing else.

After each episode: the command came to its good end; every file has its record, and what failed has a type;
no worker had more memory than it may; nothing took longer than the limit of a file allows. The own reader of
WAV and AIFF gives what libsndfile gives, or a typed failure.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np

from drumline.audio import AudioError, Decoder, Waveform
from drumline.frontend import FrontEnd
from drumline.pcm import parse_pcm
from drumline.records import WORKER_ERRORS, ErrorType
from tests.pipeline.support import records_of
from tests.torture.attacks import Arena, Attack
from tests.torture.mutation import make_seeds, mutated

__all__ = ["ATTACK"]

_FILES, _FILES_WITH_FFMPEG = 1_000, 100
_FFMPEG_EVERY = 20
_LIMIT_SEC, _MEMORY_MB, _OWN_MB = 10, 500, 150
_COMPARING_SEC = 120


def _episode(arena: Arena, random: Random, number: int) -> Counter[str]:
    with arena.directory() as place:
        with_ffmpeg = shutil.which("ffmpeg") is not None and number % _FFMPEG_EVERY == _FFMPEG_EVERY - 1
        files = _write(arena, random, place / "archive", _FILES_WITH_FFMPEG if with_ffmpeg else _FILES)
        records, peak = _infer(arena, place, with_ffmpeg)
        _assert_one_record_each(files, records)
        figures = _figures(records)
        assert peak <= _MEMORY_MB + _OWN_MB, f"a worker had {peak} MB"
        figures["own reader compared"] = _compare(place)
        figures["with ffmpeg"] = len(files) if with_ffmpeg else 0
        return figures


def _write(arena: Arena, random: Random, archive: Path, count: int) -> dict[str, bytes]:
    """Write the archive; a file's name says what was done to it."""
    seeds = arena.shared("seeds", lambda _place: make_seeds())
    archive.mkdir()
    files = {}
    for number in range(count):
        seed = random.choice(seeds)
        done, data = mutated(seed, seeds, random)
        extension = seed.extension if random.random() < 0.95 else random.choice(seeds).extension
        name = f"{number:04}-{seed.extension}-{done}.{extension}"
        (archive / name).write_bytes(data)
        files[name] = data
    return files


def _infer(arena: Arena, place: Path, with_ffmpeg: bool) -> tuple[dict[str, Any], int]:
    """Run infer to its good end; return the records by name and the most megabytes that a worker had."""
    running = arena.server.start(
        *("infer", place / "archive", "--runs-root", place / "runs", "--model", arena.model, "--json"),
        *("--workers", "2", "--file-timeout", str(_LIMIT_SEC), "--worker-memory-mb", str(_MEMORY_MB)),
        peaks=str(place / "peaks"),
        **({} if with_ffmpeg else {"no_ffmpeg": True}),
    )
    result = running.wait(600)
    assert result.code == 0, result.err
    running.gone()
    counts = result.counts
    assert counts["discovered"] == counts["indexed"] == counts["classified"] + counts["failed"], counts
    records = records_of(Path(result.json()["run_directory"]))
    peaks = [int(line) for line in (place / "peaks").read_text().split()]
    return {os.fsdecode(name): record for name, record in records.items()}, max(peaks)


def _assert_one_record_each(files: dict[str, bytes], records: dict[str, Any]) -> None:
    assert sorted(files) == sorted(records)
    for name, record in records.items():
        error = record["errors"]
        assert error is None or error["type"] in get_args(ErrorType), (name, error)
        assert (error is None) == (record["probs"] is not None), name
        for value in (record["duration_sec"], record["rms_db"], record["spectral_centroid"]):
            assert error or (value is not None and np.isfinite(value)), (name, record)


def _figures(records: dict[str, Any]) -> Counter[str]:
    errors = [record["errors"]["type"] for record in records.values() if record["errors"]]
    figures = Counter({"files": len(records), "lost": 0})
    figures.update(f"failed as {kind}" for kind in errors)
    figures["cost a worker"] = sum(kind in WORKER_ERRORS for kind in errors)
    return figures


def _compare(place: Path) -> int:
    """Hold the own reader against libsndfile, in a process of its own; return how many files it read."""
    child = os.fork()
    if child == 0:
        signal.alarm(_COMPARING_SEC)
        _report(place / "archive", place / "compared")
    _, status = os.waitpid(child, 0)
    assert status == 0, f"comparing the readers ended with {status}: {place}"
    compared, *differences = (place / "compared").read_text().splitlines()
    assert not differences, "\n".join(differences)
    return int(compared)


def _report(archive: Path, report: Path) -> None:
    code = 1
    try:
        own, theirs = Decoder(FrontEnd()), _Libsndfile(FrontEnd())
        own._ffmpeg = theirs._ffmpeg = None
        data = {path.name: path.read_bytes() for path in sorted(archive.iterdir())}
        plain = {name: content for name, content in data.items() if parse_pcm(content) is not None}
        found = {name: difference(own, theirs, content) for name, content in plain.items()}
        lines = [f"{name}: {said}" for name, said in found.items() if said]
        report.write_text("\n".join([str(len(plain)), *lines]))
        code = 0
    finally:
        os._exit(code)


class _Libsndfile(Decoder):
    """Decodes without the own reader."""

    def _plain_start(self, _data: Any) -> None:
        return None


def difference(own: Decoder, theirs: Decoder, data: bytes) -> str:
    """Say in what the own reader differs from libsndfile; empty where it does not, or fails with a type."""
    mine = _decoded(own, data)
    other = _decoded(theirs, data)
    if isinstance(mine, AudioError):
        return ""
    if isinstance(other, AudioError):
        return f"own {mine.format}, {len(mine.samples)} samples; libsndfile: {other}"
    facts = [(one.sample_rate, one.channels, one.duration_sec, one.format) for one in (mine, other)]
    if facts[0] != facts[1]:
        return f"own {facts[0]}; libsndfile {facts[1]}"
    return "" if np.array_equal(mine.samples, other.samples) else "other samples"


def _decoded(decoder: Decoder, data: bytes) -> Waveform | AudioError:
    try:
        return decoder.decode(data, b"")
    except AudioError as error:
        return error


ATTACK = Attack(
    what="mutated files of every format: one record each, workers bounded, own reader equal to libsndfile",
    unit="files",
    full=100_000,
    short=5_000,
    episode=_episode,
)
