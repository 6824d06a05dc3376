"""Features of labelled recordings and their augmented variants, computed once and memory-mapped.

A store is a directory named by front end and augmentation. ``features.f32`` holds one block
(variants, coefficients, frames) per recording; line i of ``contents.txt`` is the content hash of block i. The
block is written before its line, and what lies past the last whole line is cut off on opening: a stopped
computation goes on where it was, and new recordings are appended. A lock lets one process fill it at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drumline.durable import output_errors
from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline.lock import exclusive
from drumline_convert.augment import AugmentSettings, variants
from drumline_convert.corpus import Recording

if TYPE_CHECKING:
    from drumline.features import FeatureExtractor

__all__ = ["FeatureStore", "Progress"]

# Raise it when the code of features or augmentation changes what a store would hold.
_CODE_VERSION = 1
_CHUNK = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Cached features below `root`.

    Parameters
    ----------
    root
        Directory of all stores.
    front_end
        Waveform → features.
    augment
        Variants per recording.
    """

    root: Path
    front_end: FrontEnd
    augment: AugmentSettings

    @property
    def directory(self) -> Path:
        """Directory of this store, named by all that changes its content."""
        settings = [self.front_end.to_json(), asdict(self.augment), _CODE_VERSION]
        return self.root / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """Shape of one recording's features: (variants, coefficients, frames)."""
        return (self.augment.variants, *self.front_end.shape)

    def load(
        self, recordings: Sequence[Recording], workers: int = 2, progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Compute what is missing, and return the features and where each recording's are.

        Returns
        -------
        features
            Memory-mapped, read-only, (blocks, variants, coefficients, frames) float32, dB.
        rows
            Index into `features` of every recording, (n,).

        Raises
        ------
        ConfigError
            When a recording cannot be read.
        OutputError
            When the store cannot be written.
        BusyError
            When another process is filling it.
        """
        with output_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with exclusive(self.directory / "lock", f"the feature store {str(self.directory)!r}"):
                known = self._repair()
                missing = list({r.content: r for r in recordings if r.content not in known}.values())
                self._append(missing, workers, progress)
        row_of = {content: row for row, content in enumerate(self._contents())}
        features = np.memmap(self._features, np.float32, "r").reshape(-1, *self.block_shape)
        return features, np.array([row_of[recording.content] for recording in recordings], np.intp)

    @property
    def _features(self) -> Path:
        return self.directory / "features.f32"

    @property
    def _index(self) -> Path:
        return self.directory / "contents.txt"

    def _contents(self) -> list[str]:
        text = self._index.read_text("ascii") if self._index.exists() else ""
        return text[: text.rfind("\n") + 1].split()

    def _repair(self) -> set[str]:
        """Cut both files to the blocks that are whole, and return their content hashes."""
        self._features.touch()
        block = 4 * int(np.prod(self.block_shape))
        contents = self._contents()[: self._features.stat().st_size // block]
        self._index.write_text("".join(f"{content}\n" for content in contents), "ascii")
        os.truncate(self._features, block * len(contents))
        return set(contents)

    def _append(self, missing: Sequence[Recording], workers: int, progress: Progress | None) -> None:
        with open(self._features, "ab") as features, open(self._index, "a", encoding="ascii") as index:
            for done, (recording, block) in enumerate(self._compute(missing, workers), start=1):
                features.write(block.tobytes())
                features.flush()
                index.write(f"{recording.content}\n")
                index.flush()
                if progress:
                    progress(done, len(missing))

    def _compute(
        self, missing: Sequence[Recording], workers: int
    ) -> Iterator[tuple[Recording, NDArray[np.float32]]]:
        if not missing:
            return
        parts = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
        settings = (repeat(self.front_end), repeat(self.augment))
        if workers < 2 or len(parts) < 2:
            for part, blocks in zip(parts, map(_blocks, parts, *settings), strict=True):
                yield from zip(part, blocks, strict=True)
            return
        # Spawned, since a fork of a process in which TensorFlow runs threads can hang.
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for part, blocks in zip(parts, pool.map(_blocks, parts, *settings), strict=True):
                yield from zip(part, blocks, strict=True)


def _blocks(
    recordings: Sequence[Recording], front_end: FrontEnd, augment: AugmentSettings
) -> list[NDArray[np.float32]]:
    """Return a block (variants, coefficients, frames) per recording; runs in a worker process."""
    from drumline.features import FeatureExtractor

    extractor = FeatureExtractor(front_end)
    return [_block(recording, extractor, front_end, augment) for recording in recordings]


def _block(
    recording: Recording, extractor: FeatureExtractor, front_end: FrontEnd, augment: AugmentSettings
) -> NDArray[np.float32]:
    from drumline.audio import AudioError, read_waveform

    try:
        samples = read_waveform(recording.path, front_end).samples
    except (OSError, AudioError) as error:
        raise ConfigError(
            f"cannot read the recording {str(recording.path)!r}: {error}",
            "Mend it, or take its line out of the manifest.",
        ) from error
    versions = variants(samples, front_end.sample_rate, augment, recording.content)
    return np.stack([extractor.features(version) for version in versions])
