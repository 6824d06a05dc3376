"""Write messy archives of synthesised drums, of any size; equal seeds give equal bytes.

    python -m bench.synth OUT --files 600 --seed 1
    python -m bench.synth OUT --files 1000000 --tiny --flat-per-dir 1000

An archive of N files has exactly N files that look like audio: sounds, copies of them under other names,
and broken ones. The clutter beside them comes on top.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from bench.broken import BROKEN
from bench.corpus import iter_corpus_archive, write_corpus_archive
from bench.files import empty_directory, spread, store
from bench.formats import available, encode
from bench.names import CLUTTER, ODD_NAMES, Pack, make_pack
from bench.sounds import CANONICAL, LABELS, render
from bench.truth import Entry, read_truth, write_truth

__all__ = [
    "CANONICAL",
    "LABELS",
    "Entry",
    "Mess",
    "iter_archive",
    "iter_corpus_archive",
    "read_truth",
    "render",
    "write_archive",
    "write_corpus_archive",
    "write_truth",
]

T = TypeVar("T")
Samples = NDArray[np.float32]

_WEIGHTS = {
    "Kick": 17, "Snare": 16, "Rim": 4, "HihatClosed": 12, "HihatOpen": 8, "TomLow": 4, "TomMid": 4,
    "TomHigh": 4, "Crash": 6, "Ride": 5, "Clap": 7, "Cowbell": 4, "Shaker": 4, "Synth": 5,
}  # fmt: skip
_FORMATS = {
    "wav-16": 34, "wav-24": 22, "wav-tagged": 8, "wav-extensible": 4, "wav-float": 5, "wav-32": 3, "wav-8": 3,
    "wav-cut": 1, "wav-ulaw": 1, "wav-alaw": 1, "wav-double": 1, "aiff-16": 3, "aiff-24": 3, "flac": 4,
    "ogg": 3, "mp3": 4, "opus": 1, "caf": 1, "au": 1, "rf64": 1, "w64": 1,
}  # fmt: skip
_RATES = {44_100: 64, 48_000: 16, 22_050: 6, 32_000: 4, 88_200: 3, 96_000: 7}
_POOL = 512
_ODD_FOLDER = b"__to sort \xfc"


@dataclass(frozen=True, slots=True)
class Mess:
    """How an archive is messed up.

    Parameters
    ----------
    broken_fraction, duplicate_fraction, odd_fraction
        Share of the files that hold no audio, that are copies, that have odd names.
    clutter
        Whether things that are no audio lie beside the samples.
    tiny
        Sounds of 0.04–0.12 s from a small pool, in PCM alone; each file's content is its own all the same.
    flat_per_dir
        Files per directory, all of them one level deep and without clutter; 0 for vendors' nested packs.
    """

    broken_fraction: float = 0.02
    duplicate_fraction: float = 0.06
    odd_fraction: float = 0.03
    clutter: bool = True
    tiny: bool = False
    flat_per_dir: int = 0


class _Take(NamedTuple):
    """A sound as a file: what is true about it, and its bytes."""

    label: str
    format: str
    rate: int
    channels: int
    content: bytes


def write_archive(
    out: str | os.PathLike[str],
    files: int,
    seed: int = 0,
    *,
    broken_fraction: float = 0.02,
    duplicate_fraction: float = 0.06,
    odd_fraction: float = 0.03,
    clutter: bool = True,
    tiny: bool = False,
    flat_per_dir: int = 0,
) -> list[Entry]:
    """Write an archive into the empty or new directory `out`.

    Parameters
    ----------
    out
        Where the archive goes.
    files
        How many files look like audio, broken ones and copies included, clutter not.
    seed
        Equal seeds give equal names and bytes.
    broken_fraction, duplicate_fraction, odd_fraction, clutter, tiny, flat_per_dir
        See `Mess`.

    Returns
    -------
    list of Entry
        What is true about every file, clutter included, in the order of writing.

    Raises
    ------
    FileExistsError
        `out` is not empty.
    """
    mess = Mess(broken_fraction, duplicate_fraction, odd_fraction, clutter, tiny, flat_per_dir)
    return list(iter_archive(out, files, seed, mess))


def iter_archive(
    out: str | os.PathLike[str], files: int, seed: int = 0, mess: Mess | None = None
) -> Iterator[Entry]:
    """Write as `write_archive` does, and yield what is true about each file once it is there."""
    return _Writer(empty_directory(out), files, seed, mess or Mess()).entries()


@dataclass(slots=True)
class _Sounds:
    """Where sounds come from: as many as the pool holds are rendered, what is beyond varies them."""

    seed: int
    pool: int
    tiny: bool
    rendered: dict[int, tuple[str, int, Samples]] = field(default_factory=dict)
    takes: dict[int, _Take] = field(default_factory=dict)

    def take(self, number: int, random: Random) -> _Take:
        """Return the sound of file `number`; no two numbers give equal bytes."""
        if not self.tiny:
            return self._recorded(number, random)
        slot = number % self.pool
        if slot not in self.takes:
            self.takes[slot] = self._recorded(slot, Random(f"take {self.seed} {slot}"))
        return _numbered(self.takes[slot], number)

    def _recorded(self, number: int, random: Random) -> _Take:
        label, rate, sound = self._sound(number % self.pool)
        name, channels = self._format(rate, random), _pick({1: 3, 2: 2}, random)
        if number >= self.pool:
            sound = sound * np.float32(random.uniform(0.3, 1.0))
        return _Take(label, name, rate, channels, encode(spread(sound, channels, random), rate, name))

    def _sound(self, slot: int) -> tuple[str, int, Samples]:
        if slot in self.rendered:
            return self.rendered[slot]
        random, rng = Random(f"sound {self.seed} {slot}"), np.random.default_rng([self.seed, slot])
        label, rate = _pick(_WEIGHTS, random), 22_050 if self.tiny else _pick(_RATES, random)
        sound = label, rate, render(label, rng, rate, random.uniform(0.04, 0.12) if self.tiny else 1.5)
        if self.pool <= _POOL:
            self.rendered[slot] = sound
        return sound

    def _format(self, rate: int, random: Random) -> str:
        while True:
            form = available().get(_pick(_FORMATS, random))
            if form is not None and form.takes(rate) and (form.low_bytes or not self.tiny):
                return form.name


def _numbered(take: _Take, number: int) -> _Take:
    content = bytearray(take.content)
    content[available()[take.format].low_bytes or slice(0, 0)] = struct.pack("<I", number)
    return take._replace(content=bytes(content))


def _pick(weights: Mapping[T, int], random: Random) -> T:
    return random.choices(list(weights), list(weights.values()))[0]


def _falls(number: int, fraction: float) -> bool:
    """Tell whether `number` is one of those that spread a fraction evenly over all numbers."""
    return int((number + 1) * fraction) > int(number * fraction)


class _Writer:
    """Writes one archive."""

    def __init__(self, root: bytes, files: int, seed: int, mess: Mess) -> None:
        self._root, self._files, self._mess = root, files, mess
        self._random = Random(f"archive {seed}")
        pool = files if files <= 2000 and not mess.tiny else _POOL
        self._sounds = _Sounds(seed, max(pool, 1), mess.tiny)
        self._earlier: list[Entry] = []
        self._broken = self._odd = 0

    def entries(self) -> Iterator[Entry]:
        """Iterate over the files, as they are written."""
        start = 0
        for pack, size in self._packs():
            if self._mess.clutter and not self._mess.flat_per_dir:
                yield from self._clutter(pack)
            for number in range(start, start + size):
                yield self._file(pack, number)
            start += size

    def _packs(self) -> Iterator[tuple[Pack, int]]:
        """Yield packs and how many files each gets, until all files have their place."""
        number, left, typical = 0, self._files, min(200, max(12, self._files // 15))
        while left:
            flat = self._mess.flat_per_dir
            pack = (
                Pack(f"{number:06d}", False, self._random.randrange(7))
                if flat
                else make_pack(number, self._random)
            )
            size = min(left, flat or self._random.randrange(typical // 2, 2 * typical))
            yield pack, size
            number, left = number + 1, left - size

    def _file(self, pack: Pack, number: int) -> Entry:
        if _falls(number, self._mess.broken_fraction):
            return self._broken_file(pack, number)
        if self._earlier and _falls(number, self._mess.duplicate_fraction):
            return self._duplicate(pack, number)
        return self._sound(pack, number)

    def _broken_file(self, pack: Pack, number: int) -> Entry:
        way = list(BROKEN)[self._broken % len(BROKEN)]
        self._broken += 1
        path = pack.next_path(_pick(_WEIGHTS, self._random), ".wav", self._random)
        path = store(self._root, path, BROKEN[way](self._random), number)
        return Entry(path, "broken", format=way)

    def _duplicate(self, pack: Pack, number: int) -> Entry:
        original = self._random.choice(self._earlier)
        with open(os.path.join(self._root, original.path), "rb") as stream:
            content = stream.read()
        path = store(self._root, self._copy_path(pack, original), content, number)
        return original._replace(path=path, kind="duplicate", duplicate_of=original.path)

    def _copy_path(self, pack: Pack, original: Entry) -> bytes:
        folder, name = os.path.split(original.path)
        stem, suffix = os.path.splitext(name)
        way = 0 if self._mess.flat_per_dir or len(name) > 200 else self._random.randrange(4)
        if way == 1:
            return b"Backup 2019 (old laptop)/" + original.path
        if way == 2:
            return os.path.join(folder, b"Copy of " + name)
        if way == 3:
            return os.path.join(folder, stem + b" (1)" + suffix)
        return pack.next_path(original.label or "Kick", suffix.decode().lower(), self._random)

    def _sound(self, pack: Pack, number: int) -> Entry:
        take = self._sounds.take(number, self._random)
        path = self._path(pack, number, take)
        path = store(self._root, path, take.content, number)
        label = take.label
        entry = Entry(path, "sound", label, CANONICAL[label], take.format, take.rate, take.channels)
        self._remember(entry)
        return entry

    def _path(self, pack: Pack, number: int, take: _Take) -> bytes:
        suffix = available()[take.format].suffix
        path = pack.next_path(take.label, suffix, self._random)
        if not _falls(number, self._mess.odd_fraction):
            return path
        name, again = ODD_NAMES[self._odd % len(ODD_NAMES)], self._odd // len(ODD_NAMES)
        folder = (
            os.path.dirname(path) if self._mess.flat_per_dir else _ODD_FOLDER + b"/%d" % (self._odd // 1000)
        )
        self._odd += 1
        return os.path.join(folder, name + (b" %d" % again if again else b"") + suffix.encode())

    def _remember(self, entry: Entry) -> None:
        """Keep a few earlier sounds to copy, the latest in place of a random one."""
        if len(self._earlier) < _POOL:
            self._earlier.append(entry)
        else:
            self._earlier[self._random.randrange(_POOL)] = entry

    def _clutter(self, pack: Pack) -> Iterator[Entry]:
        for name, content in self._random.sample(CLUTTER, self._random.randrange(1, 4)):
            yield Entry(store(self._root, os.path.join(pack.folder.encode(), name), content, 0), "clutter")
        if self._random.random() < 0.3:
            path = f"__MACOSX/{pack.folder}/._Kick 01.wav".encode()
            fork = b"\0\5\x16\7\0\2\0\0Mac OS X        " + b"\0" * 96
            yield Entry(store(self._root, path, fork, 0), "clutter")


def with_progress(entries: Iterable[Entry], files: int) -> Iterator[Entry]:
    """Pass entries on and keep a progress line on stderr, if that is a terminal."""
    start = shown = time.monotonic()
    count = 0
    for entry in entries:
        yield entry
        count += entry.kind != "clutter"
        now = time.monotonic()
        if sys.stderr.isatty() and (now - shown > 0.1 or count == files):
            shown = now
            speed = count / max(now - start, 1e-9)
            print(
                f"\r{count:,} of {files:,} files, {speed:,.0f} files/s", end="", file=sys.stderr, flush=True
            )
    if sys.stderr.isatty():
        print(file=sys.stderr)


@click.command(help="Write a messy archive of synthesised drums into OUT, a new or empty directory.")
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--files", default=600, show_default=True, help="Files that look like audio.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal bytes.")
@click.option("--tiny", is_flag=True, help="Very short sounds, at least 5,000 files/s.")
@click.option("--flat-per-dir", default=0, metavar="N", help="N files per directory, no nested packs.")
@click.option("--broken", default=Mess().broken_fraction, show_default=True, help="Share of broken files.")
@click.option(
    "--truth", type=click.Path(dir_okay=False), help="Write what is true about each file (JSON lines)."
)
def main(
    out: str, files: int, seed: int, tiny: bool, flat_per_dir: int, broken: float, truth: str | None
) -> None:
    """Write an archive."""
    mess = Mess(broken_fraction=broken, tiny=tiny, flat_per_dir=flat_per_dir)
    start = time.monotonic()
    try:
        entries = with_progress(iter_archive(out, files, seed, mess), files)
        count = write_truth(entries, truth or os.devnull)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count:,} files in {out} in {time.monotonic() - start:.1f} s", err=True)


if __name__ == "__main__":
    main()
