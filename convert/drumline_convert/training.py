"""One training: features and labels in, Keras model out.

In order: Model 2's encoder learns to rebuild what it hears; the weights of an earlier model are taken over;
the head is fitted while the body is frozen; everything is fitted. Each step is a `fit` in a directory of its
own, so a stopped training goes on where it was. Where teachers are asked for, they are trained first; where
members are, each is trained so, and the result is their mean.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline_convert.architecture import Architecture, Standardisation, build_model
from drumline_convert.autoencoder import build_autoencoder, reconstruction_loss
from drumline_convert.batches import SamplingSettings, TrainingData, batches, targets
from drumline_convert.doubting import DoubtSettings
from drumline_convert.fitting import FitSettings, OnEpoch, fit
from drumline_convert.layers import SpectralSettings
from drumline_convert.losses import LossSettings, canonical_accuracy, classification_loss

__all__ = ["Start", "TrainingData", "TrainingSettings", "predict_logits", "prepare_tensorflow", "train"]

Start = Callable[[Any, int], None]
"""Gives a network that was just built, the nth, the weights of an earlier one."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained.

    Parameters
    ----------
    epochs
        Passes over the recordings; every pass sees one variant of each.
    pretrain_epochs
        Passes in which Model 2's autoencoder learns to rebuild its input, before any label counts.
    frozen_epochs
        Passes in which only the head is fitted, before the others.
    validation
        Share of the recordings, in whole families, that is kept from training to watch the loss on.
    members
        Networks, each from another seed, whose mean is the result.
    teachers
        Networks, each from another seed, whose mean the network is trained to say after them.
    seed
        Seed of weights, order and variants: of the first teacher, or of the first member without teachers;
        each further network has the next one.
    doubt, fit, loss, sampling, spectral
        See `DoubtSettings`, `FitSettings`, `LossSettings`, `SamplingSettings`, `SpectralSettings`.
    """

    epochs: int = 40
    pretrain_epochs: int = 15
    frozen_epochs: int = 0
    validation: float = 0.0
    members: int = 2
    teachers: int = 0
    seed: int = 0
    doubt: DoubtSettings = field(default_factory=DoubtSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(balance="class", mixup=0.2))
    spectral: SpectralSettings = field(default_factory=lambda: SpectralSettings(equaliser_db=3.0))

    def __post_init__(self) -> None:
        if (
            min(self.epochs, self.members) < 1
            or min(self.pretrain_epochs, self.frozen_epochs, self.teachers) < 0
        ):
            raise ConfigError(
                "training: epochs and members must be at least 1, the other counts not negative"
            )
        if not 0 <= self.validation < 1:
            raise ConfigError(f"training.validation {self.validation} is not within 0..1")
        if self.fit.patience and not self.validation:
            raise ConfigError(
                "fit.patience watches the loss of validation families, and there are none",
                "Set training.validation, for instance to 0.1.",
            )


def prepare_tensorflow(threads: int = 2) -> None:
    """Import TensorFlow quietly and keep it to `threads` cores; later calls in a process change nothing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr():
        import tensorflow as tf
    # It advises against predicting with several models in one process.
    tf.get_logger().setLevel("ERROR")
    # Thread counts are fixed once TensorFlow has run anything.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what TensorFlow's C++ side prints at import, before any log level counts."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def train(
    data: TrainingData,
    front_end: FrontEnd,
    architecture: Architecture,
    settings: TrainingSettings,
    *,
    start: Start | None = None,
    directory: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Any:
    """Train what the settings ask for: teachers, then members, and return the members' mean.

    Parameters
    ----------
    start
        Where the weights come from; None: from the seed.
    directory
        Where a stopped training goes on from; None keeps nothing.
    on_epoch
        Called after every epoch of every step.

    Returns
    -------
    keras.Model
        features (batch, rows, frames) → logits (batch, fine), with averaged weights, not compiled.
    """
    with contextlib.ExitStack() as stack:
        place = directory or Path(stack.enter_context(TemporaryDirectory()))

        def network(taught: TrainingData, seed: int, name: str) -> Any:
            begun = None if start is None else lambda model: start(model, seed - settings.seed)
            one = replace(settings, seed=seed)
            return _network(taught, front_end, architecture, one, begun, place / name, on_epoch)

        first = settings.seed + settings.teachers
        if settings.teachers:
            seeds = range(settings.seed, first)
            data = replace(
                data,
                teacher=_taught(
                    data, place, lambda: [network(data, seed, f"teacher{seed}") for seed in seeds]
                ),
            )
        members = range(first, first + settings.members)
        return _mean([network(data, seed, f"member{seed}") for seed in members], front_end)


def _taught(data: TrainingData, directory: Path, teachers: Callable[[], list[Any]]) -> NDArray[np.float32]:
    """Return the mean log-probabilities that the teachers give to every variant, (m, variants, fine)."""
    path = directory / "teacher.npy"
    if not path.exists():
        networks = teachers()
        variants = range(data.features.shape[1])
        logits = [_mean_log_probs(networks, data.features[data.rows, variant]) for variant in variants]
        partial = directory / "partial.npy"
        np.save(partial, np.stack(logits, axis=1))
        partial.replace(path)
    return np.asarray(np.load(path), np.float32)


