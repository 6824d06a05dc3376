"""The training loop: Keras' own, with the callbacks that make it resumable and its course visible.

A fit keeps in its directory, while it runs, a backup of every epoch (``backup/``), and for good
``history.json`` (loss, accuracy and learning rate of every epoch), ``history.png`` and the weights that it
ended with (``weights.weights.h5``). Given the same directory again it goes on after the last whole epoch, or
only loads the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import orjson

from drumline.durable import output_errors, write_bytes, write_json
from drumline.errors import ConfigError
from drumline_convert.plots import new_figure, png_of

__all__ = ["EpochDone", "FitSettings", "OnEpoch", "fit", "read_history"]

Schedule = Literal["cosine", "plateau"]
_HISTORY = "history.json"
_BEST = "best.weights.h5"
_VALIDATION_BATCH = 128


class EpochDone(NamedTuple):
    """Where a fit is: the step, the epoch's number from 1, how many there are, and the training loss."""

    step: str
    number: int
    epochs: int
    loss: float


OnEpoch = Callable[[EpochDone], None]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How weights are moved.

    Parameters
    ----------
    learning_rate
        Peak of the cosine schedule, after one epoch of warm-up; or where ``"plateau"`` begins.
    schedule
        ``"cosine"`` down to a hundredth over the epochs, or ``"plateau"``: a third whenever the loss
        has not become smaller for a third of `patience` (at least two) epochs.
    weight_decay
        Decoupled weight decay of AdamW.
    average
        Momentum of the weight average per step, which is the result; 0 takes the weights of the last step.
    patience
        Epochs without a smaller validation loss after which training stops, and the best epoch's weights are
        the result; 0 goes through all epochs.
    """

    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"
    weight_decay: float = 5e-3
    average: float = 0.995
    patience: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"fit.schedule {self.schedule!r} is none of {', '.join(get_args(Schedule))}")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.average < 1 or self.patience < 0:
            raise ConfigError(
                "fit: learning_rate must be above 0, average within 0..1, the others not negative"
            )


def fit(
    model: Any,
    batches: Any,
    loss: Any,
    settings: FitSettings,
    epochs: int,
    directory: Path,
    *,
    metrics: tuple[Any, ...] = (),
    validation: Any = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Fit the weights of `model` in place.

    Parameters
    ----------
    batches
        See `drumline_convert.batches.batches`.
    directory
        Where a stopped fit goes on from.
    validation
        (features, target) that the loss is measured on after every epoch, or None.
    on_epoch
        Called after every epoch.

    Raises
    ------
    OutputError
        When the directory cannot be written.
    """
    weights = directory / "weights.weights.h5"
    if weights.exists():
        model.load_weights(weights)
        return
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        optimizer = _optimizer(settings, len(batches), epochs)
        # Compiled by XLA, a step on the CPU takes twice as long.
        model.compile(optimizer, loss, metrics=list(metrics), jit_compile=False)
        model.fit(
            batches,
            epochs=epochs,
            verbose=0,
            shuffle=False,
            validation_data=validation,
            validation_batch_size=_VALIDATION_BATCH,
            callbacks=_callbacks(batches, settings, epochs, validation, directory, on_epoch),
        )
        _finish(model, directory, weights)
    write_bytes(directory / "history.png", _plot(read_history(directory)))


def _finish(model: Any, directory: Path, weights: Path) -> None:
    best = directory / _BEST
    if best.exists():
        model.load_weights(best)
    partial = directory / "partial.weights.h5"
    model.save_weights(partial)
    partial.replace(weights)
    best.unlink(missing_ok=True)
    shutil.rmtree(directory / "backup", ignore_errors=True)


def read_history(directory: Path) -> list[dict[str, float]]:
    """Return what was recorded of each epoch, in order; empty when nothing was."""
    path = directory / _HISTORY
    return list(orjson.loads(path.read_bytes())) if path.exists() else []


def _optimizer(settings: FitSettings, steps: int, epochs: int) -> Any:
    import keras

    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=settings.learning_rate / 20,
            decay_steps=max(steps * (epochs - 1), 1),
            alpha=0.01,
            warmup_target=settings.learning_rate,
            warmup_steps=steps,
        )
    average = {"use_ema": True, "ema_momentum": settings.average} if settings.average else {}
    return keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, **average)


def _callbacks(
    batches: Any,
    settings: FitSettings,
    epochs: int,
    validation: Any,
    directory: Path,
    on_epoch: OnEpoch | None,
) -> list[Any]:
    """Return the callbacks in the order in which they have to act at the end of an epoch."""
    from keras import callbacks

    watched = "loss" if validation is None else "val_loss"
    chosen: list[Any] = [_epoch_callback(batches)]
    if settings.schedule == "plateau":
        patience = max(settings.patience // 3, 2)
        chosen.append(callbacks.ReduceLROnPlateau(watched, factor=1 / 3, patience=patience))
    # Before the averaged weights are swapped in: it is the moving ones that a stopped fit goes on with.
    chosen.append(callbacks.BackupAndRestore(directory / "backup", double_checkpoint=True))
    if validation is not None and settings.average:
        chosen.append(callbacks.SwapEMAWeights(swap_on_epoch=True))
    if validation is not None and settings.patience:
        chosen += _early_stopping(settings, directory)
    chosen.append(_history_callback(directory))
    if on_epoch is not None:
        tell, step = on_epoch, directory.name
        chosen.append(
            callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: tell(EpochDone(step, epoch + 1, epochs, logs["loss"]))
            )
        )
    return chosen


def _early_stopping(settings: FitSettings, directory: Path) -> list[Any]:
    from keras import callbacks

    best = min((epoch["val_loss"] for epoch in read_history(directory)), default=None)
    keep = callbacks.ModelCheckpoint(
        directory / _BEST,
        "val_loss",
        save_best_only=True,
        save_weights_only=True,
        initial_value_threshold=best,
    )
    return [keep, callbacks.EarlyStopping("val_loss", patience=settings.patience)]


def _epoch_callback(batches: Any) -> Any:
    """Make what is random in an epoch, the data's and the layers', a function of its number."""
    import keras

    class Epoch(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            batches.draw(epoch)
            for layer in self.model.layers:
                generator = getattr(layer, "seed_generator", None)
                if generator is not None:
                    seed = int(generator.state[0])
                    generator.state.assign([seed, epoch << 16])

    return Epoch()


def _history_callback(directory: Path) -> Any:
    import keras

    class History(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            rate = float(self.model.optimizer.learning_rate)
            values = {name: round(float(value), 6) for name, value in (logs or {}).items()}
            entry = {"epoch": epoch + 1, **values, "learning_rate": rate}
            write_json(directory / _HISTORY, [*read_history(directory)[:epoch], entry])

    return History()


def _plot(history: list[dict[str, float]]) -> bytes:
    """Return a PNG with the course of loss and accuracy."""
    figure, panels = new_figure(2, width=4.5, height=3.5)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            points = [(epoch["epoch"], epoch[key]) for epoch in history if key in epoch]
            if points:
                axes.plot(*zip(*points, strict=True), label=label)
                axes.legend()
        axes.set(xlabel="epoch", ylabel=name)
    return png_of(figure)
