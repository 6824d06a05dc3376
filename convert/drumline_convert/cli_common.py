"""What the training commands share: options, needed packages, and how they show how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from drumline.cli import meter as engine_meter
from drumline.cli.common import path_type
from drumline.errors import RuntimeMissingError

if TYPE_CHECKING:
    from drumline_convert.corpus import Recording
    from drumline_convert.progress import PhaseProgress
    from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = [
    "build_option",
    "bundle_option",
    "licence_option",
    "manifest_argument",
    "manifest_option",
    "meter",
    "out_option",
    "recordings_of_manifest",
    "require",
    "run_option",
    "split_option",
    "table",
    "taxonomy_of",
    "taxonomy_option",
    "version_option",
    "workers_option",
]

F = TypeVar("F", bound=Callable[..., Any])

manifest_argument = click.argument("manifest", type=path_type())
licence_option = click.option(
    "--licence", default="unknown", show_default=True, help="What their source states."
)
run_option = click.option(
    "--run",
    type=path_type(),
    default=Path("ClassifiedArchive"),
    show_default=True,
    help="Run, index or runs root whose hashes the corrections name.",
)
taxonomy_option = click.option(
    "--taxonomy", type=path_type(), help="Taxonomy file. [default: the one that is shipped]"
)
version_option = click.option(
    "--version", "version", default="0.1.0", show_default=True, help="Version of the bundle."
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode."
)


def build_option(name: str, what: str) -> Callable[[F], F]:
    """Add the directory that trainings keep their results in, under the name that fits the command."""
    return click.option(name, "build", type=path_type(), default=Path("build"), show_default=True, help=what)


def bundle_option(default: str | None = None) -> Callable[[F], F]:
    """Add ``--out`` for the bundle to make, required where there is no default."""
    if default is not None:
        return click.option(
            "--out", type=path_type(), default=Path(default), show_default=True, help="Bundle to write."
        )
    return click.option(
        "--out", type=path_type(), required=True, help="Bundle to make; nothing may stand there."
    )


def manifest_option(what: str, *, required: bool = False) -> Callable[[F], F]:
    """Add ``--manifest``."""
    return click.option("--manifest", type=path_type(), required=required, help=what)


def out_option(what: str, default: str) -> Callable[[F], F]:
    """Add ``--out`` for what a command writes."""
    return click.option("--out", type=path_type(), default=Path(default), show_default=True, help=what)


def split_option(
    name: str, *default: str, what: str = "Side of the manifest's split", otherwise: str = ""
) -> Callable[[F], F]:
    """Add an option for sides of a split; `otherwise` says what holds where there is no `default`."""
    return click.option(
        name,
        "splits" if name == "--split" else name[2:].replace("-", "_"),
        multiple=True,
        default=default,
        show_default=bool(default),
        help=f"{what}; several are joined." + (f" [default: {otherwise}]" if otherwise else ""),
    )


def require(*packages: str) -> None:
    """Raise `RuntimeMissingError` where one of the packages of the extra is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise RuntimeMissingError(
            f"this command needs {', '.join(missing)}",
            "Install it with: pip install 'path/to/drumline[train,cpu]'",
        )


class _Step(NamedTuple):
    """What the engine's meter shows."""

    phase: str
    done: int
    total: int


@contextmanager
def meter(quiet: bool) -> Iterator[PhaseProgress]:
    """Give what a long command tells how far it is: bars on a terminal, lines elsewhere, none when quiet."""
    with engine_meter.meter(quiet) as show:
        yield lambda phase, done, total: None if show is None else show(_Step(phase, done, total))


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
