"""A run to verify and to repair, and the ways to damage it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import drumline.pipeline.write
from bench.synth import write_archive
from drumline.index import Codec, read_index
from drumline.pipeline.infer import infer
from drumline.records import Record
from drumline.runs import Run, list_runs, open_run
from drumline.settings import InferSettings
from drumline.stub import create_stub
from drumline.verify.frames import scan
from tests.making import write_index

FILES = 30
FRAME_LINES = 8


class Workshop:
    """An archive and a model, and the run that was made of them, to be copied and damaged."""

    def __init__(self, base: Path) -> None:
        self.archive, self.model, self.runs_root = base / "archive", base / "model", base / "runs"
        write_archive(
            self.archive,
            FILES,
            seed=4,
            tiny=True,
            broken_fraction=0.1,
            duplicate_fraction=0.1,
            odd_fraction=0.1,
        )
        create_stub(self.model)

    def infer(self, runs_root: Path | None = None, **settings: Any) -> dict[str, Any]:
        """Classify the archive in small frames, however long that takes."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drumline.pipeline.write, "FRAME_LINES", FRAME_LINES)
            for name in ("_FIRST_FLUSH_SEC", "_LATER_FLUSH_SEC"):
                patch.setattr(drumline.pipeline.write, name, 60.0)
            return infer(
                InferSettings(
                    archive=self.archive,
                    runs_root=runs_root or self.runs_root,
                    model_path=self.model,
                    **{"workers": 1, "batch_size": 8, **settings},
                )
            )

    def copy(self, runs_root: Path) -> Run:
        """Copy the runs root; return its newest run."""
        shutil.copytree(self.runs_root, runs_root)
        return open_run(list_runs(runs_root)[-1])


def frames_of(run: Run) -> list[tuple[int, int]]:
    """Return where the frames of an index begin and end."""
    return [(part.offset, part.offset + part.length) for part in scan(run.index_path, Codec("zstd"))]


def rewrite(run: Run, change: Callable[[list[Record]], list[Record]]) -> None:
    """Write an index anew, in whole frames, with other records."""
    write_index(run.index_path, change(list(read_index(run.index_path))), FRAME_LINES)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def edit_cache(run: Run, statement: str) -> None:
    """Change rows of the cache, at least one, or drop what it holds them in."""
    with closing(sqlite3.connect(run.directory.parent / "cache.sqlite")) as database, database:
        assert database.execute(statement).rowcount > 0 or statement.startswith("DROP ")
