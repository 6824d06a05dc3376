"""Commands that run in processes of their own, and what is looked at before and after them."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

import drumline

ROOT = Path(__file__).parents[2]
LIMIT_SEC = 60.0
"""Longest that anything may take on a machine that does other things as well."""

_GRACE_SEC = 1.0

Records = dict[bytes, dict[str, Any]]


def environment() -> dict[str, str]:
    """Return an environment in which `python -m drumline` is the drumline that is being tested."""
    paths = [str(Path(drumline.__file__).parents[1]), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}


class Result(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> Any:
        """Parse stdout."""
        return json.loads(self.out)

    @property
    def counts(self) -> dict[str, int]:
        """Return the summary's counts."""
        counts: dict[str, int] = self.json()["counts"]
        return counts


@dataclass
class Running:
    """A command that was started; it is the leader of a process group of its own."""

    pid: int
    server: Server
    out: Path
    err: Path
    roster: Path
    begun: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, limit: float = LIMIT_SEC) -> Result:
        """Wait for its end."""
        code = self.server.code(self.pid, limit)
        seconds = time.monotonic() - self.started
        return Result(code, _text(self.out), _text(self.err), seconds)

    def signal(self, number: int) -> None:
        """Send a signal to the command alone, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to all of the command's processes, as a terminal does, if any is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def members(self) -> dict[int, str]:
        """Return the processes of the group: pid → state, as in /proc."""
        return members(self.pid)

    def stages(self, name: str) -> list[int]:
        """Return the pids of the stages of that name that were started so far."""
        lines = self.roster.read_text().splitlines() if self.roster.exists() else []
        return [int(pid) for stage, pid in map(str.split, lines) if stage == name]

    def stage(self, name: str, place: int = 0) -> int:
        """Wait until a stage was started and return its pid: write, discover, extract or predict."""
        self.reach(lambda: self.stages(name)[place:], f"{name} stage")
        return self.stages(name)[place]

    def reach(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until something is true, while the command runs."""

        def reached() -> bool:
            return bool(condition()) or not os.path.exists(f"/proc/{self.pid}")

        eventually(reached, what)
        assert condition(), f"the command ended before {what}: {self.err.read_text()}"

    def kill_stage(self, name: str, place: int = 0) -> None:
        """Kill a stage once it was started, if it has not ended yet."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.stage(name, place), signal.SIGKILL)

    def gone(self, limit: float = 5.0) -> None:
        """Wait until no process of it is left, no zombie either."""
        eventually(lambda: not self.members(), "end of all processes", prompt(limit))


def members(group: int) -> dict[int, str]:
    """Return the processes of a process group: pid → state, as in /proc."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            if int(stat[2]) == group:
                found[int(pid)] = stat[0]
    return found


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""  # killed before it had opened it, or on a terminal


