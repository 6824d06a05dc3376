"""`drumline models` and `drumline validate-mapping`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from drumline.bundle import load_bundle
from drumline.errors import BundleError, RuntimeMissingError
from drumline.labels import label_checksum
from drumline.mapping import Check, validate_mapping
from drumline.stub import create_stub
from tests.making import CommandLine, linear_model, make_bundle

LABELS = ["Kick", "Snare", "Hihat"]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def results(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def test_the_default_bundle_is_listed(command: CommandLine) -> None:
    outcome = command("models")
    assert outcome.code == 0
    assert "mfcc-cnn" in outcome.out
    assert "(default)" in outcome.out
    listed = {bundle["name"]: bundle for bundle in command("models", "--json").json()}
    assert listed["mfcc-cnn"]["input_shape"] == [40, 98]
    assert listed["mfcc-cnn"]["error"] is None


def test_bundles_of_the_working_directory_are_listed_and_broken_ones_say_why(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create_stub(tmp_path / "models/mine")
    create_stub(tmp_path / "models/broken")
    (tmp_path / "models/broken/model.onnx").unlink()
    outcome = command("models")
    assert "mine 0.0.0" in outcome.out
    assert "broken" in outcome.err
    assert "model.onnx" in outcome.err
    errors = {bundle["name"]: bundle["error"] for bundle in command("models", "--json").json()}
    assert errors["mine"] is None
    assert "model.onnx" in errors["broken"]


def test_a_bundles_card_is_shown_without_control_characters(command: CommandLine, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", description="A\x1b[31mB")
    (bundle.path / "MODEL_CARD.md").write_bytes(b"# The card\n\n*data* \x1b[2J\xff")
    outcome = command("models", bundle.path)
    assert outcome.code == 0
    assert "The card" in outcome.out
    assert "\x1b" not in outcome.out
    details = command("models", bundle.path, "--json").json()
    assert details["card"].startswith("# The card")
    assert details["labels"] == list(bundle.labels)
    assert details["canonical_map"]["Rim"] == "Snare"


def test_a_bundle_without_a_card_is_no_error(command: CommandLine, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle.path / "MODEL_CARD.md").unlink()
    assert "no card" in command("models", bundle.path).out


def test_a_name_that_is_no_bundle_has_its_exit_code(command: CommandLine) -> None:
    outcome = command("models", "nothing-of-the-kind")
    assert outcome.code == BundleError.exit_code
    assert "nothing-of-the-kind" in outcome.err


def test_a_bundles_own_labels_belong_to_it(command: CommandLine, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    mapping = bundle.path / "label_mapping.json"
    outcome = command("validate-mapping", "--model", bundle.path, "--mapping", mapping, "--json")
    assert outcome.code == 0
    assert outcome.json()["valid"] is True
    assert [check["passed"] for check in outcome.json()["checks"]] == [True, True, True]


def test_labels_in_another_order_are_found_with_the_first_that_differs(
    command: CommandLine, tmp_path: Path
) -> None:
    labels = list(load_bundle().labels)
    labels[3], labels[4] = labels[4], labels[3]
    mapping = write(tmp_path / "labels.json", labels)
    outcome = command("validate-mapping", "--model", "mfcc-cnn", "--mapping", mapping)
    assert outcome.code == BundleError.exit_code
    assert f"output 3 is '{labels[4]}', the label file has '{labels[3]}' there" in outcome.out
    checks = results(validate_mapping("mfcc-cnn", mapping))
    assert checks == {"length": True, "order": False, "checksum": False}


def test_a_label_file_of_another_length_names_both_numbers(tmp_path: Path) -> None:
    mapping = write(tmp_path / "labels.json", [*load_bundle().labels, "Extra"])
    length, order, checksum = validate_mapping("mfcc-cnn", mapping)
    count = len(load_bundle().labels)
    assert length.detail == f"model gives {count} classes, label file has {count + 1}"
    assert (length.passed, order.passed, checksum.passed) == (False, False, False)


def test_a_lone_onnx_file_that_names_no_labels_is_checked_for_length(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_model(3))
    checks = validate_mapping(tmp_path / "model.onnx", write(tmp_path / "labels.json", LABELS))
    assert results(checks) == {"length": True, "order": None, "checksum": None}
    assert label_checksum(LABELS) in checks[2].detail


@pytest.mark.parametrize(
    "labels",
    [json.dumps(LABELS), "Kick, Snare, Hihat", "Kick\nSnare\nHihat", '{"0":"Kick","1":"Snare","2":"Hihat"}'],
)
def test_labels_in_an_onnx_files_metadata_are_compared(tmp_path: Path, labels: str) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_model(3, metadata={"labels": labels}))
    right = validate_mapping(tmp_path / "model.onnx", write(tmp_path / "labels.json", LABELS))
    wrong = validate_mapping(tmp_path / "model.onnx", write(tmp_path / "labels.json", LABELS[::-1]))
    assert results(right) == {"length": True, "order": True, "checksum": True}
    assert results(wrong) == {"length": True, "order": False, "checksum": False}


def test_metadata_that_is_no_label_list_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(linear_model(3, metadata={"labels": "[1, 2, 3]"}))
    checks = validate_mapping(tmp_path / "model.onnx", write(tmp_path / "labels.json", LABELS))
    assert results(checks)["order"] is None


def test_without_keras_a_keras_file_says_which_extra_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.keras").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(RuntimeMissingError) as error:
        validate_mapping(tmp_path / "model.keras", write(tmp_path / "labels.json", LABELS))
    assert "drumline[train]" in error.value.way_out


class FakeKeras:
    """As much of Keras as is asked of it; importing the real one takes seconds."""

    class saving:  # noqa: N801
        @staticmethod
        def load_model(path: Path, **options: bool) -> Any:
            assert options == {"compile": False, "safe_mode": True}
            if path.read_bytes() != b"good":
                raise ValueError("not a zip file\nat all")
            return type("Model", (), {"output_shape": (None, 3)})


def test_a_keras_file_is_checked_for_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", FakeKeras)  # type: ignore[arg-type]
    model, mapping = tmp_path / "model.keras", write(tmp_path / "labels.json", LABELS)
    model.write_bytes(b"good")
    assert results(validate_mapping(model, mapping)) == {"length": True, "order": None, "checksum": None}
    model.write_bytes(b"bad")
    with pytest.raises(BundleError, match=r"model\.keras.*not a zip file$"):
        validate_mapping(model, mapping)


@pytest.mark.parametrize("model", ["none.onnx", "none.keras", "no-bundle"])
def test_a_missing_model_is_named(tmp_path: Path, model: str) -> None:
    with pytest.raises((BundleError, RuntimeMissingError), match=model):
        validate_mapping(tmp_path / model, write(tmp_path / "labels.json", LABELS))
