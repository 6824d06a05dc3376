"""The command line reference, made from the commands' own help: ``python -m drumline.cli.reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from drumline.cli import READER_GONE, cli

__all__ = ["reference"]

_WIDTH = 100
_HEAD = """# Command line reference

Made by `make docs` from the commands' own help; a test fails when it is out of date.

| exit code | means |
|---|---|
"""


def reference() -> str:
    """Return the reference as Markdown."""
    sections = [f"{heading}\n\n```text\n{text}\n```\n" for heading, text in _helps(cli, None, "drumline")]
    return _HEAD + _exit_codes() + "\n" + "\n".join(sections)


def _exit_codes() -> str:
    from drumline import errors

    kinds = [getattr(errors, name) for name in errors.__all__]
    rows = [(0, "Done"), (READER_GONE, "Nobody reads the output any more (`… | head`)")]
    rows += [(kind.exit_code, _meaning(kind)) for kind in kinds if "exit_code" in vars(kind)]
    return "".join(f"| {code} | {meaning} |\n" for code, meaning in sorted(rows))


def _meaning(kind: type) -> str:
    first = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    return "An internal promise was broken" if kind.__name__ == "DrumlineError" else first


def _helps(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    context = click.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield f"## {context.command_path}", command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None:
                yield from _helps(found, context, below)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        print(reference())
