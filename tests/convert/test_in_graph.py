"""The front end in the graph: the same features, labels and statistics, with workers that only decode."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drumline.audio import Decoder
from drumline.bundle import load_bundle
from drumline.classify import Classifier
from drumline.errors import BundleError
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.index import read_index
from drumline.inference import open_session
from drumline.runs import open_run
from drumline_convert.graph_front_end import Factors, front_end_graph, waveform_front_end
from drumline_convert.in_graph import TOLERANCE_DB, graph_features, put_front_end_in_graph
from drumline_convert.precision import reduce_precision
from tests.convert.graphs import onnx
from tests.making import CommandLine, gated_model, make_bundle, write_tone

Floats = NDArray[np.float32]

SMALL: dict[str, Any] = {"samples": 8_192, "n_fft": 512, "hop_length": 128, "n_mels": 40, "n_mfcc": 13}
FRONT_ENDS = {
    "mfcc": FrontEnd(**SMALL),
    "log-mel": FrontEnd(kind="log-mel", **SMALL),
    "deltas": FrontEnd(deltas=2, **SMALL),
    "waveform rows": FrontEnd(deltas=1, waveform=4, **SMALL),
    "as loud as it is": FrontEnd(normalise="none", **SMALL),
    "steps that do not divide the frame": FrontEnd(**{**SMALL, "hop_length": 100, "samples": 8_000}),
    "frames of 500": FrontEnd(**{**SMALL, "n_fft": 500, "hop_length": 125}),
    "frames of a prime": FrontEnd(**{**SMALL, "n_fft": 401, "hop_length": 160}),
    "steps longer than the frame": FrontEnd(**{**SMALL, "n_fft": 256, "hop_length": 300}),
    "a narrow range": FrontEnd(top_db=20.0, **SMALL),
}


def sounds(front_end: FrontEnd) -> list[Floats]:
    """Noise and kicks of all lengths, from one sample to more than are analysed."""
    rng = np.random.default_rng(3)
    found = [np.zeros(0, np.float32), np.zeros(400, np.float32)]
    for length in (
        1,
        5,
        127,
        128,
        129,
        1000,
        front_end.samples - 1,
        front_end.samples,
        front_end.samples + 99,
    ):
        time = np.arange(length) / front_end.sample_rate
        noise = rng.standard_normal(length) * np.exp(-60 * time)
        kick = np.sin(2 * np.pi * 60 * time) + 1e-5 * noise
        found += [(0.3 * noise).astype(np.float32), (0.01 * kick).astype(np.float32)]
    return found


def padded(sounds: list[Floats], front_end: FrontEnd) -> Floats:
    outside = FeatureExtractor(waveform_front_end(front_end))
    return np.array([outside.features(sound) for sound in sounds])


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_graph_computes_what_the_workers_compute(name: str) -> None:
    front_end = FRONT_ENDS[name]
    extractor = FeatureExtractor(front_end)
    expected = np.array([extractor.features(sound) for sound in sounds(front_end)])
    found = graph_features(front_end, padded(sounds(front_end), front_end))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE_DB


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_the_graph_is_sound_onnx_in_old_and_new_versions(opset: int) -> None:
    import onnxruntime

    front_end = FRONT_ENDS["waveform rows"]
    proto = front_end_graph(front_end, opset)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = padded(sounds(front_end), front_end)
    expected = graph_features(front_end, given)
    np.testing.assert_allclose(session.run(None, {"features": given})[0], expected, atol=1e-5)


@pytest.mark.parametrize("n_fft", [1, 2, 3, 12, 401, 500, 512, 2048])
def test_the_two_sums_are_the_fourier_transform(n_fft: int) -> None:
    factors = Factors.of(n_fft)
    assert factors.inner * factors.outer == n_fft
    window, signal = np.random.default_rng(0).standard_normal((2, n_fft))
    inner = factors.inner_matrices(window)
    sums = np.einsum("ab,bak->bk", signal.reshape(factors.inner, factors.outer), inner)
    points = np.concatenate([sums[:, : factors.kept], sums[:, factors.kept :]]).T
    real, imaginary = (points @ matrix for matrix in factors.outer_matrices())
    expected = np.fft.rfft(signal * window)
    kept = factors.bins >= 0
    np.testing.assert_allclose(real.ravel()[kept], expected.real[factors.bins[kept]], atol=1e-9)
    np.testing.assert_allclose(
        np.abs(imaginary.ravel()[kept]), np.abs(expected.imag[factors.bins[kept]]), atol=1e-9
    )
    assert sorted(factors.bins[kept]) == list(range(n_fft // 2 + 1))


def test_the_graph_stays_small_and_needs_nothing_that_cuda_lacks() -> None:
    nodes = front_end_graph(FrontEnd(deltas=2, waveform=4)).graph.node
    kinds = {node.op_type for node in nodes}
    assert not kinds & {"DFT", "STFT", "Loop", "Scan", "If", "Einsum"}
    assert len(front_end_graph(FrontEnd()).SerializeToString()) < 2_500_000
    with pytest.raises(BundleError, match="n_fft 32,749 would put"):
        front_end_graph(FrontEnd(n_fft=32_749))


@pytest.mark.parametrize(
    "front_end",
    [FrontEnd(), FrontEnd(deltas=2), FrontEnd(kind="log-mel", n_mels=64), FrontEnd(kind="log-mel")],
    ids=lambda front_end: f"{front_end.name} {front_end.n_mels}",
)
def test_on_recordings_features_are_the_same_within_a_thousandth_of_a_decibel(front_end: FrontEnd) -> None:
    waveforms = recordings(front_end)
    extractor = FeatureExtractor(front_end)
    expected = np.array([extractor.features(samples) for samples in waveforms])
    found = graph_features(front_end, padded(waveforms, front_end))
    assert np.abs(found - expected).max() <= TOLERANCE_DB


def recordings(front_end: FrontEnd, count: int = 40) -> list[Floats]:
    corpus = os.environ.get("DRUMLINE_CORPUS")
    if not corpus or not Path(corpus, "audio").is_dir():
        pytest.skip("no corpus: DRUMLINE_CORPUS")
    files = sorted(path for path in Path(corpus, "audio").rglob("*") if path.is_file())
    decoder = Decoder(front_end)
    chosen = np.random.default_rng(7).permutation(len(files))[:count]
    return [decoder.decode_path(os.fsencode(files[place])).samples for place in chosen]


@pytest.fixture(scope="module")
def in_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default bundle with its front end in the graph."""
    out = tmp_path_factory.mktemp("bundles") / "in-graph"
    put_front_end_in_graph("mfcc-cnn", out)
    return out


