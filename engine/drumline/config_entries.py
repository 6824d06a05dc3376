"""The entries of a config.yml: read from its text, each with the line on which it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from drumline.config import CONFIG_KEYS, SECTIONS, error_at
from drumline.errors import ConfigError

__all__ = ["ConfigEntry", "config_entries"]


class _Loader(yaml.SafeLoader):
    """Refuses aliases: config.yml needs none, and a few lines of them expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed here", mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """A key of config.yml, with a dot between levels, its value, and its line."""

    key: str
    value: Any
    line: int


def config_entries(path: Path, text: str) -> Iterator[ConfigEntry]:
    """Iterate over all keys of the file, sections opened."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise error_at(
            path, mark.line + 1 if mark else 1, f"no YAML: {error.problem or error.context}"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        cause = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ConfigError(f"{str(path)!r} is no YAML that can be read: {cause}") from error
    if root is not None:
        yield from _section_entries(path, loader, root, "")


def _section_entries(path: Path, loader: _Loader, node: yaml.Node, section: str) -> Iterator[ConfigEntry]:
    if section and node.tag == "tag:yaml.org,2002:null":
        return  # every line of the section is a comment
    if not isinstance(node, yaml.MappingNode):
        name = section or "the file"
        raise error_at(path, _line(node), f"{name} must hold 'key: value' lines", _known_keys(section))
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key = _key(path, key_node, section, seen)
        if key in SECTIONS:
            yield from _section_entries(path, loader, value_node, key)
        else:
            yield ConfigEntry(key, _value(path, loader, value_node, key), _line(key_node))


def _key(path: Path, node: yaml.Node, section: str, seen: set[str]) -> str:
    name = node.value if isinstance(node, yaml.ScalarNode) else "(no name)"
    key = f"{section}.{name}" if section else name
    if "." in name or key not in (*CONFIG_KEYS, *SECTIONS):
        raise error_at(path, _line(node), f"unknown key {key!r}", _suggestion(name, section))
    if key in seen:
        raise error_at(path, _line(node), f"{key} stands twice", "Remove one of them.")
    seen.add(key)
    return key


def _suggestion(name: str, section: str) -> str:
    elsewhere = [key for key in CONFIG_KEYS if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = elsewhere or get_close_matches(f"{section}.{name}" if section else name, _keys_in(section), 1)
    near = near or get_close_matches(name, [*CONFIG_KEYS, *SECTIONS], 1)
    return f"Did you mean {_as_written(near[0])}?" if near else _known_keys(section)


def _as_written(key: str) -> str:
    section, _, name = key.rpartition(".")
    return f"'{name}' under '{section}:'" if section else f"'{key}'"


def _keys_in(section: str) -> list[str]:
    return [key for key in [*CONFIG_KEYS, *SECTIONS] if key.rpartition(".")[0] == section]


def _known_keys(section: str) -> str:
    return f"Keys are: {', '.join(key.rpartition('.')[2] for key in _keys_in(section))}."


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value(path: Path, loader: _Loader, node: yaml.Node, key: str) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise error_at(path, _line(node), f"the value of {key} cannot be understood") from error
