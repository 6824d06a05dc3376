"""Models in ONNX Runtime: the only module that imports it.

ONNX Runtime falls back to the CPU without a word when CUDA is not usable, and two of its distributions
overwrite each other in one environment. Both are errors here, never surprises.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from drumline.bundle import Bundle
from drumline.cuda import PROVIDER as _CUDA
from drumline.cuda import CudaRunner, CudaSettings, provider_options
from drumline.durable import way_out_of
from drumline.ensemble import SMALLEST_PROBABILITY
from drumline.errors import BundleError, RuntimeMissingError
from drumline.frontend import row_parts
from drumline.onnxfile import OnnxFormatError, foreign_domains, has_external_data
from drumline.settings import CPU_FILES, Device
from drumline.staging import Staging

__all__ = [
    "Graph",
    "Outputs",
    "Session",
    "check_runtime",
    "import_runtime",
    "open_graph",
    "open_session",
]

Floats = NDArray[np.float32]

_CPU = "CPUExecutionProvider"
_INSTALL = (
    'Install one: pip install "path/to/drumline[cpu]", or "path/to/drumline[gpu]" on a machine with an '
    "NVIDIA GPU."
)
_NO_MEMORY = ("failed to map segment", "annot allocate memory")
_MORE_MEMORY = "There is too little memory to load it: raise its limit (ulimit -v)."
# Whatever it would log as an error comes as an exception, too.
_FATAL = 4
_CPU_VALUES = 1 << 18
"""Values of the waveforms of one call on the CPU, whose spectra would take much memory."""


class Outputs(NamedTuple):
    """What a model says of n recordings.

    Parameters
    ----------
    probabilities
        Calibrated, (n, labels) float32.
    gate
        Probability of being a kit drum, (n,) float32; None of a model without a gate.
    """

    probabilities: Floats
    gate: Floats | None


class Runner(Protocol):
    """Runs a model's graph over batches."""

    @property
    def overlaps(self) -> bool:
        """Whether a batch may still be running when `start` has returned."""

    def stage(self, count: int) -> Staging:
        """Return rows for a batch of at most `count` files, which `start` need not copy."""

    def start(self, rows: Floats) -> Callable[[], list[Floats]]:
        """Start a batch; what it returns waits for the outputs, each (n, …)."""


@dataclass(frozen=True)
class Session:
    """A bundle's model, open on one device.

    Parameters
    ----------
    bundle
        What was opened.
    device
        Where it really runs.
    providers
        ONNX Runtime's execution providers, in order.
    runner
        Runs the graph.
    """

    bundle: Bundle
    device: Literal["cpu", "cuda"]
    providers: tuple[str, ...]
    runner: Runner
    _gives_probabilities: bool = False

    def stage(self, count: int) -> Staging:
        """Return rows for the next batch of at most `count` files; `start` takes them without a copy.

        They are free until then, and again when that batch is done.
        """
        return self.runner.stage(count)

    def start(self, features: Floats) -> Callable[[], Outputs]:
        """Start a batch, and return what waits for what the model says; `features` as for `logits`.

        At most two batches are under way at once: a third waits for the first.
        """
        pending = self._started(features)

        def outputs() -> Outputs:
            logits, *gate = self._finished(pending())
            return Outputs(self.bundle.calibrator(logits), gate[0].reshape(-1) if gate else None)

        return outputs

    def predict(self, features: Floats) -> Outputs:
        """Return what the model says; `features` as for `logits`."""
        return self.start(features)()

    def logits(self, features: Floats) -> Floats:
        """Run the model.

        Parameters
        ----------
        features
            Shape (n, *bundle.row_shape), float32.

        Returns
        -------
        Logits, shape (n, labels), float32; logarithms of the probabilities of a model that gives only those.
        """
        return self._finished(self._started(features)())[0]

    def probabilities(self, features: Floats) -> Floats:
        """Return the calibrated probabilities, shape (n, labels), float32; `features` as for `logits`."""
        return self.predict(features).probabilities

    def _started(self, features: Floats) -> Callable[[], list[Floats]]:
        if not len(features):
            logits, gate = np.empty((0, len(self.bundle.labels)), np.float32), np.empty(0, np.float32)
            return lambda: [logits] if self.bundle.gate is None else [logits, gate]
        return self.runner.start(np.ascontiguousarray(features, np.float32))

    def _finished(self, outputs: list[Floats]) -> list[Floats]:
        """Return the logits, and what the gate says where there is one."""
        if self._gives_probabilities:
            outputs[0] = np.log(np.maximum(outputs[0], SMALLEST_PROBABILITY))
        return outputs


