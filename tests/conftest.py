"""Fixtures that all tests share."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.making import CommandLine

if TYPE_CHECKING:
    from tests.workshop import Workshop

MEMORY = Path("/dev/shm")

# Started by nohup or in the background, we ignore these, and so would every process under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """Call the command line: ``command("stats", path).code``."""
    return CommandLine(capfd)


@pytest.fixture(scope="session")
def kernel() -> ModuleType:
    """The compiled kernel of spectra and coefficients."""
    from drumline.spectra import compiled_kernel

    found = compiled_kernel()
    if found is None:
        pytest.skip("drumline was installed without a C compiler")
    return found


@pytest.fixture
def fast_path() -> Iterator[Path]:
    """A directory in memory where there is such a thing: tests that flush often need no disk."""
    base = Path(tempfile.mkdtemp(prefix="drumline-test-", dir=MEMORY if MEMORY.is_dir() else None))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """An archive that was classified once."""
    from tests.workshop import Workshop

    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    workshop.infer()
    return workshop
