"""Fixtures of the training side."""

from __future__ import annotations

from pathlib import Path

import pytest

from drumline_convert.taxonomy import TrainingTaxonomy, read_taxonomy
from tests.convert.drums import write_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def taxonomy() -> TrainingTaxonomy:
    return read_taxonomy()
