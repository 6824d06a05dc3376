"""Splits by family: no family and no content hash is ever on two sides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drumline.errors import ConfigError, DrumlineError, UsageError
from drumline_convert.manifest import Row

if TYPE_CHECKING:
    from drumline_convert.corpus import Recording

__all__ = [
    "Leak",
    "SplitSettings",
    "assert_no_leak",
    "family_folds",
    "family_groups",
    "leaks",
    "manifest_folds",
    "split_by_family",
    "split_manifest",
]


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Which sides there are to be.

    Parameters
    ----------
    test
        Share of the recordings that go to ``test``, 0..1.
    validation
        Share that goes to ``validation``; the rest is ``train``. Without folds.
    folds
        Where not 0: what is not ``test`` goes to so many folds of equal size.
    seed
        Decides between families that fit equally well.
    """

    test: float = 0.15
    validation: float = 0.15
    folds: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds == 1 or self.folds < 0:
            raise UsageError(f"{self.folds} folds are none: there have to be two or more")
        if self.folds and self.validation:
            raise UsageError("folds take turns as validation: there is no other")
        if not (self.test >= 0 and self.validation >= 0 and self.test + self.validation < 1):
            raise UsageError("the shares of test and validation are at least 0, and together below 1")

    @property
    def shares(self) -> dict[str, float]:
        """Side → its share of the recordings; they sum to 1."""
        held_out = {"validation": self.validation, "test": self.test}
        rest = 1 - self.validation - self.test
        learnt = {f"fold{n}": rest / self.folds for n in range(self.folds)} if self.folds else {"train": rest}
        return learnt | {side: share for side, share in held_out.items() if share}


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


def split_manifest(recordings: Sequence[Recording], settings: SplitSettings) -> list[Recording]:
    """Return the recordings, in their order, each with its side in ``split``.

    Raises
    ------
    ConfigError
        When there are fewer groups of families than sides.
    """
    sides = list(settings.shares)
    numbers = split_by_family(recordings, tuple(settings.shares.values()), settings.seed)
    return [replace(row, split=sides[number]) for row, number in zip(recordings, numbers, strict=True)]


def manifest_folds(rows: Sequence[Row]) -> NDArray[np.intp] | None:
    """Return the fold of every row, (n,), where the manifest has one for each; else None.

    Raises
    ------
    DrumlineError
        When the folds of the manifest leak.
    ConfigError
        When a fold has no recordings.
    """
    folds = [row.fold for row in rows]
    if not folds or any(fold is None for fold in folds):
        return None
    assert_no_leak(rows, folds)
    found = np.array(folds, np.intp)
    missing = sorted(set(range(int(found.max()) + 1)) - set(found.tolist()))
    if missing:
        raise ConfigError(f"the manifest has no recordings of fold{missing[0]}", "Split it anew.")
    return found


def family_folds(recordings: Sequence[Recording], folds: int = 5, seed: int = 0) -> NDArray[np.intp]:
    """Return the fold of every recording, (n,) in 0..folds-1: the manifest's own, or else a new one.

    New folds are balanced by canonical label.

    Raises
    ------
    ConfigError
        When the manifest has another number of folds, or there are fewer groups of families than folds.
    """
    own = manifest_folds(recordings)
    if own is None:
        return split_by_family(recordings, (1 / folds,) * folds, seed)
    if (there := int(own.max()) + 1) != folds:
        raise ConfigError(f"the manifest has {there} folds, not {folds}", f"Ask for {there}: --folds {there}")
    return own


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
