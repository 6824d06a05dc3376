"""The GPU: two lanes in turn, few sizes, graphs, and memory that runs out. CUDA is played by a fake."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from drumline import inference, pinned
from drumline.bundle import Bundle, load_bundle
from drumline.cuda import CudaSettings, is_out_of_memory, ladder
from drumline.errors import RuntimeMissingError
from drumline.inference import Session, open_session
from drumline.pinned import pinned_zeros
from drumline.staging import Staging
from tests.fake_cuda import ARENA, LIMITED, FakeRuntime
from tests.making import gated_model, linear_model, make_bundle

Floats = NDArray[np.float32]
SOON = 5.0
CLASSES = len(load_bundle().labels)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "linear", linear_model(CLASSES))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRuntime]:
    def install(**how: Any) -> FakeRuntime:
        runtime = FakeRuntime(**how)
        monkeypatch.setattr(inference, "import_runtime", lambda: runtime)
        return runtime

    return install


def features(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 30, (count, 40, 98)).astype(np.float32)


def opened(bundle: Bundle, **settings: Any) -> Session:
    return open_session(bundle, "cuda", cuda=CudaSettings(**settings))


@pytest.fixture
def expected(bundle: Bundle) -> Callable[[Floats], Floats]:
    return open_session(bundle, "cpu").probabilities


@given(st.integers(1, 5000))
def test_the_ladder_has_few_sizes_and_none_is_four_times_too_large(largest: int) -> None:
    sizes = ladder(largest)
    assert (sizes[0], sizes[-1]) == (1, largest)
    assert list(sizes) == sorted(set(sizes))
    assert all(above <= 4 * below for below, above in pairwise(sizes))
    assert len(sizes) <= 8


def test_the_provider_gets_exact_arithmetic_and_the_limits_that_were_asked_for(
    bundle: Bundle, fake: Callable[..., FakeRuntime]
) -> None:
    runtime = fake()
    opened(bundle)
    opened(bundle, graphs=True, memory_mb=2000)
    plain, limited = runtime.options
    assert plain["use_tf32"] == "0"
    assert not {"enable_cuda_graph", "gpu_mem_limit"} & plain.keys()
    assert limited == plain | {"enable_cuda_graph": "1", "gpu_mem_limit": "2000000000"}


@pytest.mark.parametrize("graphs", [False, True])
def test_batches_of_any_size_say_what_the_cpu_says(
    bundle: Bundle, fake: Callable[..., FakeRuntime], expected: Callable[[Floats], Floats], graphs: bool
) -> None:
    wanted = {count: expected(features(count, count)) for count in (1, 2, 20, 33, 64, 65, 200)}
    runtime = fake()
    session = opened(bundle, graphs=graphs)
    for count, probabilities in wanted.items():
        np.testing.assert_allclose(session.probabilities(features(count, count)), probabilities, atol=1e-6)
    assert set(runtime.batches) == {1, 4, 16, 64}


def test_two_batches_are_under_way_and_each_gets_its_own_answer(
    bundle: Bundle, fake: Callable[..., FakeRuntime], expected: Callable[[Floats], Floats]
) -> None:
    wanted = [expected(features(7, seed)) for seed in range(6)]
    fake()
    session = opened(bundle)
    pending = [session.start(features(7, 0))]
    for seed in range(1, 6):
        staging = session.stage(7)
        pending.append(session.start(staging.copy(features(7, seed))))
        np.testing.assert_allclose(pending[-2]().probabilities, wanted[seed - 1], atol=1e-6)
    np.testing.assert_allclose(pending[-1]().probabilities, wanted[-1], atol=1e-6)


def test_the_copy_of_the_next_batch_overlaps_with_the_run_of_this_one(
    bundle: Bundle, fake: Callable[..., FakeRuntime]
) -> None:
    copied, waiting = threading.Event(), threading.Event()

    def hold(size: int) -> None:
        if size == 4:
            waiting.set()
            assert copied.wait(SOON), "the next batch was not copied meanwhile"

    runtime = fake(fault=hold)
    session = opened(bundle)
    first = session.start(features(4))
    assert waiting.wait(SOON)
    second = session.start(features(16))
    assert runtime.events[-1] == ("upload", 16)
    copied.set()
    assert len(first().probabilities) == 4
    assert len(second().probabilities) == 16
    assert runtime.events[-2:] == [("run", 4), ("run", 16)]


def test_rows_that_were_staged_are_not_copied_again(bundle: Bundle, fake: Callable[..., FakeRuntime]) -> None:
    fake()
    session = opened(bundle)
    staging = session.stage(8)
    rows = staging.copy(features(8))
    session.start(rows)
    other = session.stage(8)
    assert not np.shares_memory(other.rows, staging.rows)
    assert np.shares_memory(session.stage(8).rows, other.rows)


def test_each_lane_and_size_has_a_graph_of_its_own_captured_while_nothing_else_calls_cuda(
    bundle: Bundle, fake: Callable[..., FakeRuntime]
) -> None:
    runtime = fake()
    session = opened(bundle, graphs=True)
    runtime.graphs.clear()
    for _ in range(4):
        for count in (4, 64):
            session.probabilities(features(count))
            session.probabilities(features(count))
    sizes = {graph: size for graph, size, _ in runtime.graphs}
    assert sorted(sizes.values()) == [4, 4, 64, 64]
    assert len({thread for _, _, thread in runtime.graphs}) == 1
    assert min(sizes) >= 0


def test_a_capture_holds_up_copies(bundle: Bundle, fake: Callable[..., FakeRuntime]) -> None:
    runs = threading.Semaphore(0)
    begun = threading.Event()

    def hold(size: int) -> None:
        if size == 4:
            begun.set()
            assert runs.acquire(timeout=SOON)

    runtime = fake(fault=hold)
    session = opened(bundle, graphs=True)
    first = session.start(features(4))
    assert begun.wait(SOON)
    starting = threading.Thread(target=lambda: session.start(features(16))())
    starting.start()
    assert ("upload", 16) not in runtime.events
    runs.release(3)
    assert len(first().probabilities) == 4
    starting.join(SOON)
    assert not starting.is_alive()
    assert runtime.events.index(("upload", 16)) > runtime.events.index(("run", 4)) + 1


def crowded(room: int, message: str = ARENA) -> Callable[[int], None]:
    def fail(size: int) -> None:
        if size > room:
            raise RuntimeError(f"Non-zero status code returned while running Conv node. {message}")

    return fail


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("how", ["run", "copy"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_ladder_stays_low(
    bundle: Bundle,
    fake: Callable[..., FakeRuntime],
    expected: Callable[[Floats], Floats],
    graphs: bool,
    how: str,
) -> None:
    wanted = expected(features(100))
    runtime = fake(fault=crowded(20)) if how == "run" else fake(room=20)
    session = opened(bundle, batch_size=128, graphs=graphs)
    np.testing.assert_allclose(session.probabilities(features(100)), wanted, atol=1e-6)
    assert session.runner.ladder == (1, 4, 16)  # type: ignore[attr-defined]
    assert len(runtime.options) == 4, "opened anew for each step down: 128, 64, 32, 16"
    assert runtime.open_already == [0, 0, 0, 0], "the one before had given its memory back"
    runtime.events.clear()
    np.testing.assert_allclose(session.probabilities(features(100)), wanted, atol=1e-6)
    assert max(runtime.batches) == 16
    assert len(runtime.options) == 4


def test_a_batch_that_was_copied_before_memory_ran_out_is_not_lost(
    bundle: Bundle, fake: Callable[..., FakeRuntime], expected: Callable[[Floats], Floats]
) -> None:
    wanted = [expected(features(64, seed)) for seed in range(4)]
    fake(fault=crowded(20))
    session = opened(bundle)
    pending = []
    for seed in range(4):
        pending.append(session.start(features(64, seed)))
    for outputs, probabilities in zip(pending, wanted, strict=True):
        np.testing.assert_allclose(outputs().probabilities, probabilities, atol=1e-6)


def test_a_gpu_that_holds_no_file_ends_the_command_and_says_what_helps(
    bundle: Bundle, fake: Callable[..., FakeRuntime]
) -> None:
    full: list[int] = []

    def fault(size: int) -> None:
        if full:
            raise RuntimeError(ARENA)

    fake(fault=fault)
    session = opened(bundle)
    full.append(1)
    with pytest.raises(RuntimeMissingError, match="does not hold a single file") as error:
        session.probabilities(features(64))
    assert "--device cpu" in error.value.way_out
    assert error.value.exit_code == 5


def test_other_failures_do_not_lower_the_ladder(bundle: Bundle, fake: Callable[..., FakeRuntime]) -> None:
    broken: list[int] = []

    def fault(size: int) -> None:
        if broken:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    runtime = fake(fault=fault)
    session = opened(bundle)
    broken.append(1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        session.probabilities(features(64))
    assert session.runner.ladder[-1] == 64  # type: ignore[attr-defined]
    assert len(runtime.options) == 1


@pytest.mark.parametrize(
    "message",
    [
        ARENA,
        LIMITED,
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_every_way_of_running_out_of_memory_is_known(message: str) -> None:
    assert is_out_of_memory(RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {message}"))
    assert not is_out_of_memory(RuntimeError("INVALID_ARGUMENT : Got invalid dimensions for input"))


def test_a_model_that_cannot_be_captured_is_refused_with_the_way_out(
    bundle: Bundle, fake: Callable[..., FakeRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = fake()
    real = runtime.InferenceSession

    def refuse(data: bytes, options: Any, **kwargs: Any) -> Any:
        if kwargs["providers"][0] != "CPUExecutionProvider":
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        return real(data, options, **kwargs)

    monkeypatch.setattr(runtime, "InferenceSession", refuse)
    with pytest.raises(RuntimeMissingError, match="cannot be captured as a CUDA graph") as error:
        opened(bundle, graphs=True)
    assert "--cuda-graphs" in error.value.way_out


def test_the_gate_and_outputs_of_free_shape_come_from_the_gpu_too(
    tmp_path: Path, fake: Callable[..., FakeRuntime]
) -> None:
    gated = make_bundle(tmp_path / "g", gated_model(CLASSES), gate={"output": "gate", "threshold": 0.5})
    expected = open_session(gated, "cpu").predict(features(9))
    fake()
    found = opened(gated).predict(features(9))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert found.gate is not None
    np.testing.assert_allclose(found.gate, expected.gate, atol=1e-6)


class Driver:
    """The CUDA driver's two functions."""

    def __init__(self, code: int = 0) -> None:
        self._code = code
        self.locked: dict[int, int] = {}

    def cuMemHostRegister_v2(self, address: Any, size: Any, flags: Any) -> int:
        if self._code == 0:
            assert flags.value == 1
            self.locked[address.value] = size.value
        return self._code

    def cuMemHostUnregister(self, address: Any) -> int:
        del self.locked[address.value]
        return 0


