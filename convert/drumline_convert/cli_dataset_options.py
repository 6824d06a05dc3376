"""What the commands of ``drumline dataset`` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from drumline.cli.common import path_type

if TYPE_CHECKING:
    from drumline_convert.corpus import Recording
    from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = [
    "manifest_argument",
    "meter",
    "out_option",
    "quiet_option",
    "recordings_of_manifest",
    "table",
    "taxonomy_of",
    "taxonomy_option",
    "workers_option",
]

F = TypeVar("F", bound=Callable[..., Any])

manifest_argument = click.argument("manifest", type=path_type())
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress.")
workers_option = click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode."
)


def out_option(what: str, default: str = "manifest.jsonl") -> Callable[[F], F]:
    """Add ``--out``."""
    return click.option(
        "--out", type=path_type(), default=Path(default), show_default=True, help=f"{what} to write."
    )


def taxonomy_option(function: F) -> F:
    """Add ``--taxonomy``."""
    return click.option(
        "--taxonomy", type=path_type(), help="Taxonomy file (default: the one that is shipped)."
    )(function)


class _Step(NamedTuple):
    """What a meter shows."""

    phase: str
    done: int
    total: int


@contextmanager
def meter(phase: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Give what a long step calls with (done, total); None when quiet."""
    from drumline.cli.meter import meter as shown

    with shown(quiet) as show:
        yield None if show is None else lambda done, total: show(_Step(phase, done, total))


def taxonomy_of(path: Path | None) -> TrainingTaxonomy:
    """Read the taxonomy that was asked for."""
    from drumline_convert.taxonomy import DEFAULT_TAXONOMY, read_taxonomy

    return read_taxonomy(path or DEFAULT_TAXONOMY)


def recordings_of_manifest(manifest: Path, taxonomy: TrainingTaxonomy) -> list[Recording]:
    """Read a manifest's recordings."""
    from drumline_convert.corpus import open_manifest, recordings_of

    return recordings_of(open_manifest(manifest, taxonomy), taxonomy)


def table(first: str, *others: str) -> Any:
    """Return a table whose first column is of names and whose others are of numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim")
    made.add_column(first)
    for name in others:
        made.add_column(name, justify="right")
    return made
