"""Ensembles equal their formula, as one graph and as a bundle that names its members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from drumline.bundle import Bundle, load_bundle
from drumline.classify import Classifier
from drumline.errors import BundleError, ConfigError, UsageError
from drumline.frontend import FrontEnd
from drumline.index import read_index
from drumline.inference import open_session
from drumline.rows import RowReader
from drumline.runs import open_run
from drumline_convert.combine import combine
from drumline_convert.manifest import Row, write_manifest
from drumline_convert.predictions import predictions_of_bundles
from drumline_convert.provenance import training_set_of, write_training_set
from tests.convert.drums import LABELS, drum
from tests.convert.graphs import onnx
from tests.making import CommandLine, gated_model, linear_model, make_bundle

assert onnx
CLASSES = len(load_bundle().labels)
LOG_MEL = FrontEnd(kind="log-mel", n_mels=32, sample_rate=22_050, samples=11_025)


def member(path: Path, seed: int, temperature: float = 1.0, front_end: FrontEnd | None = None) -> Bundle:
    """Return a linear model of its own."""
    front_end = front_end or FrontEnd()
    model = linear_model(CLASSES, ("batch", *front_end.shape))
    proto = onnx.ModelProto.FromString(model)
    weights = np.random.default_rng(seed).normal(0, 0.002, (np.prod(front_end.shape), CLASSES))
    proto.graph.initializer[0].raw_data = weights.astype("<f4").tobytes()
    bundle = make_bundle(path, proto.SerializeToString(), front_end=front_end.to_json(), name=path.name)
    calibration = {"method": "temperature", "temperature": temperature, "version": 1}
    (bundle.path / "calibration.json").write_text(json.dumps(calibration))
    return load_bundle(path)


@pytest.fixture
def alike(tmp_path: Path) -> list[Bundle]:
    """Three members that share a front end."""
    return [member(tmp_path / f"m{seed}", seed, 1.0 + 0.5 * seed) for seed in range(3)]


@pytest.fixture
def unlike(tmp_path: Path) -> list[Bundle]:
    """Three members, two of which share a front end."""
    ends = (None, LOG_MEL, None)
    return [member(tmp_path / f"u{seed}", seed, 1.5, end) for seed, end in enumerate(ends)]


def formula(bundles: list[Bundle], weights: list[float], mean: str, sounds: list[Any]) -> Any:
    """Return what the ensemble should say, in double precision from the members' own probabilities."""
    said = [
        open_session(bundle, "cpu").probabilities(rows(bundle, sounds)).astype(np.float64)
        for bundle in bundles
    ]
    if mean == "arithmetic":
        return sum(weight * values for weight, values in zip(weights, said, strict=True))
    product = np.prod([values**weight for weight, values in zip(weights, said, strict=True)], axis=0)
    return product / product.sum(axis=1, keepdims=True)


def rows(bundle: Bundle, sounds: list[Any]) -> Any:
    from drumline.classify import _decoded

    reader = RowReader(bundle.front_ends)
    return np.stack([reader.row(lambda decoder, s=sound: _decoded(decoder, s)) for sound in sounds])


@pytest.fixture
def sounds() -> list[Any]:
    rng = np.random.default_rng(2)
    return [(drum(label, rng), 22_050) for label in LABELS * 3]


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_members_that_share_a_front_end_become_one_graph_that_equals_the_formula(
    alike: list[Bundle], sounds: list[Any], tmp_path: Path, mean: Any
) -> None:
    report = combine([bundle.path for bundle in alike], tmp_path / "all", mean, [3, 1, 1])
    bundle = load_bundle(tmp_path / "all")
    assert report["merged"]
    assert not bundle.members
    found = open_session(bundle, "cpu").probabilities(rows(bundle, sounds))
    np.testing.assert_allclose(found, formula(alike, [0.6, 0.2, 0.2], mean, sounds), atol=1e-5)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_members_with_other_front_ends_are_named_and_equal_the_formula(
    unlike: list[Bundle], sounds: list[Any], tmp_path: Path, mean: Any
) -> None:
    report = combine([bundle.path for bundle in unlike], tmp_path / "all", mean, [3, 1, 1])
    bundle = load_bundle(tmp_path / "all")
    assert not report["merged"]
    assert bundle.front_ends == (FrontEnd(), LOG_MEL)
    assert bundle.row_shape == (40 * 98 + 32 * 22,)
    found = open_session(bundle, "cpu").probabilities(rows(bundle, sounds))
    np.testing.assert_allclose(found, formula(unlike, [0.6, 0.2, 0.2], mean, sounds), atol=1e-5)


