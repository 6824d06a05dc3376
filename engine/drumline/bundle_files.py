"""The files of a bundle: what they are called, and what all that write bundles write alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from drumline.durable import write_json
from drumline.frontend import FrontEnd
from drumline.labels import Taxonomy

__all__ = ["BUNDLE_SCHEMA", "CARD_NAME", "MANIFEST_NAME", "PARTS", "bundle_json", "write_labels"]

BUNDLE_SCHEMA: Final = 1

MANIFEST_NAME: Final = "bundle.json"
"""What a bundle says of itself; a directory that holds it is a bundle."""

CARD_NAME: Final = "MODEL_CARD.md"

PARTS: Final[Mapping[str, str]] = {
    "model": "model.onnx",
    "labels": "label_mapping.json",
    "canonical": "canonical_mapping.json",
    "calibration": "calibration.json",
}
"""Key in bundle.json → the file that it names, and that is looked for where the key is left out."""


def write_labels(directory: Path, taxonomy: Taxonomy) -> None:
    """Write the label file and the canonical mapping of a bundle."""
    labels = {"labels": list(taxonomy.fine), "sha256": taxonomy.checksum}
    mapping = {
        "canonical": [label for label in taxonomy.canonical if label != taxonomy.misc],
        "misc": taxonomy.misc,
        "map": dict(taxonomy.canonical_of),
    }
    write_json(directory / PARTS["labels"], labels)
    write_json(directory / PARTS["canonical"], mapping)


def bundle_json(
    name: str, version: str, description: str, front_end: FrontEnd | None, **more: Any
) -> dict[str, Any]:
    """Return the content of ``bundle.json``.

    Parameters
    ----------
    name, version, description
        As its author calls it; one sentence.
    front_end
        Of a classifier; None of an ensemble, whose members have their own.
    more
        Further keys, or others in place of those.
    """
    about = {"schema": BUNDLE_SCHEMA, "name": name, "version": version, "description": description}
    if front_end is None:
        own = {key: file for key, file in PARTS.items() if key != "model"}
        return {**about, "kind": "ensemble", **own, **more}
    return {
        **about,
        "kind": "classifier",
        "front_end": front_end.to_json(),
        **PARTS,
        "input": {"name": "features", "layout": front_end.layout},
        "outputs": {"logits": "logits", "probabilities": "probabilities"},
        **more,
    }
