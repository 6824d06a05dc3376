"""Stub bundles: complete, deterministic, and never over anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.bundle import load_bundle
from drumline.errors import BundleError, OutputError
from drumline.frontend import FrontEnd
from drumline.inference import open_session
from drumline.stub import create_stub, stub_model
from tests.making import CommandLine

LABELS = ("Kick", "Snare", "Öl-Fass")


def test_a_stub_is_a_complete_bundle_that_runs(tmp_path: Path) -> None:
    taxonomy = create_stub(tmp_path / "deep" / "stub")
    bundle = load_bundle(tmp_path / "deep" / "stub")
    assert bundle.labels == taxonomy.fine == load_bundle().labels
    assert (bundle.name, bundle.front_end) == ("stub", load_bundle().front_end)
    assert (bundle.path / "MODEL_CARD.md").read_text().startswith("# stub")
    spread = np.random.default_rng(0).normal(0, 40, (200, *bundle.front_end.shape)).astype(np.float32)
    confidence = open_session(bundle, "cpu").probabilities(spread).max(axis=1)
    assert 0 < confidence.min() < confidence.max() <= 1


def test_equal_stubs_are_equal_byte_for_byte() -> None:
    front_end = FrontEnd()
    assert stub_model(front_end, LABELS) == stub_model(front_end, LABELS)
    assert stub_model(front_end, LABELS) != stub_model(front_end, LABELS[::-1])


def test_a_stub_from_a_label_file_maps_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('["kick", "Splash", "Bird"]')
    create_stub(tmp_path / "stub", tmp_path / "mine.json")
    bundle = load_bundle(tmp_path / "stub")
    assert bundle.labels == ("kick", "Splash", "Bird")
    assert dict(bundle.taxonomy.canonical_of) == {"kick": "Kick", "Splash": "Crash", "Bird": "misc"}


def test_a_stub_of_a_stub_has_its_front_end_and_labels(tmp_path: Path) -> None:
    create_stub(tmp_path / "one")
    create_stub(tmp_path / "two", tmp_path / "one")
    one, two = load_bundle(tmp_path / "one"), load_bundle(tmp_path / "two")
    assert (one.fingerprint, one.front_end) == (two.fingerprint, two.front_end)


@pytest.mark.parametrize("stands_there", ["file", "directory", "link"])
def test_a_stub_never_overwrites(tmp_path: Path, stands_there: str) -> None:
    output = tmp_path / "stub"
    if stands_there == "file":
        output.write_text("mine")
    elif stands_there == "directory":
        output.mkdir()
    else:
        output.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="exists already"):
        create_stub(output)
    assert [path.name for path in tmp_path.iterdir()] == ["stub"]


def test_a_stub_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(BundleError):
        create_stub(tmp_path / "stub", tmp_path / "labels.json")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_create_stub_says_what_to_try_next(command: CommandLine, tmp_path: Path) -> None:
    made = command("create-stub", "--model", "mfcc-cnn", "--output", tmp_path / "stub")
    assert (made.code, made.err) == (0, "")
    assert f"drumline infer ARCHIVE --model {tmp_path / 'stub'}" in made.out
    assert command("create-stub", "--output", tmp_path / "stub").code == OutputError.exit_code


@pytest.mark.parametrize("front_end", [FrontEnd(), FrontEnd(kind="log-mel", n_mels=64)])
def test_onnx_itself_finds_nothing_wrong_with_a_stub(front_end: FrontEnd) -> None:
    onnx: Any = pytest.importorskip("onnx")
    model = onnx.load_from_string(stub_model(front_end, LABELS))
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
