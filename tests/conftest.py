"""Fixtures that all tests share."""

from __future__ import annotations

import pytest

from tests.making import CommandLine


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """Call the command line: ``command("stats", path).code``."""
    return CommandLine(capfd)