def _mean_log_probs(networks: list[Any], features: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy.special import log_softmax

    logits = [network.predict(np.asarray(features), batch_size=256, verbose=0) for network in networks]
    return np.asarray(np.mean([log_softmax(part, axis=1) for part in logits], axis=0), np.float32)


def _mean(networks: list[Any], front_end: FrontEnd) -> Any:
    """Return one model whose logits are the mean of the networks': their geometric mean as probabilities."""
    import keras

    if len(networks) == 1:
        return networks[0]
    features = keras.Input(front_end.shape, name="features")
    for number, network in enumerate(networks):
        network.name = f"member{number}"
    return keras.Model(features, keras.layers.Average(name="logits")([net(features) for net in networks]))


def _network(
    data: TrainingData,
    front_end: FrontEnd,
    architecture: Architecture,
    settings: TrainingSettings,
    start: Callable[[Any], None] | None,
    directory: Path,
    on_epoch: OnEpoch | None,
) -> Any:
    """Train one network."""
    import keras

    keras.utils.set_random_seed(settings.seed)
    standardisation = _standardisation(data, front_end, architecture)
    spectral = settings.spectral if settings.spectral.active else None
    model = build_model(architecture, front_end, data.collapse, standardisation, spectral)
    if start is not None:
        start(model)
    elif architecture.kind == "autoencoder" and settings.pretrain_epochs:
        _pretrain(model, data, front_end, architecture, standardisation, settings, directory, on_epoch)
    shown, watched = _split(data, settings)
    if settings.frozen_epochs:
        with _frozen(model):
            _fit(model, shown, watched, settings, settings.frozen_epochs, directory / "head", on_epoch)
    _fit(model, shown, watched, settings, settings.epochs, directory / "whole", on_epoch)
    # A model that was never compiled can be saved and loaded without our loss and our layers.
    result = build_model(architecture, front_end, data.collapse, standardisation)
    result.set_weights(model.get_weights())
    return result


def _standardisation(data: TrainingData, front_end: FrontEnd, architecture: Architecture) -> Standardisation:
    some = np.sort(data.rows)[:: max(len(data.rows) // 1000, 1)]
    return Standardisation.of(np.asarray(data.features[some, 0]), architecture.bands, front_end)


def _pretrain(
    model: Any,
    data: TrainingData,
    front_end: FrontEnd,
    architecture: Architecture,
    standardisation: Standardisation,
    settings: TrainingSettings,
    directory: Path,
    on_epoch: OnEpoch | None,
) -> None:
    """Let an autoencoder learn to rebuild its input, and give its encoder to `model`."""
    autoencoder = build_autoencoder(architecture, front_end, standardisation)
    shown = batches(replace(data, teacher=None), replace(settings.sampling, mixup=0.0), settings.seed)
    plain = replace(settings.fit, patience=0)
    fit(
        autoencoder,
        shown,
        reconstruction_loss,
        plain,
        settings.pretrain_epochs,
        directory / "autoencoder",
        on_epoch=on_epoch,
    )
    for layer in model.layers:
        if layer.name.startswith("encoder"):
            layer.set_weights(autoencoder.get_layer(layer.name).get_weights())


def _fit(
    model: Any,
    shown: TrainingData,
    watched: TrainingData | None,
    settings: TrainingSettings,
    epochs: int,
    directory: Path,
    on_epoch: OnEpoch | None,
) -> None:
    fit(
        model,
        batches(shown, settings.sampling, settings.seed),
        classification_loss(shown.collapse, settings.loss),
        settings.fit,
        epochs,
        directory,
        metrics=(canonical_accuracy(shown.collapse),),
        validation=None if watched is None else (watched.clean(), targets(watched)),
        on_epoch=on_epoch,
    )


@contextlib.contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Keep all but the head from moving."""
    body = [layer for layer in model.layers if layer.trainable and not layer.name.startswith("head")]
    for layer in body:
        layer.trainable = False
    try:
        yield
    finally:
        for layer in body:
            layer.trainable = True


def _split(data: TrainingData, settings: TrainingSettings) -> tuple[TrainingData, TrainingData | None]:
    """Return what is trained on and what the loss is watched on: whole families, seeded."""
    if not settings.validation:
        return data, None
    if data.family is None:
        raise ConfigError("training.validation keeps whole families apart, but the recordings state none")
    families = np.random.default_rng(settings.seed).permutation(np.unique(data.family))
    size = np.cumsum([np.count_nonzero(data.family == family) for family in families])
    kept = families[: 1 + int(np.searchsorted(size, settings.validation * len(data.rows)))]
    if len(kept) == len(families):
        raise ConfigError(
            f"{len(families)} families are too few to keep a share of {settings.validation} for validation"
        )
    watched = np.isin(data.family, kept)
    return data.only(np.flatnonzero(~watched)), data.only(np.flatnonzero(watched))


def predict_logits(model: Any, features: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the logits (m, fine) of the unaltered recordings at `rows`."""
    clean = np.asarray(features[rows, 0], np.float32)
    return np.asarray(model.predict(clean, batch_size=128, verbose=0), np.float32)
