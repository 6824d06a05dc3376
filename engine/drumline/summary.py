"""summary.json: what a complete run says of itself, counted from its index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from drumline.records import SCHEMA_VERSION, display_path
from drumline.runs import Run
from drumline.tally import Tally

__all__ = ["HOW_IT_WENT", "NOT_IN_THE_INDEX", "make_summary"]

NOT_IN_THE_INDEX: Final = (
    *("resumed", "known_content", "gone"),
    *("skipped_links", "skipped_special", "unreadable_directories"),
)
"""Counts that only the pipeline knows."""

HOW_IT_WENT: Final = ("elapsed_sec", "files_per_sec", "memory", "storage", "device")
"""What only the pipeline knows besides: time and speed, and what it ran on."""


def make_summary(
    run: Run, tally: Tally, carried: int, counted: Mapping[str, int | None], went: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Parameters
    ----------
    run, tally
        The run, and the sum over all records of its index.
    carried
        Predictions that were carried over from earlier runs.
    counted, went
        `NOT_IN_THE_INDEX` and `HOW_IT_WENT`; None for what is not known.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run": display_path(run.name),
        "run_directory": display_path(run.directory),
        "index": display_path(run.index_path),
        "archive_root": run.info["archive_root"],
        "archive_root_b64": run.info["archive_root_b64"],
        "counts": {
            "discovered": tally.records,
            "indexed": tally.records,
            "carried_over": carried,
            "classified": tally.records - carried - tally.failed,
            "failed": tally.failed,
            **{name: counted[name] for name in NOT_IN_THE_INDEX},
        },
        **tally.report(),
        "model": run.info["model"],
        **{name: went[name] for name in HOW_IT_WENT},
        "complete": True,
    }
