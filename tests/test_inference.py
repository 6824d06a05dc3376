"""Models in ONNX Runtime: checked when they are opened, and never on another device than was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from drumline import inference
from drumline.bundle import Bundle, load_bundle
from drumline.calibration import softmax
from drumline.errors import BundleError, RuntimeMissingError
from drumline.inference import import_runtime, open_graph, open_session
from drumline.onnxfile import encode_model, encode_node
from tests.fake_cuda import FakeRuntime
from tests.making import linear_model, make_bundle

Floats = NDArray[np.float32]
CLASSES = len(load_bundle().labels)


def features(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 30, (count, 40, 98)).astype(np.float32)


@pytest.fixture(scope="module")
def default() -> inference.Session:
    return open_session(load_bundle(), "cpu")


def test_the_default_bundle_gives_probabilities_of_all_labels(default: inference.Session) -> None:
    probabilities = default.probabilities(features(5))
    assert (probabilities.shape, probabilities.dtype) == ((5, CLASSES), np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (default.device, default.providers) == ("cpu", ("CPUExecutionProvider",))


def test_probabilities_are_the_softmax_of_logits_over_the_temperature(default: inference.Session) -> None:
    logits = default.logits(features(4)).astype(np.float64) / default.bundle.temperature
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(default.probabilities(features(4)), expected, atol=1e-6)


def test_results_do_not_depend_on_the_batch_size(default: inference.Session) -> None:
    together, given = default.probabilities(features(33)), features(33)
    for size in (1, 2, 7, 32):
        parts = [default.probabilities(given[place : place + size]) for place in range(0, 33, size)]
        np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-5)


def test_no_features_give_no_probabilities(default: inference.Session) -> None:
    assert default.probabilities(features(0)).shape == (0, CLASSES)


def test_features_need_not_be_contiguous(default: inference.Session) -> None:
    given = features(8)
    np.testing.assert_array_equal(default.logits(given[::2]), default.logits(given[::2].copy()))


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8), st.floats(0.1, 10))
def test_softmax_never_overflows(values: list[float], temperature: float) -> None:
    result = softmax(np.array([values], np.float32), temperature)
    assert np.isfinite(result).all()
    assert result.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [("batch", 1, 40, 98), ("batch", 40, 98, 1), ("n", "rows", "frames")])
def test_a_channel_axis_of_one_and_free_dimensions_are_accepted(
    tmp_path: Path, shape: tuple[int | str, ...]
) -> None:
    free = "rows" in shape
    model = stub_free_model() if free else linear_model(CLASSES, shape)
    session = open_session(make_bundle(tmp_path / "b", model), "cpu")
    assert session.logits(features(3)).shape == (3, CLASSES)


def stub_free_model() -> bytes:
    weights = np.ones((40, CLASSES), np.float32)
    return encode_model(
        nodes=[
            encode_node("ReduceMean", ["features"], "means", axes=[2], keepdims=0),
            encode_node("MatMul", ["means", "weights"], "logits"),
        ],
        weights={"weights": weights},
        inputs={"features": ("n", "rows", "frames")},
        outputs={"logits": ("n", "classes")},
    )


def test_a_model_without_logits_is_read_through_its_probabilities(tmp_path: Path) -> None:
    both = make_bundle(tmp_path / "both", linear_model(CLASSES))
    only = make_bundle(tmp_path / "only", linear_model(CLASSES, outputs=["probabilities"]))
    given = features(6) / 30
    probabilities = open_session(only, "cpu").probabilities(given)
    np.testing.assert_allclose(probabilities, open_session(both, "cpu").probabilities(given), atol=1e-6)


def test_outputs_and_input_may_have_other_names(tmp_path: Path) -> None:
    model = linear_model(CLASSES, outputs=["scores", "shares"])
    bundle = make_bundle(tmp_path / "b", model, outputs={"logits": "scores", "probabilities": "shares"})
    assert open_session(bundle, "cpu").logits(features(2)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (linear_model(CLASSES + 5), {}, rf"model gives {CLASSES + 5} classes, label file has {CLASSES}"),
        (linear_model(CLASSES, ("batch", 40, 99)), {}, r"batch × 40 × 99.*batch × 40 × 98"),
        (linear_model(CLASSES, ("batch", 3, 40, 98)), {}, r"3 × 40 × 98"),
        (linear_model(CLASSES, (1, 40, 98)), {}, r"1 × 40 × 98"),
        (linear_model(CLASSES), {"input": {"name": "x"}}, r"input 'features', bundle.json names 'x'"),
        (linear_model(CLASSES, outputs=["a", "b"]), {}, r"no output 'logits'; it has 'a', 'b'"),
        (b"", {}, r"model\.onnx"),
        (b"\x00" * 64, {}, r"model\.onnx"),
        (b"no model at all", {}, r"model\.onnx"),
        (linear_model(CLASSES)[:-40], {}, r"model\.onnx"),
    ],
)
def test_a_model_that_does_not_fit_its_bundle_is_refused_with_both_sides(
    tmp_path: Path, model: bytes, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        open_session(make_bundle(tmp_path / "b", model, **changes), "cpu")


def test_a_model_with_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    model = encode_model(
        nodes=[encode_node("RunProgram", ["features"], "logits")],
        weights={},
        inputs={"features": ("batch", 40, 98)},
        outputs={"logits": ("batch", CLASSES)},
    )
    with pytest.raises(BundleError, match="RunProgram"):
        open_session(make_bundle(tmp_path / "b", model), "cpu")


def test_a_missing_model_is_named() -> None:
    with pytest.raises(BundleError, match=r"nowhere\.onnx"):
        open_graph(Path("nowhere.onnx"))


def test_a_graph_tells_its_classes_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_model(7, metadata={"labels": "a,b"}))
    graph = open_graph(tmp_path / "m.onnx")
    assert (graph.classes, graph.metadata) == (7, {"labels": "a,b"})
    assert list(graph.outputs) == ["logits", "probabilities"]


def test_nothing_is_printed_by_onnx_runtime(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_session(load_bundle(), "auto")
    with pytest.raises(BundleError):
        open_session(make_bundle(tmp_path / "b", b"\x00" * 64), "cpu")
    assert capfd.readouterr() == ("", "")


def installed(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def test_without_onnx_runtime_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError) as error:
        open_session(load_bundle())
    assert 'pip install "path/to/drumline[cpu]"' in error.value.way_out
    assert "drumline[gpu]" in error.value.way_out


def test_both_distributions_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_is_installed", installed("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(RuntimeMissingError, match="both installed") as error:
        import_runtime()
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in error.value.way_out


def test_the_ruins_of_an_uninstalled_runtime_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(RuntimeMissingError, match="broken"):
        import_runtime()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRuntime]:
    def install(works: bool, **how: Any) -> FakeRuntime:
        runtime = FakeRuntime(works, **how)
        monkeypatch.setattr(inference, "import_runtime", lambda: runtime)
        return runtime

    return install


def no_kernel(_size: int) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


@pytest.fixture
def bundle() -> Bundle:
    return load_bundle()


def test_cuda_fails_loudly_with_the_runtime_for_cpus(bundle: Bundle) -> None:
    if "CUDAExecutionProvider" in import_runtime().get_available_providers():
        pytest.skip("this ONNX Runtime knows CUDA")
    with pytest.raises(RuntimeMissingError, match="CPUs") as error:
        open_session(bundle, "cuda")
    assert "drumline[gpu]" in error.value.way_out


def test_cuda_fails_loudly_where_onnx_runtime_would_silently_use_the_cpu(
    bundle: Bundle, fake: Callable[..., FakeRuntime], capfd: pytest.CaptureFixture[str]
) -> None:
    fake(False)
    with pytest.raises(RuntimeMissingError, match="CUDA cannot be used"):
        open_session(bundle, "cuda")
    assert open_session(bundle, "auto").device == "cpu"
    assert capfd.readouterr().out == ""


def test_cuda_that_fails_at_the_first_batch_is_no_broken_model(
    bundle: Bundle, fake: Callable[..., FakeRuntime]
) -> None:
    fake(works=True, fault=no_kernel)
    with pytest.raises(RuntimeMissingError, match="no kernel image"):
        open_session(bundle, "cuda")
    assert open_session(bundle, "auto").device == "cpu"


def test_where_cuda_works_auto_takes_it_and_results_are_the_same(
    bundle: Bundle, fake: Callable[..., FakeRuntime]
) -> None:
    expected = open_session(bundle, "cpu").probabilities(features(7))
    fake(True)
    session = open_session(bundle, "auto")
    assert (session.device, session.providers[0]) == ("cuda", "CUDAExecutionProvider")
    for _ in range(2):
        np.testing.assert_allclose(session.probabilities(features(7)), expected, atol=1e-6)
    np.testing.assert_allclose(session.probabilities(features(7)[:3]), expected[:3], atol=1e-6)


def test_on_cuda_batches_are_padded_to_few_shapes(bundle: Bundle, fake: Callable[..., FakeRuntime]) -> None:
    runtime = fake(True)
    session = open_session(bundle, "cuda")
    for count in range(1, 34):
        assert session.logits(features(count)).shape == (count, CLASSES)
    assert set(runtime.batches) == {1, 4, 16, 64}


def test_a_broken_model_is_a_bundle_error_on_cuda_too(
    tmp_path: Path, fake: Callable[..., FakeRuntime]
) -> None:
    fake(True)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_session(make_bundle(tmp_path / "b", b"\x00" * 64), "auto")
