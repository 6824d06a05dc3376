"""Starting from an earlier model: its body is taken over, and what its head knows of labels that remain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drumline.bundle import find_bundle, load_bundle
from drumline.errors import BundleError, ConfigError

__all__ = ["KERAS_NAME", "Earlier", "load_earlier", "take_over"]

KERAS_NAME = "model.keras"
"""The trainable form of a bundle's model, beside the graph that the engine runs."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier model.

    Parameters
    ----------
    path
        The ``.keras`` file.
    labels
        Its fine labels in output order; None when nothing says what they were.
    """

    path: Path
    labels: tuple[str, ...] | None


def load_earlier(start: Path) -> Earlier:
    """Find the earlier model that `start` names: a ``.keras`` file, or a bundle by path or name.

    Raises
    ------
    BundleError
        When there is none, or the bundle has no trainable form.
    """
    if start.suffix == ".keras":
        if not start.is_file():
            raise BundleError(f"there is no Keras model {str(start)!r}")
        return Earlier(start, None)
    directory = find_bundle(start)
    path = directory / KERAS_NAME
    if not path.is_file():
        raise BundleError(
            f"bundle {directory.name} has no {KERAS_NAME}, so training cannot start from it",
            "Bundles that drumline train model writes have it; or give a .keras file.",
        )
    return Earlier(path, load_bundle(directory).labels)


def _layers(model: Any, number: int) -> dict[str, Any]:
    """Return the layers of a network by name; of the mean of several, those of one member."""
    members = [layer for layer in model.layers if hasattr(layer, "layers")]
    return {layer.name: layer for layer in (members[number % len(members)] if members else model).layers}


def take_over(model: Any, earlier: Earlier, labels: tuple[str, ...], number: int = 0) -> None:
    """Give `model` an earlier one's weights: the whole body, and the outputs of labels that both have.

    Parameters
    ----------
    labels
        Fine labels of `model` in output order.
    number
        Which network `model` is: of an earlier model that is the mean of several, the member of that number,
        counted round, is taken over.

    Raises
    ------
    BundleError
        When the earlier model cannot be loaded.
    ConfigError
        When a layer of the body is missing there or has other sizes.
    """
    import keras

    try:
        known = _layers(keras.models.load_model(earlier.path), number)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"cannot load the Keras model {str(earlier.path)!r}: {error}") from error
    for layer in model.layers:
        if not layer.get_weights():
            continue
        if layer.name == "head_logits":
            _take_outputs(layer, known.get(layer.name), labels, earlier.labels)
        elif layer.name in known and _shapes(known[layer.name]) == _shapes(layer):
            layer.set_weights(known[layer.name].get_weights())
        elif not layer.name.startswith("head"):
            raise ConfigError(
                f"layer {layer.name} has sizes {_shapes(layer)}, and in {earlier.path.name} "
                f"{_shapes(known[layer.name]) if layer.name in known else 'there is none'}",
                "Use the architecture and the front end that the earlier model was trained with.",
            )


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [weight.shape for weight in layer.get_weights()]


def _take_outputs(
    layer: Any, earlier: Any, labels: tuple[str, ...], earlier_labels: tuple[str, ...] | None
) -> None:
    if earlier is None or earlier_labels is None:
        return
    kernel, bias = layer.get_weights()
    known_kernel, known_bias = earlier.get_weights()
    if len(known_kernel) != len(kernel):
        return
    places = {label: place for place, label in enumerate(earlier_labels)}
    shared = np.array([column for column, label in enumerate(labels) if label in places], np.intp)
    source = [places[labels[column]] for column in shared]
    kernel[:, shared], bias[shared] = known_kernel[:, source], known_bias[source]
    layer.set_weights([kernel, bias])
