"""Folds by family: no family and no content hash is ever on two sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError
from drumline_convert.corpus import Recording

__all__ = ["family_folds", "family_groups"]


def family_groups(recordings: Sequence[Recording]) -> NDArray[np.intp]:
    """Number each recording's group, (n,): families that share a content hash are one group."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for recording in recordings:
        parent[root(f"content {recording.content}")] = root(f"family {recording.family}")
    roots = [root(f"family {recording.family}") for recording in recordings]
    return np.unique(roots, return_inverse=True)[1]


def family_folds(recordings: Sequence[Recording], folds: int = 5, seed: int = 0) -> NDArray[np.intp]:
    """Assign every recording to a fold, (n,) in 0..folds-1, balanced by canonical label.

    The largest groups are placed first, each where the squared distance to equal class counts in all folds
    becomes smallest; `seed` decides between equals.

    Raises
    ------
    ConfigError
        When there are fewer groups than folds.
    """
    group = family_groups(recordings)
    groups = int(group.max()) + 1
    if groups < folds:
        raise ConfigError(f"{groups} families cannot be split into {folds} folds")
    counts = np.zeros((groups, 1 + max(recording.canonical for recording in recordings)))
    for index, recording in zip(group, recordings, strict=True):
        counts[index, recording.canonical] += 1
    # A class of 200 files must weigh as much in the balance as one of 1,600.
    counts /= np.maximum(counts.sum(axis=0), 1)
    fold_of_group = _place(counts, folds, np.random.default_rng(seed))
    return fold_of_group[group]


def _place(counts: NDArray[np.float64], folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    fold_of_group = np.zeros(len(counts), np.intp)
    filled = np.zeros((folds, counts.shape[1]))
    shuffled = rng.permutation(len(counts))
    for index in shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]:
        cost = ((filled + counts[index] - 1 / folds) ** 2 - (filled - 1 / folds) ** 2).sum(axis=1)
        fold_of_group[index] = int(cost.argmin())
        filled[fold_of_group[index]] += counts[index]
    return fold_of_group