def check_runtime() -> None:
    """See, without importing it, that exactly one ONNX Runtime is installed.

    Raises
    ------
    RuntimeMissingError
        When there is none, or both distributions are installed.
    """
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        raise RuntimeMissingError(
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other",
            "Remove both: pip uninstall -y onnxruntime onnxruntime-gpu\n"
            'Then install one: pip install "path/to/drumline[cpu]" or "path/to/drumline[gpu]".',
        )
    if "onnxruntime" not in sys.modules and find_spec("onnxruntime") is None:
        raise RuntimeMissingError("ONNX Runtime is not installed", _INSTALL)


def import_runtime() -> ModuleType:
    """Import ONNX Runtime.

    Raises
    ------
    RuntimeMissingError
        When there is none, it is broken, or both distributions are installed.
    """
    check_runtime()
    try:
        import onnxruntime
    except ImportError as error:
        cramped = any(words in str(error) for words in _NO_MEMORY)
        raise RuntimeMissingError(
            f"ONNX Runtime cannot be imported: {error}", _MORE_MEMORY if cramped else _INSTALL
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeMissingError("the ONNX Runtime in this environment is broken", _INSTALL)
    return onnxruntime  # type: ignore[no-any-return]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def open_session(
    bundle: Bundle,
    device: Device = "auto",
    threads: int = 1,
    cpu_files: int | None = None,
    cuda: CudaSettings | None = None,
) -> Session:
    """Open a bundle's model and run it once.

    Parameters
    ----------
    bundle
        What to open.
    device
        ``"auto"`` takes CUDA where it really works, else the CPU.
    threads
        CPU threads of one call.
    cpu_files
        Files of one call on the CPU, where a batch is taken in parts. None: `CPU_FILES`.
    cuda
        How a GPU is used; None: the defaults.

    Raises
    ------
    RuntimeMissingError
        When there is no usable ONNX Runtime, or CUDA was asked for and would not really be used.
    BundleError
        When the model cannot be read or does not fit the front end and labels.
    """
    if bundle.members:
        sessions = [open_session(member, device, threads, cpu_files, cuda) for member in bundle.members]
        return _open_members(bundle, sessions)
    runtime = import_runtime()
    if device == "cpu" or (device == "auto" and _CUDA not in runtime.get_available_providers()):
        return _open_cpu(runtime, bundle, threads, cpu_files or CPU_FILES)
    try:
        return _open_cuda(runtime, bundle, cuda or CudaSettings())
    except RuntimeMissingError:
        if device == "cuda":
            raise
        return _open_cpu(runtime, bundle, threads, cpu_files or CPU_FILES)


class _HostRunner:
    """Runs at once what it is given; `start` returns when it is done."""

    overlaps = False

    def __init__(self, row_shape: tuple[int, ...], run: Callable[[Floats], list[Floats]]) -> None:
        self._row_shape, self._run = row_shape, run
        self._staging = Staging(np.zeros((0, *row_shape), np.float32))

    def stage(self, count: int) -> Staging:
        if len(self._staging.rows) < count:
            self._staging = Staging(np.zeros((count, *self._row_shape), np.float32))
        return self._staging

    def start(self, rows: Floats) -> Callable[[], list[Floats]]:
        outputs = self._run(rows)
        return lambda: outputs


