"""Kill extract workers, from outside and by what they read, and see that the pool is whole again at once.

After each death a new worker stands in within five seconds; every good file is classified; what kills is one
record of its type, after two tries. The figures add up how long the pool was short, and how many files a
second there were before the deaths and after them.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.making import write_tone
from tests.pipeline.support import Running, records_of
from tests.torture.attacks import Arena, Attack

__all__ = ["ATTACK"]

_GOOD, _WORKERS = 4_000, 2
_WHOLE_AGAIN_SEC = 5.0
_KILLERS = {
    "crasher": "worker_crash",
    "killer": "worker_crash",
    "glutton": "out_of_memory",
    "hang": "timeout",
}
_DONE = re.compile(r"drumline: ([\d,]+) of ")


def _episode(arena: Arena, random: Random, _number: int) -> Counter[str]:
    archive = arena.shared("good sounds", _write)
    with arena.directory() as place:
        # The killers come last in the walk: what they cost is not what a death costs the others.
        poisoned = place / "archive"
        poisoned.mkdir()
        for path in archive.iterdir():
            os.link(path, poisoned / path.name)
        for number, name in enumerate(_KILLERS):
            write_tone(poisoned / f"zz {name}.wav", hertz=300 + number)
        running = arena.server.start(
            *("infer", poisoned, "--runs-root", place / "runs", "--model", arena.model, "--json"),
            *("--workers", str(_WORKERS), "--file-timeout", "2", "--worker-memory-mb", "300"),
            lines_every=0.05,
            bad_names=True,
        )
        figures = _strike(running, random)
        result = running.wait(120)
        assert result.code == 0, result.err
        running.gone()
        records = records_of(Path(result.json()["run_directory"]))
        failed = {path: record["errors"]["type"] for path, record in records.items() if record["errors"]}
        assert failed == {f"zz {name}.wav".encode(): kind for name, kind in _KILLERS.items()}, failed
        assert len(records) == _GOOD + len(_KILLERS)
        return figures + Counter(deaths=2 * len(_KILLERS), files=len(records))


def _write(place: Path) -> Path:
    write_tone(place / "first.wav")
    sound = (place / "first.wav").read_bytes()
    (place / "first.wav").unlink()
    for number in range(_GOOD):
        (place / f"{number:05}.wav").write_bytes(sound + number.to_bytes(4, "little"))
    return place


def _strike(running: Running, random: Random) -> Counter[str]:
    """Kill all workers at once in the midst of the run; return how it went before and after."""
    before = _rate(running, _GOOD // 20, _GOOD * random.uniform(0.35, 0.45))
    known = running.stages("extract")[-_WORKERS:]
    killed = time.monotonic()
    for pid in known:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    started = len(running.stages("extract"))
    running.reach(lambda: len(running.stages("extract")) >= started + _WORKERS, "new workers")
    short = time.monotonic() - killed
    assert short < _WHOLE_AGAIN_SEC, f"the pool was short for {short:.1f} s"
    after = _rate(running, _done(running) + _GOOD // 20, _GOOD * 0.9)
    return Counter(
        {
            "deaths": _WORKERS,
            "ms until the pool was whole": round(1000 * short),
            "files/s before": round(before),
            "files/s after": round(after),
        }
    )


def _rate(running: Running, first: float, last: float) -> float:
    """Return the files a second between two counts of files that are done."""
    running.reach(lambda: _done(running) >= first, "start of the span")
    begun, count = time.monotonic(), _done(running)
    running.reach(lambda: _done(running) >= last, "end of the span")
    return (_done(running) - count) / (time.monotonic() - begun)


def _done(running: Running) -> int:
    counts = _DONE.findall(running.err.read_text() if running.err.exists() else "")
    return int(counts[-1].replace(",", "")) if counts else 0


ATTACK = Attack(
    what="workers killed from outside and by files: pool whole in 5 s, typed records, throughput as before",
    unit="deaths",
    full=300,
    short=10,
    episode=_episode,
)
