"""Splits by family: no family and no content hash is ever on two sides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError, DrumlineError
from drumline_convert.manifest import Row

if TYPE_CHECKING:
    from drumline_convert.corpus import Recording

__all__ = ["Leak", "assert_no_leak", "family_folds", "family_groups", "leaks", "split_by_family"]


class Leak(NamedTuple):
    """A family or a content that is on two sides."""

    what: str
    name: str
    sides: tuple[str, ...]

    def __str__(self) -> str:
        return f"the {self.what} {self.name!r} is on {len(self.sides)} sides: {', '.join(self.sides)}"


def leaks(rows: Sequence[Row], sides: Sequence[Hashable | None]) -> list[Leak]:
    """Return the families and contents that are on two sides; a side of None is none."""
    found: dict[tuple[str, str], set[str]] = {}
    for row, side in zip(rows, sides, strict=True):
        if side is not None:
            found.setdefault(("family", row.family), set()).add(str(side))
            found.setdefault(("content", row.hash), set()).add(str(side))
    return [Leak(*key, tuple(sorted(on))) for key, on in found.items() if len(on) > 1]


def assert_no_leak(rows: Sequence[Row], sides: Sequence[Hashable | None]) -> None:
    """See that no family and no content is on two sides.

    Raises
    ------
    DrumlineError
        When one is: what was measured on such a split would flatter.
    """
    found = leaks(rows, sides)
    if found:
        raise DrumlineError(f"a split leaks: {found[0]} ({len(found)} such)")


def family_groups(rows: Sequence[Row]) -> NDArray[np.intp]:
    """Number each row's group, (n,): families that share a content hash are one group."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent.setdefault(parent[node], parent[node])
        return node

    for row in rows:
        parent[root(f"content {row.hash}")] = root(f"family {row.family}")
    roots = [root(f"family {row.family}") for row in rows]
    return np.unique(roots, return_inverse=True)[1]


def family_folds(recordings: Sequence[Recording], folds: int = 5, seed: int = 0) -> NDArray[np.intp]:
    """Assign every recording to a fold, (n,) in 0..folds-1, balanced by canonical label.

    Raises
    ------
    ConfigError
        When there are fewer groups of families than folds.
    """
    return split_by_family(recordings, (1 / folds,) * folds, seed)


def split_by_family(
    recordings: Sequence[Recording], shares: Sequence[float], seed: int = 0
) -> NDArray[np.intp]:
    """Assign every recording to a side, (n,) in 0..len(shares)-1, balanced by canonical label.

    The largest groups are placed first, each where the squared distance of all classes to `shares`, which
    sum to 1, becomes smallest; `seed` decides between equals.

    Raises
    ------
    ConfigError
        When there are fewer groups of families than sides.
    """
    group = family_groups(recordings)
    groups = int(group.max(initial=-1)) + 1
    if groups < len(shares):
        raise ConfigError(
            f"{groups} families cannot be split into {len(shares)} sides",
            "Add recordings of other kits; one family is never on two sides.",
        )
    counts = np.zeros((groups, 1 + max(recording.canonical for recording in recordings)))
    for index, recording in zip(group, recordings, strict=True):
        counts[index, recording.canonical] += 1
    # A class of 200 files must weigh as much in the balance as one of 1,600.
    counts /= np.maximum(counts.sum(axis=0), 1)
    side = _place(counts, np.asarray(shares, float), np.random.default_rng(seed))[group]
    assert_no_leak(recordings, side.tolist())
    return side


def _place(
    counts: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.intp]:
    side_of_group = np.full(len(counts), -1, np.intp)
    filled = np.zeros((len(shares), counts.shape[1]))
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    for done, index in enumerate(order):
        room = filled - shares[:, np.newaxis]
        cost = ((room + counts[index]) ** 2 - room**2).sum(axis=1)
        empty = ~np.isin(np.arange(len(shares)), side_of_group)
        if empty.sum() >= len(order) - done:  # the last groups go to empty sides, so that none stays empty
            cost[~empty] = np.inf
        side_of_group[index] = int(cost.argmin())
        filled[side_of_group[index]] += counts[index]
    return side_of_group
