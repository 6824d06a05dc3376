"""Fixtures of the pipeline's tests: a fork server, a stub model, small archives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bench.broken import BROKEN
from bench.synth import write_archive
from drumline.pipeline.pipes import Lifeline, Stream
from drumline.pipeline.queues import Queues
from drumline.stub import create_stub
from tests.pipeline.support import (
    Records,
    Result,
    Running,
    Server,
    audio_files,
    copy,
    records_of,
)

FILES, BROKEN_FILES = 120, 6


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _nobody_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, none of its processes outlives it."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").kill_all()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt nothing: what it says of a file is as good as any, and soon said."""
    path = tmp_path_factory.mktemp("models") / "stub"
    create_stub(path)
    return path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A messy archive that is only read: broken files, odd names, duplicates, clutter.

    The broken files are such as are not handed to ffmpeg, which takes longer than all the others.
    """
    path = tmp_path_factory.mktemp("pristine") / "archive"
    sounds = FILES - BROKEN_FILES
    mess = write_archive(path, sounds, seed=5, tiny=True, broken_fraction=0, odd_fraction=0.1)
    folders = sorted({os.path.dirname(entry.path) for entry in mess if entry.kind == "sound"})
    for number in range(BROKEN_FILES):
        way = ("empty", "claims-gigabytes")[number % 2]
        folder = os.fsencode(path) + b"/" + folders[number % len(folders)]
        (Path(os.fsdecode(folder)) / f"broken {number}.wav").write_bytes(BROKEN[way](Random(number)))
    return path


@pytest.fixture
def archive(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the messy archive, to be changed."""
    return copy(pristine, tmp_path / "archive")


@dataclass
class Infer:
    """Runs ``drumline infer`` on one archive, into one runs root."""

    server: Server
    archive: Path
    runs_root: Path
    model: Path
    run: Path = Path()

    def start(self, *options: str | Path, workers: int = 1, **patches: Any) -> Running:
        """Start it with patches from `tests.pipeline.mischief`."""
        return self.server.start(
            *("infer", self.archive, "--runs-root", self.runs_root, "--model", self.model),
            *("--workers", str(workers), "--json", *options),
            **patches,
        )

    def __call__(self, *options: str | Path, workers: int = 1, **patches: Any) -> Result:
        """Run it to its end."""
        return self.start(*options, workers=workers, **patches).wait()

    def counts(self, *options: str | Path, **patches: Any) -> dict[str, int]:
        """Run it to its good end and return the summary's counts, which must add up."""
        result = self(*options, **patches)
        assert result.code == 0, result.err
        counts = result.counts
        parts = counts["carried_over"], counts["classified"], counts["failed"]
        assert counts["discovered"] == counts["indexed"] == sum(parts), counts
        assert min(parts) >= 0, counts
        self.run = Path(result.json()["run_directory"])
        return counts

    def records(self) -> Records:
        """Return the records of the run that was finished last."""
        return records_of(self.run)

    def elsewhere(self, name: str) -> Infer:
        """Return the same on another runs root beside this one."""
        return replace(self, runs_root=self.runs_root.with_name(name))

    def fresh_records(self, *options: str | Path) -> Records:
        """Return what a run that knows nothing makes of the archive as it is now."""
        other = self.elsewhere(f"fresh-{os.urandom(4).hex()}")
        other.counts(*options)
        return other.records()


@pytest.fixture
def infer(server: Server, archive: Path, tmp_path: Path, model: Path) -> Infer:
    return Infer(server, archive, tmp_path / "runs", model)


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, server: Server, pristine: Path, model: Path
) -> Records:
    """Records of an undisturbed run over the messy archive."""
    infer = Infer(server, pristine, tmp_path_factory.mktemp("undisturbed") / "runs", model)
    infer.counts()
    return infer.records()


@pytest.fixture(scope="session")
def restored(tmp_path_factory: pytest.TempPathFactory, server: Server, model: Path) -> Callable[[], Infer]:
    """Return what brings back a tidy archive of 40 sounds, already classified in small frames."""
    place = tmp_path_factory.mktemp("tidy") / "place"
    archive = place / "archive"
    write_archive(archive, 40, seed=4, tiny=True, broken_fraction=0, duplicate_fraction=0, odd_fraction=0)
    infer = Infer(server, archive, place / "runs", model)
    infer.counts(frame_lines=16)
    return saved(infer)


def saved(infer: Infer) -> Callable[[], Infer]:
    """Save an archive and what is beside it, and return what brings all of it back, at the same place."""
    place = infer.archive.parent
    aside = copy(place, place.with_name(f"{place.name}-{os.urandom(4).hex()}"))

    def restore() -> Infer:
        shutil.rmtree(place)
        copy(aside, place)
        return replace(infer)

    return restore


@pytest.fixture
def tidy(restored: Callable[[], Infer]) -> Infer:
    """A tidy archive of 40 sounds, already classified in small frames."""
    return restored()


@pytest.fixture
def sounds(tidy: Infer) -> list[Path]:
    """The files of the tidy archive."""
    return sounds_of(tidy)


def sounds_of(infer: Infer) -> list[Path]:
    """Return the absolute paths of an archive's sounds."""
    return [infer.archive / os.fsdecode(path) for path in audio_files(infer.archive)]


@pytest.fixture
def calm(server: Server, pristine: Path, tmp_path: Path, model: Path) -> Infer:
    """The messy archive, unclassified; it is only read."""
    return Infer(server, pristine, tmp_path / "runs", model)


@pytest.fixture
def lifeline() -> Iterator[Lifeline]:
    """Return a lifeline whose supervisor is this process."""
    lifeline = Lifeline()
    yield lifeline
    lifeline.close()


@pytest.fixture
def stream(lifeline: Lifeline) -> Iterator[Stream]:
    """Return a stream of which this process has both ends."""
    stream = Stream(lifeline)
    yield stream
    stream.use()


@pytest.fixture
def queues(lifeline: Lifeline, stream: Stream) -> Iterator[Queues]:
    """Return the queues of a pipeline whose supervisor is this process."""
    made = Queues.create(lifeline, stream)
    yield made
    made.close()