class Server:
    """The client's side of the fork server (see `tests.pipeline.server`)."""

    def __init__(
        self,
        directory: Path,
        additions: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self._directory, self._count = directory, 0
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment(), **(additions or {})},
            pass_fds=pass_fds,
            cwd=ROOT,
        )
        self._codes: dict[int, int] = {}
        self._answers = b""
        self._started: list[int] = []
        self._running: list[Running] = []
        self._receive(LIMIT_SEC)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def close(self) -> None:
        """End the server."""
        self._process.communicate()

    def kill_all(self) -> None:
        """Kill what is left of all commands that were started since the last time."""
        while self._running:
            running = self._running.pop()
            if running.members():
                running.signal_group(signal.SIGKILL)

    def start(self, *argv: str | bytes | Path, terminal: str | None = None, **patches: Any) -> Running:
        """Start ``drumline ARGV`` with patches from `tests.pipeline.mischief`, perhaps in a terminal."""
        self._count += 1
        out, err, roster, begun = (
            self._directory / f"{self._count}.{name}" for name in ("out", "err", "stages", "begun")
        )
        request = {
            "argv": [os.fsdecode(part) for part in argv],
            "patches": {"roster": str(roster), **patches},
            "out": str(out),
            "err": str(err),
            "begun": str(begun),
            "terminal": terminal,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while not self._started:
            self._receive(LIMIT_SEC)
        self._running.append(Running(self._started.pop(), self, out, err, roster, begun))
        return self._running[-1]

    def code(self, pid: int, limit: float) -> int:
        """Wait for the end of a command and return its exit code."""
        deadline = time.monotonic() + limit
        while pid not in self._codes:
            self._receive(deadline - time.monotonic())
        return self._codes[pid]

    def _receive(self, limit: float) -> None:
        assert self._process.stdout is not None
        # Who was stopped meanwhile (SIGSTOP) finds the time up, and the server not yet awake.
        ready, _, _ = select.select([self._process.stdout], [], [], max(_GRACE_SEC, limit))
        if not ready:
            raise TimeoutError("the command has not ended")
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            self.close()
            raise RuntimeError("the fork server has ended")
        *lines, self._answers = (self._answers + data).split(b"\n")
        for answer in map(json.loads, lines):
            if answer["pid"] == self._process.pid:
                continue
            if "code" in answer:
                self._codes[answer["pid"]] = answer["code"]
            else:
                self._codes.pop(answer["pid"], None)  # after some ten thousand processes, numbers come again
                self._started.append(answer["pid"])


def prompt(seconds: float) -> float:
    """Return a promise's seconds as they pass here: longer where the processors have too much to do."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def eventually(condition: Callable[[], Any], what: str, limit: float = LIMIT_SEC) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} within {limit:g} s"
        time.sleep(0.005)
    return value


def read_lines(index: Path) -> list[bytes]:
    """Return the lines of an index, by means that are not drumline's; a torn frame is an error."""
    data = index.read_bytes()
    if index.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
        data = reader.read()
    elif index.suffix == ".gz":
        data = gzip.decompress(data)
    assert not data or data.endswith(b"\n")
    return data.splitlines()


def records_of(run: Path) -> Records:
    """Return the records of a run by path, each path once."""
    (index,) = (path for path in run.glob("index.jsonl*") if ".damaged" not in path.name)
    found = [json.loads(line) for line in read_lines(index)]
    records = {path_of(record): record for record in found}
    twice = [path for path, count in Counter(map(path_of, found)).items() if count > 1]
    assert not twice, twice
    return records


def path_of(record: dict[str, Any]) -> bytes:
    """Return a record's exact path."""
    encoded = record["relative_path_b64"]
    return base64.b64decode(encoded) if encoded else record["relative_path"].encode()


def without(records: Records, *fields: str) -> Records:
    """Leave fields out of records."""
    return {
        path: {name: value for name, value in record.items() if name not in fields}
        for path, record in records.items()
    }


def assert_equal(found: Records, expected: Records, *ignored: str) -> None:
    """Hold two sets of records together, and name the first difference only."""
    assert sorted(found) == sorted(expected)
    for path, record in without(found, *ignored).items():
        assert record == without({path: expected[path]}, *ignored)[path]


def runs_of(runs_root: Path) -> list[Path]:
    """Return the run directories, oldest first."""
    return sorted(runs_root.glob("run_*"))


def last_run(runs_root: Path) -> Path:
    """Return the newest run directory."""
    return runs_of(runs_root)[-1]


def tree(root: Path | bytes) -> dict[bytes, tuple[Any, ...]]:
    """Return what is in a directory: path → mode, size, mtime and content or target."""
    found = {}
    top = os.fsencode(root)
    for path in _walk(top):
        state = os.lstat(path)
        found[os.path.relpath(path, top)] = (state.st_mode, state.st_size, state.st_mtime_ns, _content(path))
    return found


def _walk(root: bytes) -> Iterator[bytes]:
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            yield os.path.join(folder, name)


def _content(path: bytes) -> Any:
    if os.path.islink(path):
        return os.readlink(path)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as stream:
        return hashlib.md5(stream.read()).hexdigest()


def copy(source: Path, target: Path) -> Path:
    """Copy a tree with its times; names may be any bytes."""
    subprocess.run(["cp", "-a", source, target], check=True)
    return target


def audio_files(archive: Path, formats: Iterable[bytes] = (b"wav", b"aif", b"aiff")) -> list[bytes]:
    """Return the paths of the archive's sounds, sorted, relative to it."""
    top = os.fsencode(archive)
    names = (os.path.relpath(path, top) for path in _walk(top) if os.path.isfile(path))
    kept = tuple(b"." + name for name in formats)
    return sorted(
        name for name in names if name.lower().endswith(kept) and not os.path.basename(name).startswith(b"._")
    )
