"""The ONNX file format, as far as it is needed without the `onnx` package."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.bundle import load_bundle
from drumline.errors import BundleError
from drumline.frontend import FrontEnd
from drumline.inference import open_graph
from drumline.onnxfile import OnnxFormatError, has_external_data
from drumline.stub import stub_model
from tests.making import linear_model

LABELS = ("Kick", "Snare", "Öl-Fass")


@pytest.mark.parametrize(
    "model", [stub_model(FrontEnd(), LABELS), linear_model(3, metadata={"a": "location"})]
)
def test_a_model_in_one_file_has_no_external_data(model: bytes) -> None:
    assert not has_external_data(model)


def test_shipped_models_have_no_external_data() -> None:
    assert not has_external_data(load_bundle().model_path.read_bytes())


def external_model(onnx: Any, where: str) -> bytes:
    """Return a model whose weights are in another file, referred to from the place `where`."""
    weights = onnx.TensorProto(name="w", data_type=1, dims=[98, 3], data_location=1)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(98 * 12))):
        weights.external_data.add(key=key, value=value)
    helper = onnx.helper
    source = [helper.make_tensor_value_info("features", 1, ["batch", 40, 98])]
    target = [helper.make_tensor_value_info("logits", 1, None)]
    constant, multiply = (
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("MatMul", ["features", "w"], ["logits"]),
    )
    if where == "initializer":
        graph = helper.make_graph([multiply], "g", source, target, [weights])
    elif where == "constant":
        graph = helper.make_graph([constant, multiply], "g", source, target)
    else:
        branch = helper.make_graph([constant, multiply], "branch", [], target)
        condition = helper.make_tensor("yes", 9, [], [True])
        node = helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([node], "g", source, target, [condition])
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
def test_weights_in_another_file_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(98 * 12))
    (tmp_path / "model.onnx").write_bytes(external_model(onnx, where))
    with pytest.raises(BundleError, match="other files") as error:
        open_graph(tmp_path / "model.onnx")
    assert "external_data=False" in error.value.way_out


@given(st.binary(max_size=200))
def test_no_bytes_whatsoever_give_another_error(data: bytes) -> None:
    with contextlib.suppress(OnnxFormatError):
        assert has_external_data(data) in (True, False)


def test_every_cut_of_a_model_ends_soon() -> None:
    model = stub_model(FrontEnd(), LABELS)
    for length in range(len(model)):
        with contextlib.suppress(OnnxFormatError):
            has_external_data(model[:length])
