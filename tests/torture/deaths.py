"""Kill extract workers, from outside and by what they read, and see that the pool is whole again at once.

After each death a new worker stands in within five seconds; every good file is classified; what kills is one
record of its type, after two tries. Stretches of files after deaths take turns with stretches after none, so
that what else the machine does strikes both: the throughput must be back to 95 %. An episode fails when all
pairs of stretches but one say that it is not.
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
from statistics import median

from tests.making import write_tone
from tests.pipeline.support import Running, records_of
from tests.torture.attacks import Arena, Attack

__all__ = ["ATTACK"]

_WORKERS, _PAIRS = 2, 8
_SETTLING, _STRETCH = 200, 900
_GOOD = 2 * _PAIRS * (_SETTLING + _STRETCH) + 4_000
_BACK = 0.95
_WHOLE_AGAIN_SEC = 5.0
_KILLERS = {
    "crasher": "worker_crash",
    "killer": "worker_crash",
    "glutton": "out_of_memory",
    "hang": "timeout",
}
_DONE = re.compile(r"drumline: ([\d,]+) of ")


def _episode(arena: Arena, random: Random, _number: int) -> Counter[str]:
    with arena.directory() as place:
        _write(place / "archive")
        running = arena.server.start(
            *("infer", place / "archive", "--runs-root", place / "runs", "--model", arena.model, "--json"),
            *("--workers", str(_WORKERS), "--file-timeout", "2", "--worker-memory-mb", "300"),
            "--no-dedup-hash",
            lines_every=0.02,
            bad_names=True,
        )
        figures = _alternate(running, random)
        result = running.wait(120)
        assert result.code == 0, result.err
        running.gone()
        records = records_of(Path(result.json()["run_directory"]))
        failed = {path: record["errors"]["type"] for path, record in records.items() if record["errors"]}
        assert failed == {f"zz {name}.wav".encode(): kind for name, kind in _KILLERS.items()}, failed
        assert len(records) == _GOOD + len(_KILLERS)
        return figures + Counter(deaths=2 * len(_KILLERS), files=len(records))


def _write(archive: Path) -> None:
    """Write one sound under many names; the killers come last: what they cost is not what a death costs."""
    archive.mkdir()
    write_tone(archive / "00000.wav")
    for number in range(1, _GOOD):
        os.link(archive / "00000.wav", archive / f"{number:05}.wav")
    for number, name in enumerate(_KILLERS):
        write_tone(archive / f"zz {name}.wav", hertz=300 + number)


def _alternate(running: Running, random: Random) -> Counter[str]:
    """Measure pairs of stretches, one with all workers killed before it and one without, in any order."""
    figures, ratios = Counter[str](), list[float]()
    _rate(running, _GOOD // 50, _GOOD // 25)
    for _ in range(_PAIRS):
        rates = {}
        for struck in random.sample((True, False), 2):
            if struck:
                figures["ms until the pool was whole"] += _strike(running)
            first = _done(running) + _SETTLING
            rates[struck] = _rate(running, first, first + _STRETCH)
        ratios.append(rates[True] / rates[False])
    below = sum(ratio < _BACK for ratio in ratios)
    assert below < _PAIRS - 1, f"throughput after deaths, of that without: {sorted(ratios)}"
    figures["deaths"] = _PAIRS * _WORKERS
    figures["times that the pool was whole again"] = _PAIRS
    figures["throughput after deaths in %, added up"] = round(100 * median(ratios))
    return figures


def _strike(running: Running) -> int:
    """Kill all workers; return the milliseconds until as many new ones stood in."""
    started = len(running.stages("extract"))
    killed = time.monotonic()
    for pid in running.stages("extract")[-_WORKERS:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.reach(lambda: len(running.stages("extract")) >= started + _WORKERS, "new workers")
    short = time.monotonic() - killed
    assert short < _WHOLE_AGAIN_SEC, f"the pool was short for {short:.1f} s"
    return round(1000 * short)


def _rate(running: Running, first: float, last: float) -> float:
    """Return the files a second between two counts of files that are done."""
    running.reach(lambda: _done(running) >= first, "start of the stretch")
    begun, count = time.monotonic(), _done(running)
    running.reach(lambda: _done(running) >= last, "end of the stretch")
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
