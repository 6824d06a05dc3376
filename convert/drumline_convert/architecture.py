"""The network: a small residual CNN that is fed raw MFCC and sees smoothed log-mel bands.

The first layer undoes the DCT: 40 coefficients become `bands` log-mel values per frame, standardised by
the training set's mean and deviation. It is one fixed matrix, so a bundle on plain MFCC gets what a
convolution over frequency needs, neighbours that are neighbours, for 0.25 million multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.frontend import FrontEnd

__all__ = ["Architecture", "Standardisation", "build_model", "inverse_dct", "multiply_adds"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Size of the network.

    Parameters
    ----------
    bands
        Log-mel bands per frame after the inverse DCT.
    stem
        Channels of the first convolution (5 × 5, stride 2).
    widths
        Channels of the residual blocks; each block halves frames and bands.
    dropout
        Share of the pooled features that is dropped in training.
    """

    bands: int = 64
    stem: int = 16
    widths: tuple[int, ...] = (16, 48, 96)
    dropout: float = 0.3


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Mean and deviation of every log-mel band over a training set, each (bands,) float32."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, features: NDArray[np.float32], bands: int, n_mels: int) -> Standardisation:
        """Measure over MFCC `features` (n, coefficients, frames), dB, that were made from `n_mels` bands."""
        matrix = inverse_dct(features.shape[1], bands, n_mels)
        mel = np.einsum("ncf,cb->nfb", features, matrix).reshape(-1, bands)
        return cls(mel.mean(axis=0), mel.std(axis=0) + np.float32(1.0))


def inverse_dct(coefficients: int, bands: int, n_mels: int) -> NDArray[np.float32]:
    """Return the matrix (coefficients, bands) that turns cepstral coefficients into log-mel bands.

    The transpose of the orthonormal DCT-II over `n_mels` bands, read at `bands` evenly spaced points: with
    fewer coefficients than mel bands the result is the smoothed log-mel spectrum in dB.
    """
    order = np.arange(coefficients)[:, None]
    position = (np.arange(bands)[None, :] + 0.5) / bands
    scale = np.where(order == 0, np.sqrt(1 / n_mels), np.sqrt(2 / n_mels))
    return np.asarray(scale * np.cos(np.pi * order * position), np.float32)


def build_model(
    architecture: Architecture, front_end: FrontEnd, classes: int, standardisation: Standardisation
) -> Any:
    """Build the Keras model: MFCC (batch, coefficients, frames) → logits (batch, classes)."""
    import keras
    from keras import layers

    coefficients, frames = front_end.shape
    features = keras.Input((coefficients, frames), name="features")
    x = layers.Permute((2, 1))(features)
    bands = layers.Dense(architecture.bands, trainable=False, name="log_mel")
    x = layers.Reshape((frames, architecture.bands, 1))(bands(x))
    matrix = inverse_dct(coefficients, architecture.bands, front_end.n_mels)
    bands.set_weights([matrix / standardisation.deviation, -standardisation.mean / standardisation.deviation])
    x = _convolution(x, architecture.stem, kernel=5, stride=2)
    for width in architecture.widths:
        x = _residual(x, width)
    x = layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)])
    x = layers.Dropout(architecture.dropout)(x)
    return keras.Model(features, layers.Dense(classes, name="logits")(x))


def _convolution(x: Any, channels: int, kernel: int, stride: int = 1, relu: bool = True) -> Any:
    from keras import layers

    x = layers.Conv2D(channels, kernel, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


def _residual(x: Any, channels: int) -> Any:
    from keras import layers

    y = _convolution(x, channels, kernel=3, stride=2)
    y = _convolution(y, channels, kernel=3, relu=False)
    shortcut = layers.AveragePooling2D(2, padding="same")(x)
    shortcut = _convolution(shortcut, channels, kernel=1, relu=False)
    return layers.ReLU()(layers.Add()([y, shortcut]))


def multiply_adds(model: Any) -> int:
    """Multiply-adds of the model's convolutions for one file."""
    return sum(
        int(np.prod(layer.kernel.shape)) * layer.output.shape[1] * layer.output.shape[2]
        for layer in model.layers
        if type(layer).__name__ == "Conv2D"
    )
