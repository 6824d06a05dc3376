"""What an NVIDIA driver says of its GPU: its name, and the energy that it has used."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "find_gpu"]

_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96


@dataclass(frozen=True)
class Gpu:
    """A GPU, as its driver tells of it.

    Parameters
    ----------
    name, driver
        Of the GPU and of its driver.
    memory_gb
        GPU memory in GB of 10^9 bytes.
    joules
        Returns the energy used since the driver was loaded, in joules; None where the GPU does not count it.
    """

    name: str
    driver: str
    memory_gb: float
    joules: Callable[[], float | None]


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _library() -> Any:
    return ctypes.CDLL(_LIBRARY)


def find_gpu() -> Gpu | None:
    """Return the first GPU that CUDA programs would see; None where there is no driver, or no GPU."""
    try:
        library = _library()
    except OSError:
        return None
    handle, memory = ctypes.c_void_p(), _Memory()
    found = (
        library.nvmlInit_v2() == 0
        and library.nvmlDeviceGetHandleByIndex_v2(_place(), ctypes.byref(handle)) == 0
        and library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    )
    if not found:
        return None
    return Gpu(
        name=_text(lambda text: library.nvmlDeviceGetName(handle, text, _TEXT_BYTES)),
        driver=_text(lambda text: library.nvmlSystemGetDriverVersion(text, _TEXT_BYTES)),
        memory_gb=round(memory.total / 1e9, 1),
        joules=_meter(library, handle),
    )


def _place() -> ctypes.c_uint:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return ctypes.c_uint(int(first) if first.isdigit() else 0)


def _text(ask: Callable[[Any], int]) -> str:
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    return text.value.decode() if ask(text) == 0 else "unknown"


def _meter(library: Any, handle: ctypes.c_void_p) -> Callable[[], float | None]:
    def joules() -> float | None:
        millijoules = ctypes.c_ulonglong()
        code = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1000.0 if code == 0 else None

    return joules
