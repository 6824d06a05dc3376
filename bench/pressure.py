"""Classify under a hard limit of memory, with more workers and larger batches than it has room for.

    python -m bench.pressure --limit-mb 600
    python -m bench.pressure --limit-mb 600 --blind

A control group would hold the limit, but making one takes rights that few have, so a stand-in does here: the
memory of all processes (PSS) is added up every 20 ms, is what the engine finds as a control group's usage,
and once it is over the limit everything is killed, as the kernel would do. With ``--blind`` the engine does
not see the limit. Unlike the kernel's, this sum has no page cache, and what lasts less than 20 ms is not
seen.

Prints what came of it as JSON; exit code 1 when the run was killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.measure import tree_pss
from bench.synth import iter_archive, with_progress

__all__ = ["StandIn", "run_limited"]

_EVERY_SEC = 0.02
_MB = 1_000_000
_INSIDE = """
import sys
from pathlib import Path
from drumline import memory
from drumline.cli import main

root, read = Path(sys.argv[1]), memory.read_memory
memory.read_memory = lambda: read(root)
main(sys.argv[2:])
"""


class StandIn:
    """The proc and sys of a machine whose only control group has a limit.

    Parameters
    ----------
    root
        An empty directory.
    limit
        In bytes; None: the group has none.
    """

    def __init__(self, root: Path, limit: int | None) -> None:
        self._usage = root / "sys/fs/cgroup/memory.current"
        for directory in (root / "proc/self", self._usage.parent):
            directory.mkdir(parents=True)
        (root / "proc/meminfo").write_text(Path("/proc/meminfo").read_text())
        (root / "proc/self/cgroup").write_text("0::/\n")
        (self._usage.parent / "memory.max").write_text("max" if limit is None else str(limit))
        self.use(0)

    def use(self, size: int) -> None:
        """Say how much is in use."""
        temporary = self._usage.with_suffix(".new")
        temporary.write_text(str(size))
        temporary.replace(self._usage)


def run_limited(room: Path, command: list[str], limit: int, *, blind: bool) -> dict[str, Any]:
    """Run a drumline command under a limit; return whether it was killed, its peak, and its summary.

    Parameters
    ----------
    room
        A directory for what stands in for the machine.
    command
        Arguments of ``drumline``; it is to print JSON.
    limit
        Bytes that all processes together may have.
    blind
        Whether the command finds no limit.
    """
    stand_in = StandIn(room / "machine", None if blind else limit)
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile(dir=room) as printed:
        arguments = [sys.executable, "-c", _INSIDE, str(room / "machine"), *command]
        process = subprocess.Popen(arguments, stdout=printed, start_new_session=True)
        while process.poll() is None:
            used = tree_pss(process.pid)
            peak = max(peak, used)
            stand_in.use(used)
            if used > limit:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(_EVERY_SEC)
        printed.seek(0)
        summary = json.loads(printed.read() or b"null")
    return {
        "killed": process.returncode == -signal.SIGKILL,
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mb": round(peak / _MB, 1),
        "memory": summary and summary["memory"],
        "counts": summary and summary["counts"],
    }


@click.command(help="Classify under a hard limit of memory.")
@click.option("--limit-mb", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--files", type=click.IntRange(min=1), default=6_000, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=24, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=4_096, show_default=True)
@click.option("--blind", is_flag=True, help="Do not let the engine see the limit.")
def main(limit_mb: int, files: int, workers: int, batch_size: int, blind: bool) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="drumline-pressure-") as place:
        room, corpus = Path(place), corpus_directory()
        archive = room / "archive"
        entries = iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files)
        for _ in with_progress(entries, files):
            pass
        command = ["infer", str(archive), "--runs-root", str(room / "runs"), "--quiet", "--json"]
        command += ["--workers", str(workers), "--batch-size", str(batch_size)]
        outcome = run_limited(room, command, limit_mb * _MB, blind=blind)
    click.echo(json.dumps({"limit_mb": limit_mb, "blind": blind, **outcome}))
    sys.exit(1 if outcome["exit_code"] else 0)


if __name__ == "__main__":
    main()
