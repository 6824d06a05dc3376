"""A whole tiny training: from recordings to a bundle that the engine loads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.bundle import load_bundle
from drumline.errors import BundleError, ConfigError
from drumline_convert.architecture import Architecture
from drumline_convert.augment import AugmentSettings
from drumline_convert.batches import SamplingSettings
from drumline_convert.doubting import DoubtSettings
from drumline_convert.precision import Precision
from drumline_convert.training import TrainingSettings
from drumline_convert.workbench import ModelSettings

for module in ("tensorflow", "tf2onnx", "onnxruntime"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'drumline[train,cpu]'")

# tf2onnx, TensorFlow and protobuf warn about one another; nothing of ours is silenced.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:tf2onnx.*")


@dataclass(frozen=True)
class Made:
    settings: ModelSettings
    metrics: dict[str, Any]
    lines: list[str]


@pytest.fixture(scope="module")
def made(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    from drumline_convert.make_model import make_model

    root = tmp_path_factory.mktemp("model")
    settings = ModelSettings(
        tiny_corpus,
        root / "tiny",
        root / "build",
        folds=2,
        threads=1,
        augment=AugmentSettings(variants=3),
        architecture=Architecture(bands=16, stem=4, widths=(8, 8)),
        training=TrainingSettings(
            epochs=2, members=1, doubt=DoubtSettings(2), sampling=SamplingSettings(batch_size=8)
        ),
    )
    lines: list[str] = []
    return Made(settings, make_model(settings, lines.append), lines)


def test_the_bundle_is_one_that_the_engine_loads(made: Made) -> None:
    bundle = load_bundle(made.settings.out)
    assert bundle.name == "tiny"
    assert bundle.front_end.shape == (40, 98)
    assert bundle.temperature == made.metrics["calibration"]["temperature"]
    assert "synthesised | CC0-1.0 | 72" in (made.settings.out / "MODEL_CARD.md").read_text()


def test_the_graph_has_a_dynamic_batch_and_both_outputs(made: Made) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        made.settings.out / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [("features", ["batch", 40, 98])]
    classes = len(load_bundle(made.settings.out).labels)
    outputs = {entry.name: entry.shape for entry in session.get_outputs()}
    assert outputs == {"logits": ["batch", classes], "probabilities": ["batch", classes]}
    for batch in (1, 5):
        features = np.zeros((batch, 40, 98), np.float32)
        logits, probabilities = session.run(["logits", "probabilities"], {"features": features})
        assert logits.shape == (batch, classes)
        assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_onnx_equals_keras_over_all_recordings(made: Made) -> None:
    parity = made.metrics["parity"]
    assert parity["files"] == 72
    assert parity["probabilities"] <= 1e-5
    assert parity["softmax"] <= 1e-6


def test_figures_cover_every_recording_once(made: Made) -> None:
    assert made.metrics["recordings"] == 72
    assert len(made.metrics["folds"]) == 2
    saved = json.loads((made.settings.build / "model" / "metrics.json").read_text())
    assert saved["mean"] == made.metrics["mean"]


def test_the_card_says_how_many_labels_were_doubted(made: Made) -> None:
    doubted = made.metrics["doubted"]
    paths = {str(path.resolve()) for path in (made.settings.corpus / "audio").rglob("*.wav")}
    assert set(doubted) <= paths
    card = (made.settings.out / "MODEL_CARD.md").read_text()
    assert f"{len(doubted)} of 72 weigh 0.1 times as much" in card


def test_a_second_run_trains_nothing_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from drumline_convert import workbench
    from drumline_convert.make_model import cross_validate, make_model

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(workbench, "train", forbidden)
    assert cross_validate(made.settings, made.lines.append)["mean"] == made.metrics["mean"]
    assert make_model(made.settings, made.lines.append)["mean"] == made.metrics["mean"]
    with pytest.raises(AssertionError, match="trained again"):
        make_model(
            replace(made.settings, training=TrainingSettings(epochs=3, members=1, doubt=DoubtSettings(0))),
            made.lines.append,
        )


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_folds_in_smaller_numbers_share_the_trainings_and_keep_names_of_their_own(
    made: Made, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    from drumline_convert import fitting, fold_precision
    from drumline_convert.crossval import metrics_table
    from drumline_convert.make_model import cross_validate

    kept = made.settings.build / "model"
    before = (kept / "held_out.npz").read_bytes()
    ranges: list[np.ndarray] = []
    plain_int8 = fold_precision.int8_graph
    monkeypatch.setattr(fitting, "_optimizer", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(
        fold_precision, "int8_graph", lambda *args: (ranges.append(args[2]), plain_int8(*args))
    )
    metrics = cross_validate(made.settings, made.lines.append, precision)
    assert (kept / "held_out.npz").read_bytes() == before
    assert json.loads((kept / f"metrics.{precision}.json").read_text())["reduced"] == metrics["reduced"]
    plain, reduced = (
        np.load(kept / name)["logits"] for name in ("held_out.npz", f"held_out.{precision}.npz")
    )
    assert not np.array_equal(plain, reduced)
    assert np.allclose(plain, reduced, atol=0.5 if precision == "int8" else 0.01)
    assert metrics["reduced"]["agreement"] > 0.9
    assert f"{precision}: " in metrics_table(metrics)
    assert [len(features) for features in ranges] == ([36, 36] if precision == "int8" else [])


def test_the_mean_of_networks_that_average_their_decays_converts(made: Made, tmp_path: Path) -> None:
    from drumline_convert.export import check_parity, export_onnx
    from drumline_convert.training import TrainingData, train

    rng = np.random.default_rng(0)
    features = rng.normal(0, 30, (8, 1, 40, 98)).astype(np.float32)
    data = TrainingData(
        features, np.arange(8), np.arange(8) % 4, np.ones(8, np.float32), np.eye(4, dtype=np.float32)
    )
    architecture = Architecture(bands=16, attack=32, decay_step=2, stem=4, widths=(8,))
    settings = TrainingSettings(
        epochs=1, members=2, doubt=DoubtSettings(0), sampling=SamplingSettings(batch_size=4)
    )
    model = train(data, made.settings.front_end, architecture, settings)
    export_onnx(model, made.settings.front_end, tmp_path / "mean.onnx")
    assert check_parity(tmp_path / "mean.onnx", model, features[:, 0])["probabilities"] <= 1e-5


def test_a_graph_that_differs_from_keras_is_refused(made: Made) -> None:
    import keras

    from drumline_convert.export import check_parity

    model = keras.models.load_model(next(made.settings.build.glob("model/*/final.keras")))
    model.layers[-1].set_weights([weight * 2 for weight in model.layers[-1].get_weights()])
    features = np.random.default_rng(0).normal(0, 30, (8, 40, 98)).astype(np.float32)
    with pytest.raises(BundleError, match="ONNX and Keras differ"):
        check_parity(made.settings.out / "model.onnx", model, features)


def test_a_corpus_that_is_not_there_ends_before_any_work(made: Made, tmp_path: Path) -> None:
    from drumline_convert.make_model import make_model

    with pytest.raises(ConfigError, match="--corpus"):
        make_model(replace(made.settings, corpus=tmp_path / "nowhere"), made.lines.append)
