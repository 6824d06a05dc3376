from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rebuild.archives import CLAP, HIHAT, KICK, SNARE, Archive

MEMORY = Path("/dev/shm")


@pytest.fixture
def fast_path() -> Iterator[Path]:
    """A directory in memory where there is such a thing: tests that flush often need no disk."""
    base = Path(tempfile.mkdtemp(prefix="drumline-test-", dir=MEMORY if MEMORY.is_dir() else None))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def archive(fast_path: Path) -> Archive:
    """An archive without files."""
    return Archive(fast_path)


@pytest.fixture
def drums(archive: Archive) -> Archive:
    """Two kicks, a snare, a hi-hat, a clap, and a file that could not be decoded."""
    archive.add(b"Vendor A/Kicks/kick 01.wav", KICK)
    archive.add(b"Vendor A/Kicks/kick 02.wav", KICK)
    archive.add(b"Vendor A/snare.wav", SNARE)
    archive.add(b"Vendor B/hat.wav", HIHAT)
    archive.add(b"Vendor B/clap.wav", CLAP)
    archive.add(b"Vendor B/broken.wav", error="decode_error", hash=None)
    return archive
