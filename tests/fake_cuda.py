"""ONNX Runtime as on a machine with a GPU: it runs on the CPU, and notes and limits what a GPU would see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

ARENA = "Failed to allocate memory for requested buffer of size 939524096"
LIMITED = "Available memory of 536870912 is smaller than requested bytes of 1073741824"


class FakeRuntime:
    """What `drumline.inference` and `drumline.cuda` use of ONNX Runtime.

    Parameters
    ----------
    works
        Whether a session gets CUDA, or silently the CPU.
    fault
        Called with the batch size before each run; what it raises is a failure of the GPU.
    room
        Most files that an allocation on the GPU holds.
    """

    def __init__(
        self, works: bool = True, fault: Callable[[int], None] = lambda _size: None, room: int = 1 << 30
    ) -> None:
        import onnxruntime

        self.SessionOptions, self.RunOptions = onnxruntime.SessionOptions, onnxruntime.RunOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._allocate)
        self._real, self._works, self._fault, self._room = onnxruntime.InferenceSession, works, fault, room
        self.events: list[tuple[str, int]] = []
        """("upload" or "run", files), as they end."""
        self.graphs: list[tuple[int, int, str]] = []
        """(graph, files, thread) of each run on the GPU; 0 where it has no number."""
        self.options: list[dict[str, str]] = []
        """Of CUDA, for each session that was opened."""
        self.open_already: list[int] = []
        """How many other sessions on the GPU were alive when one was opened."""
        self._alive = WeakSet[FakeSession]()
        self.capturing = threading.Lock()

    @property
    def batches(self) -> list[int]:
        """Files of each run on the GPU."""
        return [files for kind, files in self.events if kind == "run"]

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so")

    def InferenceSession(self, data: bytes, options: Any, **kwargs: Any) -> FakeSession:
        assert kwargs.pop("enable_fallback") == 0
        given = kwargs.pop("providers")
        asked = [name if isinstance(name, str) else name[0] for name in given]
        real = self._real(data, options, providers=["CPUExecutionProvider"])
        if "CUDAExecutionProvider" in asked:
            self.options.append(given[0][1])
            asked = asked if self._works else asked[1:]
            self.open_already.append(len(self._alive))
            session = FakeSession(self, real, asked)
            self._alive.add(session)
            return session
        return FakeSession(self, real, asked)

    def _allocate(self, shape: Sequence[int], kind: Any, device: str, number: int) -> FakeValue:
        assert (device, number) == ("cuda", 0)
        if shape[0] > self._room:
            raise RuntimeError(LIMITED)
        return FakeValue(self, np.zeros(shape, kind))

    def run(self, session: FakeSession, binding: FakeBinding, options: Any) -> None:
        """Run a batch, as a GPU would."""
        size = len(binding.input.array)
        self._fault(size)
        outputs = session.real.run(list(binding.outputs), {binding.name: binding.input.array})
        for value, found in zip(binding.outputs.values(), outputs, strict=True):
            value.array[...] = found
        graph = (
            options.get_run_config_entry("gpu_graph_id") if self.options[-1].get("enable_cuda_graph") else 0
        )
        self.graphs.append((int(graph), size, threading.current_thread().name))
        self.events.append(("run", size))


class FakeValue:
    """An array on the GPU."""

    def __init__(self, runtime: FakeRuntime, array: NDArray[Any]) -> None:
        self._runtime, self.array = runtime, array

    def update_inplace(self, array: NDArray[Any]) -> None:
        assert array.shape == self.array.shape
        assert array.flags.c_contiguous
        assert not self._runtime.capturing.locked()
        self.array = array.copy()
        self._runtime.events.append(("upload", len(array)))

    def numpy(self) -> NDArray[Any]:
        return self.array.copy()


class FakeBinding:
    """Which arrays a run takes and gives."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.name, self.input = "", FakeValue.__new__(FakeValue)
        self.outputs: dict[str, FakeValue] = {}

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.name, self.input = name, value

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.outputs[name] = value


class FakeSession:
    """A session that runs on the CPU and says where it was asked to run."""

    def __init__(self, runtime: FakeRuntime, real: Any, providers: list[str]) -> None:
        self._runtime, self.real, self._providers = runtime, real, providers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        self._runtime.run(self, binding, options)