def test_either_kind_runs_through_the_pipeline_and_says_the_same_there(
    alike: list[Bundle], unlike: list[Bundle], tiny_corpus: Path, tmp_path: Path, command: CommandLine
) -> None:
    paths = sorted((tiny_corpus / "audio" / "kit0").glob("*.wav"))
    for name, bundles in {"one": alike, "named": unlike}.items():
        combine([bundle.path for bundle in bundles], tmp_path / name)
        outcome = command(
            *("infer", paths[0].parent, "--model", tmp_path / name, "--runs-root", tmp_path / f"runs-{name}"),
            *("--workers", "1", "--batch-size", "5", "--quiet"),
        )
        assert outcome.code == 0, outcome.err
        records = {r["relative_path"]: r for r in read_index(open_run(tmp_path / f"runs-{name}").index_path)}
        predictions = list(Classifier(load_bundle(tmp_path / name))(paths))
        assert len(records) == len(paths) == 12
        for path, prediction in zip(paths, predictions, strict=True):
            record = records[path.name]
            assert record["label_top1"] == prediction.decision.label_top1
            assert record["conf_top1"] == pytest.approx(prediction.decision.conf_top1, abs=1e-4)
            assert record["rms_db"] is not None
        assert command("models", tmp_path / name).code == 0
        assert command("doctor", "--model", tmp_path / name).code == 0


def test_an_ensemble_is_evaluated_like_any_bundle_and_says_what_its_members_were_trained_on(
    unlike: list[Bundle], tiny_corpus: Path, tmp_path: Path
) -> None:
    listed = [labelled(path, "test") for path in sorted((tiny_corpus / "audio").glob("*/*.wav"))]
    write_training_set(unlike[0].path, listed[:3])
    write_training_set(unlike[1].path, listed[2:4])
    write_training_set(unlike[2].path, listed[4:5])
    combine([bundle.path for bundle in unlike], tmp_path / "all")
    bundle = load_bundle(tmp_path / "all")
    known = training_set_of(bundle)
    assert known is not None
    assert [known.holds(row) for row in (listed[0], listed[4])] == [True, True]
    ensemble, alone = predictions_of_bundles(listed[:6], [bundle, unlike[1]])
    sounds = [bytes(row.path) for row in listed[:6]]
    np.testing.assert_allclose(ensemble.probs, formula(unlike, [1 / 3] * 3, "geometric", sounds), atol=1e-5)
    assert not alone.failed


