"""Every error that ends a command, and the exit code each has.

    DrumlineError                 1   (base; an internal promise was broken)
    ├── UsageError                2   the command line asks for something that makes no sense
    ├── ConfigError               3   config.yml, a label map or an overrides file is wrong
    ├── BundleError               4   a model bundle is missing, incomplete or contradicts itself
    ├── RuntimeMissingError       5   no ONNX Runtime, both of them, or not the device asked for
    ├── ArchiveError              6   the archive cannot be read or is not what it was
    │   └── FilesGoneError        6   more known files are gone than go unasked
    ├── IndexFormatError          7   an index or run directory cannot be understood
    ├── OutputError               8   something cannot be written: permission, space, somebody's files
    │   └── CacheError            8   a row of the cache says what cannot be; it is made anew from the indexes
    ├── BusyError                 9   another process holds the runs root or the output
    ├── StageError               10   a stage of the pipeline died or cannot start
    ├── IntegrityError           11   a run or a tree is not what drumline wrote
    └── DatasetError             12   a manifest or its recordings have faults
    Interrupted                 130   Ctrl-C; nothing is lost, the same command goes on

What is wrong with a single audio file is never an exception here: it is data, an `ErrorType` in the
file's record (see `drumline.records`).
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArchiveError",
    "BundleError",
    "BusyError",
    "CacheError",
    "ConfigError",
    "DatasetError",
    "DrumlineError",
    "FilesGoneError",
    "IndexFormatError",
    "IntegrityError",
    "Interrupted",
    "OutputError",
    "RuntimeMissingError",
    "StageError",
    "UsageError",
]


class DrumlineError(Exception):
    """Base of all errors that a user sees.

    Parameters
    ----------
    what
        The thing and the cause, in one sentence: ``"archive not found: /x"``.
    way_out
        What the user can do about it, in one sentence.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, way_out: str = "") -> None:
        super().__init__(what, way_out)
        self.what = what
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.what}\n{self.way_out}" if self.way_out else self.what


class UsageError(DrumlineError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class ConfigError(DrumlineError):
    """A configuration, label map or overrides file is wrong."""

    exit_code = 3


class BundleError(DrumlineError):
    """A model bundle is missing, incomplete or contradicts itself."""

    exit_code = 4


class RuntimeMissingError(DrumlineError):
    """ONNX Runtime is missing, doubled, or cannot use the device that was asked for."""

    exit_code = 5


class ArchiveError(DrumlineError):
    """The archive cannot be read or is not what it was."""

    exit_code = 6


class FilesGoneError(ArchiveError):
    """More of the known files are gone than a person deletes in passing; whoever asked may confirm it."""


class IndexFormatError(DrumlineError):
    """An index or a run directory cannot be understood."""

    exit_code = 7


class OutputError(DrumlineError):
    """Something cannot be written."""

    exit_code = 8


class CacheError(OutputError):
    """The cache is damaged, or a row of it says what cannot be: somebody changed it, or its disk did."""


class BusyError(DrumlineError):
    """Another process holds the runs root or the output directory."""

    exit_code = 9


class StageError(DrumlineError):
    """A stage of the pipeline died or cannot start."""

    exit_code = 10


class IntegrityError(DrumlineError):
    """A run or a tree is not what drumline wrote, or does not match its archive."""

    exit_code = 11


class DatasetError(DrumlineError):
    """A manifest or its recordings have faults that a training should not meet."""

    exit_code = 12


class Interrupted(DrumlineError):  # noqa: N818  (an order, not a mistake)
    """The user stopped the command; the same command goes on."""

    exit_code = 130
