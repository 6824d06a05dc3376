"""The attacks that there are, and what they have in common.

An attack is a sequence of *episodes*. An episode is known by seed and number alone and begins with an empty
directory, so that a failure can be repeated without what went before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    "writes": "tests.torture.writes",
    "fuzz": "tests.torture.fuzz",
    "deaths": "tests.torture.deaths",
    "crowd": "tests.torture.crowd",
    "tails": "tests.torture.tails",
    "power": "tests.torture.power",
    "space": "tests.torture.space",
}
"""Attack → the module whose `ATTACK` it is."""


_OWN_SHARED_MEMORY = (
    *("unshare", "--mount", "--map-root-user", "--user"),
    *("sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh"),
)


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
        Does one episode, given chance and its number, and returns its figures; raises `AssertionError` when a
        promise was broken.
    impossible
        Says why it cannot be done on this machine; empty when it can.
    episodes
        How many episodes there are, for an attack that tries everything there is; None when they never end.
    """

    what: str
    unit: str
    full: int
    short: int
    episode: Callable[[Arena, Random, int], Counter[str]]
    impossible: Callable[[], str] = str
    episodes: Callable[[Arena], int] | None = None


def load(name: str) -> Attack:
    """Return an attack by its name."""
    attack = import_module(ATTACKS[name]).ATTACK
    assert isinstance(attack, Attack)
    return attack


class Arena:
    """What episodes work with: a fork server, a model, and for each an empty directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.closing = ExitStack()
        self._shared: dict[str, Any] = {}

    @cached_property
    def server(self) -> Server:
        """A fork server for drumline commands."""
        return self.open_server("server", prefix=_OWN_SHARED_MEMORY if self._has_own_shared_memory else ())

    @cached_property
    def _has_own_shared_memory(self) -> bool:
        if shutil.which("unshare") is None:
            return False
        return subprocess.run([*_OWN_SHARED_MEMORY, "true"], capture_output=True, check=False).returncode == 0

    def in_shared_memory(self) -> list[str]:
        """List /dev/shm as the server's commands see it: they have one of their own where that can be."""
        place = f"/proc/{self.server.pid}/root/dev/shm"
        return os.listdir(place) if self._has_own_shared_memory else []

    def open_server(self, name: str, **options: Any) -> Server:
        """Open a server that ends with the arena."""
        (self.place / name).mkdir()
        server = Server(self.place / name, **options)
        self.closing.callback(server.close)
        self.closing.callback(server.kill_all)
        return server

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


@contextmanager
def arena(keep: Path | None = None) -> Iterator[Arena]:
    """Make an arena below the temporary directory; with `keep`, there, and left behind."""
    place = Path(tempfile.mkdtemp(prefix="drumline-torture-")) if keep is None else keep
    os.makedirs(place, exist_ok=True)
    opened = Arena(place)
    try:
        with opened.closing:
            yield opened
    finally:
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)