def test_vector_scaling_is_part_of_the_graph(alike: list[Bundle], sounds: list[Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scaling = {"scale": rng.uniform(0.5, 2, CLASSES).tolist(), "bias": rng.normal(0, 1, CLASSES).tolist()}
    (alike[1].path / "calibration.json").write_text(json.dumps({"method": "vector", **scaling}))
    bundles = [load_bundle(bundle.path) for bundle in alike]
    assert combine([bundle.path for bundle in bundles], tmp_path / "all")["merged"]
    bundle = load_bundle(tmp_path / "all")
    found = open_session(bundle, "cpu").probabilities(rows(bundle, sounds))
    np.testing.assert_allclose(found, formula(bundles, [1 / 3] * 3, "geometric", sounds), atol=1e-5)


def test_weights_are_fitted_so_that_the_better_member_counts_more(
    tmp_path: Path, tiny_corpus: Path, command: CommandLine
) -> None:
    paths = sorted((tiny_corpus / "audio").glob("*/*.wav"))
    write_manifest(tmp_path / "manifest.jsonl", [labelled(path, "validation") for path in paths])
    good, bad = trained(tmp_path / "good", paths), member(tmp_path / "bad", 1)
    outcome = command(
        *("ensemble", good.path, bad.path, "--manifest", tmp_path / "manifest.jsonl"),
        *("--out", tmp_path / "all", "--json"),
    )
    assert outcome.code == 0, outcome.err
    report = outcome.json()
    first, second = report["members"]
    assert first["weight"] > 0.8 > second["weight"]
    assert report["nll"] <= min(first["nll"], second["nll"]) + 1e-3
    bundle = load_bundle(tmp_path / "all")
    assert bundle.temperature == report["temperature"] != 1.0
    assert bundle.calibration["fitted_on"]["recordings"] == len(paths)


def test_weights_are_not_fitted_on_what_a_member_was_trained_on(
    alike: list[Bundle], tiny_corpus: Path, tmp_path: Path
) -> None:
    listed = [labelled(path, "validation") for path in sorted((tiny_corpus / "audio").glob("*/*.wav"))]
    write_manifest(tmp_path / "manifest.jsonl", listed)
    write_training_set(alike[1].path, listed[:1])
    with pytest.raises(ConfigError, match=r"m1 was trained on 12 of these 72 recordings"):
        combine([bundle.path for bundle in alike], tmp_path / "out", manifest=tmp_path / "manifest.jsonl")
    assert not (tmp_path / "out").exists()


def labelled(path: Path, split: str) -> Row:
    digest = xxhash.xxh3_64_hexdigest(path.read_bytes())
    label = path.stem.partition("_")[0]
    return Row(path, label, path.parent.name, path.parent.name, "synthesised", "CC0-1.0", digest, split)


def trained(path: Path, paths: list[Path]) -> Bundle:
    """Return a linear model that was fitted to the recordings by least squares."""
    bundle = member(path, 0)
    reader = RowReader(bundle.front_ends)
    given = np.stack([reader.row(lambda decoder, p=p: decoder.decode_path(bytes(p))) for p in paths])
    wanted = np.full((len(paths), CLASSES), -2.0)
    for place, recording in enumerate(paths):
        wanted[place, bundle.labels.index(recording.stem.partition("_")[0])] = 2.0
    weights = np.linalg.lstsq(given.reshape(len(paths), -1).astype(np.float64), wanted, rcond=1e-6)[0]
    proto = onnx.load(bundle.model_path)
    proto.graph.initializer[0].raw_data = weights.astype("<f4").tobytes()
    onnx.save(proto, bundle.model_path)
    return load_bundle(path)


def test_the_gate_of_an_ensemble_is_the_mean_of_its_members_gates(sounds: list[Any], tmp_path: Path) -> None:
    plain, other = member(tmp_path / "plain", 1), member(tmp_path / "other", 2, front_end=LOG_MEL)
    gates = [
        make_bundle(
            tmp_path / name, gated_model(CLASSES), name=name, gate={"output": "gate", "threshold": threshold}
        )
        for name, threshold in (("g0", 0.2), ("g1", 0.6))
    ]
    weights = onnx.load(gates[1].model_path)
    weights.graph.initializer[2].raw_data = np.full(1, 38.0, "<f4").tobytes()  # another offset
    onnx.save(weights, gates[1].model_path)
    gates = [load_bundle(bundle.path) for bundle in gates]
    said = [open_session(bundle, "cpu").predict(rows(bundle, sounds)).gate for bundle in gates]
    assert np.abs(said[0] - said[1]).max() > 0.01
    for name, extra in {"merged": plain, "named": other}.items():
        combine([gates[0].path, gates[1].path, extra.path], tmp_path / name, weights=[2, 1, 1])
        bundle = load_bundle(tmp_path / name)
        assert bundle.gate is not None
        assert bundle.gate.threshold == pytest.approx(0.4)
        found = open_session(bundle, "cpu").predict(rows(bundle, sounds)).gate
        np.testing.assert_allclose(found, (2 * said[0] + said[1]) / 3, atol=1e-5)


def test_bundles_that_cannot_be_one_ensemble_are_refused(alike: list[Bundle], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="at least two"):
        combine([alike[0].path], tmp_path / "out")
    with pytest.raises(UsageError, match="3 bundles need 3 weights"):
        combine([bundle.path for bundle in alike], tmp_path / "out", weights=[1, 2])
    for weights in (["1e308"] * 3, ["1", "nan", "1"], ["inf", "1", "1"], ["-1", "1", "1"]):
        with pytest.raises(UsageError, match="3 bundles need 3 weights"):
            combine([bundle.path for bundle in alike], tmp_path / "out", weights=weights)
    labels = list(alike[0].labels)
    (alike[0].path / "label_mapping.json").write_text(json.dumps([*labels[1:], labels[0]]))
    with pytest.raises(BundleError, match="other labels"):
        combine([bundle.path for bundle in alike], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": "harmonic"}, "harmonic"),
        ({"mean": None}, "mean"),
        ({"members": 3}, "members"),
        ({"members": [{"bundle": "../m0", "weight": 1.0}]}, "inside of it"),
        ({"members": [{"bundle": "nowhere", "weight": 1.0}]}, "nowhere"),
        ({"gate": {"output": "gate", "threshold": 0.5}}, "none of its members"),
    ],
    ids=str,
)
def test_a_manifest_of_an_ensemble_that_cannot_be_is_refused(
    unlike: list[Bundle], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    combine([bundle.path for bundle in unlike], tmp_path / "all")
    manifest = json.loads((tmp_path / "all/bundle.json").read_text())
    (tmp_path / "all/bundle.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BundleError, match=message):
        open_session(load_bundle(tmp_path / "all"), "cpu")


def test_weights_that_do_not_sum_to_one_are_refused(unlike: list[Bundle], tmp_path: Path) -> None:
    combine([bundle.path for bundle in unlike], tmp_path / "all")
    manifest = json.loads((tmp_path / "all/bundle.json").read_text())
    manifest["members"][0]["weight"] = 0.9
    (tmp_path / "all/bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="sum to 1"):
        load_bundle(tmp_path / "all")


def test_weights_and_mean_change_the_fingerprint(unlike: list[Bundle], tmp_path: Path) -> None:
    paths = [bundle.path for bundle in unlike]
    combine(paths, tmp_path / "a")
    combine(paths, tmp_path / "b", weights=[2, 1, 1])
    combine(paths, tmp_path / "c", "arithmetic")
    combine(paths, tmp_path / "d")
    prints = [load_bundle(tmp_path / name).fingerprint for name in "abcd"]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3


def test_features_of_an_ensemble_with_several_front_ends_are_asked_of_its_members(
    unlike: list[Bundle], tiny_corpus: Path, tmp_path: Path, command: CommandLine
) -> None:
    combine([bundle.path for bundle in unlike], tmp_path / "all")
    one = next((tiny_corpus / "audio").glob("*/*.wav"))
    outcome = command("features", one, "--out", tmp_path / "x.npz", "--model", tmp_path / "all")
    assert (outcome.code, "Name one of its members" in outcome.err) == (4, True)
    name = json.loads((tmp_path / "all/bundle.json").read_text())["members"][1]["bundle"]
    assert command("features", one, "--out", tmp_path / "x.npz", "--model", tmp_path / "all" / name).code == 0
