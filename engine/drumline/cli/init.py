"""`drumline init`: a commented config.yml."""

from __future__ import annotations

import os
from pathlib import Path

import click

from drumline.cli.common import Command, path_type, safe_text

__all__ = ["init_command"]


@click.command(
    "init",
    cls=Command,
    short_help="Write a commented config.yml.",
    examples=("drumline init", "drumline init --output studio.yml", "drumline init --force"),
)
@click.option(
    "--output", type=path_type(), default=Path("config.yml"), show_default=True, help="Where to write it."
)
@click.option("--force", is_flag=True, help="Replace a file that stands there.")
def init_command(output: Path, force: bool) -> None:
    """Write a commented config.yml with every key at its default.

    Exits with 8 when a file stands there already.
    """
    from drumline.config import CONFIG_TEMPLATE
    from drumline.durable import write_bytes
    from drumline.errors import OutputError

    if os.path.lexists(output) and not force:
        raise OutputError(
            f"{str(output)!r} exists already", "Choose another --output, or replace it: --force."
        )
    write_bytes(output, CONFIG_TEMPLATE.encode())
    name = safe_text(str(output))
    click.echo(f"Wrote {name}. Edit it, then: drumline infer ARCHIVE --config {name}")
