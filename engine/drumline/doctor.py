"""What `infer` needs of this machine: what is there, what is missing, and how to get it.

Each check is a function that gives findings; the command only prints them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from drumline import __version__, machine
from drumline.errors import DrumlineError
from drumline.memory import read_memory
from drumline.pcm import pcm_kernel
from drumline.skim import skimming_kernel
from drumline.spectra import compiled_kernel
from drumline.walk import listing_kernel

__all__ = ["Finding", "Status", "examine"]

Status = Literal["ok", "note", "missing"]

_PACKAGES = (
    *("numpy", "scipy", "soundfile", "soxr", "orjson", "zstandard", "xxhash"),
    *("psutil", "click", "rich", "PyYAML"),
)
_TRAINING = ("tensorflow", "keras", "tf2onnx", "onnx", "librosa")
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
_LEAST_MEMORY = 512 << 20
_LEAST_SPACE = 100 << 20
_LEAST_OPEN_FILES = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    topic
        What it is about.
    status
        ``"missing"`` keeps `infer` from running, ``"note"`` only costs something.
    value
        What was found.
    way_out
        How to get what is missing.
    """

    topic: str
    status: Status
    value: str
    way_out: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return everything in one object."""
        return asdict(self)


def examine(runs_root: Path, model: str | None = None) -> list[Finding]:
    """Look at everything that `infer` needs.

    Parameters
    ----------
    runs_root
        Where runs would be kept.
    model
        Bundle to try; None for the default.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _processor,
        lambda: _memory_and_space(runs_root),
        _decoders,
        _runtime,
        lambda: _bundle(model),
        _training,
    )
    return [finding for check in checks for finding in check()]


def _versions() -> Iterator[Finding]:
    yield Finding("drumline", "ok", __version__)
    yield Finding("python", "ok", f"{platform.python_version()} on {_platform()}")
    for name in _PACKAGES:
        found = _version(name)
        if found is None:
            yield Finding(name, "missing", "not installed", f"pip install {name}")
        else:
            yield Finding(name, "ok", found)


def _platform() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> Iterator[Finding]:
    yield Finding("processor", "ok", machine.cpu_name())
    flags = machine.cpu_flags()
    telling = " ".join(flag for flag in _TELLING_FLAGS if flag in flags)
    yield Finding("cpu features", "ok", telling or "none that are known to help")
    yield _kernels()
    yield Finding("cores", "ok", f"{machine.usable_cpus()} usable of {os.cpu_count()}")


def _kernels() -> Finding:
    kernels = {
        "spectra": compiled_kernel(),
        "pcm": pcm_kernel(),
        "listing": listing_kernel(),
        "records": skimming_kernel(),
    }
    missing = [name for name, kernel in kernels.items() if kernel is None]
    if not missing:
        return Finding("kernels", "ok", "compiled")
    way_out = "Install drumline again, with a C compiler and Python's headers: it is faster."
    return Finding("kernels", "note", f"plain Python in place of {' and '.join(missing)}", way_out)


def _memory_and_space(runs_root: Path) -> Iterator[Finding]:
    yield _amount("free memory", read_memory().free, _LEAST_MEMORY, "Close other programs, or --workers 1.")
    if Path("/dev/shm").is_dir():
        # The slot table is anonymous shared memory: it counts as memory, whatever /dev/shm holds.
        yield _amount("/dev/shm", machine.free_space(Path("/dev/shm")), 0, "")
    yield _amount(
        "runs root",
        machine.free_space(runs_root),
        _LEAST_SPACE,
        "Free some space, or choose another --runs-root.",
    )
    yield _writable(runs_root)
    limit = machine.open_files_limit()
    enough = limit is None or limit >= _LEAST_OPEN_FILES
    text = "no limit" if limit is None else str(limit)
    yield Finding("open files", "ok" if enough else "note", text, "" if enough else "ulimit -n 1024")


def _amount(topic: str, amount: int | None, least: int, way_out: str) -> Finding:
    if amount is None:
        return Finding(topic, "note", "cannot be told")
    text = f"{amount / 1e9:,.2f} GB free"
    return Finding(topic, "ok", text) if amount >= least else Finding(topic, "note", text, way_out)


def _writable(runs_root: Path) -> Finding:
    runs_root = runs_root.absolute()
    place = next(path for path in (runs_root, *runs_root.parents) if os.path.lexists(path))
    if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
        return Finding("runs root", "ok", f"{place} can be written")
    return Finding("runs root", "missing", f"{place} cannot be written", "Choose another --runs-root.")


def _decoders() -> Iterator[Finding]:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        yield Finding(
            "libsndfile", "missing", str(error), "apt install libsndfile1, or pip install soundfile"
        )
    else:
        formats = " ".join(sorted(name.lower() for name in soundfile.available_formats()))
        yield Finding("libsndfile", "ok", f"{soundfile.__libsndfile_version__}: {formats}")
    yield _ffmpeg()


def _ffmpeg() -> Finding:
    program = shutil.which("ffmpeg")
    if program is None:
        way_out = "For m4a, aac, wma and the like: apt install ffmpeg, or brew install ffmpeg"
        return Finding("ffmpeg", "note", "not found", way_out)
    try:
        command = [program, "-hide_banner", "-version"]
        output = subprocess.run(command, capture_output=True, timeout=10, check=True, text=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("ffmpeg", "note", f"{program} does not run: {error}", "Install it again.")
    return Finding("ffmpeg", "ok", (output.splitlines() or [program])[0][:60])


def _runtime() -> Iterator[Finding]:
    from drumline.inference import import_runtime

    try:
        runtime = import_runtime()
    except DrumlineError as error:
        yield Finding("onnxruntime", "missing", error.what, error.way_out)
        return
    yield Finding("onnxruntime", "ok", str(runtime.__version__))
    yield Finding("providers", "ok", ", ".join(runtime.get_available_providers()))


def _bundle(model: str | None) -> Iterator[Finding]:
    """Load the bundle and run one batch of silence; on CUDA, too, where it should be there."""
    from drumline.bundle import load_bundle
    from drumline.inference import open_session

    try:
        bundle = load_bundle(model)
        session = open_session(bundle, "auto")
    except DrumlineError as error:
        yield Finding("model", "missing", error.what, error.way_out)
        return
    yield Finding("model", "ok", f"{bundle.name} {bundle.version}: {len(bundle.labels)} labels; runs")
    yield _device(bundle, session.device)


def _device(bundle: Any, device: str) -> Finding:
    from drumline.inference import open_session

    if device == "cuda" or not _has_nvidia():
        return Finding("device", "ok", device)
    try:
        open_session(bundle, "cuda")
    except DrumlineError as error:
        return Finding("device", "note", f"cpu, although there is an NVIDIA GPU: {error.what}", error.way_out)
    return Finding("device", "ok", device)


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _training() -> Iterator[Finding]:
    missing = [name for name in _TRAINING if _version(name) is None and _version(f"{name}-cpu") is None]
    if missing:
        way_out = 'Only to train a model: pip install "path/to/drumline[train]"'
        yield Finding("training", "note", f"not installed: {', '.join(missing)}", way_out)
    else:
        yield Finding(
            "training", "ok", ", ".join(f"{name} {_version(name) or ''}".strip() for name in _TRAINING)
        )
