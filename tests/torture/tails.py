"""Damage the end of an index at every byte: what stands before is found again, and nothing else is.

Each byte of the last two frames is where the index is cut, in a zstd, a gzip and a plain index, and each is
changed in the first two: plain lines carry no checksum. The cache is gone.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import orjson

from drumline.cache import Cache
from drumline.index import Compression, read_frames
from drumline.recover import rebuild_cache
from tests.pipeline.support import assert_equal, path_of, records_of
from tests.torture.attacks import Arena, Attack
from tests.torture.expected import ChangingArchive, pool_of

__all__ = ["ATTACK"]

_FILES, _FRAME_LINES, _STRIDE = 12, 3, 64
_COMPRESSIONS: tuple[Compression, ...] = ("zstd", "gzip", "none")


@dataclass
class _Victim:
    """A run that was interrupted after its last frame; `ends` are the ends of its frames, in bytes."""

    archive: ChangingArchive
    run: Path
    compression: Compression
    whole: bytes
    ends: list[int]
    paths: list[set[bytes]]

    @property
    def index(self) -> Path:
        return next(self.run.glob("index.jsonl*"))

    @property
    def first(self) -> int:
        """The first byte of the last two frames."""
        return self.ends[-3]


def _make(arena: Arena, place: Path, compression: Compression) -> _Victim:
    archive = ChangingArchive(place / "archive", pool_of(arena), Random(1))
    for _ in range(_FILES):
        archive.add()
    result = arena.server.start(*_infer(arena, place, compression), frame_lines=_FRAME_LINES).wait()
    assert result.code == 0, result
    run = Path(result.json()["run_directory"])
    records = records_of(run)
    assert_equal(records, archive.expected())
    (run / "summary.json").unlink()
    victim = _Victim(archive, run, compression, b"", [0], [set()])
    victim.whole = victim.index.read_bytes()
    if compression == "none":
        lines = victim.whole.splitlines(keepends=True)
        pieces = [(len(line), [line]) for line in lines]
    else:
        pieces = [(frame.length, frame.data.splitlines()) for frame in read_frames(victim.index)]
    for length, lines in pieces:
        victim.ends.append(victim.ends[-1] + length)
        victim.paths.append(victim.paths[-1] | {_path(line) for line in lines})
    return victim


def _infer(arena: Arena, place: Path, compression: str) -> tuple[str | Path, ...]:
    options = ("--runs-root", place / "runs", "--model", arena.model, "--workers", "1", "--json")
    return ("infer", place / "archive", *options, "--compress-index", compression)


def _path(line: bytes) -> bytes:
    return path_of(orjson.loads(line))


def _victim(arena: Arena, compression: Compression) -> _Victim:
    victim: _Victim = arena.shared(f"tail {compression}", lambda place: _make(arena, place, compression))
    return victim


def _cases(arena: Arena) -> list[tuple[Compression, int]]:
    """Return all (compression, first byte)."""
    victims = [_victim(arena, compression) for compression in _COMPRESSIONS]
    longest = max(len(victim.whole) - victim.first for victim in victims)
    return [
        (victim.compression, victim.first + offset)
        for offset in range(0, longest, _STRIDE)
        for victim in victims
        if victim.first + offset < len(victim.whole)
    ]


def _episode(arena: Arena, random: Random, number: int) -> Counter[str]:
    cases = _cases(arena)
    # The tail's end first: there the frames are that a crash may tear.
    compression, first = cases[-1 - number]
    victim, figures = _victim(arena, compression), Counter[str]()
    for place in range(first, min(first + _STRIDE, len(victim.whole))):
        changes = (0xFF, 1 << random.randrange(8)) if compression != "none" else ()
        for change in (None, *changes):
            _damage(victim, place, change)
            figures["damaged bytes"] += 1
            figures[f"{compression}: {'cut' if change is None else 'changed'}"] += 1
    _resume(arena, victim)
    return figures


def _damage(victim: _Victim, place: int, change: int | None) -> None:
    data = bytearray(victim.whole)
    if change is None:
        del data[place:]
    else:
        data[place] ^= change
    victim.index.write_bytes(data)
    cache = victim.run.parent / "cache.sqlite"
    rebuild_cache(cache, victim.run.parent)
    with closing(Cache(cache, "read")) as opened:
        ((_, _, valid),) = opened.runs(1).values()
        known = {
            os.path.join(directory, name)
            for directory, number in opened.directories(1).items()
            for name in opened.files(number)
        }
    before = max(number for number, end in enumerate(victim.ends) if end <= place)
    told = f"{victim.compression}: byte {place} {'cut' if change is None else f'changed by {change}'}"
    whole = [number for number, end in enumerate(victim.ends) if end == valid]
    assert whole, told
    assert known == victim.paths[whole[0]], told
    # A bit of a frame's head may be one that changes nothing.
    assert whole[0] == before or (change is not None and whole[0] > before), told


def _resume(arena: Arena, victim: _Victim) -> None:
    """Go on with the run as the last damage left it: it comes to its end, with exactly its records."""
    for name in ("cache.sqlite", "cache.sqlite-wal", "cache.sqlite-shm"):
        (victim.run.parent / name).unlink(missing_ok=True)
    place = victim.run.parents[1]
    result = arena.server.start(*_infer(arena, place, victim.compression), frame_lines=_FRAME_LINES).wait()
    assert result.code == 0, result
    assert Path(result.json()["run_directory"]) == victim.run
    assert_equal(records_of(victim.run), victim.archive.expected())
    (victim.run / "summary.json").unlink()


ATTACK = Attack(
    what="cut an index at every byte of its last two frames, and change each",
    unit="damaged bytes",
    full=1_000_000,
    short=200,
    episode=_episode,
    episodes=lambda arena: len(_cases(arena)),
)
