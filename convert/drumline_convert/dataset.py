"""Features of a manifest's recordings and their augmented variants, computed once and memory-mapped.

A store is a directory named by front end and augmentation. ``features.f32`` holds one block
(variants, coefficients, frames) per recording; line i of ``contents.txt`` is the content hash of block i. The
block is written before its line, and what lies past the last whole line is cut off on opening: a stopped
computation goes on where it was, and new recordings are appended. A lock lets one process fill it at a time.
A file whose content is not what its manifest says is refused: its features would stand under another's hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drumline.durable import output_errors
from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline.lock import exclusive
from drumline_convert.augment import AugmentSettings, variants
from drumline_convert.content import read_recording
from drumline_convert.manifest import Row
from drumline_convert.parallel import in_parts
from drumline_convert.progress import Progress

if TYPE_CHECKING:
    from drumline.audio import Decoder
    from drumline.features import FeatureExtractor

__all__ = ["FeatureStore"]

# Raise it when the code of features or augmentation changes what a store would hold.
_CODE_VERSION = 1


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
    def block_shape(self) -> tuple[int, ...]:
        """Shape of one recording's features: (variants, coefficients, frames)."""
        return (self.augment.variants, *self.front_end.shape)

    def load(
        self, recordings: Sequence[Row], workers: int = 2, progress: Progress | None = None
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
            When a recording cannot be read, or is not what its manifest says.
        OutputError
            When the store cannot be written.
        BusyError
            When another process is filling it.
        """
        with output_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with exclusive(
                self.directory / "lock", f"the feature store {str(self.directory)!r}", "preparing features"
            ):
                known = self._repair()
                missing = list({row.hash: row for row in recordings if row.hash not in known}.values())
                self._append(missing, workers, progress)
                # Another process that fills the store leaves both files in pieces while it does.
                row_of = {content: row for row, content in enumerate(self._contents())}
                features = np.memmap(self._features, np.float32, "r").reshape(-1, *self.block_shape)
        return features, np.array([row_of[recording.hash] for recording in recordings], np.intp)

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

    def _append(self, missing: Sequence[Row], workers: int, progress: Progress | None) -> None:
        with open(self._features, "ab") as features, open(self._index, "a", encoding="ascii") as index:
            blocks = partial(_blocks, front_end=self.front_end, augment=self.augment)
            for done, (row, block) in enumerate(in_parts(blocks, missing, workers), start=1):
                features.write(block.tobytes())
                features.flush()
                index.write(f"{row.hash}\n")
                index.flush()
                if progress:
                    progress(done, len(missing))


def _blocks(rows: Sequence[Row], front_end: FrontEnd, augment: AugmentSettings) -> list[NDArray[np.float32]]:
    """Return a block (variants, coefficients, frames) per recording; runs in a worker process."""
    from drumline.audio import Decoder
    from drumline.features import FeatureExtractor

    decoder, extractor = Decoder(front_end), FeatureExtractor(front_end)
    return [_block(row, decoder, extractor, augment) for row in rows]


def _block(
    row: Row, decoder: Decoder, extractor: FeatureExtractor, augment: AugmentSettings
) -> NDArray[np.float32]:
    samples = _samples(row, decoder)
    versions = variants(samples, decoder.front_end.sample_rate, augment, row.hash)
    return np.stack([extractor.features(version) for version in versions])


def _samples(row: Row, decoder: Decoder) -> NDArray[np.float32]:
    from drumline.audio import AudioError

    try:
        digest, waveform = read_recording(row.path, decoder)
    except (OSError, AudioError) as error:
        raise ConfigError(
            f"cannot read the recording {str(row.path)!r}: {error}",
            "'drumline dataset check' lists all that cannot be used: mend them, or take out their lines.",
        ) from error
    if digest != row.hash:
        raise ConfigError(
            f"{str(row.path)!r} has changed since its manifest was made",
            "Make the manifest anew: drumline dataset scan",
        )
    return waveform.samples
