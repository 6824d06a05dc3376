"""Batches on an NVIDIA GPU.

Protocol
--------
There are two *lanes*, used in turn: each has page-locked rows in host memory, and for every size of the
ladder an input and outputs in GPU memory. The caller fills the rows of the lane whose turn it is
(`CudaRunner.stage`) and starts it (`CudaRunner.start`): the rows are copied to the GPU by the caller's
thread, then the one running thread runs the model and copies the outputs back. So the copy of a batch
overlaps with the run of the batch before it. A lane's rows may be filled again when its batch is done, which
`stage` waits for.

Batches are padded to the sizes of a *ladder*: each new shape costs a search for algorithms and memory. A
batch that does not fit in GPU memory takes the ladder down: the session is opened anew, as its arena gives
nothing back, the largest size becomes half of what did not fit, and the batch is run again in parts. The
ladder never grows again.

A CUDA graph is captured for each lane and size by its first runs, in the running thread, to which it belongs.
While that goes on, no other thread may call CUDA, so copies wait for the same lock.
"""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from drumline.errors import RuntimeMissingError
from drumline.pinned import pinned_zeros
from drumline.staging import Staging

__all__ = ["PROVIDER", "CudaRunner", "CudaSettings", "is_out_of_memory", "ladder", "provider_options"]

Floats = NDArray[np.float32]

