"""Skimming an index: of each record only what counting and rebuilding look at.

Most of what a record holds (probabilities, levels, absolute path) is passed over, though it is checked all
the same. The kernel reads the lines that are as drumline writes them; any other goes to `parse_record`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import cast

from drumline.index import MAX_LINE_BYTES, parse_record, parse_records, split_lines
from drumline.kernels import compiled
from drumline.records import Brief

__all__ = ["skim_records", "skimming_kernel"]

_KERNEL_VERSION = 1
"""Of what the kernel takes and gives: a kernel left over from another version of drumline is not used."""


def skimming_kernel() -> ModuleType | None:
    """Return the compiled kernel, or None."""
    return compiled("records", _KERNEL_VERSION)


def skim_records(data: bytes, path: Path, kernel: ModuleType | None) -> list[Brief]:
    """Read the records of one frame.

    Parameters
    ----------
    data
        The frame, unpacked: whole lines.
    path
        The index, to be named in errors.
    kernel
        From `skimming_kernel`.

    Returns
    -------
    list
        A dictionary for each line, with the keys of `Brief`; those that Python has read have all others, too.

    Raises
    ------
    IndexFormatError
        As `parse_record` does, for the first line that is no record.
    """
    if kernel is None:
        return list[Brief](parse_records(split_lines(data), path))
    records: list[Brief | None] = kernel.skimmed(data, MAX_LINE_BYTES)
    if None in records:
        for place, line in enumerate(split_lines(data)):
            if records[place] is None:
                records[place] = parse_record(line, path)
    return cast("list[Brief]", records)
