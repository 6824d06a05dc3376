"""Smaller numbers: within bounds of the original, with what they cost and win."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drumline.bundle import Bundle, load_bundle
from drumline.classify import Classifier
from drumline.errors import UsageError
from drumline.inference import open_session
from drumline_convert import precision
from drumline_convert.convert_model import convert_model
from drumline_convert.manifest import Row, write_manifest
from drumline_convert.target import read_target
from tests.convert.graphs import LOG_MEL, TWELVE, log_mel_cnn, onnx
from tests.convert.test_ensembles import labelled
from tests.making import CommandLine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
WIDTHS = (8, 16, 32)


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_ROUNDS", 1)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "labels.json").write_text(json.dumps(TWELVE))
    onnx.save(log_mel_cnn(widths=WIDTHS), tmp_path / "cnn.onnx")
    target = read_target(None, LOG_MEL, tmp_path / "labels.json", None)
    convert_model(tmp_path / "cnn.onnx", target, tmp_path / "cnn")
    return load_bundle(tmp_path / "cnn")


@pytest.fixture
def manifest(tiny_corpus: Path, tmp_path: Path) -> Path:
    sides = {"kit0": "test", "kit1": "validation"}
    rows: list[Row] = [
        labelled(path, sides.get(path.parent.name, "train"))
        for path in sorted((tiny_corpus / "audio").glob("*/*.wav"))
    ]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    return tmp_path / "manifest.jsonl"


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.1), ("fp16", 0.01)])
def test_a_bundle_in_smaller_numbers_says_nearly_the_same_and_reports_both(
    bundle: Bundle,
    manifest: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    command: CommandLine,
    kind: str,
    bound: float,
) -> None:
    outcome = command(
        *("convert", bundle.path, "--precision", kind, "--manifest", manifest),
        *("--out", tmp_path / kind, "--json"),
    )
    assert outcome.code == 0, outcome.err
    report = outcome.json()
    assert report["largest_difference"] <= bound
    assert report["agreement"] >= 0.9
    assert report["after"]["bytes"] < report["before"]["bytes"]
    assert {"accuracy", "nll", "files_per_cpu_second"} <= report["after"].keys() & report["before"].keys()
    assert report["recordings"] == 24
    smaller = load_bundle(tmp_path / kind)
    assert (smaller.labels, smaller.calibrator) == (bundle.labels, bundle.calibrator)
    assert smaller.fingerprint != bundle.fingerprint
    kinds = {node.op_type for node in onnx.load(smaller.model_path).graph.node}
    assert ("QuantizeLinear" in kinds) == (kind == "int8")
    assert ("Cast" in kinds) == (kind == "fp16")
    given = np.random.default_rng(0).normal(-30, 20, (3, *bundle.front_end.shape)).astype(np.float32)
    assert open_session(smaller, "cpu").probabilities(given).dtype == np.float32
    path = next((tiny_corpus / "audio").glob("*/*.wav"))
    (prediction,) = Classifier(smaller)([path])
    assert prediction.error is None


def test_what_stands_before_the_first_convolution_stays_exact(
    bundle: Bundle, manifest: Path, tmp_path: Path
) -> None:
    precision.reduce_precision(bundle.path, "int8", tmp_path / "int8", manifest)
    nodes = onnx.load(tmp_path / "int8/model.onnx").graph.node
    first = next(node for node in nodes if "features" in node.input)
    assert first.op_type in ("Reshape", "Identity")


def test_of_every_member_what_stands_before_its_first_convolution_stays_exact() -> None:
    def conv(number: int, given: str) -> list[onnx.NodeProto]:
        return [
            onnx.helper.make_node("MatMul", [given, "w"], [f"mel{number}"], f"mel{number}"),
            onnx.helper.make_node("Conv", [f"mel{number}", "k"], [f"stem{number}"], f"stem{number}"),
            onnx.helper.make_node("Mul", [f"stem{number}", "k"], [f"scaled{number}"], f"scaled{number}"),
            onnx.helper.make_node("Conv", [f"scaled{number}", "k"], [f"out{number}"], f"deep{number}"),
        ]

    nodes = [onnx.helper.make_node("Identity", ["features"], ["x"], "shared"), *conv(0, "x"), *conv(1, "x")]
    graph = onnx.helper.make_graph(nodes, "two", [], [])
    assert set(precision._head(onnx.helper.make_model(graph))) == {"shared", "mel0", "mel1"}


def test_int8_without_recordings_is_refused(bundle: Bundle, tmp_path: Path, command: CommandLine) -> None:
    with pytest.raises(UsageError, match="int8 needs recordings"):
        precision.reduce_precision(bundle.path, "int8", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    outcome = command("convert", bundle.path, "--out", tmp_path / "x", "--manifest", tmp_path / "m.jsonl")
    assert outcome.code == 2


def test_fp16_needs_no_recordings(bundle: Bundle, tmp_path: Path) -> None:
    report = precision.reduce_precision(bundle.path, "fp16", tmp_path / "out")
    assert "accuracy" not in report["after"]
    assert json.loads((tmp_path / "out/conversion.json").read_text()) == report
