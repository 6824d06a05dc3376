"""The attacks that there are, and what they have in common.

An attack is a sequence of *episodes*. An episode is known by seed and number alone and begins with an empty
directory, so that a failure can be repeated without what went before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from drumline.stub import create_stub
from tests.pipeline.support import Server

__all__ = ["ATTACKS", "Arena", "Attack", "load"]

ATTACKS = {
    "kills": "tests.torture.kills",
    "trees": "tests.torture.trees",
}
"""Attack → the module whose `ATTACK` it is."""


@dataclass(frozen=True)
class Attack:
    """One way to do harm.

    Parameters
    ----------
    what
        What is done and what must hold, in one line.
    unit
        What is counted: ``kills``, ``files``; episodes give a count of it among their figures.
    full, short
        How many of them `make torture` and `make test` do.
    episode
        Does one episode and returns its figures; raises `AssertionError` when a promise was broken.
    impossible
        Says why it cannot be done on this machine; empty when it can.
    """

    what: str
    unit: str
    full: int
    short: int
    episode: Callable[[Arena, Random], Counter[str]]
    impossible: Callable[[], str] = str


def load(name: str) -> Attack:
    """Return an attack by its name."""
    attack = import_module(ATTACKS[name]).ATTACK
    assert isinstance(attack, Attack)
    return attack


class Arena:
    """What episodes work with: a fork server, a model, and for each an empty directory."""

    def __init__(self, place: Path, **server: Any) -> None:
        self.place = place
        self._server = server
        self._shared: dict[str, Any] = {}

    @cached_property
    def server(self) -> Server:
        """A fork server for drumline commands."""
        (self.place / "server").mkdir()
        return Server(self.place / "server", **self._server)

    @cached_property
    def model(self) -> Path:
        """A bundle that has learnt nothing."""
        create_stub(self.place / "stub")
        return self.place / "stub"

    def shared(self, name: str, make: Callable[[Path], Any]) -> Any:
        """Return what `make` made in a directory of its own, once for all episodes."""
        if name not in self._shared:
            (self.place / name).mkdir()
            self._shared[name] = make(self.place / name)
        return self._shared[name]

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Give an empty directory for one episode; left as it is when the episode fails."""
        path = Path(tempfile.mkdtemp(prefix="episode-", dir=self.place))
        yield path
        shutil.rmtree(path)

    def close(self) -> None:
        """End the server and what it has started."""
        if "server" in vars(self):
            self.server.kill_all()
            self.server.close()


@contextmanager
def arena(keep: Path | None = None, **server: Any) -> Iterator[Arena]:
    """Make an arena below the temporary directory; with `keep`, there, and left behind."""
    place = Path(tempfile.mkdtemp(prefix="drumline-torture-")) if keep is None else keep
    os.makedirs(place, exist_ok=True)
    opened = Arena(place, **server)
    try:
        yield opened
    finally:
        opened.close()
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)
