"""Bundles: found, complete, and without contradictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drumline.bundle import find_bundle, load_bundle, shipped_bundles
from drumline.errors import BundleError
from drumline.stub import create_stub
from tests.making import make_bundle


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    create_stub(tmp_path / "stub")
    return tmp_path / "stub"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_default_bundle_is_there_and_has_the_six_kit_classes() -> None:
    bundle = load_bundle()
    assert bundle.taxonomy.canonical == ("Crash", "Hihat", "Kick", "Ride", "Snare", "Tom", "misc")
    assert bundle.front_end.shape == (40, 98)
    assert bundle.path in shipped_bundles()


def test_a_bundle_is_found_by_directory_by_manifest_by_model_and_by_name(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (bundle_path, bundle_path / "bundle.json", bundle_path / "model.onnx", str(bundle_path)):
        assert find_bundle(name) == bundle_path
    (bundle_path.parent / "models").mkdir()
    bundle_path.rename(bundle_path.parent / "models" / "stub")
    monkeypatch.chdir(bundle_path.parent)
    assert find_bundle("stub") == Path("models/stub")


def test_a_missing_bundle_is_named_with_those_that_are_there() -> None:
    with pytest.raises(BundleError, match="no-such") as error:
        find_bundle("no-such")
    assert "mfcc-cnn" in error.value.way_out


@pytest.mark.parametrize("member", ["model.onnx", "label_mapping.json", "canonical_mapping.json"])
def test_a_bundle_without_one_of_its_files_is_incomplete(bundle_path: Path, member: str) -> None:
    (bundle_path / member).unlink()
    with pytest.raises(BundleError, match=member):
        load_bundle(bundle_path)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "", 3, ".hidden"])
def test_a_bundle_names_only_files_of_its_own(bundle_path: Path, name: Any) -> None:
    change(bundle_path / "bundle.json", model=name)
    with pytest.raises(BundleError, match="inside the bundle"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "x"}'])
def test_a_damaged_manifest_is_an_error_that_names_it(bundle_path: Path, content: bytes) -> None:
    (bundle_path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(bundle_path)


def test_a_bundle_of_a_newer_schema_is_refused(bundle_path: Path) -> None:
    change(bundle_path / "bundle.json", schema=2)
    with pytest.raises(BundleError, match="schema 2"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("change_", [{"kind": "mel"}, {"hop_length": 0}, {"n_mfcc": 200}, {"window": "hann"}])
def test_a_front_end_that_is_not_known_is_refused(bundle_path: Path, change_: dict[str, Any]) -> None:
    front_end = load_bundle(bundle_path).front_end.to_json()
    change(bundle_path / "bundle.json", front_end={**front_end, **change_})
    with pytest.raises(BundleError, match="front end"):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    "sizes",
    [
        {"samples": 10**12},
        {"samples": 1 << 24, "hop_length": 1},
        {"samples": 1 << 24, "hop_length": 1, "n_fft": 2, "n_mels": 4096},
        {"n_mels": 10**6},
        {"n_fft": 10**9},
        {"sample_rate": 10**9},
        {"hop_length": 10**12},
    ],
    ids=str,
)
def test_a_front_end_that_no_memory_holds_is_refused(bundle_path: Path, sizes: dict[str, int]) -> None:
    front_end = load_bundle(bundle_path).front_end.to_json()
    change(bundle_path / "bundle.json", front_end={**front_end, **sizes})
    with pytest.raises(BundleError, match="front end"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(bundle_path: Path, temperature: float) -> None:
    change(bundle_path / "calibration.json", temperature=temperature)
    with pytest.raises(BundleError):
        load_bundle(bundle_path)


def test_a_bundle_without_calibration_has_temperature_1(bundle_path: Path) -> None:
    (bundle_path / "calibration.json").unlink()
    manifest = json.loads((bundle_path / "bundle.json").read_text())
    del manifest["calibration"]
    (bundle_path / "bundle.json").write_text(json.dumps(manifest))
    assert load_bundle(bundle_path).temperature == 1.0


def test_labels_and_mapping_can_be_replaced(bundle_path: Path, tmp_path: Path) -> None:
    labels = list(load_bundle(bundle_path).labels)
    labels[0] = "Bassdrum"
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "map.json").write_text(json.dumps(dict.fromkeys(labels, "Kick")))
    bundle = load_bundle(bundle_path, label_map=tmp_path / "labels.json", canonical_map=tmp_path / "map.json")
    assert bundle.labels[0] == "Bassdrum"
    assert bundle.taxonomy.canonical == ("Kick", "misc")


def test_the_fingerprint_changes_with_all_that_changes_probabilities(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    front_end = {**bundle.front_end.to_json(), "normalise": "none"}
    calibrated = make_bundle(tmp_path / "two")
    change(calibrated.path / "calibration.json", temperature=1.5)
    others = [
        make_bundle(tmp_path / "three", front_end=front_end).fingerprint,
        load_bundle(calibrated.path).fingerprint,
        make_bundle(tmp_path / "four", model=bundle.model_path.read_bytes() + b"\x10\x00").fingerprint,
    ]
    assert len({bundle.fingerprint, *others}) == 4
    assert make_bundle(tmp_path / "five", description="other").fingerprint == bundle.fingerprint
