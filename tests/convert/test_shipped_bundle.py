"""The bundle in the repository: complete, consistent, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.bundle import Bundle, load_bundle
from drumline.frontend import FrontEnd
from drumline_convert.provenance import read_training_set
from drumline_convert.taxonomy import TrainingTaxonomy
from drumline_convert.transfer import load_earlier

DIRECTORY = Path(__file__).parents[2] / "models" / "mfcc-cnn"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(DIRECTORY)


def read(name: str) -> Any:
    return json.loads((DIRECTORY / name).read_text())


def test_labels_and_mapping_are_those_of_the_taxonomy(bundle: Bundle, taxonomy: TrainingTaxonomy) -> None:
    assert bundle.labels == taxonomy.fine
    assert dict(bundle.taxonomy.canonical_of) == dict(taxonomy.labels.canonical_of)
    assert read("label_mapping.json")["sha256"] == bundle.taxonomy.checksum
    assert tuple(read("canonical_mapping.json")["canonical"]) == bundle.taxonomy.canonical[:-1]


def test_the_front_end_is_plain_mfcc(bundle: Bundle) -> None:
    assert bundle.front_end == FrontEnd()


def test_it_is_small_and_has_one_output_per_label(bundle: Bundle) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert bundle.model_path.stat().st_size <= 2_000_000
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    features = np.zeros((3, *bundle.front_end.shape), np.float32)
    logits, probabilities = session.run(["logits", "probabilities"], {"features": features})
    assert logits.shape == probabilities.shape == (3, len(bundle.labels))


def test_the_temperature_was_fitted_on_held_out_families_and_helped() -> None:
    calibration = read("calibration.json")
    assert "held-out" in calibration["fitted_on"]["what"]
    assert calibration["after"]["nll"] <= calibration["before"]["nll"]


def test_the_card_names_every_section_source_and_class(bundle: Bundle) -> None:
    card = (DIRECTORY / "MODEL_CARD.md").read_text()
    for heading in (
        "Intended use",
        "Quality",
        "Per class",
        "Known failures",
        "Training",
        "Data and licences",
    ):
        assert f"## {heading}" in card
    for label in bundle.taxonomy.canonical:
        assert f"| {label} |" in card
    assert f"# {bundle.name} {bundle.version}" in card
    assert "psemiletov/drum_sklad" in card
    assert "make model" in card


def test_it_says_on_which_families_it_was_trained(bundle: Bundle) -> None:
    trained_on = read_training_set(bundle.path)
    assert trained_on is not None
    fitted_on = read("calibration.json")["fitted_on"]
    assert len(trained_on.families) == fitted_on["families"]
    assert len(trained_on.hashes) <= fitted_on["recordings"]


def test_a_training_can_start_from_it(bundle: Bundle) -> None:
    earlier = load_earlier(DIRECTORY)
    assert earlier.path.stat().st_size <= 2_000_000
    assert earlier.labels == bundle.labels
