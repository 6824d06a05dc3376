"""What the commands share: help with examples, JSON output, safe printing, argument types."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "THRESHOLD",
    "Command",
    "comma_separated",
    "echo_json",
    "echo_json_list",
    "json_option",
    "misc_note",
    "path_type",
    "quiet_option",
    "safe_text",
    "shell_word",
    "short_path",
    "stdout_console",
]

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help ends with examples.

    Parameters
    ----------
    examples
        Command lines, shown as they would be typed.
    """

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on one line, so that it can be copied."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option(
        "as_json", "--json", is_flag=True, help="Print JSON on stdout, and nothing else there."
    )(function)


def quiet_option(function: F) -> F:
    """Add ``--quiet``; what ``--json`` asks for is printed all the same."""
    return click.option("-q", "--quiet", is_flag=True, help="Print warnings only.")(function)


class _Path(click.Path):
    """A path; an empty one, from a shell variable that is not set, would be the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty path."""
        if value in ("", b""):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


def path_type(**kwargs: Any) -> Any:
    """Return a click type that gives `Path` and keeps bytes that are no UTF-8."""
    # Whether it can be read is said by whoever reads it, with the way out.
    return _Path(path_type=Path, **{"readable": False, **kwargs})


class _Threshold(click.ParamType[Any]):
    """A number, or the name of an operating point; what either may be is checked with the other settings."""

    name = "threshold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a float or a name."""
        from drumline.thresholds import parse_threshold

        try:
            return value if isinstance(value, float) else parse_threshold(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number from 0 to 1 nor like precision=0.95", param, ctx)


THRESHOLD = _Threshold()
"""Type of ``--threshold``."""


def comma_separated(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Parse ``A,B`` (a click callback)."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def echo_json(value: Any) -> None:
    """Print `value` as indented JSON on stdout."""
    try:
        sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def echo_json_list(values: Iterable[Any]) -> None:
    """Print a JSON array on stdout, an element a line, each as soon as it comes."""
    out, separator = sys.stdout.buffer, b"[\n"
    for value in values:
        out.write(separator + orjson.dumps(value))
        separator = b",\n"
    out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
    out.flush()


def safe_text(text: str | bytes) -> str:
    """Make text from a disk safe to print: control characters and bytes that are no UTF-8 are escaped."""
    decoded = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in decoded
    )


def short_path(path: str) -> str:
    """Return a path as it reads from the current directory, where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except OSError:  # the current directory is gone
        return path
    # One that begins with a dash would be an option where it is pasted.
    return path if relative.startswith("-") else min(relative, path, key=len)


def misc_note(misc: str) -> str:
    """Say what the confidence of files under misc is the confidence in."""
    return f"{safe_text(misc)}: the confidence is that of each file's likeliest label, believed or not"


def shell_word(text: str) -> str:
    """Return text as one word that can be pasted into a shell, whatever is in it, and is safe to print."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    # Octal has three digits wherever it stands; some shells read on behind \x0a.
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))


def stdout_console() -> Console:
    """Return a rich console on stdout; what the terminal's encoding lacks becomes a question mark."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)