def test_staging_rows_are_page_locked_and_unlocked_before_they_are_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    monkeypatch.setattr(pinned, "_driver", lambda: driver)
    rows, locked = pinned_zeros((16, 40, 98))
    assert locked
    assert not rows.any()
    ((address, size),) = driver.locked.items()
    assert (address % 4096, address, size) == (0, rows.ctypes.data, rows.nbytes)
    part = rows[3:5, 1]
    del rows
    gc.collect()
    assert driver.locked
    del part
    gc.collect()
    assert not driver.locked


@pytest.mark.parametrize("why", ["refused", "no driver", "no such function"])
def test_memory_that_cannot_be_locked_is_ordinary_memory(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def driver() -> Any:
        if why == "no driver":
            raise OSError("libcuda.so.1: cannot open shared object file")
        return Driver(code=2) if why == "refused" else object()

    monkeypatch.setattr(pinned, "_driver", driver)
    rows, locked = pinned_zeros((3, 5))
    assert not locked
    rows[:] = 1.0
    assert rows.sum() == 15


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=4), max_size=6))
def test_staged_waveforms_are_those_of_the_slots_whatever_stood_there_before(
    batches: list[list[tuple[int, int]]],
) -> None:
    staging = Staging(np.zeros((4, 12), np.float32))
    rng = np.random.default_rng(0)
    for batch in batches:
        slots, reach = rng.standard_normal((6, 12)).astype(np.float32), np.zeros(6, np.uint32)
        for slot, end in batch:
            reach[slot] = end
        places = [slot for slot, _ in batch]
        expected = np.where(np.arange(12) < reach[:, np.newaxis], slots, 0)[places]
        np.testing.assert_array_equal(staging.gather(slots, places, reach), expected)
