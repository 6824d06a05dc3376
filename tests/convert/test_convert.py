"""Trained models of any origin become bundles that say what they said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.bundle import load_bundle
from drumline.calibration import softmax
from drumline.classify import Classifier
from drumline.errors import BundleError, ConfigError, OutputError, RuntimeMissingError
from drumline.frontend import FrontEnd
from drumline.inference import open_session
from drumline_convert import export
from drumline_convert.convert_model import convert_model
from drumline_convert.target import Target, read_front_end, read_target
from tests.convert.graphs import LOG_MEL, TWELVE, linear, log_mel_cnn, onnx
from tests.making import CommandLine, write_tone

SMALL = FrontEnd(n_mfcc=20, samples=16_384)  # 20 × 33


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.json").write_text(json.dumps(TWELVE))
    return tmp_path / "labels.json"


def target(labels: Path, front_end: FrontEnd = SMALL) -> Target:
    return Target(front_end, read_target(None, LOG_MEL, labels, None).taxonomy)


def saved(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(proto, tmp_path / "exported.onnx")
    return tmp_path / "exported.onnx"


def features(count: int, front_end: FrontEnd) -> Any:
    return np.random.default_rng(3).normal(-20, 20, (count, *front_end.shape)).astype(np.float32)


def test_the_log_mel_cnn_as_pytorch_exports_it_becomes_a_bundle_that_classifies_files(
    tmp_path: Path, labels: Path, command: CommandLine
) -> None:
    outcome = command(
        *("convert", saved(log_mel_cnn(), tmp_path), "--front-end", LOG_MEL, "--labels", labels),
        *("--out", tmp_path / "cnn", "--json"),
    )
    assert outcome.code == 0, outcome.err
    report = outcome.json()
    assert max(report["parity"][name] for name in ("probabilities", "softmax", "batch")) <= 1e-5
    assert json.loads((tmp_path / "cnn/conversion.json").read_text()) == report
    bundle = load_bundle(tmp_path / "cnn")
    assert (bundle.labels, bundle.front_end.shape) == (TWELVE, (128, 128))
    assert bundle.taxonomy.canonical_of["Rim"] == "Snare"
    session = open_session(bundle, "cpu")
    entry, *outputs = [*session_values(bundle.model_path)]
    assert entry == ("features", ["batch", 128, 128])
    assert outputs == [("logits", ["batch", 12]), ("probabilities", ["batch", 12])]
    assert session.probabilities(features(3, bundle.front_end)).shape == (3, 12)
    write_tone(tmp_path / "kick.wav")
    (prediction,) = Classifier(bundle)([tmp_path / "kick.wav"])
    assert prediction.error is None
    assert command("validate-mapping", "--model", bundle.model_path, "--mapping", labels).code == 0
    assert command("models", tmp_path / "cnn").code == 0


def session_values(path: Path) -> list[tuple[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (["n", 20, 33], "auto"),
        (["n", 1, 20, 33], "auto"),
        (["n", 20, 33, 1], "auto"),
        (["n", 33, 20], "auto"),
        (["n", 1, 33, 20], "frames-coefficients"),
        (["n", 660], "auto"),
        (["n", 660], "frames-coefficients"),
        ([None, 20, 33], "auto"),
    ],
    ids=str,
)
def test_any_layout_of_the_input_becomes_coefficients_by_frames(
    tmp_path: Path, labels: Path, shape: list[Any], layout: Any
) -> None:
    proto = linear(shape, len(TWELVE))
    convert_model(saved(proto, tmp_path), target(labels), tmp_path / "out", layout=layout)
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    given = features(5, SMALL)
    transposed = layout == "frames-coefficients" or shape[1:] == [33, 20]
    flat = (given.transpose(0, 2, 1) if transposed else given).reshape(5, -1)
    found = open_session(load_bundle(tmp_path / "out"), "cpu").logits(given)
    np.testing.assert_allclose(found, flat @ weights, atol=1e-4)


@pytest.mark.parametrize("last", ["", "Softmax", "LogSoftmax", "normalised"])
def test_logits_and_probabilities_are_found_whatever_the_model_gives(
    tmp_path: Path, labels: Path, last: str
) -> None:
    proto = linear(["n", 20, 33], len(TWELVE), last)
    convert_model(saved(proto, tmp_path), target(labels), tmp_path / "out")
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    given = features(5, SMALL)
    expected = given.reshape(5, -1) @ weights
    session = open_session(load_bundle(tmp_path / "out"), "cpu")
    np.testing.assert_allclose(session.probabilities(given), softmax(expected), atol=1e-5)
    if last in ("", "Softmax"):
        np.testing.assert_allclose(session.logits(given), expected, atol=1e-4)


def test_the_output_with_the_scores_is_named_where_there_are_several(tmp_path: Path, labels: Path) -> None:
    proto = linear(["n", 20, 33], len(TWELVE))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("flat", 1, ["n", 660]))
    path = saved(proto, tmp_path)
    with pytest.raises(BundleError, match="several outputs: 'output', 'flat'"):
        convert_model(path, target(labels), tmp_path / "out")
    with pytest.raises(BundleError, match="no output 'other'"):
        convert_model(path, target(labels), tmp_path / "out", output="other")
    with pytest.raises(BundleError, match="660 scores for a recording, there are 12 labels"):
        convert_model(path, target(labels), tmp_path / "out", output="flat")
    assert not (tmp_path / "out").exists()
    convert_model(path, target(labels), tmp_path / "out", output="output")


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (linear(["n", 21, 33], len(TWELVE)), r"inputs of any × 21 × 33.*batch × 20 × 33"),
        (linear(["n", 20, 33], 11), r"gives 11 scores .* 12 labels"),
    ],
)
def test_a_model_that_does_not_fit_front_end_and_labels_is_refused_with_both_sides(
    tmp_path: Path, labels: Path, proto: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        convert_model(saved(proto, tmp_path), target(labels), tmp_path / "out")


def test_a_graph_with_a_fixed_batch_inside_is_refused(tmp_path: Path, labels: Path) -> None:
    proto = linear([1, 20, 33], len(TWELVE))
    proto.graph.node[0].CopyFrom(onnx.helper.make_node("Reshape", ["x", "one_row"], ["flat"]))
    constant = onnx.numpy_helper.from_array(np.array([1, 660], np.int64), "one_row")
    proto.graph.initializer.append(constant)
    with pytest.raises(BundleError, match="batch of three"):
        convert_model(saved(proto, tmp_path), target(labels), tmp_path / "out")


def test_nothing_is_overwritten_and_nothing_is_left_of_what_failed(tmp_path: Path, labels: Path) -> None:
    path = saved(linear(["n", 20, 33], len(TWELVE)), tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        convert_model(path, target(labels), tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["exported.onnx", "labels.json", "out"]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, labels: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"broken\.onnx"):
        convert_model(tmp_path / "broken.onnx", target(labels), tmp_path / "out")
    with pytest.raises(BundleError, match=r"nowhere\.onnx"):
        convert_model(tmp_path / "nowhere.onnx", target(labels), tmp_path / "out")


def test_a_framework_that_is_not_installed_is_named(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network.pt2").write_bytes(b"")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissingError, match=r"network\.pt2 needs torch"):
        convert_model(tmp_path / "network.pt2", target(labels), tmp_path / "out")


def test_labels_that_the_taxonomy_does_not_know_need_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["Kick", "Boing"]))
    with pytest.raises(BundleError, match="Boing"):
        read_target(None, LOG_MEL, tmp_path / "labels.json", None)
    (tmp_path / "map.json").write_text(json.dumps({"Kick": "Kick", "Boing": "misc"}))
    found = read_target(None, LOG_MEL, tmp_path / "labels.json", tmp_path / "map.json")
    assert found.taxonomy.canonical == ("Kick", "misc")


def test_a_front_end_is_read_from_options_or_a_file_in_json_or_yaml(tmp_path: Path) -> None:
    expected = FrontEnd(kind="log-mel", n_mels=64, top_db=60.0, normalise="none")
    text = "kind=log-mel, n_mels=64, top_db=60.0, normalise=none"
    assert read_front_end(text) == expected
    for name, content in {
        "front_end.yml": "kind: log-mel\nn_mels: 64\ntop_db: 60.0\nnormalise: none\n",
        "front_end.json": json.dumps(expected.to_json()),
        "bundle.json": json.dumps({"name": "x", "front_end": expected.to_json()}),
    }.items():
        (tmp_path / name).write_text(content)
        assert read_front_end(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [("kind=mel", "kind 'mel'"), ("bands=3", "unknown settings: bands"), ("nowhere.yml", "nowhere.yml")],
)
def test_a_front_end_that_cannot_be_is_refused(given: str, message: str) -> None:
    with pytest.raises((BundleError, ConfigError), match=message):
        read_front_end(given)


def test_a_number_in_place_of_a_word_is_refused() -> None:
    with pytest.raises(BundleError, match="n_mels"):
        read_front_end("n_mels=many")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:tf2onnx.*")
@pytest.mark.parametrize("activation", ["linear", "softmax"])
def test_a_keras_model_becomes_a_bundle_that_says_the_same(tmp_path: Path, activation: str) -> None:
    for package in ("tensorflow", "tf2onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'drumline[train]'")
    import keras

    like = load_bundle()
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((40, 98)), layers.Flatten(), layers.Dense(len(like.labels), activation)]
    )
    model.layers[-1].set_weights([model.layers[-1].get_weights()[0] * 0.05, np.zeros(len(like.labels))])
    model.save(tmp_path / "model.keras")
    report = convert_model(
        tmp_path / "model.keras", read_target(None, None, None, None), tmp_path / "out", "1.2.3"
    )
    assert report["opset"] == export.OPSET
    assert report["parity"]["probabilities"] <= 1e-5
    bundle = load_bundle(tmp_path / "out")
    assert (bundle.labels, bundle.version) == (like.labels, "1.2.3")
    given = features(4, bundle.front_end)
    scores = np.asarray(model.predict(given, verbose=0))
    expected = scores if activation == "softmax" else softmax(scores)
    found = open_session(bundle, "cpu").probabilities(given)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_pytorch_program_becomes_a_bundle_that_says_the_same(tmp_path: Path, labels: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch onnxscript")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")
    blocks, channels = [], 1
    for width in (32, 64, 128, 256):
        convolution = torch.nn.Conv2d(channels, width, 3, padding=1)
        blocks += [convolution, torch.nn.BatchNorm2d(width), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        channels = width
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, len(TWELVE))]
    torch.manual_seed(0)
    model = torch.nn.Sequential(*blocks, *head).eval()
    example = torch.randn(2, 1, 128, 128)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "network.pt2")
    wanted = read_target(None, LOG_MEL, labels, None)
    report = convert_model(tmp_path / "network.pt2", wanted, tmp_path / "out")
    assert report["parity"]["probabilities"] <= 1e-5
    given = features(4, wanted.front_end)
    with torch.no_grad():
        expected = softmax(model(torch.from_numpy(given[:, None])).numpy())
    found = open_session(load_bundle(tmp_path / "out"), "cpu").probabilities(given)
    np.testing.assert_allclose(found, expected, atol=1e-5)
