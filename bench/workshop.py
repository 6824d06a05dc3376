"""Where and how much is measured: what all measures of `bench.run` share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.engine import ENGINE
from bench.measure import Outcome, run_command
from bench.synth import Mess, iter_archive, with_progress

__all__ = ["QUICK", "Sizes", "Workshop", "say", "verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    infer_files
        Files of the comparison with the plain way.
    rescan_files
        Files of the rescan and of the rebuild.
    memory_files, scale_files
        Files of the small and of the large archive.
    repeats
        Repetitions of every timing.
    """

    infer_files: int = 5_000
    rescan_files: int = 100_000
    memory_files: tuple[int, int] = (20_000, 200_000)
    scale_files: tuple[int, int] = (100_000, 1_000_000)
    repeats: int = 3


QUICK = Sizes(
    infer_files=300, rescan_files=8_000, memory_files=(1_000, 4_000), scale_files=(1_000, 10_000), repeats=1
)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where things are measured.

    Parameters
    ----------
    root
        A directory for archives and runs.
    sizes
        How much is measured.
    options
        Options for every ``drumline infer``.
    engine
        How drumline is started.
    """

    root: Path
    sizes: Sizes
    options: tuple[str, ...] = ()
    engine: tuple[str, ...] = ENGINE

    @contextmanager
    def room(self, name: str) -> Iterator[Path]:
        """Give a directory that is removed at the end."""
        room = self.root / name
        room.mkdir(parents=True)
        try:
            yield room
        finally:
            shutil.rmtree(room)

    def tiny_archive(self, archive: Path, files: int) -> None:
        """Write an archive of very short sounds."""
        say(f"synthesising {files:,} files")
        for _ in with_progress(iter_archive(archive, files, 1, Mess(tiny=True)), files):
            pass

    def infer(self, archive: Path, runs: Path, pss_every: float | None = None) -> Outcome:
        """Classify an archive."""
        options = ("--runs-root", os.fspath(runs), "--quiet", "--json", *self.options)
        return run_command((*self.engine, "infer", os.fspath(archive), *options), pss_every=pss_every)

    def rebuild(self, run: Path, out: Path, mode: str) -> Outcome:
        """Rebuild by hardlink or copy."""
        options = ("--out", os.fspath(out), "--copy-mode", mode, "--json")
        return run_command((*self.engine, "rebuild", os.fspath(run), *options))


def say(text: str) -> None:
    """Tell a person who waits what is being done."""
    print(f"· {text}", file=sys.stderr, flush=True)


def verdict(met: bool, large_enough: bool) -> bool | None:
    """Return whether a bar is met, or None for fewer files than the bar is meant for."""
    return met if large_enough else None
