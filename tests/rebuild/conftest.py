from __future__ import annotations

from pathlib import Path

import pytest

from tests.rebuild.archives import CLAP, HIHAT, KICK, SNARE, Archive


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
