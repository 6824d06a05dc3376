"""Labels that networks doubt which have not heard the recordings: found, explained, never changed silently.

Each recording is judged by the held-out logits of a cross-validation, so by a network that knew neither it
nor its family. Following confident learning (Northcutt et al. 2021), each canonical label has a threshold of
its own: the mean probability that recordings with that label are given for it. A stated label is *doubtful*
when another one is the most probable and reaches its threshold as well as `CleaningSettings.doubt`. Where a
second cross-validation is given, of other networks, it has to say the same.

What is doubtful counts less in the next training or is left out of it; what is beyond `relabel` gets the
label that was heard. Recordings that are kept for a test are never touched, and neither are those that no
network was asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError
from drumline.records import display_path
from drumline_convert.corpus import Recording
from drumline_convert.manifest import Row
from drumline_convert.predictions import collapse_of, predictions_of_held_out, read_held_out
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["Cleaning", "CleaningSettings", "Doubt", "cleaned_rows", "find_doubts", "is_doubtful"]

Action = Literal["relabelled", "weighed down", "left out"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CleaningSettings:
    """When a label is doubtful, and what then happens to it.

    Parameters
    ----------
    doubt
        Probability that another canonical label must have at least.
    relabel
        Probability from which on it replaces the stated one; None: never.
    weight
        What the weight of the other doubtful recordings is multiplied by; 0 leaves them out.
    """

    doubt: float = 0.9
    relabel: float | None = None
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.doubt <= 1 or not 0 <= self.weight <= 1:
            raise ConfigError("doubt must be above 0 and at most 1, and weight within 0..1")
        if self.relabel is not None and not self.doubt <= self.relabel <= 1:
            raise ConfigError(
                f"relabel {self.relabel} is not within {self.doubt} (doubt) and 1",
                "What is relabelled is doubtful first.",
            )


@dataclass(frozen=True, slots=True)
class Doubt:
    """A recording whose label is doubtful.

    Parameters
    ----------
    row
        The recording as the manifest has it.
    stated, heard
        Its canonical label, and the one that the network hears.
    heard_fine
        The most probable fine label of the one that is heard.
    probability, stated_probability
        What the network gives the label that it hears, and the stated one.
    threshold
        What the heard label had to reach.
    action
        What happens to the row.
    """

    row: Row
    stated: str
    heard: str
    heard_fine: str
    probability: float
    stated_probability: float
    threshold: float
    action: Action

    @property
    def why(self) -> str:
        """One sentence for people."""
        return (
            f"heard as {self.heard} with {self.probability:.2f}, needed {self.threshold:.2f}; "
            f"{self.stated} has {self.stated_probability:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for the report."""
        row = self.row
        return {
            "path": display_path(row.path),
            "hash": row.hash,
            "family": row.family,
            "label": row.label,
            "stated": self.stated,
            "heard": self.heard,
            "heard_fine": self.heard_fine,
            "probability": round(self.probability, 4),
            "stated_probability": round(self.stated_probability, 4),
            "threshold": round(self.threshold, 4),
            "action": self.action,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What is doubtful in a manifest.

    Parameters
    ----------
    doubts
        Surest first.
    thresholds
        Of each canonical label that anything is stated as.
    fold_of
        Fold of the network that judged each content, by hash.
    disagreements
        Recordings for which another label is the most probable, however sure.
    second_agrees
        How many of those the second cross-validation hears the same way; None without one.
    judged
        Recordings that a network was asked about.
    """

    doubts: tuple[Doubt, ...]
    thresholds: dict[str, float]
    fold_of: dict[str, int]
    disagreements: int
    second_agrees: int | None
    judged: int

    def to_json(self, settings: CleaningSettings) -> dict[str, Any]:
        """Return the report's content."""
        pairs = Counter((doubt.stated, doubt.heard) for doubt in self.doubts)
        return {
            "settings": asdict(settings),
            "judged": self.judged,
            "disagreements": self.disagreements,
            "second_agrees": self.second_agrees,
            "doubtful": len(self.doubts),
            "actions": dict(Counter(doubt.action for doubt in self.doubts)),
            "thresholds": {label: round(value, 4) for label, value in self.thresholds.items()},
            "pairs": [
                {"stated": stated, "heard": heard, "recordings": count}
                for (stated, heard), count in pairs.most_common()
            ],
            "families": dict(Counter(doubt.row.family for doubt in self.doubts).most_common()),
            "recordings": [doubt.to_json() for doubt in self.doubts],
        }


def find_doubts(
    recordings: Sequence[Recording],
    taxonomy: TrainingTaxonomy,
    held_out: Path,
    settings: CleaningSettings,
    second: Path | None = None,
) -> Cleaning:
    """Say which labels are doubtful; changes nothing.

    Parameters
    ----------
    recordings
        Of a manifest.
    held_out, second
        What a cross-validation left, ``held_out.npz``.

    Raises
    ------
    ConfigError
        When held-out logits cannot be read, have nothing in common with the recordings, or leak.
    """
    hearing = _hearing(recordings, taxonomy, held_out)
    again = hearing if second is None else _hearing(recordings, taxonomy, second)
    known = [place for place, row in enumerate(recordings) if row.split != "test" and hearing.knows(place)]
    if not known:
        raise ConfigError(
            "all recordings that the held-out logits know are on the side test, which is never cleaned"
        )
    places = np.array(known, np.intp)
    stated = np.array([recordings[place].canonical for place in known], np.intp)
    thresholds = _thresholds(hearing.probs[places], stated)
    needed = _needed(thresholds, hearing.probs[places], settings.doubt)
    differs = hearing.heard[places] != stated
    agreed = differs & (again.heard[places] == hearing.heard[places])
    sure = agreed & is_doubtful(hearing.probs[places], stated, settings.doubt)
    doubts = [
        _doubt(recordings[places[at]], hearing, int(places[at]), float(needed[at]), taxonomy, settings)
        for at in np.flatnonzero(sure).tolist()
    ]
    return Cleaning(
        doubts=tuple(sorted(doubts, key=lambda doubt: (-doubt.probability, doubt.row.path))),
        thresholds={taxonomy.canonical[k]: float(thresholds[k]) for k in sorted(set(stated.tolist()))},
        fold_of=hearing.fold_of,
        disagreements=int(differs.sum()),
        second_agrees=None if second is None else int(agreed.sum()),
        judged=len(places),
    )


@dataclass(frozen=True, slots=True)
class _Hearing:
    """What networks hear that have not heard the recordings' families.

    Parameters
    ----------
    probs
        Calibrated canonical probabilities, (n, k); NaN where no network was asked.
    heard
        Most probable canonical label, (n,); -1 where no network was asked.
    heard_fine
        Most probable fine label within that, (n,).
    fold_of
        Fold of the network that was asked about each content, by hash.
    """

    probs: Floats
    heard: NDArray[np.intp]
    heard_fine: list[str]
    fold_of: dict[str, int]

    def knows(self, place: int) -> bool:
        """Tell whether a network was asked about this recording."""
        return bool(self.heard[place] >= 0)


def _hearing(recordings: Sequence[Recording], taxonomy: TrainingTaxonomy, path: Path) -> _Hearing:
    held = read_held_out(recordings, path)
    predictions = predictions_of_held_out(recordings, held, taxonomy)
    collapse = collapse_of(predictions.taxonomy, taxonomy)
    fine = np.nan_to_num(predictions.probs, nan=0.0)
    heard = (fine @ collapse).argmax(axis=1)
    inside = np.where(collapse.T[heard] > 0, fine, -1.0).argmax(axis=1)
    asked = np.isin(np.arange(len(recordings)), held.places)
    folds = zip(held.places.tolist(), held.folds.tolist(), strict=True)
    return _Hearing(
        probs=np.asarray(predictions.probs @ collapse),
        heard=np.where(asked, heard, -1),
        heard_fine=[predictions.taxonomy.fine[index] for index in inside.tolist()],
        fold_of={recordings[place].hash: fold for place, fold in folds},
    )


def is_doubtful(probs: Floats, stated: NDArray[np.intp], doubt: float) -> NDArray[np.bool_]:
    """Tell for which recordings another label is the most probable, and reaches what it needs, (n,).

    Parameters
    ----------
    probs
        (n, k), by networks that have not heard the recordings' families.
    stated
        Index of the label that each is stated as, (n,).
    doubt
        See `CleaningSettings`.
    """
    needed = _needed(_thresholds(probs, stated), probs, doubt)
    return np.asarray((probs.argmax(axis=1) != stated) & (probs.max(axis=1) >= needed))


def _needed(thresholds: Floats, probs: Floats, doubt: float) -> Floats:
    return np.asarray(np.maximum(thresholds[probs.argmax(axis=1)], doubt))


def _thresholds(probs: Floats, stated: NDArray[np.intp]) -> Floats:
    """Return the mean probability that recordings stated as each label are given for it, (k,)."""
    own = probs[np.arange(len(probs)), stated]
    count = np.bincount(stated, minlength=probs.shape[1])
    total = np.bincount(stated, own, minlength=probs.shape[1])
    # A label that nobody states has no threshold of its own: nothing is relabelled as it.
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def _doubt(
    recording: Recording,
    hearing: _Hearing,
    place: int,
    needed: float,
    taxonomy: TrainingTaxonomy,
    settings: CleaningSettings,
) -> Doubt:
    probs = hearing.probs[place]
    probability = float(probs.max())
    return Doubt(
        row=recording,
        stated=taxonomy.canonical[recording.canonical],
        heard=taxonomy.canonical[int(hearing.heard[place])],
        heard_fine=hearing.heard_fine[place],
        probability=probability,
        stated_probability=float(probs[recording.canonical]),
        threshold=needed,
        action=_action(probability, settings),
    )


def _action(probability: float, settings: CleaningSettings) -> Action:
    if settings.relabel is not None and probability >= settings.relabel:
        return "relabelled"
    return "weighed down" if settings.weight else "left out"


def cleaned_rows(rows: Sequence[Row], cleaning: Cleaning, settings: CleaningSettings) -> list[Row]:
    """Return the rows for the next training.

    Where the manifest states no sides, each row is put into the fold whose network judged it, so that a
    cross-validation with the new labels is one on the same folds as that with the old ones.
    """
    by_path = {doubt.row.path: doubt for doubt in cleaning.doubts}
    unsplit = all(row.split is None for row in rows)
    kept = []
    for row in rows:
        doubt = by_path.get(row.path)
        if doubt is not None and doubt.action == "left out":
            continue
        if unsplit and row.hash in cleaning.fold_of:
            row = replace(row, split=f"fold{cleaning.fold_of[row.hash]}")
        kept.append(row if doubt is None else _changed(row, doubt, settings))
    return kept


def _changed(row: Row, doubt: Doubt, settings: CleaningSettings) -> Row:
    if doubt.action == "relabelled":
        return replace(row, label=doubt.heard_fine)
    return replace(row, weight=row.weight * settings.weight)