PROVIDER: Final = "CUDAExecutionProvider"
_DEVICE: Final = "cuda"
_MB: Final = 1_000_000
_STEP: Final = 4
_NO_GRAPH: Final = -1
_KINDS: Final[dict[str, type[np.floating[Any]]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_RUNS_UNTIL_CAPTURED: Final = 3
"""Two runs in which memory is allocated, and the one that is captured."""
_OUT_OF_MEMORY = re.compile(
    r"failed to allocate memory|out.of.memory|is smaller than requested bytes"
    r"|cudaErrorMemoryAllocation|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""ONNX Runtime's own arena, the CUDA runtime, cuBLAS and cuDNN; there is no type of exception for it."""


@dataclass(frozen=True, slots=True)
class CudaSettings:
    """How a GPU is used.

    Parameters
    ----------
    batch_size
        Most files in one call of the model; the top of the ladder.
    graphs
        Whether each size of the ladder is captured as a CUDA graph and replayed.
    memory_mb
        Most GPU memory of the session's arena, in MB of 10^6 bytes; None: all there is.
    """

    batch_size: int = 64
    graphs: bool = False
    memory_mb: int | None = None


def provider_options(settings: CudaSettings) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA execution provider."""
    # TF32 is off so that a GPU's probabilities are the CPU's; searching the best convolution exhaustively
    # would stall at each new batch size; by default the arena would take twice what is asked for.
    options = {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    if settings.graphs:
        options["enable_cuda_graph"] = "1"
    if settings.memory_mb is not None:
        options["gpu_mem_limit"] = str(settings.memory_mb * _MB)
    return options


def ladder(largest: int) -> tuple[int, ...]:
    """Return the batch sizes that are used, ascending: powers of 4 up to `largest`, and that.

    Examples
    --------
    >>> ladder(100)
    (1, 4, 16, 64, 100)
    """
    sizes = [1]
    while sizes[-1] * _STEP < largest:
        sizes.append(sizes[-1] * _STEP)
    return tuple(sizes) if largest == 1 else (*sizes, largest)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ONNX Runtime failed for want of GPU memory."""
    return _OUT_OF_MEMORY.search(str(error)) is not None


@dataclass
class _Buffers:
    """Input, outputs and binding of one lane for one size."""

    rows: Any
    outputs: list[Any]
    binding: Any
    options: Any
    captured: bool = False


@dataclass
class _Lane:
    """One of the two sets of buffers that are used in turn."""

    number: int
    staging: Staging | None = None
    buffers: dict[int, _Buffers] = field(default_factory=dict)
    done: Future[list[Floats]] | None = None


class CudaRunner:
    """Runs a model on the GPU; see the module's protocol. For one calling thread.

    Parameters
    ----------
    runtime
        ONNX Runtime.
    session, open_session
        The model, open on the GPU, and what opens it again when memory ran out.
    input_name, outputs
        Names of the model's input and of the outputs to read.
    row_shape, input_shape
        Of one file's features, and of those as the model takes them.
    settings
        Batch size, graphs, memory.
    """

    overlaps = True
    """A batch is still running when `start` returns."""

    def __init__(
        self,
        runtime: ModuleType,
        session: Any,
        open_session: Callable[[], Any],
        input_name: str,
        outputs: list[str],
        row_shape: tuple[int, ...],
        input_shape: tuple[int, ...],
        settings: CudaSettings,
    ) -> None:
        self._runtime, self._open_session = runtime, open_session
        self._input_name, self._output_names = input_name, outputs
        self._row_shape, self._input_shape, self._settings = row_shape, input_shape, settings
        self._session = session
        self.ladder = ladder(settings.batch_size)
        self.is_pinned = False
        self._lanes = (_Lane(0), _Lane(1))
        self._turn = 0
        self._cuda = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cuda")

    def stage(self, count: int) -> Staging:
        """Return rows for the next batch of at most `count` files, when they are free."""
        lane = self._lanes[self._turn]
        if lane.done is not None:
            lane.done.exception()  # whoever started that batch is told of it
        if lane.staging is None or len(lane.staging.rows) < count:
            lane.staging = self._staging(max(count, self._settings.batch_size))
        return lane.staging

    def _staging(self, size: int) -> Staging:
        with self._cuda:
            rows, self.is_pinned = pinned_zeros((size, *self._row_shape))
        return Staging(rows)

    def start(self, rows: Floats) -> Callable[[], list[Floats]]:
        """Start a batch, and return what waits for its outputs, each (n, …).

        Parameters
        ----------
        rows
            Shape (n, *row_shape), float32: those of `stage`, or others, which are copied.
        """
        staging, count = self.stage(len(rows)), len(rows)
        if rows.ctypes.data != staging.rows.ctypes.data:
            staging.copy(rows)
        lane, self._turn = self._lanes[self._turn], 1 - self._turn
        lane.done = self._thread.submit(self._run, lane, count, self._uploaded(lane, count))
        return lane.done.result

    def upload(self, count: int) -> None:
        """Copy the first rows of the next lane to the GPU, and run nothing: for measurements."""
        self.stage(count)
        self._upload(self._lanes[self._turn], 0, count)

    def run_again(self, count: int) -> None:
        """Run what `upload` has copied, and copy nothing but the outputs: for measurements."""
        self._thread.submit(self._outputs, self._lanes[self._turn], self._size_of(count)).result()

    def _uploaded(self, lane: _Lane, count: int) -> int | None:
        """Copy the lane's rows to the GPU, and return the batch size; None where they must go in parts."""
        if count > self.ladder[-1]:
            return None
        try:
            return self._upload(lane, 0, count)
        except Exception as error:  # ONNX Runtime's errors have no common base
            if not is_out_of_memory(error):
                raise
            return None

    def _upload(self, lane: _Lane, first: int, count: int) -> int:
        """Copy at most `count` rows of a lane to the GPU, and return the size that they are padded to."""
        assert lane.staging is not None
        with self._cuda:
            size = self._size_of(count)
            rows = lane.staging.rows[first : first + size]
            if len(rows) < size:
                rows = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), np.float32)])
            self._buffers(lane, size).rows.update_inplace(rows.reshape(size, *self._input_shape))
        return size

    def _size_of(self, count: int) -> int:
        """Return the smallest size of the ladder that holds `count` files; the largest where none does."""
        return next((size for size in self.ladder if size >= count), self.ladder[-1])

    def _buffers(self, lane: _Lane, size: int) -> _Buffers:
        if size not in lane.buffers:
            rows = self._allocated((size, *self._input_shape), np.float32)
            outputs = [self._allocated((size, *shape), kind) for shape, kind in self._output_kinds]
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._input_name, rows)
            for name, value in zip(self._output_names, outputs, strict=True):
                binding.bind_ortvalue_output(name, value)
            number = len(self._lanes) * size + lane.number
            lane.buffers[size] = _Buffers(rows, outputs, binding, self._options(number))
        return lane.buffers[size]

    def _allocated(self, shape: tuple[int, ...], kind: type[np.floating[Any]]) -> Any:
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, kind, _DEVICE, 0)

    @cached_property
    def _output_kinds(self) -> list[tuple[tuple[int, ...], type[np.floating[Any]]]]:
        """Shape of each output for one file, and its type."""
        about = {value.name: value for value in self._session.get_outputs()}
        shapes = [tuple(about[name].shape[1:]) for name in self._output_names]
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            shapes = self._found_shapes()
        return [
            (shape, _KINDS[about[name].type]) for shape, name in zip(shapes, self._output_names, strict=True)
        ]

    def _found_shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each output for one file where only a run can tell."""
        given = self._allocated((1, *self._input_shape), np.float32)
        given.update_inplace(np.zeros((1, *self._input_shape), np.float32))
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input_name, given)
        for name in self._output_names:
            binding.bind_output(name, _DEVICE)
        self._session.run_with_iobinding(binding, self._options(_NO_GRAPH))
        return [tuple(value.shape()[1:]) for value in binding.get_outputs()]

    def _options(self, graph: int) -> Any:
        """Return the options of a run whose CUDA graph has this number."""
        options = self._runtime.RunOptions()
        if self._settings.graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def _run(self, lane: _Lane, count: int, size: int | None) -> list[Floats]:
        """Run a lane's batch, which was copied where there is a `size`; in parts where it must be."""
        if size in lane.buffers:  # not so where the batch before it ran out of memory
            assert size is not None
            try:
                return [output[:count] for output in self._outputs(lane, size)]
            except Exception as error:  # ONNX Runtime's errors have no common base
                self._descend(size, error)
        parts: list[list[Floats]] = []
        while (first := sum(len(part[0]) for part in parts)) < count:
            parts.append(self._run_part(lane, first, count - first))
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run_part(self, lane: _Lane, first: int, count: int) -> list[Floats]:
        """Run some of a lane's rows: as many as fit, and at most `count`."""
        while True:
            try:
                size = self._upload(lane, first, count)
                return [output[:count] for output in self._outputs(lane, size)]
            except Exception as error:  # ONNX Runtime's errors have no common base
                self._descend(self._size_of(count), error)

    def _outputs(self, lane: _Lane, size: int) -> list[Floats]:
        buffers = lane.buffers[size]
        if self._settings.graphs and not buffers.captured:
            with self._cuda:
                for _ in range(_RUNS_UNTIL_CAPTURED):
                    self._session.run_with_iobinding(buffers.binding, buffers.options)
            buffers.captured = True
        else:
            self._session.run_with_iobinding(buffers.binding, buffers.options)
        return [np.asarray(value.numpy(), np.float32) for value in buffers.outputs]

    def _descend(self, size: int, error: Exception) -> None:
        """Lower the ladder below `size` and open the session anew; any other error is raised again."""
        if not is_out_of_memory(error):
            raise error
        if size == 1:
            raise RuntimeMissingError(
                f"the GPU's memory does not hold a single file: {str(error).strip()[:200]}",
                "Free some of it (nvidia-smi shows who has it), raise --cuda-memory-mb, or use --device cpu.",
            ) from error
        with self._cuda:
            # All that holds the session goes, so that its memory is given back before the next asks for some:
            # bindings do, in the lanes and in the frames that the error came through.
            for lane in self._lanes:
                lane.buffers.clear()
            traceback.clear_frames(error.__traceback__)
            self.ladder = ladder(size // 2)
            self._session = None
            self._session = self._open_session()
