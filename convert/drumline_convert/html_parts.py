"""What the reports are put together from: escaped text, tables, and links to recordings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

__all__ = ["Raw", "short_path", "table", "template", "text", "uri"]


class Raw(NamedTuple):
    """A cell that is HTML already."""

    html: str


def template(name: str) -> Template:
    """Return a template that stands beside this module."""
    return Template(files("drumline_convert").joinpath(name).read_text("utf-8"))


def text(value: object) -> str:
    """Return a value as text in which nothing is markup."""
    return escape(str(value))


def uri(path: str) -> str:
    """Return what a link to a recording points to."""
    return Path(path).as_uri()


def short_path(path: str) -> str:
    """Return the part of a recording's path that tells it from others: its folder and its name."""
    return "/".join(Path(path).parts[-2:])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; cells are escaped unless they are `Raw`."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}\n</table></div>'


def _cell(cell: object) -> str:
    if isinstance(cell, Raw):
        return f'<td class="text">{cell.html}</td>' if cell.html.startswith("<a") else f"<td>{cell.html}</td>"
    return f"<td>{text(cell)}</td>"
