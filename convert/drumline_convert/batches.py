"""What a network is shown: which recordings, which variant of each, in which order, with which target.

Every epoch is a pure function of the seed and its number, so a training that is stopped and goes on sees what
an undisturbed one sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError

__all__ = ["SamplingSettings", "TrainingData", "batches", "targets"]

Balance = Literal["none", "class", "family"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How recordings are drawn and mixed.

    Parameters
    ----------
    batch_size
        Recordings per step.
    balance
        What is drawn more evenly than it occurs: nothing, fine labels (``"class"``) or families.
    balance_power
        How much more evenly: 0 as it occurs, 1 all of them alike.
    class_weight
        Exponent of the weight that rare fine labels have in the loss: 0 all alike, 1 inverse to their count.
    mixup
        Both parameters of the beta distribution by which two recordings are mixed (Zhang et al. 2018); 0:
        never.
    """

    batch_size: int = 64
    balance: Balance = "none"
    balance_power: float = 0.5
    class_weight: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if self.balance not in get_args(Balance):
            raise ConfigError(f"sampling.balance {self.balance!r} is none of {', '.join(get_args(Balance))}")
        if self.batch_size < 1 or min(self.balance_power, self.class_weight, self.mixup) < 0:
            raise ConfigError("values in sampling must not be negative, and batch_size at least 1")


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What is learnt from.

    Parameters
    ----------
    features
        (n, variants, rows, frames) float32, perhaps memory-mapped; the first variant is unaltered.
    rows
        Indices into `features` of the recordings to use, (m,).
    fine
        Fine label index of each of them, (m,).
    weight
        Weight in the loss of each of them, (m,).
    collapse
        Matrix (fine, canonical) of 0 and 1.
    family
        Number of the family of each of them, (m,); None where families do not count.
    teacher
        Logits that the teachers gave to each variant, (m, variants, fine); None without teachers.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.intp]
    fine: NDArray[np.intp]
    weight: NDArray[np.float32]
    collapse: NDArray[np.float32]
    family: NDArray[np.intp] | None = None
    teacher: NDArray[np.float32] | None = None

    def only(self, chosen: NDArray[np.intp]) -> TrainingData:
        """Return the recordings numbered `chosen`."""
        return TrainingData(
            self.features,
            self.rows[chosen],
            self.fine[chosen],
            self.weight[chosen],
            self.collapse,
            None if self.family is None else self.family[chosen],
            None if self.teacher is None else self.teacher[chosen],
        )

    def clean(self) -> NDArray[np.float32]:
        """Return the unaltered features, (m, rows, frames)."""
        return np.asarray(self.features[self.rows, 0], np.float32)


def targets(data: TrainingData) -> NDArray[np.float32]:
    """Return the wanted probabilities of the fine labels, (m, fine)."""
    return np.eye(len(data.collapse), dtype=np.float32)[data.fine]


def batches(data: TrainingData, settings: SamplingSettings, seed: int) -> Any:
    """Return a Keras data set of (features, target, weight) that draws another variant in every epoch.

    `draw(epoch)` decides what the epoch shows; the data set begins as epoch 0.
    """
    import keras

    chance = _chance(data, settings)
    weight = data.weight * _class_weight(data.fine, settings.class_weight)

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.draw(0)

        def draw(self, epoch: int) -> None:
            """Decide order, variants and partners of an epoch."""
            rng, count = np.random.default_rng([seed, epoch]), len(data.rows)
            self._order = rng.permutation(count) if chance is None else rng.choice(count, count, p=chance)
            self._variant = rng.integers(0, data.features.shape[1], count)
            self._partner = rng.permutation(settings.batch_size)
            share = rng.beta(settings.mixup, settings.mixup, count) if settings.mixup else np.ones(count)
            # The recording that gives the place in the batch is the one that is heard more.
            self._share = np.maximum(share, 1 - share).astype(np.float32)

        def __len__(self) -> int:
            # A smaller last batch would compile a second graph; the next epoch draws what is left out.
            return max(len(data.rows) // settings.batch_size, 1)

        def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
            place = slice(index * settings.batch_size, (index + 1) * settings.batch_size)
            part, variant = self._order[place], self._variant[place]
            features = np.asarray(data.features[data.rows[part], variant], np.float32)
            target = np.eye(len(data.collapse), dtype=np.float32)[data.fine[part]]
            if data.teacher is not None:
                target = np.concatenate([target, data.teacher[part, variant]], axis=1)
            if settings.mixup:
                partner, share = self._partner[self._partner < len(part)], self._share[place]
                features = _mixed(features, partner, share)
                target = _mixed(target, partner, share)
            return features, target, weight[part]

    return Batches()


def _mixed(
    values: NDArray[np.float32], partner: NDArray[np.intp], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    own = share.reshape(-1, *[1] * (values.ndim - 1))
    return own * values + (1 - own) * values[partner]


def _chance(data: TrainingData, settings: SamplingSettings) -> NDArray[np.float64] | None:
    """Return the probability of drawing each recording, (m,), or None where all are drawn once."""
    if settings.balance == "none":
        return None
    group = data.fine if settings.balance == "class" else data.family
    if group is None:
        raise ConfigError("sampling.balance is family, but the recordings state none")
    chance = _rarity(group, settings.balance_power)
    return np.asarray(chance / chance.sum())


def _class_weight(fine: NDArray[np.intp], power: float) -> NDArray[np.float32]:
    weight = _rarity(fine, power)
    return np.asarray(weight / weight.mean(), np.float32)


def _rarity(group: NDArray[np.intp], power: float) -> NDArray[np.float64]:
    count = np.bincount(group)[group].astype(np.float64)
    return np.asarray(count**-power)
