"""Kill infer anywhere, over and over, on an archive that changes meanwhile.

After each strike: no process is left after 5 s, nothing in /dev/shm; every whole frame is read by the zstd
tool; every record in any index is one that was true at some time; complete runs are as they were. When
the same command has come to its end: exactly the records that must come out, and `drumline verify` finds
cache, index and summary in order.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import orjson

from drumline.failpoints import STEPS
from drumline.verify import verify_run
from tests.pipeline.support import Result, Running, assert_equal, records_of, runs_of, tree
from tests.torture.attacks import Arena, Attack
from tests.torture.expected import ChangingArchive, pool_of

__all__ = ["ATTACK"]

_STRIKES = 10
_FILES = 28
_ORPHANS_GONE_SEC = 5.0
_STAGES = ("write", "walk", "discover", "extract", "predict")
_INFER_STEPS = [name for name in STEPS if not name.startswith(("log.", "tree.", "report.", "repair."))]
_OPENINGS = {"zstd": ".zst", "gzip": ".gz", "none": ""}
_STOPPED = {0, 130}


class _Siege:
    """One episode: an archive, a runs root, and strikes until the figures are full."""

    def __init__(self, arena: Arena, random: Random, place: Path) -> None:
        self._arena, self._random = arena, random
        self._archive = ChangingArchive(place / "archive", pool_of(arena), random)
        self._archive.change(4)
        for _ in range(_FILES):
            self._archive.add()
        self._runs_root = place / "runs"
        self._compression = random.choice(("zstd", "zstd", "zstd", "gzip", "none"))
        self._complete: dict[Path, object] = {}
        self.figures: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        strikes = (
            (self._kill_at_a_moment, 5),
            (self._kill_at_a_failpoint, 6),
            (self._signal, 2),
            (self._pause, 1),
            (self._close_terminal, 1),
            (self._meet_another, 1),
        )
        for _ in range(_STRIKES):
            if self._random.random() < 0.6:
                self._archive.change(self._random.randrange(1, 6))
            if self._random.random() < 0.05:
                self._lose_the_cache()
            self._random.choices([strike for strike, _ in strikes], [weight for _, weight in strikes])[0]()
            self._look_at_what_is_there()
            if self._random.random() < 0.15:
                self._complete_it()
        self._complete_it()
        return self.figures

    def _lose_the_cache(self) -> None:
        for name in ("cache.sqlite", "cache.sqlite-wal", "cache.sqlite-shm"):
            (self._runs_root / name).unlink(missing_ok=True)

    def _start(self, **patches: Any) -> Running:
        slow = self._random.choice((0.0, 0.003, 0.01))
        return self._arena.server.start(
            *("infer", self._archive.root, "--runs-root", self._runs_root, "--model", self._arena.model),
            *("--workers", str(self._random.randrange(1, 4)), "--compress-index", self._compression),
            *("--batch-size", str(self._random.choice((1, 8, 64))), "--accept-missing", "--json"),
            **{"frame_lines": 8, "flush": 0.02, "slow": slow, **patches},
        )

    def _begun(self, **options: Any) -> Running:
        """Start it, and let some time pass from when it is drumline: before, a signal is the system's."""
        running = self._start(**options)
        running.reach(running.begun.exists, "begin")
        time.sleep(self._random.uniform(0.002, 0.3))
        return running

    def _moment(self) -> None:
        time.sleep(self._random.uniform(0, 0.25))

    def _kill_at_a_moment(self) -> None:
        running = self._start()
        who = self._random.choice(("group", "group", "supervisor", *_STAGES))
        if who in _STAGES:
            self._kill_a_stage(running, who)
            return
        self._moment()
        alive = bool(running.members())
        running.signal_group(signal.SIGKILL) if who == "group" else running.signal(signal.SIGKILL)
        code = self._ended(running).code
        assert code in (0, -signal.SIGKILL), code
        self._count(f"killed: {who}", alive and code != 0)

    def _kill_a_stage(self, running: Running, name: str) -> None:
        with suppress(AssertionError):  # a run that finds nothing new starts neither workers nor model
            running.stage(name)
        time.sleep(self._random.uniform(0, 0.15))
        pids = running.stages(name)
        hit = bool(pids) and pids[-1] in running.members()
        if hit:
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(pids), signal.SIGKILL)
        result = self._ended(running)
        assert result.code in (0, 10), result
        assert result.code == 0 or "give the same command again to go on" in result.err, result.err
        self._count(f"killed: {name}", hit)

    def _kill_at_a_failpoint(self) -> None:
        step, moment = self._random.choice(_INFER_STEPS), self._random.choice(("before", "after"))
        action = self._random.choice(("kill", "kill-group"))
        number = self._random.choice((1, 1, 2, 3, 5, 8))
        result = self._ended(self._start(failpoints=f"{step}.{moment}={action}@{number}"))
        assert result.code in (0, 10, -signal.SIGKILL), result
        self._count(f"killed {moment} {step}", result.code != 0)

    def _signal(self) -> None:
        running = self._begun()
        number = self._random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        send = running.signal_group if self._random.random() < 0.5 else running.signal
        for _ in range(self._random.choice((1, 1, 2))):
            send(number)
        result = self._ended(running)
        assert result.code in _STOPPED, result
        assert result.code == 0 or "same command" in result.err, result.err
        assert "Traceback" not in result.err, result.err
        self.figures[f"stopped: {number.name}"] += 1

    def _pause(self) -> None:
        running = self._begun()
        running.signal_group(signal.SIGSTOP)
        time.sleep(self._random.uniform(0, 0.3))
        running.signal_group(signal.SIGCONT)
        result = self._ended(running)
        assert result.code == 0, result
        self.figures["paused"] += 1

    def _close_terminal(self) -> None:
        ours, theirs = pty.openpty()
        running = self._begun(terminal=os.ttyname(theirs))
        os.close(theirs)
        os.close(ours)
        code = self._ended(running).code
        assert code in (*_STOPPED, -signal.SIGHUP), code
        self.figures["stopped: closed terminal"] += 1

    def _meet_another(self) -> None:
        """Two at the same time: one waits for the other, or says who holds it."""
        both = self._start(), self._start()
        if self._random.random() < 0.5:
            self._moment()
            both[0].signal_group(signal.SIGKILL)
        results = [self._ended(running) for running in both]
        codes = {result.code for result in results}
        assert codes <= {0, 9, -signal.SIGKILL}, results
        assert len(codes & {0, -signal.SIGKILL}), results
        for result in results:
            assert result.code != 9 or re.search(r"process \d+ \(infer of ", result.err), result.err
        self.figures["met another"] += 1

    def _count(self, what: str, hit: bool) -> None:
        if hit:
            self.figures["kills"] += 1
            self.figures[what] += 1
        else:
            self.figures["missed"] += 1

    def _ended(self, running: Running) -> Result:
        result = running.wait()
        running.gone(_ORPHANS_GONE_SEC)
        if result.code == 0:
            self._judge(result)
        return result

    def _look_at_what_is_there(self) -> None:
        assert not self._arena.in_shared_memory()
        for directory, before in self._complete.items():
            assert tree(directory) == before, f"the complete run {directory.name} was changed"
        for run in runs_of(self._runs_root):
            for line in _whole_lines(run):
                record = orjson.loads(line)
                assert self._archive.is_true(record), f"{run.name} has an altered record: {record}"
                self.figures["records checked"] += 1
            if self._random.random() < 0.5 and (run / "run.json").exists():
                report = verify_run(run)
                assert report.ok, report.findings

    def _complete_it(self) -> None:
        result = self._ended(self._start())
        assert result.code == 0, result
        left = [
            self._runs_root / name
            for name in os.listdir(self._runs_root)
            if name.startswith(".") and name != ".lock"
        ]
        unfinished = [run for run in runs_of(self._runs_root) if not (run / "summary.json").exists()]
        assert not left + unfinished

    def _judge(self, result: Result) -> None:
        """See that a complete run holds what it must."""
        run = Path(result.json()["run_directory"])
        assert_equal(records_of(run), self._archive.expected())
        report = verify_run(run, archive=True, content=True)
        assert report.ok, report.findings
        assert report.complete
        assert not report.notes, report.notes
        self._complete[run] = tree(run)
        self.figures["completed"] += 1


def _whole_lines(run: Path) -> list[bytes]:
    """Return the whole lines of an index as the compressor's own tool reads it, torn tail or not."""
    index = next(iter(run.glob("index.jsonl*")), None)
    if index is None or not index.stat().st_size:
        return []
    tool = {".zst": "zstd", ".gz": "gzip"}.get(index.suffix, "cat")
    # The tool gives all whole frames, and perhaps a part of the last one, before it complains of that.
    options = ["-dc"] if tool != "cat" else []
    done = subprocess.run([tool, *options, index], capture_output=True, check=False)
    return done.stdout.split(b"\n")[:-1]


def _episode(arena: Arena, random: Random, _number: int) -> Counter[str]:
    with arena.directory() as place:
        return _Siege(arena, random, place).run()


def _impossible() -> str:
    return "" if shutil.which("zstd") else "there is no zstd tool"


ATTACK = Attack(
    what="kill infer at any moment and at every failpoint, while the archive changes",
    unit="kills",
    full=1_000,
    short=60,
    episode=_episode,
    impossible=_impossible,
)
