"""The networks: raw features in, logits of the fine labels out.

*Model 1* (``cnn``) is a small residual CNN. *Model 2* (``autoencoder``) classifies the codes of a
convolutional encoder that has first learnt to rebuild what it hears (`drumline_convert.autoencoder`).

Both see standardised log-mel bands. On an MFCC front end a fixed first layer undoes the DCT: 40 coefficients
become `bands` log-mel values per frame. It is one matrix, so a bundle on plain MFCC gets what a convolution
over frequency needs, neighbours that are neighbours, for 0.25 million multiplications. Deltas become further
channels of the same image. Values of the waveform, where the front end has them, go through a branch of
their own, and what it found stands beside what the image gave.

Layers whose name begins with ``head`` belong to the classifier; all others to the body, which can be frozen
and taken over from an earlier model, name by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline_convert.layers import (
    SpectralSettings,
    attention_pool,
    convolution,
    joint_logits,
    residual,
    spectral_augment,
    waveform_branch,
)

__all__ = [
    "Architecture",
    "Standardisation",
    "band_matrix",
    "build_model",
    "inverse_dct",
    "log_mel_image",
    "multiply_adds",
    "time_matrix",
]

Kind = Literal["cnn", "autoencoder"]
Pooling = Literal["average+max", "attention+max"]
Heads = Literal["fine", "fine+canonical"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Kind and size of the network.

    Parameters
    ----------
    kind
        ``"cnn"`` (Model 1) or ``"autoencoder"`` (Model 2).
    bands
        Log-mel bands per frame that the network sees.
    attack, decay_step
        Frames that are seen one by one; behind them, `decay_step` frames are averaged into one. A drum's
        attack is where it changes fast.
    stem
        Channels of the first convolution (5 × 5, stride 2).
    widths
        Channels of the blocks that follow; each block halves frames and bands.
    squeeze
        Reduction of the squeeze-and-excite gate in every block of Model 1; 0 for none.
    pooling
        How Model 1 sums up time: the maximum next to the plain or to a learnt, weighted average.
    heads
        ``"fine"``: one softmax, whose sums are the canonical probabilities; ``"fine+canonical"``: a canonical
        head and a fine head within each canonical label, multiplied in the graph.
    code
        Size of Model 2's code.
    dropout
        Share of what the head is fed that is dropped in training.
    """

    kind: Kind = "cnn"
    bands: int = 48
    attack: int = 32
    decay_step: int = 2
    stem: int = 16
    widths: tuple[int, ...] = (16, 48, 64)
    squeeze: int = 0
    pooling: Pooling = "average+max"
    heads: Heads = "fine"
    code: int = 128
    dropout: float = 0.3

    def __post_init__(self) -> None:
        for name, choices in (("kind", Kind), ("pooling", Pooling), ("heads", Heads)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"architecture.{name} {getattr(self, name)!r} is none of {', '.join(get_args(choices))}"
                )
        if min(self.bands, self.decay_step, self.stem, self.code, *self.widths) < 1:
            raise ConfigError("sizes in architecture must be positive")
        if min(self.squeeze, self.attack) < 0:
            raise ConfigError("architecture.squeeze and architecture.attack must not be negative")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"architecture.dropout {self.dropout} is not within 0..1")


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Mean and deviation of every band and channel over a training set, each (channels, bands) float32."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, features: NDArray[np.float32], bands: int, front_end: FrontEnd) -> Standardisation:
        """Measure over `features` (n, rows, frames) of `front_end`, in dB."""
        matrix = band_matrix(front_end, bands)
        spectral = features[:, : front_end.shape[0] - front_end.waveform]
        channels = spectral.reshape(len(features), -1, len(matrix), front_end.frames)
        mel = np.einsum("nkcf,cb->nfkb", channels, matrix).reshape(-1, channels.shape[1], bands)
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


def resizing(size: int, wanted: int) -> NDArray[np.float32]:
    """Return the matrix (size, wanted) of linear interpolation between the centres of evenly wide cells."""
    position = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(np.arange(size)[:, None] - position)), np.float32)


def time_matrix(frames: int, attack: int, step: int) -> NDArray[np.float32]:
    """Return the matrix (frames, fewer) that averages `step` frames into one behind the first `attack`."""
    group = np.arange(frames)
    group[attack:] = min(attack, frames) + (group[attack:] - attack) // step
    membership = (group[:, None] == np.arange(group[-1] + 1)).astype(np.float32)
    return np.asarray(membership / membership.sum(axis=0), np.float32)


