"""One training: features and labels in, Keras model out.

The loss is the cross-entropy of the fine labels plus that of the canonical ones, whose probability is the
sum of their fine probabilities; so what the engine decides by is trained directly. Weights are averaged
exponentially over the steps, and the averages are the result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.frontend import FrontEnd
from drumline_convert.architecture import Architecture, Standardisation, build_model

__all__ = ["TrainingData", "TrainingSettings", "predict_logits", "prepare_tensorflow", "train"]

OnEpoch = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained.

    Parameters
    ----------
    epochs
        Passes over the recordings; every pass sees one variant of each.
    batch_size
        Recordings per step.
    learning_rate
        Peak of the cosine schedule, after one epoch of warm-up.
    weight_decay
        Decoupled weight decay of AdamW.
    label_smoothing
        Share of the fine target that is spread over all fine labels.
    canonical_weight
        Weight of the canonical cross-entropy next to the fine one.
    average
        Momentum of the weight average per step.
    seed
        Seed of weights, order and variants.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 5e-3
    label_smoothing: float = 0.05
    canonical_weight: float = 1.0
    average: float = 0.995
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What is learnt from.

    Parameters
    ----------
    features
        (n, variants, coefficients, frames) float32, perhaps memory-mapped; the first variant is unaltered.
    rows
        Indices into `features` of the recordings to use, (m,).
    fine
        Fine label index of each of them, (m,).
    weight
        Weight in the loss of each of them, (m,).
    collapse
        Matrix (fine, canonical) of 0 and 1.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.intp]
    fine: NDArray[np.intp]
    weight: NDArray[np.float32]
    collapse: NDArray[np.float32]


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
    on_epoch: OnEpoch | None = None,
) -> Any:
    """Train a network.

    Parameters
    ----------
    on_epoch
        Called after every epoch with its number, from 1, and the training loss.

    Returns
    -------
    keras.Model
        MFCC (batch, coefficients, frames) → logits (batch, fine), with averaged weights, not compiled.
    """
    import keras

    keras.utils.set_random_seed(settings.seed)
    some = np.sort(data.rows)[:: max(len(data.rows) // 1000, 1)]
    clean = np.asarray(data.features[some, 0])
    standardisation = Standardisation.of(clean, architecture.bands, front_end.n_mels)
    model = build_model(architecture, front_end, len(data.collapse), standardisation)
    batches = _batches(data, settings)
    model.compile(_optimizer(settings, len(batches)), _loss(data.collapse, settings))
    model.fit(batches, epochs=settings.epochs, verbose=0, shuffle=False, callbacks=_callbacks(on_epoch))
    # A model that was never compiled can be saved and loaded without our loss.
    result = build_model(architecture, front_end, len(data.collapse), standardisation)
    result.set_weights(model.get_weights())
    return result


def _callbacks(on_epoch: OnEpoch | None) -> list[Any]:
    import keras

    if on_epoch is None:
        return []
    return [
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, logs["loss"]))
    ]


def _optimizer(settings: TrainingSettings, steps: int) -> Any:
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=settings.learning_rate / 20,
        decay_steps=max(steps * (settings.epochs - 1), 1),
        alpha=0.01,
        warmup_target=settings.learning_rate,
        warmup_steps=steps,
    )
    return keras.optimizers.AdamW(
        schedule, weight_decay=settings.weight_decay, use_ema=True, ema_momentum=settings.average
    )


def _loss(collapse: NDArray[np.float32], settings: TrainingSettings) -> Any:
    import tensorflow as tf

    classes = len(collapse)
    # log of a sum of probabilities = logsumexp of log-probabilities; -1e9 stands for "not in this class".
    outside = tf.constant((1 - collapse) * -1e9)
    canonical_of = tf.constant(collapse.argmax(axis=1))

    def loss(target: Any, logits: Any) -> Any:
        fine = tf.cast(tf.reshape(target, (-1,)), tf.int32)
        log_fine = tf.nn.log_softmax(logits)
        smooth = settings.label_smoothing
        wanted = tf.one_hot(fine, classes) * (1 - smooth) + smooth / classes
        log_canonical = tf.reduce_logsumexp(log_fine[:, :, None] + outside[None], axis=1)
        canonical = tf.gather(log_canonical, tf.gather(canonical_of, fine), axis=1, batch_dims=1)
        return -tf.reduce_sum(wanted * log_fine, axis=1) - settings.canonical_weight * canonical

    return loss


def _batches(data: TrainingData, settings: TrainingSettings) -> Any:
    """Return a Keras data set that draws another variant of every recording in every epoch."""
    import keras

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._rng = np.random.default_rng(settings.seed)
            self.on_epoch_end()

        def on_epoch_end(self) -> None:
            self._order = self._rng.permutation(len(data.rows))
            self._variant = self._rng.integers(0, data.features.shape[1], len(data.rows))

        def __len__(self) -> int:
            # A smaller last batch would compile a second graph; the next epoch draws what is left out.
            return max(len(data.rows) // settings.batch_size, 1)

        def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
            part = self._order[index * settings.batch_size :][: settings.batch_size]
            features = data.features[data.rows[part], self._variant[part]]
            return np.asarray(features, np.float32), data.fine[part], data.weight[part]

    return Batches()


def predict_logits(model: Any, features: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the logits (m, fine) of the unaltered recordings at `rows`."""
    clean = np.asarray(features[rows, 0], np.float32)
    return np.asarray(model.predict(clean, batch_size=128, verbose=0), np.float32)
