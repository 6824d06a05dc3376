"""Fixtures of verify and repair: an archive that was classified once, and copies of its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from drumline.runs import Run
from tests.verify.workshop import Workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    workshop.infer()
    return workshop


@pytest.fixture
def run(workshop: Workshop, tmp_path: Path) -> Run:
    """A complete run, with its cache, in a runs root of its own."""
    return workshop.copy(tmp_path / "runs")
