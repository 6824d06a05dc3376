"""What a model is converted to: the front end and labels that its bundle will name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drumline.bundle import load_bundle
from drumline.errors import BundleError, ConfigError
from drumline.frontend import FrontEnd
from drumline.labels import CANONICAL_LABELS, MISC, Taxonomy, read_canonical_map, read_labels
from drumline_convert.taxonomy import read_taxonomy

__all__ = ["Target", "read_front_end", "read_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """What turns a recording into the model's input, and what its outputs mean."""

    front_end: FrontEnd
    taxonomy: Taxonomy


def read_target(
    like: Path | None, front_end: str | None, labels: Path | None, canonical: Path | None
) -> Target:
    """Put together what a bundle and the options say; options win.

    Parameters
    ----------
    like
        Bundle whose front end and labels are taken; None: the default bundle, unless front end and labels
        are both given.
    front_end
        See `read_front_end`.
    labels, canonical
        Label file, and mapping fine label → canonical label; labels without a mapping are mapped by the
        shipped taxonomy.

    Raises
    ------
    BundleError, ConfigError
        When something cannot be read or is no such thing.
    """
    whole = front_end is not None and labels is not None
    pattern = None if whole and like is None else load_bundle(like)
    taxonomy = _taxonomy(pattern.taxonomy if pattern else None, labels, canonical)
    if front_end is not None:
        return Target(read_front_end(front_end), taxonomy)
    assert pattern is not None
    return Target(pattern.front_end, taxonomy)


def _taxonomy(pattern: Taxonomy | None, labels: Path | None, canonical: Path | None) -> Taxonomy:
    if labels is None:
        assert pattern is not None
        return pattern if canonical is None else Taxonomy(pattern.fine, *read_canonical_map(canonical))
    fine = read_labels(labels)
    return Taxonomy(fine, *(read_canonical_map(canonical) if canonical else (_known_map(fine), MISC)))


def _known_map(fine: tuple[str, ...]) -> dict[str, str]:
    """Map labels by the shipped taxonomy; a canonical label is its own."""
    shipped = read_taxonomy()
    known = {
        label: shipped.canonical[place]
        for label in fine
        if (place := shipped.canonical_index(label)) is not None
    }
    known |= {label: label for label in fine if label in (*CANONICAL_LABELS, MISC)}
    unknown = [label for label in fine if label not in known]
    if unknown:
        raise BundleError(
            f"the shipped taxonomy does not know {len(unknown)} of the labels: {', '.join(unknown[:5])}",
            'Say what they collapse to: --canonical mapping.json, with {"label": "Kick", …}.',
        )
    return known


def read_front_end(given: str) -> FrontEnd:
    """Read front-end settings: ``kind=log-mel,n_mels=128``, or a JSON or YAML file, or a bundle.json.

    Raises
    ------
    ConfigError
        When they cannot be read.
    BundleError
        When a setting is unknown or wrong.
    """
    if "=" in given:
        return _from_values(_parse_pairs(given))
    try:
        value = yaml.safe_load(Path(given).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the front end {given!r}: {error.strerror}",
            "Give a JSON or YAML file, or the settings themselves: kind=log-mel,n_mels=128.",
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the front end {given!r} is neither JSON nor YAML: {error}") from error
    if isinstance(value, Mapping):
        return _from_values(value.get("front_end", value))
    raise ConfigError(
        f"the front end {given!r} holds no settings", "It looks like {kind: log-mel, n_mels: 128}."
    )


def _parse_pairs(given: str) -> dict[str, Any]:
    pairs = [part.partition("=") for part in given.split(",") if part.strip()]
    return {key.strip(): _value(text.strip()) for key, _, text in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _from_values(values: Any) -> FrontEnd:
    if not isinstance(values, Mapping):
        raise ConfigError(f"front end settings are names with values, not {values!r:.60}")
    return FrontEnd.from_json(dict(values))
