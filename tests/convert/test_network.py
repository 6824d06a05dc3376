"""The network's fixed first layer, its loss, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.fft

from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline_convert.architecture import (
    Architecture,
    Standardisation,
    build_model,
    inverse_dct,
    time_matrix,
)
from drumline_convert.losses import LossSettings, classification_loss
from drumline_convert.taxonomy import TrainingTaxonomy

FRONT_END = FrontEnd()
SMALL = Architecture(bands=16, decay_step=1, stem=4, widths=(8,))


def test_the_inverse_dct_gives_back_the_log_mel_bands() -> None:
    log_mel = np.random.default_rng(0).normal(-40, 20, (98, 128)).astype(np.float32)
    coefficients = scipy.fft.dct(log_mel, axis=1, norm="ortho")
    assert np.allclose(coefficients @ inverse_dct(128, 128, 128), log_mel, atol=1e-3)


def test_fewer_coefficients_give_smoothed_bands() -> None:
    coefficients = scipy.fft.dct(np.random.default_rng(0).normal(-40, 20, (98, 128)), axis=1, norm="ortho")
    coefficients[:, 40:] = 0
    smooth = scipy.fft.idct(coefficients, axis=1, norm="ortho")
    ours = coefficients[:, :40] @ inverse_dct(40, 64, 128)
    # Band j of 64 lies midway between bands 2j and 2j + 1 of 128.
    assert np.abs(ours - (smooth[:, ::2] + smooth[:, 1::2]) / 2).max() < 3.0


def test_standardised_bands_have_mean_0_and_deviation_1() -> None:
    pytest.importorskip("keras", reason="keras is not installed: pip install 'drumline[train]'")
    import keras

    features = np.random.default_rng(0).normal(0, 60, (30, *FRONT_END.shape)).astype(np.float32)
    standardisation = Standardisation.of(features, SMALL.bands, FRONT_END)
    model = build_model(SMALL, FRONT_END, np.eye(5, dtype=np.float32), standardisation)
    bands = np.asarray(keras.Model(model.input, model.get_layer("log_mel").output)(features))
    assert bands.shape == (30, 98, 16)
    assert np.abs(bands.mean(axis=(0, 1))).max() < 1e-3
    assert np.allclose(bands.std(axis=(0, 1)), 1.0, atol=0.15)


@pytest.mark.parametrize(
    ("attack", "step", "expected"),
    [
        (2, 2, [0.0, 1.0, 2.5, 4.5, 6.0]),
        (0, 3, [1.0, 4.0, 6.0]),
        (9, 2, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ],
)
def test_frames_behind_the_attack_are_averaged(attack: int, step: int, expected: list[float]) -> None:
    assert np.arange(7) @ time_matrix(7, attack, step) == pytest.approx(expected)


def test_a_network_sees_the_attack_frame_by_frame_and_the_decay_in_averages() -> None:
    pytest.importorskip("keras", reason="keras is not installed: pip install 'drumline[train]'")
    import keras

    features = np.random.default_rng(0).normal(0, 60, (4, *FRONT_END.shape)).astype(np.float32)
    standardisation = Standardisation.of(features, SMALL.bands, FRONT_END)

    def image(architecture: Architecture) -> np.ndarray:
        model = build_model(architecture, FRONT_END, np.eye(5, dtype=np.float32), standardisation)
        return np.asarray(keras.Model(model.input, model.get_layer("log_mel").output)(features))

    whole, fewer = image(SMALL), image(replace(SMALL, attack=32, decay_step=2))
    assert fewer.shape == (4, 32 + (98 - 32) // 2, 16)
    assert np.allclose(fewer[:, :32], whole[:, :32], atol=1e-4)
    assert np.allclose(fewer[:, 32:], (whole[:, 32::2] + whole[:, 33::2]) / 2, atol=1e-4)


def test_steps_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        Architecture(decay_step=0)


def test_the_loss_is_fine_plus_canonical_cross_entropy(taxonomy: TrainingTaxonomy) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed: pip install 'drumline[train]'")
    from drumline_convert.metrics import softmax

    collapse = taxonomy.collapse
    logits = np.random.default_rng(0).normal(0, 3, (6, len(collapse))).astype(np.float32)
    fine = np.array([0, 1, 2, 30, 40, 5])
    settings = LossSettings(label_smoothing=0.0, canonical_weight=0.7)
    probs = softmax(logits)
    canonical = (probs @ collapse)[np.arange(6), collapse.argmax(axis=1)[fine]]
    expected = -np.log(probs[np.arange(6), fine]) - 0.7 * np.log(canonical)
    target = np.eye(len(collapse), dtype=np.float32)[fine]
    assert np.allclose(classification_loss(collapse, settings)(target, logits), expected, atol=1e-4)


def test_the_shipped_model_is_measured_as_the_engine_runs_it() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'drumline[cpu]'")
    from drumline_convert.cost import files_per_cpu_second

    model = Path(__file__).parents[2] / "models" / "mfcc-cnn" / "model.onnx"
    assert files_per_cpu_second(model, batch=8, rounds=2) > 0