def test_the_bundle_is_fed_the_waveform_and_says_what_it_said(in_graph: Path) -> None:
    before, after = load_bundle(), load_bundle(in_graph)
    assert after.row_shape == (before.front_end.samples,)
    assert after.front_end_in_graph == before.front_end
    assert (after.labels, after.calibrator) == (before.labels, before.calibrator)
    assert after.fingerprint != before.fingerprint
    report = json.loads((in_graph / "conversion.json").read_text())["front_end_in_graph"]
    assert report["features"] <= TOLERANCE_DB
    assert report["labels"] == 1.0
    heard = sounds(before.front_end)
    extractor = FeatureExtractor(before.front_end)
    features = np.array([extractor.features(sound) for sound in heard])
    expected = open_session(before, "cpu").probabilities(features)
    found = open_session(after, "cpu").probabilities(padded(heard, before.front_end))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_results_do_not_depend_on_the_batch_size(in_graph: Path) -> None:
    bundle = load_bundle(in_graph)
    session, waveforms = open_session(bundle, "cpu"), padded(sounds(bundle.front_end), bundle.front_end)
    together = session.probabilities(waveforms)
    alone = np.concatenate([session.probabilities(waveform[np.newaxis]) for waveform in waveforms])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_run_gives_the_same_labels_and_the_same_statistics(
    in_graph: Path, tiny_corpus: Path, tmp_path: Path, command: CommandLine
) -> None:
    found = {}
    for name in ("mfcc-cnn", str(in_graph)):
        runs = tmp_path / Path(name).name
        outcome = command(
            "infer", tiny_corpus / "audio", "--model", name, "--runs-root", runs, "--json", "-q"
        )
        assert outcome.code == 0, outcome.err
        index = open_run(Path(outcome.json()["run_directory"])).index_path
        found[name] = {record["relative_path"]: record for record in read_index(index)}
    before, after = found.values()
    assert before.keys() == after.keys()
    assert len(before) > 20
    for path, record in before.items():
        assert after[path]["assigned_label"] == record["assigned_label"]
        assert after[path]["assigned_conf"] == pytest.approx(record["assigned_conf"], abs=1e-3)
        for name in ("rms_db", "spectral_centroid", "spectral_rolloff"):
            assert after[path][name] == record[name], name


def test_the_command_tells_what_differs_and_models_shows_the_front_end(
    tmp_path: Path, command: CommandLine
) -> None:
    bundle = make_bundle(
        tmp_path / "gated", gated_model(len(load_bundle().labels)), gate={"output": "gate", "threshold": 0.3}
    )
    outcome = command("convert", bundle.path, "--front-end-in-graph", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "front end in the graph: over 64 recordings, features differ by at most" in outcome.out
    assert "mfcc in the graph 50000" in command("models", tmp_path / "out").out
    write_tone(tmp_path / "kick.wav", seconds=0.4)
    before, after = (
        next(iter(Classifier(load_bundle(path))([tmp_path / "kick.wav"])))
        for path in (bundle.path, tmp_path / "out")
    )
    assert after.gate is not None
    assert after.gate == pytest.approx(before.gate, abs=1e-4)
    assert after.label == before.label


def test_the_network_may_be_in_fp16_and_the_front_end_keeps_its_precision(tmp_path: Path) -> None:
    report = put_front_end_in_graph("mfcc-cnn", tmp_path / "out", precision="fp16")
    assert report["precision"] == "fp16"
    assert report["agreement"] == report["front_end_in_graph"]["labels"] == 1.0
    assert report["largest_difference_of_confidence"] <= 0.01
    weights = {weight.name: weight for weight in onnx.load(tmp_path / "out/model.onnx").graph.initializer}
    assert weights["front_end/inner"].data_type == onnx.TensorProto.DOUBLE
    assert weights["front_end/mel"].data_type == onnx.TensorProto.FLOAT
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights.values())


def test_what_cannot_be_is_refused(in_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="fed the waveform already"):
        put_front_end_in_graph(in_graph, tmp_path / "out")
    with pytest.raises(BundleError, match="has its front end in the graph"):
        reduce_precision(in_graph, "fp16", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_is_fed_the_waveform_itself_becomes_a_bundle(
    tmp_path: Path, command: CommandLine
) -> None:
    raw = make_bundle(tmp_path / "raw", front_end={"kind": "waveform", "samples": 4000, "normalise": "peak"})
    assert raw.row_shape == (4000,)
    outcome = command("create-stub", "--model", tmp_path / "raw/bundle.json", "--output", tmp_path / "stub")
    assert outcome.code == 0, outcome.err
    write_tone(tmp_path / "kick.wav")
    (prediction,) = Classifier(load_bundle(tmp_path / "stub"))([tmp_path / "kick.wav"])
    assert prediction.error is None
