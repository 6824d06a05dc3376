"""Sweeps and training again, whole, on a tiny corpus; a bundle that is worse replaces none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drumline.bundle import load_bundle
from drumline.errors import ConfigError, OutputError
from drumline_convert.architecture import Architecture
from drumline_convert.augment import AugmentSettings
from drumline_convert.batches import SamplingSettings
from drumline_convert.fitting import FitSettings
from drumline_convert.manifest import read_manifest, write_manifest
from drumline_convert.training import TrainingSettings
from drumline_convert.workbench import ModelSettings

for module in ("tensorflow", "tf2onnx", "onnxruntime"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'drumline[train,cpu]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:tf2onnx.*")


def tiny(corpus: Path, root: Path, **training: Any) -> ModelSettings:
    return ModelSettings(
        corpus,
        root / "models" / "tiny",
        root / "build",
        folds=2,
        threads=1,
        augment=AugmentSettings(variants=2),
        architecture=Architecture(bands=16, stem=4, widths=(8,), dropout=0.0),
        training=TrainingSettings(
            **{
                "epochs": 1,
                "members": 1,
                "sampling": SamplingSettings(4),
                "fit": FitSettings(0.01, average=0.9),
                **training,
            }
        ),
    )


def test_a_sweep_ranks_its_trials_and_trains_nothing_twice(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drumline_convert import workbench
    from drumline_convert.sweep import Sweep, run_sweep

    settings = tiny(tiny_corpus, tmp_path)
    sweep = Sweep(({"training.epochs": 1}, {"training.epochs": 3}), folds=(1,))
    trials = run_sweep(settings, sweep, tmp_path / "sweep", lambda _: None)
    assert [set(trial.folds) for trial in trials] == [{1}, {1}]
    assert trials[0].mean("accuracy") >= trials[1].mean("accuracy")
    saved = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [entry["values"] for entry in saved["trials"]] == [trial.values for trial in trials]
    change = trials[0].mean("accuracy") - trials[1].mean("accuracy")
    second = next(entry for entry in saved["trials"] if entry["number"] == 2)
    assert abs(second["difference"]["accuracy"]) == pytest.approx(change, abs=1e-4)
    assert next(entry for entry in saved["trials"] if entry["number"] == 1)["difference"]["accuracy"] == 0
    assert "2 of 2 trials" in (tmp_path / "sweep" / "sweep.md").read_text()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(workbench, "train", forbidden)
    assert run_sweep(settings, sweep, tmp_path / "sweep", lambda _: None) == trials


def test_a_sweep_that_cannot_be_is_refused_before_anything_is_trained(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    from drumline_convert.sweep import Sweep, run_sweep

    settings = tiny(tiny_corpus, tmp_path)
    with pytest.raises(ConfigError, match="no setting"):
        run_sweep(settings, Sweep(({"training.epoch": 1},)), tmp_path / "sweep", lambda _: None)
    with pytest.raises(ConfigError, match="folds"):
        run_sweep(settings, Sweep(({"training.epochs": 1},), folds=(2,)), tmp_path / "sweep", lambda _: None)
    assert not (tmp_path / "build").exists()


@pytest.fixture(scope="module")
def good(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSettings, dict[str, Any]]:
    """A bundle that was trained again from nothing, compared with the shipped one."""
    from drumline_convert.retrain import retrain

    settings = tiny(tiny_corpus, tmp_path_factory.mktemp("retrain"), epochs=25)
    old = Path("mfcc-cnn")
    return settings, retrain(settings, old, even_if_worse=True, report=lambda _: None)


def test_the_new_bundle_is_whole_and_says_what_it_was_compared_on(
    good: tuple[ModelSettings, dict[str, Any]],
) -> None:
    settings, result = good
    bundle = load_bundle(settings.out)
    assert bundle.calibration["fitted_on"]["what"].startswith("validation families")
    assert (settings.out / "model.keras").is_file()
    assert set(result["difference"]["accuracy"]) == {"value", "interval"}
    expected = result["new"]["accuracy"]["value"] - result["old"]["accuracy"]["value"]
    assert result["difference"]["accuracy"]["value"] == pytest.approx(expected, abs=2e-4)


def test_nobody_is_tested_on_a_family_that_was_learnt_from(
    good: tuple[ModelSettings, dict[str, Any]],
) -> None:
    from drumline_convert.provenance import read_training_set

    settings, _ = good
    manifest = read_manifest(settings.build / "retrain" / "manifest.jsonl")
    trained_on = read_training_set(settings.out)
    assert trained_on is not None
    assert set(trained_on.families) == {row.family for row in manifest.side("train")}
    held_out = {row.family for row in manifest.side("test", "validation")}
    assert held_out
    assert not held_out & set(trained_on.families)


def test_a_worse_bundle_replaces_nothing_unless_told(
    good: tuple[ModelSettings, dict[str, Any]],
) -> None:
    from drumline_convert.retrain import retrain

    settings, result = good
    assert result["new"]["accuracy"]["value"] > 0.5
    before = load_bundle(settings.out).fingerprint
    # It learns nothing, at a rate of nothing.
    worse = replace(
        settings, training=replace(settings.training, epochs=1, fit=FitSettings(1e-12, average=0.9))
    )
    with pytest.raises(OutputError, match="worse and does not replace"):
        retrain(worse, settings.out, report=lambda _: None)
    assert load_bundle(settings.out).fingerprint == before
    retrain(worse, settings.out, even_if_worse=True, report=lambda _: None)
    assert load_bundle(settings.out).fingerprint != before
    assert load_bundle(settings.out.with_name("tiny.before")).fingerprint == before


def test_a_manifest_with_other_sides_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    from drumline_convert.retrain import retrain

    rows = [replace(row, split="train") for row in read_manifest(tiny_corpus / "manifest.jsonl")]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    settings = tiny(tmp_path / "manifest.jsonl", tmp_path)
    with pytest.raises(ConfigError, match="sides are train"):
        retrain(settings, Path("mfcc-cnn"), report=lambda _: None)
