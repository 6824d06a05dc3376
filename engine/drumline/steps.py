"""What the processes of a run do: the steps that `drumline.laps` measures, without what measuring needs."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

__all__ = ["Lap", "Step", "no_lap"]


class Step(IntEnum):
    """What a process does; the waiting first."""

    WAIT_INPUT = 0
    """Nothing to do: the stage before is slower."""
    WAIT_OUTPUT = 1
    """No slot is free: a stage behind is slower."""
    START = 2
    """Imports, tables, opening the model."""
    WALK = 3
    COMPARE = 4
    """Looking up what is known of a directory, and handing on what is new."""
    READ = 5
    HASH = 6
    TWIN = 7
    """Looking for known content in the cache."""
    DECODE = 8
    RESAMPLE = 9
    FEATURES = 10
    STATISTICS = 11
    GATHER = 12
    MODEL = 13
    RECORD = 14
    DECISION = 15
    ENCODE = 16
    CARRY = 17
    """Carrying over what an earlier run knows."""
    COMPRESS = 18
    WRITE = 19
    """Appending to the index and waiting until it is on disk."""
    CACHE = 20
    HAND_ON = 21
    """Putting numbers on a queue."""
    PREPARE = 22
    SUPERVISE = 23
    FINISH = 24


class Lap(Protocol):
    """Ends a step."""

    def __call__(self, step: Step, files: int = 1) -> None:
        """Say that `step` has ended, and how many files it was for."""


def no_lap(step: Step, files: int = 1) -> None:
    """Measure nothing."""
