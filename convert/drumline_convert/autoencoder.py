"""Model 2: a convolutional autoencoder on the resized log-mel image, and the encoder that a classifier uses.

The image is resized to `SIDE` frames; the encoder halves it with every block down to a code, the decoder
builds it back. What it learns from needs no labels, so unlabelled recordings can join in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drumline.frontend import FrontEnd
from drumline_convert.layers import convolution

if TYPE_CHECKING:
    from drumline_convert.architecture import Architecture, Standardisation

__all__ = ["SIDE", "build_autoencoder", "encoder", "reconstruction_loss", "resized"]

SIDE = 64
"""Frames of the resized image."""


def encoder(image: Any, architecture: Architecture) -> Any:
    """Return the code of a resized image (SIDE, bands, channels)."""
    from keras import layers

    x = convolution(image, architecture.stem, kernel=5, stride=2, name="encoder0")
    for number, width in enumerate(architecture.widths, start=1):
        x = convolution(x, width, kernel=3, stride=2, name=f"encoder{number}")
    return layers.Dense(architecture.code, name="encoder_code")(layers.Flatten()(x))


def resized(image: Any) -> Any:
    """Resize (frames, bands, channels) to `SIDE` frames by linear interpolation, one fixed matrix."""
    from keras import layers

    from drumline_convert.architecture import resizing

    frames, bands, channels = image.shape[1:]
    x = layers.Permute((2, 3, 1))(image)
    matrix = layers.Dense(SIDE, use_bias=False, trainable=False, name="resized")
    x = matrix(layers.Reshape((bands * channels, frames))(x))
    matrix.set_weights([resizing(frames, SIDE)])
    return layers.Permute((3, 1, 2))(layers.Reshape((bands, channels, SIDE))(x))


def build_autoencoder(
    architecture: Architecture, front_end: FrontEnd, standardisation: Standardisation
) -> Any:
    """Build features → error of the rebuilt image, (SIDE, bands, channels), to be made small."""
    import keras
    from keras import layers

    from drumline_convert.architecture import log_mel_image

    features, image = log_mel_image(architecture, front_end, standardisation)
    wanted = resized(image)
    rebuilt = _decoder(encoder(wanted, architecture), architecture, wanted.shape[1:])
    return keras.Model(features, layers.Subtract(name="error")([rebuilt, wanted]))


def _decoder(code: Any, architecture: Architecture, shape: tuple[int, int, int]) -> Any:
    from keras import layers

    frames, bands, channels = shape
    halvings = 1 + len(architecture.widths)
    small = [-(-size // 2**halvings) for size in (frames, bands)]
    x = layers.Dense(int(np.prod(small)) * architecture.widths[-1], activation="relu")(code)
    x = layers.Reshape((*small, architecture.widths[-1]))(x)
    for width in (*architecture.widths[-2::-1], architecture.stem):
        x = layers.Conv2DTranspose(width, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(channels, 3, strides=2, padding="same")(x)
    return layers.Cropping2D(((0, x.shape[1] - frames), (0, x.shape[2] - bands)))(x)


def reconstruction_loss(_target: NDArray[np.float32], error: Any) -> Any:
    """Return the mean square of `error` for each recording; what is to be rebuilt is the input itself."""
    from keras import ops

    return ops.mean(ops.square(error), axis=(1, 2, 3))
