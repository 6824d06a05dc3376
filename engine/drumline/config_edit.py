"""Changing values of a config.yml in place: every other line, comments included, stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from drumline.config import parse_config
from drumline.errors import ConfigError

__all__ = ["with_values"]


def with_values(path: Path, text: str, values: Mapping[str, int | None]) -> str:
    """Return the text of a config.yml with other values of top-level keys.

    A key that stands there keeps its line, its line's end and its comment; others are added at the end.

    Parameters
    ----------
    path
        Where the file stands, for messages and relative paths.
    text
        What it holds.
    values
        Key → value; None: null.

    Raises
    ------
    ConfigError
        When the file is wrong, or written in a way that cannot be changed line by line.
    """
    end = "\r\n" if "\r\n" in text else "\n"
    for key, value in values.items():
        line = re.compile(rf"^({key}[ \t]*:[ \t]*)[^\s#]*", re.MULTILINE)
        shown = "null" if value is None else str(value)
        if line.search(text):
            text = line.sub(rf"\g<1>{shown}", text, count=1)
        else:
            text = f"{text.rstrip()}{end}{key}: {shown}{end}".lstrip()
    try:
        found = parse_config(path, text).values
    except ConfigError as error:
        raise _unchangeable(path) from error
    if any(found.get(key) != value for key, value in values.items()):
        raise _unchangeable(path)
    return text


def _unchangeable(path: Path) -> ConfigError:
    return ConfigError(
        f"the values in {str(path)!r} cannot be changed line by line",
        "Name another file with --config, or write them there yourself.",
    )
