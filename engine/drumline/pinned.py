"""Page-locked host memory: what the GPU fetches by itself, at the full speed of the bus.

ONNX Runtime's Python interface does not give such memory in all versions, so the driver is asked, whose
library and functions have the same names in every version of CUDA.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pinned_zeros"]

_DRIVER = "libcuda.so.1"
_FOR_ALL_CONTEXTS = 1


def _driver() -> Any:
    """Load the CUDA driver's library; `OSError` where there is none."""
    return ctypes.CDLL(_DRIVER)


def pinned_zeros(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], bool]:
    """Return an array of zeros, float32, and whether its memory is page-locked.

    The calling thread must have used CUDA before. Where memory cannot be locked (a limit, no driver), it is
    ordinary memory: copies are slower then, and nothing else changes.
    """
    size = 4 * math.prod(shape)
    block = mmap.mmap(-1, max(size, 1))
    # All views of it have this array as their base, so it lives as long as any of them.
    flat: NDArray[np.float32] = np.frombuffer(block, np.float32, math.prod(shape))
    return flat.reshape(shape), size > 0 and _lock(flat, block)


def _lock(flat: NDArray[np.float32], block: mmap.mmap) -> bool:
    with suppress(OSError, AttributeError):
        driver, address = _driver(), ctypes.c_void_p(flat.ctypes.data)
        size, flags = ctypes.c_size_t(flat.nbytes), ctypes.c_uint(_FOR_ALL_CONTEXTS)
        if driver.cuMemHostRegister_v2(address, size, flags) == 0:
            # The finalizer holds the block, so that it is unlocked before it is given back.
            weakref.finalize(flat, _unlock, driver, address, block).atexit = False
            return True
    return False


def _unlock(driver: Any, address: ctypes.c_void_p, _block: mmap.mmap) -> None:
    driver.cuMemHostUnregister(address)
