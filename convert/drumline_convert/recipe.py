"""Settings by name: ``training.fit.learning_rate = 0.001``, from a file, an option, or a sweep.

A *recipe* is a YAML (or JSON) file whose sections are `front_end`, `augment`, `architecture` and `training`;
what it does not name stays as in the shipped model. Inside, every value has a dotted name, so an option
``--set``, a recipe and a sweep's space all say the same things in the same words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from drumline.errors import ConfigError
from drumline_convert.workbench import ModelSettings

__all__ = [
    "as_yaml",
    "flat",
    "known_values",
    "parse_assignments",
    "read_recipe",
    "shipped_values",
    "with_values",
]

SECTIONS = ("front_end", "augment", "architecture", "training")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the values of a recipe file by dotted name.

    Raises
    ------
    ConfigError
        When it cannot be read or is no mapping.
    """
    return flat(read_yaml(path, "recipe"))


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; `what` is what it is called in an error."""
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the {what} {str(path)!r}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"the {what} {str(path)!r} holds no mapping")
    return value


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{before}{name}.")
        else:
            result[f"{before}{name}"] = value
    return result


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` texts as values by name; the value is read as YAML.

    Raises
    ------
    ConfigError
        When one has no ``=`` or its value is no YAML.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: it must be NAME=VALUE")
        try:
            result[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment}: {error}") from error
    return result


def known_values(settings: ModelSettings) -> dict[str, Any]:
    """Return all values that a recipe can set, as they are, by dotted name."""
    return flat({name: dataclasses.asdict(getattr(settings, name)) for name in SECTIONS})


def shipped_values() -> dict[str, Any]:
    """Return all values of the shipped model, by dotted name."""
    return known_values(ModelSettings(Path("corpus"), Path("bundle")))


def as_yaml(settings: ModelSettings) -> str:
    """Return the settings as a recipe."""
    values = {name: _plain(dataclasses.asdict(getattr(settings, name))) for name in SECTIONS}
    return str(yaml.safe_dump(values, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def with_values(settings: ModelSettings, values: Mapping[str, Any]) -> ModelSettings:
    """Return `settings` with other values.

    Parameters
    ----------
    values
        By dotted name.

    Raises
    ------
    ConfigError
        When there is no such setting, or a value is of the wrong type or out of range.
    """
    known = known_values(settings)
    for name in values:
        if name not in known:
            near = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
            hint = f"Did you mean {near[0]}?" if near else f"Settings: {', '.join(known)}."
            raise ConfigError(f"there is no setting {name!r}", hint)
    changed: ModelSettings = _replaced(
        settings, {name: _checked(name, value, known[name]) for name, value in values.items()}
    )
    return changed


def _checked(name: str, value: Any, current: Any) -> Any:
    """Return `value` in the type of the current one; a whole number may stand for a fraction."""
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(current, tuple) and isinstance(value, list | tuple) and value:
        return tuple(_checked(name, item, current[0]) for item in value)
    # An exponent without a point, 1e-3, is text to YAML.
    if isinstance(current, float) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not type(current):
        raise ConfigError(f"setting {name} is {current!r} by default and cannot be {value!r}")
    return value


def _replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    """Return a settings object with other values, all at once: each alone might contradict the rest."""
    own = {name: value for name, value in values.items() if "." not in name}
    for part in {name.partition(".")[0] for name in values} - set(own):
        inside = {
            name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{part}.")
        }
        own[part] = _replaced(getattr(settings, part), inside)
    return dataclasses.replace(settings, **own)
