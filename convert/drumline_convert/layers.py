"""The parts that networks are put together from; all of them convert to plain ONNX operators.

Keras is imported inside, so that a settings object can be made without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SpectralSettings",
    "attention_pool",
    "convolution",
    "joint_logits",
    "residual",
    "spectral_augment",
    "waveform_branch",
]

_TILT_POINTS = 7


@dataclass(frozen=True, slots=True)
class SpectralSettings:
    """What is done to the log-mel image in training, anew in every step; 0 leaves an effect out.

    Parameters
    ----------
    equaliser_db
        Deviation of the points of a random, smooth gain over the bands, dB.
    shift_bands
        Largest shift up or down the bands.
    delay_frames
        Largest shift to the right.
    mask_bands, mask_frames
        Largest width of one masked stripe (SpecAugment, Park et al. 2019).
    """

    equaliser_db: float = 0.0
    shift_bands: int = 0
    delay_frames: int = 0
    mask_bands: int = 0
    mask_frames: int = 0

    @property
    def active(self) -> bool:
        """Whether there is any effect."""
        return any(
            (self.equaliser_db, self.shift_bands, self.delay_frames, self.mask_bands, self.mask_frames)
        )


def convolution(x: Any, channels: int, kernel: int, *, name: str, stride: int = 1, relu: bool = True) -> Any:
    """Convolve, normalise the batch, and rectify."""
    from keras import layers

    x = layers.Conv2D(
        channels, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_convolution"
    )(x)
    x = layers.BatchNormalization(name=f"{name}_normalisation")(x)
    return layers.ReLU()(x) if relu else x


def residual(x: Any, channels: int, squeeze: int, *, name: str) -> Any:
    """Halve frames and bands by two convolutions and a shortcut around them."""
    from keras import layers

    y = convolution(x, channels, kernel=3, stride=2, name=f"{name}a")
    y = convolution(y, channels, kernel=3, relu=False, name=f"{name}b")
    if squeeze:
        y = _squeeze_and_excite(y, channels, squeeze, name)
    shortcut = layers.AveragePooling2D(2, padding="same")(x)
    shortcut = convolution(shortcut, channels, kernel=1, relu=False, name=f"{name}_shortcut")
    return layers.ReLU()(layers.Add()([y, shortcut]))


def _squeeze_and_excite(x: Any, channels: int, reduction: int, name: str) -> Any:
    """Gate each channel by what all of them are on average (Hu et al. 2018).

    1 × 1 convolutions rather than dense layers: they convert without transposes.
    """
    from keras import layers

    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(max(channels // reduction, 1), 1, activation="relu", name=f"{name}_squeeze")(gate)
    gate = layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_excite")(gate)
    return layers.Multiply()([x, gate])


def attention_pool(x: Any, *, name: str, heads: int = 4) -> Any:
    """Average `x` (frames, channels) over its frames by `heads` learnt weights: (heads × channels,)."""
    from keras import layers

    weight = layers.Softmax(axis=1)(layers.Conv1D(heads, 1, name=name)(x))
    return layers.Flatten()(layers.Dot(axes=1)([weight, x]))


def waveform_branch(values: Any, widths: tuple[int, ...] = (16, 32, 48)) -> Any:
    """Return what convolutions over time find in waveform `values` (values of a frame, frames)."""
    from keras import layers

    x = layers.Reshape((values.shape[1] * values.shape[2], 1))(layers.Permute((2, 1))(values))
    for number, width in enumerate(widths, start=1):
        name = f"waveform{number}"
        x = layers.Conv1D(width, 9, strides=4, padding="same", use_bias=False, name=f"{name}_convolution")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_normalisation")(x))
    return layers.Concatenate()([layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)])


def joint_logits(fine: Any, canonical: Any, collapse: NDArray[np.float32]) -> Any:
    """Return log(P(canonical) · P(fine | canonical)) of logits `fine` and `canonical`.

    Its softmax sums to the canonical head's probabilities, so the engine needs to know of one output only.
    """
    from keras import ops

    inside = np.where(collapse.T > 0, 0.0, -1e9).astype(np.float32)
    within = ops.logsumexp(ops.expand_dims(fine, 1) + inside[None], axis=2)
    correction = ops.log_softmax(canonical) - within
    return fine + ops.matmul(correction, collapse.T)


def spectral_augment(settings: SpectralSettings, deviation: NDArray[np.float32]) -> Any:
    """Return a layer that alters images (frames, bands, channels) in training, and only there.

    Parameters
    ----------
    deviation
        What one dB was divided by, (channels, bands); an equaliser shifts the first channel alone, since
        a constant gain has no derivative.
    """
    import keras

    channels, bands = deviation.shape
    curves = _tilt_curves(bands)
    per_db = np.eye(1, channels, dtype=np.float32)[0] / deviation.T

    class SpectralAugment(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seed_generator = keras.random.SeedGenerator()

        def call(self, image: Any, training: bool = False) -> Any:
            return self.altered(image) if training else image

        def altered(self, image: Any) -> Any:
            """Return the images equalised, moved and masked."""
            seed = self.seed_generator
            if settings.equaliser_db:
                image += _equaliser(image, settings.equaliser_db, curves, per_db, seed)
            if settings.shift_bands:
                image = _moved(image, 2, -settings.shift_bands, settings.shift_bands, seed)
            if settings.delay_frames:
                image = _moved(image, 1, 0, settings.delay_frames, seed)
            image *= _stripe(image, 2, settings.mask_bands, seed)
            return image * _stripe(image, 1, settings.mask_frames, seed)

    return SpectralAugment()


def _tilt_curves(bands: int) -> NDArray[np.float32]:
    """Return the gain over the bands that each point of an equaliser gives, (points, bands)."""
    numbers, places = np.arange(_TILT_POINTS), np.linspace(0, _TILT_POINTS - 1, bands)
    return np.array([np.interp(places, numbers, point) for point in np.eye(_TILT_POINTS)], np.float32)


def _equaliser(
    image: Any, deviation_db: float, curves: NDArray[np.float32], per_db: NDArray[np.float32], seed: Any
) -> Any:
    """Return what a random equaliser adds to each image, (n, 1, bands, channels)."""
    import keras
    from keras import ops

    gain_db = keras.random.normal((ops.shape(image)[0], _TILT_POINTS), seed=seed) * deviation_db
    return ops.expand_dims(ops.expand_dims(gain_db @ curves, -1) * per_db, 1)


def _moved(image: Any, axis: int, least: int, most: int, seed: Any) -> Any:
    """Move each image along an axis by `least` to `most` places; what moves in repeats the edge."""
    import keras
    from keras import ops

    count, size = ops.shape(image)[0], image.shape[axis]
    by = keras.random.randint((count, 1), least, most + 1, seed=seed)
    source = ops.clip(ops.expand_dims(ops.arange(size), 0) - by, 0, size - 1)
    return ops.take_along_axis(image, ops.reshape(source, _along(axis, size)), axis)


def _stripe(image: Any, axis: int, widest: int, seed: Any) -> Any:
    """Return ones along an axis, with one stripe of zeros: the mean, in a standardised image."""
    import keras
    from keras import ops

    count, size = ops.shape(image)[0], image.shape[axis]
    width = keras.random.randint((count, 1), 0, widest + 1, seed=seed)
    start = keras.random.uniform((count, 1), seed=seed) * ops.cast(size - width, "float32")
    first, place = ops.cast(start, "int32"), ops.expand_dims(ops.arange(size), 0)
    kept = ops.logical_or(place < first, place >= first + width)
    return ops.reshape(ops.cast(kept, "float32"), _along(axis, size))


def _along(axis: int, size: int) -> list[int]:
    """Return the shape (n, 1, 1, 1) with `size` at an axis."""
    shape = [-1, 1, 1, 1]
    shape[axis] = size
    return shape
