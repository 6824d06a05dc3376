"""What tests do to a drumline process from inside, before it begins: patches by name, as plain values."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drumline.audio import Decoder

Patch = Callable[..., Any]


def apply(patches: dict[str, Any]) -> None:
    """Apply each patch with its value."""
    for name, value in patches.items():
        globals()[f"_{name}"](value)


def _roster(path: str) -> None:
    """The supervisor notes name and pid of each stage that it starts in a file."""
    stage_process = _module("drumline.pipeline.process").StageProcess
    start = stage_process.start

    def noting(name: str, *args: Any) -> Any:
        process = start(name, *args)
        with open(path, "a") as stream:
            stream.write(f"{name} {process.pid}\n")
        return process

    stage_process.start = noting


def _failpoints(text: str) -> None:
    """Failpoints are armed, as `DRUMLINE_FAILPOINTS` does it."""
    _module("drumline.failpoints").arm(text)


def _path(first: str) -> None:
    """Programs are looked for in a directory first."""
    os.environ["PATH"] = f"{first}:{os.environ['PATH']}"


def _slow(seconds: float) -> None:
    """Decoding a file takes some seconds longer, and no CPU."""

    def wait(_path: bytes) -> None:
        time.sleep(seconds)

    _before_decoding(wait)


def _slow_reading(seconds: float) -> None:
    """Reading a file takes some seconds longer, and no CPU."""

    def wait(_reader: object, _path: bytes) -> None:
        time.sleep(seconds)

    reader = _module("drumline.pipeline.extract")._Reader
    reader.read = _then(wait, reader.read)


def _slow_open(how: str) -> None:
    """Opening a file takes some seconds longer, in whatever stage: ``SECONDS NAME``."""
    seconds, name = how.split(maxsplit=1)
    opened = os.open

    def slow(path: bytes, flags: int) -> int:
        if os.path.basename(path) == name.encode():
            time.sleep(float(seconds))
        return opened(path, flags)

    for module in map(_module, ("drumline.pipeline.reading", "drumline.pipeline.extract")):
        module.os = _Instead(os, open=slow)


def _no_ffmpeg(_on: bool) -> None:
    """There is no ffmpeg on the path."""
    _module("drumline.audio").shutil = _Instead(_module("shutil"), which=lambda _name: None)


def _storages(names: list[str]) -> None:
    """The system says each time it is asked that the archive lies on something else, and at last nothing."""
    answers = iter(names)
    _module("drumline.settings").storage_of = lambda _archive: next(answers)


def _memory_of(root: str) -> None:
    """What memory there is, is told by the proc and sys below `root`."""
    module = _module("drumline.memory")
    read = module.read_memory
    module.read_memory = lambda: read(Path(root))


def _peaks(path: str) -> None:
    """Each worker that comes to its end notes the most megabytes that it had in a file."""
    import resource

    module = _module("drumline.pipeline.extract")
    extract = module.extract

    def noting(*args: Any) -> None:
        extract(*args)
        with open(path, "a") as stream:
            stream.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}\n")

    module.extract = noting


def _slow_disk(seconds: float) -> None:
    """Each megabyte takes some seconds to come."""
    module = _module("drumline.pipeline.extract")
    read = os.read

    def slow(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        time.sleep(seconds * (len(data) >> 20))
        return data

    module.os = _Instead(os, read=slow)


class _Instead:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _frame_lines(lines: int) -> None:
    """Frames are closed at so many lines."""
    _module("drumline.pipeline.write").FRAME_LINES = lines


def _flush(seconds: float) -> None:
    """The writer flushes every few seconds."""
    module = _module("drumline.pipeline.write")
    module._FIRST_FLUSH_SEC = module._LATER_FLUSH_SEC = seconds


def _take(slots: int) -> None:
    """The writer takes so many slots at once, however many are waiting for it."""
    _module("drumline.pipeline.write")._TAKE = slots


def _no_workers(_on: bool) -> None:
    """Stages that read files or open the model end the run."""
    for name in ("extract", "predict"):
        _die(f"before drumline.pipeline.{name}:{name}")


def _no_decoding(_on: bool) -> None:
    """Decoding fails."""

    def refuse(path: bytes) -> None:
        raise AssertionError(f"decoded {path!r}")

    _before_decoding(refuse)


def _bad_names(_on: bool) -> None:
    """Decoding a file does what its name says."""

    def act(path: bytes) -> None:
        name = os.path.basename(path)
        if b"killer" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        while b"hang" in name:
            pass
        if b"greedy" in name:
            raise MemoryError
        if b"crasher" in name:
            ctypes.string_at(0)
        if b"hoarder" in name:
            _hoarded.append(bytearray(_HOARD))
        if b"glutton" in name:
            _eat()
        if b"odd" in name:
            raise _OddError
        if b"leaving" in name:
            raise SystemExit(3)
        if b"verbose" in name:
            raise RuntimeError("line\n" * 9 + "\udcff\0é" * 300)

    _before_decoding(act)


_HOARD = 400_000_000
_hoarded: list[bytearray] = []


def _eat() -> None:
    """Take memory as C code does that never looks whether it got any."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    while True:
        ctypes.memset(libc.malloc(1 << 24), 1, 1 << 24)


