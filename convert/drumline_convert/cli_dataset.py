"""``drumline dataset …``: from samples on a disk to a manifest that can be trained on."""

from __future__ import annotations

import click

from drumline_convert.cli_dataset_clean import clean_command
from drumline_convert.cli_dataset_look import check_command, stats_command
from drumline_convert.cli_dataset_make import extract_command, scan_command, split_command
from drumline_convert.cli_dataset_move import merge_overrides_command, populate_command

__all__ = ["dataset"]


@click.group(short_help="Make, split and check data sets to train on.")
def dataset() -> None:
    """Make, split and check data sets to train on.

    A data set is a manifest: a line of JSON for each recording, with its label, kit, family, source, licence,
    content hash, side of the split and weight. Where a command takes a MANIFEST, a directory that has its own
    manifest.jsonl does, too.
    """


for _command in (
    scan_command,
    split_command,
    stats_command,
    check_command,
    populate_command,
    merge_overrides_command,
    clean_command,
    extract_command,
):
    dataset.add_command(_command)