def _open_cpu(runtime: ModuleType, bundle: Bundle, threads: int, files: int) -> Session:
    graph = Graph(_create(runtime, bundle.model_path, threads, [_CPU]), bundle.model_path)
    names, shape = graph.outputs_of(bundle), graph.input_shape(bundle)
    if len(shape) == 1:
        files = max(1, min(files, _CPU_VALUES // math.prod(shape)))

    def run(rows: Floats) -> list[Floats]:
        placed = rows.reshape(len(rows), *shape)
        parts = (placed[start : start + files] for start in range(0, len(rows), files))
        runs = [graph.session.run(names, {bundle.input_name: part}) for part in parts]
        return [np.concatenate(outputs) for outputs in zip(*runs, strict=True)]

    return _checked(bundle, "cpu", graph, _HostRunner(bundle.row_shape, run))


class _MembersRunner:
    """Gives each member of an ensemble its part of every row, and takes the mean of what they say."""

    def __init__(self, bundle: Bundle, sessions: list[Session]) -> None:
        self._bundle, self._sessions = bundle, sessions
        self._host = _HostRunner(bundle.row_shape, lambda _rows: [])
        self.overlaps = any(session.runner.overlaps for session in sessions)

    def stage(self, count: int) -> Staging:
        return self._host.stage(count)

    def start(self, rows: Floats) -> Callable[[], list[Floats]]:
        front_ends = self._bundle.front_ends
        parts = dict(zip(front_ends, row_parts(rows, front_ends), strict=True))
        # Each member copies its part, so the rows are free again when this returns.
        pending = [session.start(parts[session.bundle.front_end]) for session in self._sessions]
        return partial(self._mean, pending)

    def _mean(self, pending: list[Callable[[], Outputs]]) -> list[Floats]:
        mean, said = self._bundle.mean, [outputs() for outputs in pending]
        assert mean is not None
        logits = mean.logits([outputs.probabilities for outputs in said])
        if self._bundle.gate is None:
            return [logits]
        return [logits, mean.over_some([outputs.gate for outputs in said])]


def _open_members(bundle: Bundle, sessions: list[Session]) -> Session:
    if bundle.gate is not None and not any(session.bundle.gate for session in sessions):
        raise BundleError(f"bundle {bundle.name} names a gate, and none of its members has one")
    first = sessions[0]
    return Session(bundle, first.device, first.providers, _MembersRunner(bundle, sessions))


def _options(runtime: ModuleType, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = max(1, threads), 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    # Spinning threads burn the extract workers' cores; the arena costs 400 MB for 3 % speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


def _create(runtime: ModuleType, model_path: Path, threads: int, providers: list[Any]) -> Any:
    data = _read_model(model_path)
    try:
        # Its fallback would print to stdout and go on with the CPU, at the start and at any later call.
        return runtime.InferenceSession(
            data, _options(runtime, threads), providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BundleError(
            f"ONNX Runtime cannot load {str(model_path)!r}: {_first_line(error)}",
            "It is damaged, or needs a newer onnxruntime: export it again, or update.",
        ) from error


def _read_model(model_path: Path) -> bytes:
    try:
        data = model_path.read_bytes()
        outside, foreign = has_external_data(data), foreign_domains(data)
    except OSError as error:
        raise BundleError(
            f"cannot read the model {str(model_path)!r}: {error.strerror}",
            way_out_of(error, "Check the path and the permissions."),
        ) from error
    except OnnxFormatError as error:
        raise BundleError(
            f"{str(model_path)!r} is no ONNX model: {error}", "It is damaged: copy or export it again."
        ) from error
    if outside:
        raise BundleError(
            f"{str(model_path)!r} keeps its weights in other files, which is refused",
            "Export it as one file (external_data=False).",
        )
    if foreign:
        raise BundleError(
            f"{str(model_path)!r} uses operators of {', '.join(foreign)[:200]!r}, which is refused",
            "They would need code of their own: export the model with ONNX's operators only.",
        )
    return data


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@dataclass(frozen=True)
class Graph:
    """A model's inputs and outputs, checked against what a bundle says.

    Parameters
    ----------
    session
        An ``onnxruntime.InferenceSession``.
    path
        Named in errors.
    """

    session: Any
    path: Path

    @property
    def outputs(self) -> dict[str, list[Any]]:
        """Output name → shape, where a dimension that varies is no whole number."""
        return {output.name: output.shape for output in self.session.get_outputs()}

    @property
    def classes(self) -> int | None:
        """Last dimension of the first output; None when it varies."""
        size = next(iter(self.outputs.values()))[-1:]
        return size[0] if size and isinstance(size[0], int) else None

    @property
    def metadata(self) -> dict[str, str]:
        """Custom metadata of the model."""
        return dict(self.session.get_modelmeta().custom_metadata_map)

    def output_of(self, bundle: Bundle) -> str:
        """Return the output to read: the logits, or the probabilities of a model without."""
        for name in (bundle.logits_name, bundle.probabilities_name):
            if name in self.outputs:
                return name
        raise BundleError(
            f"{str(self.path)!r} has no output {bundle.logits_name!r}; it has {_listed(self.outputs)}",
            'Name the output in bundle.json: "outputs": {"logits": …}.',
        )

    def outputs_of(self, bundle: Bundle) -> list[str]:
        """Return the outputs to read: that of `output_of`, and the gate's where the bundle names one."""
        if bundle.gate is None:
            return [self.output_of(bundle)]
        if bundle.gate.output not in self.outputs:
            raise BundleError(
                f"{str(self.path)!r} has no output {bundle.gate.output!r} for the gate; "
                f"it has {_listed(self.outputs)}",
                "Take \"gate\" out of bundle.json, or make the bundle again: 'drumline gate'.",
            )
        return [self.output_of(bundle), bundle.gate.output]

    def input_shape(self, bundle: Bundle) -> tuple[int, ...]:
        """Return the shape of one file's input: the front end's, perhaps with a channel axis of 1."""
        inputs = {node.name: node.shape for node in self.session.get_inputs()}
        if list(inputs) != [bundle.input_name]:
            raise BundleError(
                f"{str(self.path)!r} has input {_listed(inputs)}, bundle.json names {bundle.input_name!r}",
                'Name the one input in bundle.json: "input": {"name": …}.',
            )
        batch, *given = inputs[bundle.input_name] or [0]
        wanted = bundle.front_end.shape
        for shape in (wanted, (1, *wanted), (*wanted, 1)):
            if len(shape) == len(given) and all(map(_fits, given, shape)) and not isinstance(batch, int):
                return shape
        raise BundleError(
            f"{str(self.path)!r} takes inputs of shape {_shape_text([batch, *given])}, "
            f"and the front end gives {_shape_text(['batch', *wanted])}",
            "Use the front end that the model was trained with, and export with a dynamic batch.",
        )


def _fits(given: object, wanted: int) -> bool:
    return given == wanted or not isinstance(given, int)


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _shape_text(shape: list[Any]) -> str:
    return " × ".join("any" if size is None else str(size) for size in shape)


def open_graph(model_path: Path) -> Graph:
    """Open a lone ONNX file on the CPU, to look at its inputs and outputs."""
    runtime = import_runtime()
    return Graph(_create(runtime, model_path, 1, [_CPU]), model_path)


def _checked(bundle: Bundle, device: Literal["cpu", "cuda"], graph: Graph, runner: Runner) -> Session:
    output = graph.output_of(bundle)
    try:
        outputs, *gate = map(np.asarray, runner.start(np.zeros((1, *bundle.row_shape), np.float32))())
    except Exception as error:
        raise BundleError(f"the model of bundle {bundle.name} does not run: {_first_line(error)}") from error
    classes = outputs.shape[-1] if outputs.ndim == 2 and len(outputs) == 1 else 0
    if classes != len(bundle.labels):
        raise BundleError(
            f"bundle {bundle.name}: model gives {classes} classes, label file has {len(bundle.labels)}",
            "Use the label file that was written when the model was trained.",
        )
    if gate and gate[0].size != 1:
        raise BundleError(f"bundle {bundle.name}: the gate gives {gate[0].size} values for a file, not one")
    providers = tuple(graph.session.get_providers())
    return Session(bundle, device, providers, runner, output != bundle.logits_name)


def _open_cuda(runtime: ModuleType, bundle: Bundle, settings: CudaSettings) -> Session:
    if _CUDA not in runtime.get_available_providers():
        raise RuntimeMissingError(
            "the installed ONNX Runtime is the one for CPUs: it cannot use CUDA",
            'pip uninstall -y onnxruntime, then pip install "path/to/drumline[gpu]"; or use --device cpu.',
        )
    with _silenced_stdout():
        getattr(runtime, "preload_dlls", lambda: None)()
    try:
        return _cuda_session(runtime, bundle, settings)
    except BundleError as error:
        _open_cpu(runtime, bundle, 1, CPU_FILES)  # tells a broken model from a broken CUDA
        if settings.graphs and "graph capture" in error.what:
            raise RuntimeMissingError(
                f"this model cannot be captured as a CUDA graph: {error.what}", "Leave out --cuda-graphs."
            ) from error
        raise _no_cuda(error.what) from error


def _cuda_session(runtime: ModuleType, bundle: Bundle, settings: CudaSettings) -> Session:
    def opened() -> Any:
        providers = [(_CUDA, provider_options(settings)), _CPU]
        session = _create(runtime, bundle.model_path, 1, providers)
        given = session.get_providers()
        if given[0] != _CUDA:
            raise _no_cuda(f"ONNX Runtime gave {', '.join(given)}")
        return session

    first = opened()
    graph = Graph(first, bundle.model_path)
    names, shape = graph.outputs_of(bundle), graph.input_shape(bundle)
    runner = CudaRunner(runtime, first, opened, bundle.input_name, names, bundle.row_shape, shape, settings)
    return _checked(bundle, "cuda", graph, runner)


def _no_cuda(cause: str) -> RuntimeMissingError:
    return RuntimeMissingError(
        f"CUDA cannot be used: {cause}",
        "Check the driver (nvidia-smi) and that CUDA and cuDNN are there "
        "(pip install \"path/to/drumline[gpu]\" brings them); 'drumline doctor' shows more. "
        "Or use --device cpu.",
    )


@contextlib.contextmanager
def _silenced_stdout() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