class _OddError(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise ValueError("no text")


def _nothing_finite(files: int) -> None:
    """The model gives nothing finite for the first so many files."""
    session = _module("drumline.inference").Session
    start = session.start

    def silent(self: object, rows: Any) -> Any:
        pending = start(self, rows)

        def finished() -> Any:
            nonlocal files
            outputs = pending()
            outputs.probabilities[:files] = float("nan")
            files = max(0, files - len(outputs.probabilities))
            return outputs

        return finished

    session.start = silent


def _kill_once(marker: str) -> None:
    """The first worker that decodes a file is killed while it does."""
    _before_decoding(lambda _path: _die_first(marker))


def _worker_dies(how: str) -> None:
    """The first worker that comes to a moment is killed: ``before_put|after_put|after_get MARKER``."""
    moment, _, marker = how.partition(" ")
    module, queues = _module("drumline.pipeline.extract"), _module("drumline.pipeline.queues")
    extract = module.extract
    name = "put" if moment.endswith("put") else "get_into"
    original = getattr(queues.SlotQueue, name)

    def dying(*args: Any) -> Any:
        if moment.startswith("before"):
            _die_first(marker)
        result = original(*args)
        if moment.startswith("after"):
            _die_first(marker)
        return result

    def in_worker(*args: Any) -> None:
        setattr(queues.SlotQueue, name, dying)
        extract(*args)

    module.extract = in_worker


def _die_first(marker: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)


def _ignore(name: str) -> None:
    """The command is started with a signal ignored, as nohup does."""
    signal.signal(getattr(signal, name), signal.SIG_IGN)


def _mark(how: str) -> None:
    """When a place is reached, a file is made and some seconds pass: ``module:name MARKER SECONDS``."""
    place, marker, seconds = how.split()
    owner, last = _found(place)

    def marked(*args: Any, **kwargs: Any) -> Any:
        os.close(os.open(marker, os.O_CREAT))
        time.sleep(float(seconds))
        return original(*args, **kwargs)

    original = getattr(owner, last)
    setattr(owner, last, marked)


def _broken(place: str) -> None:
    """A function raises."""
    owner, last = _found(place)

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise ZeroDivisionError("broken on purpose")

    setattr(owner, last, broken)


def _hang(marker: str) -> None:
    """Decoding never ends, and says that it began by making the file `marker`."""

    def act(_path: bytes) -> None:
        os.close(os.open(marker, os.O_CREAT))
        while True:
            pass

    _before_decoding(act)


def _no_death_signal(_on: bool) -> None:
    """The system does not end a child with its parent, as all but Linux."""
    _module("drumline.pipeline.process")._end_with = lambda _supervisor: None


def _before_reading(command: str) -> None:
    """A shell command runs before each file is read, with the file's path as $1."""
    import subprocess

    def act(_reader: object, path: bytes) -> None:
        subprocess.run(["sh", "-c", command, "sh", path], check=True)

    reader = _module("drumline.pipeline.extract")._Reader
    reader.read = _then(act, reader.read)


def _die(at: str) -> None:
    """Kill the process that comes to a place: ``before|after module:name[.name] [which call]``."""
    when, place, *rest = at.split()
    calls = int(rest[0]) if rest else 1
    owner, last = _found(place)
    original = getattr(owner, last)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls -= 1
        if calls == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, dying)


def _full_disk(after_bytes: int) -> None:
    """Writing to an index fails when so many bytes are written."""
    module = _module(_module("drumline.pipeline.write").IndexAppender.__module__)
    left = after_bytes

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.pwrite(descriptor, data[:left], offset)
        left -= written
        return written

    class Fake:
        def __getattr__(self, name: str) -> Any:
            return full if name == "pwrite" else getattr(os, name)

    module.os = Fake()


def _file_size_limit(size: int) -> None:
    """No file may grow beyond a size."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _open_files(limit: int) -> None:
    """So many files may be open."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def _slots_allowed(slots: int) -> None:
    """Memory allows so many slots in flight."""
    memory = _module("drumline.memory")
    memory.ration = lambda _memory, full, _running: memory.Ration(slots, 1, full.workers)


def _lines_every(seconds: float) -> None:
    """Progress lines come every few seconds."""
    _module("drumline.progress").PlainProgress.interval_sec = seconds


def _before_decoding(act: Callable[[bytes], None]) -> None:
    def on_decode(_decoder: Decoder, _data: bytes, path: bytes) -> None:
        act(path)

    Decoder.decode = _then(on_decode, Decoder.decode)  # type: ignore[method-assign]


def _then(first: Patch, second: Patch) -> Patch:
    def both(*args: Any, **kwargs: Any) -> Any:
        first(*args, **kwargs)
        return second(*args, **kwargs)

    return both


def _found(place: str) -> tuple[Any, str]:
    module, _, name = place.partition(":")
    owner = _module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, last


def _module(name: str) -> Any:
    return importlib.import_module(name)
