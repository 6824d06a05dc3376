"""Fill a real file system: a few megabytes, of which a ballast leaves a few kilobytes.

Each command runs out of space somewhere. It says so, what existed before is intact, and once the ballast is
gone the same command does what an undisturbed one does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.pipeline.support import Result, Server, assert_equal, records_of, tree
from tests.torture.attacks import Arena, Attack
from tests.torture.expected import ChangingArchive, pool_of

__all__ = ["ATTACK"]

_SIZE = "40m"
_LEAST_FREE, _MOST_FREE = 4_096, 250_000
_FILES, _ROUNDS = 20, 5


class _SmallDisk:
    """A tmpfs that only the server and what it starts have mounted, seen from here through /proc."""

    def __init__(self, arena: Arena, place: Path) -> None:
        self.inside = place / "disk"
        self.inside.mkdir()
        self.server: Server = arena.open_server("server on a small disk", prefix=_mounted(self.inside))
        self.outside = Path(f"/proc/{self.server.pid}/root{self.inside}")

    def leave_free(self, size: int) -> None:
        """Fill it but for about `size` bytes."""
        self.free()
        status = os.statvfs(self.outside)
        ballast = status.f_bavail * status.f_frsize - size
        with open(self.outside / "ballast", "wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, ballast))

    def free(self) -> None:
        """Take the ballast away."""
        (self.outside / "ballast").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        for path in self.outside.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _mounted(place: Path) -> tuple[str, ...]:
    mount = f'mount -t tmpfs -o size={_SIZE} none "$0" && exec "$@"'
    return ("unshare", "--mount", "--map-root-user", "--user", "sh", "-c", mount, str(place))


def _impossible() -> str:
    if shutil.which("unshare") is None:
        return "there is no unshare tool"
    done = subprocess.run([*_mounted(Path("/tmp")), "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "no file system may be mounted here"


class _Siege:
    def __init__(self, arena: Arena, random: Random, place: Path) -> None:
        self._arena, self._random = arena, random
        self._disk: _SmallDisk = arena.shared("small disk", lambda place: _SmallDisk(arena, place))
        self._disk.clear()
        self._archive = ChangingArchive(place / "archive", pool_of(arena), random)
        for _ in range(_FILES):
            self._archive.add()
        self.figures: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        earlier: dict[str, object] = {}
        for _ in range(_ROUNDS):
            self._archive.change(4)
            result = self._starved(self._infer, earlier)
            run = Path(result.json()["run_directory"]).name
            assert_equal(records_of(self._outside(run)), self._archive.expected())
            self._verify(self._disk.inside / "runs" / run)
            earlier[run] = tree(self._outside(run))
            self._starved(lambda run=run: self._rebuild(run), earlier)  # type: ignore[misc]
            self._verify(self._disk.inside / "tree")
        return self.figures

    def _verify(self, place: Path) -> None:
        result = self._disk.server.start("verify", place).wait()
        assert result.code == 0, result

    def _outside(self, run: str) -> Path:
        return self._disk.outside / "runs" / run

    def _infer(self) -> Result:
        options = ("--runs-root", self._disk.inside / "runs", "--model", self._arena.model, "--workers", "1")
        argv = ("infer", self._archive.root, *options, "--accept-missing", "--json")
        return self._disk.server.start(*argv, frame_lines=4).wait()

    def _rebuild(self, run: str) -> Result:
        argv = ("rebuild", self._disk.inside / "runs" / run, "--out", self._disk.inside / "tree", "--json")
        return self._disk.server.start(*argv).wait()

    def _starved(self, command: Callable[[], Result], earlier: dict[str, object]) -> Result:
        self._disk.leave_free(self._random.randrange(_LEAST_FREE, _MOST_FREE))
        result = command()
        self.figures["commands on a full disk"] += 1
        assert result.code in (0, 8), result
        if result.code:
            self.figures["ran out of space"] += 1
            assert "Traceback" not in result.err, result.err
            assert "same command" in result.err or " needs " in result.err, result.err
        for run, before in earlier.items():
            assert tree(self._outside(run)) == before, run
        self._disk.free()
        again = command()
        assert again.code == 0, again
        return again


def _episode(arena: Arena, random: Random, _number: int) -> Counter[str]:
    with arena.directory() as place:
        return _Siege(arena, random, place).run()


ATTACK = Attack(
    what="run out of space on a small file system that is really full",
    unit="ran out of space",
    full=300,
    short=5,
    episode=_episode,
    impossible=_impossible,
)
