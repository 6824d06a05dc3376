"""The pipeline alone: every stage, queue, slot, record and row, but nothing is read, analysed or predicted.

    python -m bench.alone --files 60000
    python -m bench.alone --archive ARCHIVE --runs-root RUNS

Workers copy the same features into each slot, the model says the same of each row. Walk, hand-over, batches,
records, compression, index and cache are the real ones. Prints slots/s and the CPU time of a slot as JSON, by
stage as well: where other programs use the machine, that is the figure to look at.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from drumline.bundle import Bundle
from drumline.inference import Outputs
from drumline.pipeline import extract, predict
from drumline.pipeline.infer import infer
from drumline.pipeline.profile import Profile
from drumline.pipeline.slots import State
from drumline.settings import InferSettings
from drumline.staging import Staging

__all__ = ["make_empty_files", "measure_alone"]

_FILES_PER_DIRECTORY = 500


def _fill(worker: Any, slot: int) -> bool:
    """Fill a slot as if its file had been read."""
    fields = worker._table.slots[slot]
    fields["hash"] = f"{fields['mtime_ns'] ^ slot:016x}"
    fields["features"], fields["reach"] = 0.5, fields["features"].size
    fields["format"], fields["sample_rate"], fields["channels"] = b"wav", 44_100, 1
    fields["duration_sec"], fields["rms_db"] = 0.5, -20.0
    fields["spectral_centroid"], fields["spectral_rolloff"] = 1000.0, 2000.0
    fields["state"] = State.READY
    return True


class _Model:
    """Says the same of each row."""

    overlaps = False

    def __init__(self, bundle: Bundle) -> None:
        self._shape, self._labels = bundle.row_shape, len(bundle.labels)
        self._staging: Staging | None = None
        self.runner = self

    def stage(self, count: int) -> Staging:
        """Return rows for the largest batch."""
        self._staging = self._staging or Staging(np.zeros((count, *self._shape), np.float32))
        return self._staging

    def start(self, rows: Any) -> Callable[[], Outputs]:
        """Return probabilities that fall from label to label, as a model's do."""
        falling = np.exp(-np.arange(self._labels, dtype=np.float32) / 4)
        outputs = Outputs(np.tile(falling / falling.sum(), (len(rows), 1)), None)
        return lambda: outputs


def make_empty_files(archive: Path, files: int) -> None:
    """Make an archive of empty files."""
    for number in range(files):
        directory = archive / f"{number // _FILES_PER_DIRECTORY:05d}"
        if number % _FILES_PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"{number:07d}.wav").touch()


def measure_alone(archive: Path, runs_root: Path) -> dict[str, Any]:
    """Run the pipeline alone over an archive and return slots/s and CPU time per slot in µs."""
    settings = InferSettings(archive=archive, runs_root=runs_root, dedup_hash=False).settled()
    profile = Profile(settings.worker_count)
    summary = infer(settings, profile=profile)
    stages = {name: stage["cpu_sec"] for name, stage in profile.report()["stages"].items()}
    files = summary["counts"]["classified"]
    return {
        "files": files,
        "slots_per_sec": summary["files_per_sec"],
        "cpu_us_per_slot": round(1e6 * sum(stages.values()) / files, 1),
        "cpu_us_by_stage": {name: round(1e6 * seconds / files, 1) for name, seconds in stages.items()},
    }


@click.command(help="Measure the pipeline without reading, features and model.")
@click.option("--files", type=click.IntRange(min=1), default=60_000, show_default=True)
@click.option("--archive", type=click.Path(path_type=Path), help="Of these files in place of empty ones.")
@click.option("--runs-root", type=click.Path(path_type=Path), help="Where the run is to stay.")
def main(files: int, archive: Path | None, runs_root: Path | None) -> None:
    """Measure and print."""
    extract._Worker._fill = _fill  # type: ignore[method-assign,assignment]
    predict._open = lambda job, _table: _Model(job.bundle)  # type: ignore[assignment,return-value]
    with tempfile.TemporaryDirectory(prefix="drumline-alone-") as place:
        if archive is None:
            archive = Path(place) / "archive"
            make_empty_files(archive, files)
        click.echo(json.dumps(measure_alone(archive, runs_root or Path(place) / "runs")))


if __name__ == "__main__":
    main()
