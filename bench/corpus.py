"""The real recordings of the corpus as an archive of messy WAVs, for benchmarks on what counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from bench.files import empty_directory, spread, store
from bench.formats import encode
from bench.truth import Entry

__all__ = ["corpus_directory", "iter_corpus_archive", "write_corpus_archive"]

Samples = NDArray[np.float32]

_FORMATS = ("wav-16",) * 5 + ("wav-24",) * 4 + ("wav-float", "wav-32", "wav-tagged", "wav-extensible")
_RATES = (44_100,) * 7 + (48_000,) * 2 + (22_050, 96_000)


def corpus_directory() -> Path | None:
    """Return the corpus that ``DRUMLINE_CORPUS`` names (default ``../shared/corpus``), or None."""
    path = Path(os.environ.get("DRUMLINE_CORPUS", "../shared/corpus"))
    return path if (path / "manifest.jsonl").is_file() else None


def write_corpus_archive(
    corpus: str | os.PathLike[str], out: str | os.PathLike[str], files: int, seed: int = 0
) -> list[Entry]:
    """Write `files` WAVs made from the corpus into the empty or new directory `out`.

    Recordings come in random order, and again in another form once all have been used. Each gets a
    random kind of PCM, a rate of 22,050 to 96,000 Hz, one channel or two.
    """
    return list(iter_corpus_archive(corpus, out, files, seed))


def iter_corpus_archive(
    corpus: str | os.PathLike[str], out: str | os.PathLike[str], files: int, seed: int = 0
) -> Iterator[Entry]:
    """Write as `write_corpus_archive` does, and yield what is true about each file once it is there."""
    root, random = empty_directory(out), Random(seed)
    manifest = (Path(corpus) / "manifest.jsonl").read_text(encoding="utf-8")
    items = [json.loads(line) for line in manifest.splitlines()]
    random.shuffle(items)
    return (_store_item(Path(corpus), root, items[n % len(items)], n, random) for n in range(files))


def _store_item(corpus: Path, root: bytes, item: dict[str, Any], number: int, random: Random) -> Entry:
    samples, native = soundfile.read(corpus / item["path"], dtype="float32")
    rate, channels, name = random.choice(_RATES), random.choice((1, 1, 2)), random.choice(_FORMATS)
    sound = _resampled(samples, native, rate) * np.float32(random.uniform(0.4, 1.0))
    content = encode(spread(sound, channels, random), rate, name)
    path = f"{item['kit']}/{Path(item['path']).stem} {number:06d}.wav".encode()
    path = store(root, path, content, number)
    return Entry(path, "sound", item["label"], item["canonical"], name, rate, channels)


def _resampled(samples: Samples, native: int, rate: int) -> Samples:
    resampled: Samples = soxr.resample(samples, native, rate, quality="QQ")
    return resampled if len(resampled) else samples
