"""Where a model is right and wrong: confused labels, sources and families, and what thresholds would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.decide import DecisionSettings
from drumline.records import display_path
from drumline_convert.bootstrap import Resampling, interval
from drumline_convert.manifest import Row
from drumline_convert.metrics import Outcomes, measure

__all__ = ["believed_at", "by_group", "confused_labels", "effect_of", "rounded"]

_PAIRS, _PATHS = 20, 5


def rounded(value: Any, digits: int = 4) -> float | None:
    """Return a number as JSON holds it; None where it is undefined."""
    return round(float(value), digits) if np.isfinite(value) else None


def confused_labels(outcomes: Outcomes, rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """List what is most often called wrongly, by the manifest's own label, surest mistakes first.

    Parameters
    ----------
    outcomes
        Of the `rows`.
    names
        Canonical labels.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place in np.flatnonzero(~outcomes.correct).tolist():
        pair = rows[place].label, names[outcomes.decided[place]]
        places.setdefault(pair, []).append(place)
    support = Counter(row.label for row in rows)
    ranked = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))[:_PAIRS]
    return [
        {
            "label": label,
            "called": called,
            "recordings": len(wrong),
            "of": support[label],
            "paths": [
                {
                    "path": display_path(rows[place].path),
                    "confidence": rounded(outcomes.confidence[place]),
                }
                for place in sorted(wrong, key=lambda place: -outcomes.confidence[place])[:_PATHS]
            ],
        }
        for (label, called), wrong in ranked
    ]


def by_group(
    outcomes: Outcomes,
    group_of: Sequence[str],
    families: Sequence[str],
    resampling: Resampling | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure each group of recordings, worst first.

    Parameters
    ----------
    outcomes
        Of n recordings.
    group_of, families
        Group and family of each, (n,).
    resampling
        When given, groups of several families get an interval.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(set(group_of)):
        chosen = np.flatnonzero(np.asarray(group_of) == name)
        own = [families[place] for place in chosen.tolist()]
        found[name] = _group(outcomes.take(chosen), own, resampling)
    return dict(sorted(found.items(), key=lambda item: (item[1]["accuracy"], item[0])))


def _group(outcomes: Outcomes, families: list[str], resampling: Resampling | None) -> dict[str, Any]:
    def accuracy(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {"accuracy": weights @ outcomes.correct / weights.sum(axis=1)}

    figures = {
        "recordings": len(outcomes),
        "families": len(set(families)),
        "accuracy": rounded(outcomes.correct.mean()),
        "six_accuracy": rounded(measure(outcomes)["six_accuracy"][0]),
    }
    if resampling is None or figures["families"] == 1:
        return figures
    sample = resampling.of(families, accuracy)["accuracy"]
    return {**figures, "interval": interval(sample, resampling.level)}


def believed_at(
    outcomes: Outcomes,
    names: Sequence[str],
    decisions: DecisionSettings,
    gate: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Return which recordings are believed to be a drum, (n,), as `drumline.decide` decides it.

    Parameters
    ----------
    outcomes
        Of n recordings.
    names
        Canonical labels, misc last.
    decisions
        Thresholds.
    gate
        What the model's gate says of each recording, (n,); None where there is none.
    """
    limits = [decisions.thresholds.get(label, decisions.threshold) for label in names[:-1]]
    limit = np.array([np.inf if value is None else value for value in limits] + [np.inf])
    believed = outcomes.confidence.round(6) >= limit[outcomes.decided]
    if gate is not None and decisions.gate_threshold is not None:
        believed &= gate >= decisions.gate_threshold
    return np.asarray(believed)


def effect_of(outcomes: Outcomes, names: Sequence[str], believed: NDArray[np.bool_]) -> dict[str, Any]:
    """Say what comes of it when `believed` (n,) recordings keep their label, and the others go to misc.

    Returns
    -------
    dict
        ``precision`` (of what is believed to be a drum), ``recall`` (drums kept under their label),
        ``misc_believed`` (misc taken for a drum), and ``labels`` with precision and recall of each.
    """
    right = believed & outcomes.correct
    called = [outcomes.decided == place for place in range(len(names))]
    true = [outcomes.canonical == place for place in range(len(names))]
    return {
        "precision": _share(right, believed),
        "recall": _share(right, outcomes.drum),
        "misc_believed": _share(believed & ~outcomes.drum, ~outcomes.drum),
        "labels": {
            label: {
                "precision": _share(right & called[place], believed & called[place]),
                "recall": _share(right & true[place], true[place]),
            }
            for place, label in enumerate(names[:-1])
        },
    }


def _share(some: NDArray[np.bool_], of: NDArray[np.bool_]) -> float | None:
    return rounded(some.sum() / of.sum()) if of.any() else None