def band_matrix(front_end: FrontEnd, bands: int) -> NDArray[np.float32]:
    """Return the matrix (coefficients, bands) from one frame of the front end to log-mel bands in dB."""
    if front_end.kind == "mfcc":
        return inverse_dct(front_end.n_mfcc, bands, front_end.n_mels)
    return resizing(front_end.n_mels, bands)


def build_model(
    architecture: Architecture,
    front_end: FrontEnd,
    collapse: NDArray[np.float32],
    standardisation: Standardisation,
    spectral: SpectralSettings | None = None,
) -> Any:
    """Build the Keras model: features (batch, rows, frames) → logits (batch, fine).

    Parameters
    ----------
    collapse
        Matrix (fine, canonical) of 0 and 1.
    spectral
        What is done to the image in training; None leaves the layer out.
    """
    import keras
    from keras import layers

    features, x = log_mel_image(architecture, front_end, standardisation)
    if spectral is not None:
        x = spectral_augment(spectral, standardisation.deviation)(x)
    if architecture.kind == "cnn":
        x = _cnn(x, architecture)
    else:
        from drumline_convert.autoencoder import encoder, resized

        code = encoder(resized(x), architecture)
        x = layers.ReLU()(layers.Dense(architecture.code, name="head_hidden")(code))
    if front_end.waveform:
        x = layers.Concatenate()([x, waveform_branch(features[:, -front_end.waveform :])])
    x = layers.Dropout(architecture.dropout)(x)
    logits = layers.Dense(len(collapse), name="head_logits")(x)
    if architecture.heads == "fine+canonical":
        canonical = layers.Dense(collapse.shape[1], name="head_canonical")(x)
        logits = joint_logits(logits, canonical, collapse)
    return keras.Model(features, logits)


def log_mel_image(
    architecture: Architecture, front_end: FrontEnd, standardisation: Standardisation
) -> tuple[Any, Any]:
    """Return the input and the standardised image (frames, bands, channels) that the network sees of it."""
    import keras
    from keras import layers

    bands = architecture.bands
    matrix = band_matrix(front_end, bands)
    features = keras.Input(front_end.shape, name="features")
    rows = layers.Permute((2, 1))(_fewer_frames(features, architecture))
    channels = []
    for number, (mean, deviation) in enumerate(
        zip(standardisation.mean, standardisation.deviation, strict=True)
    ):
        first = number * len(matrix)
        # A slice of everything would be one more node in the graph.
        part = rows if front_end.shape[0] == len(matrix) else rows[:, :, first : first + len(matrix)]
        layer = layers.Dense(bands, trainable=False, name=f"log_mel{number or ''}")
        channels.append(layers.Reshape((rows.shape[1], bands, 1))(layer(part)))
        layer.set_weights([matrix / deviation, -mean / deviation])
    return features, channels[0] if len(channels) == 1 else layers.Concatenate()(channels)


def _fewer_frames(features: Any, architecture: Architecture) -> Any:
    """Average frames (batch, rows, frames) behind the attack: linear, as the DCT is, so it can come first."""
    from keras import layers

    frames = features.shape[2]
    matrix = time_matrix(frames, architecture.attack, architecture.decay_step)
    if matrix.shape[1] == frames:
        return features
    layer = layers.Dense(matrix.shape[1], use_bias=False, trainable=False, name="frames")
    fewer = layer(features)
    layer.set_weights([matrix])
    return fewer


def _cnn(x: Any, architecture: Architecture) -> Any:
    from keras import layers

    x = convolution(x, architecture.stem, kernel=5, stride=2, name="stem")
    for number, width in enumerate(architecture.widths, start=1):
        x = residual(x, width, architecture.squeeze, name=f"block{number}")
    x = layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)
    if architecture.pooling == "attention+max":
        average = attention_pool(x, name="attention")
    else:
        average = layers.GlobalAveragePooling1D()(x)
    return layers.Concatenate()([average, layers.GlobalMaxPooling1D()(x)])


def multiply_adds(model: Any) -> int:
    """Multiply-adds of the model's convolutions for one file."""
    return sum(_multiply_adds(layer) for layer in model.layers)


def _multiply_adds(layer: Any) -> int:
    if hasattr(layer, "layers"):
        return multiply_adds(layer)
    if type(layer).__name__ not in ("Conv1D", "Conv2D"):
        return 0
    return int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:-1]))
