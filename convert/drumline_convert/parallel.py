"""Work on many recordings in several processes, in order, a few recordings at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["in_parts"]

_PART = 16

T = TypeVar("T")
R = TypeVar("R")


def in_parts(
    function: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], workers: int
) -> Iterator[tuple[T, R]]:
    """Iterate over (item, its result), in the order of `items`.

    Parameters
    ----------
    function
        Called with a few items, returns a result for each; can be pickled, and so can they.
    items
        What is worked on.
    workers
        Processes; with one, or where there is little to do, this very process works.
    """
    parts = [items[start : start + _PART] for start in range(0, len(items), _PART)]
    if workers < 2 or len(parts) < 2:
        for part in parts:
            yield from zip(part, function(part), strict=True)
        return
    # Spawned, since a fork of a process in which TensorFlow runs threads can hang.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for part, results in zip(parts, pool.map(function, parts), strict=True):
            yield from zip(part, results, strict=True)
