"""What a data set holds: counts, durations, and how many recordings it is really worth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drumline.durable import output_errors
from drumline_convert.corpus import Recording
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["dataset_statistics", "effective_number", "plot_statistics"]

_EDGES_SEC = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0)


def effective_number(weights: Iterable[float]) -> float:
    """Return (Σw)² / Σw²: how many equal weights are worth as much (Kish's effective sample size).

    Of the sizes of families, it is the number of families of equal size that are as various.
    """
    values = np.fromiter(weights, float)
    return float(values.sum() ** 2 / (values**2).sum()) if len(values) else 0.0


def dataset_statistics(
    recordings: Sequence[Recording], durations: Sequence[float], taxonomy: TrainingTaxonomy
) -> dict[str, Any]:
    """Count a data set.

    Parameters
    ----------
    recordings
        Its recordings.
    durations
        Of each recording, seconds; nan where it is not known.
    taxonomy
        What their labels collapse to.

    Returns
    -------
    dict
        ``recordings``, ``kits``, ``families``, ``effective_recordings`` (by weight), ``effective_families``,
        ``labels`` and ``canonical`` (name → counts, see below), ``kit``, ``family``, ``source``, ``licence``
        and ``split`` (name → recordings), ``sides`` (side → canonical label → recordings) and
        ``durations`` (seconds). Of a label: ``recordings``, ``kits``, ``families``, ``effective_recordings``,
        ``effective_families``.
    """
    canonical = [taxonomy.canonical[recording.canonical] for recording in recordings]
    fine = [taxonomy.fine[recording.fine] for recording in recordings]
    return {
        **_worth(recordings),
        "canonical": _per_class(recordings, canonical, taxonomy.canonical),
        "labels": _per_class(recordings, fine, taxonomy.fine),
        "kit": _counts(row.kit for row in recordings),
        "family": _counts(row.family for row in recordings),
        "source": _counts(row.source for row in recordings),
        "licence": _counts(row.licence for row in recordings),
        "split": _counts(row.split or "none" for row in recordings),
        "sides": _per_side(recordings, canonical, taxonomy.canonical),
        "durations": _durations(durations),
    }


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _worth(recordings: Sequence[Recording]) -> dict[str, Any]:
    families = Counter(row.family for row in recordings)
    return {
        "recordings": len(recordings),
        "kits": len({row.kit for row in recordings}),
        "families": len(families),
        "effective_recordings": round(effective_number(row.weight for row in recordings), 1),
        "effective_families": round(effective_number(families.values()), 1),
    }


def _per_class(
    recordings: Sequence[Recording], names: Sequence[str], order: Sequence[str]
) -> dict[str, dict[str, Any]]:
    members: dict[str, list[Recording]] = defaultdict(list)
    for name, recording in zip(names, recordings, strict=True):
        members[name].append(recording)
    return {name: _worth(members[name]) for name in order}


def _per_side(
    recordings: Sequence[Recording], names: Sequence[str], order: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts = Counter((row.split or "none", name) for row, name in zip(recordings, names, strict=True))
    return {side: {name: counts[side, name] for name in order} for side in sorted({key for key, _ in counts})}


def _durations(durations: Sequence[float]) -> dict[str, Any]:
    known = np.array([value for value in durations if np.isfinite(value)], float)
    places = np.searchsorted(_EDGES_SEC, known)
    summary: dict[str, Any] = {
        "known": len(known),
        "total_sec": round(float(known.sum()), 3),
        "edges_sec": list(_EDGES_SEC),
        "counts": np.bincount(places, minlength=len(_EDGES_SEC) + 1).tolist(),
    }
    if len(known):
        marks = {"shortest_sec": 0, "median_sec": 50, "percentile95_sec": 95, "longest_sec": 100}
        summary |= {name: round(float(np.percentile(known, mark)), 3) for name, mark in marks.items()}
    return summary


def plot_statistics(statistics: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw ``labels.png``, ``families.png`` and ``durations.png`` into `directory`, and return their paths.

    Raises
    ------
    OutputError
        When they cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = {"labels": _draw_labels, "families": _draw_families, "durations": _draw_durations}
    paths = []
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name, draw in drawn.items():
            figure = Figure(figsize=(9, 6), layout="constrained")
            draw(figure.subplots(), statistics)
            paths.append(directory / f"{name}.png")
            figure.savefig(paths[-1], dpi=120)
    return paths


def _draw_labels(axes: Any, statistics: Mapping[str, Any]) -> None:
    labels = {name: entry for name, entry in statistics["labels"].items() if entry["recordings"]}
    places = np.arange(len(labels))
    axes.bar(places, [entry["recordings"] for entry in labels.values()], label="recordings")
    axes.bar(places, [entry["families"] for entry in labels.values()], width=0.4, label="families")
    axes.set_xticks(places, list(labels), rotation=90)
    axes.set_yscale("log")
    axes.set_title("Recordings and families of every label")
    axes.legend()


def _draw_families(axes: Any, statistics: Mapping[str, Any]) -> None:
    sizes = list(statistics["family"].values())
    axes.plot(np.arange(1, len(sizes) + 1), sizes, ".-")
    axes.set_xlabel("families, largest first")
    axes.set_ylabel("recordings")
    axes.set_ylim(0)
    axes.set_title(f"{len(sizes)} families, worth {statistics['effective_families']:g} of equal size")


def _draw_durations(axes: Any, statistics: Mapping[str, Any]) -> None:
    durations = statistics["durations"]
    names = [f"≤ {edge:g}" for edge in durations["edges_sec"]] + [f"> {durations['edges_sec'][-1]:g}"]
    axes.bar(names, durations["counts"])
    axes.set_xlabel("duration, seconds")
    axes.set_ylabel("recordings")
    axes.set_title(f"Durations of {durations['known']:,} recordings")
