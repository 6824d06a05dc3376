"""Fixtures that all tests share."""

from __future__ import annotations

import signal

import pytest

from tests.making import CommandLine

# Started by nohup or in the background, we ignore these, and so would every process under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """Call the command line: ``command("stats", path).code``."""
    return CommandLine(capfd)
