"""Skimming an index: of each record only what counting and rebuilding look at.

Most of what a record holds (probabilities, levels, absolute path) is passed over. It is checked all the same:
what is no record for `parse_record` is none here.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import cast

from drumline.index import MAX_LINE_BYTES, parse_records, split_lines
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
        From `skimming_kernel`. Lines that drumline did not write as they are, Python reads.

    Returns
    -------
    list
        Of dictionaries that have the keys of `Brief`, and without a kernel all others too.

    Raises
    ------
    IndexFormatError
        As `parse_record` does, for the first line that is no record.
    """
    if kernel is None:
        return cast("list[Brief]", parse_records(split_lines(data), path))
    records: list[Brief | None] = kernel.skimmed(data, MAX_LINE_BYTES)
    unread = [place for place, record in enumerate(records) if record is None]
    if unread:
        lines = split_lines(data)
        parsed = parse_records([lines[place] for place in unread], path)
        for place, record in zip(unread, parsed, strict=True):
            records[place] = record
    return cast("list[Brief]", records)
