"""The gate: what a model takes for no kit drum is misc, and that can be decided again at will."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench.synth import write_archive
from drumline.bundle import Bundle, load_bundle
from drumline.classify import Classifier
from drumline.errors import BundleError
from drumline.index import read_index
from drumline.inference import open_session
from drumline.records import Record, json_schema
from drumline.runs import open_run
from tests.making import CommandLine, gated_model, linear_model, make_bundle, write_tone

CLASSES = len(load_bundle().labels)
FILES = 40


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gate") / "archive"
    write_archive(directory, FILES, seed=3)
    (directory / "bad.wav").write_bytes(b"RIFF")
    return directory


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    gate = {"output": "gate", "threshold": 0.5}
    return make_bundle(tmp_path / "gated", gated_model(CLASSES), gate=gate)


class Runs:
    """Runs of one archive with one bundle."""

    def __init__(self, command: CommandLine, archive: Path, bundle: Bundle, root: Path) -> None:
        self._command, self._archive, self._bundle, self.root = command, archive, bundle, root

    def __call__(self, *options: str) -> tuple[list[Record], dict[str, Any]]:
        """Classify, and return the records by path and the summary."""
        outcome = self._command(
            *("infer", self._archive, "--model", self._bundle.path, "--runs-root", self.root),
            *("--workers", "1", "--json", "--quiet", *options),
        )
        assert outcome.code == 0, outcome.err
        return self.records(), outcome.json()

    def records(self) -> list[Record]:
        """Return the newest run's records, by path."""
        records = read_index(open_run(self.root).index_path)
        return sorted(records, key=lambda record: record["relative_path"])


@pytest.fixture
def runs(command: CommandLine, archive: Path, bundle: Bundle, tmp_path: Path) -> Runs:
    return Runs(command, archive, bundle, tmp_path / "runs")


def gates(records: list[Record]) -> list[float]:
    return [gate for record in records if (gate := record.get("gate")) is not None]


def gated(records: list[Record]) -> set[str]:
    return {record["relative_path"] for record in records if record["assigned_reason"] == "gated"}


def misc(records: list[Record]) -> int:
    return sum(record["misc_routed"] for record in records if record["errors"] is None)


def test_what_the_gate_says_is_stored_and_what_it_rejects_is_misc(runs: Runs, command: CommandLine) -> None:
    middle = statistics.median(gates(runs()[0]))
    records, summary = runs("--gate-threshold", str(middle))
    for record in records:
        jsonschema.validate(record, json_schema())
        if record["errors"] is not None:
            assert (record["gate"], record["assigned_reason"]) == (None, "load_error")
        else:
            assert (record["gate"] < middle) == (record["assigned_reason"] == "gated")
            assert record["assigned_label"] == "misc" or record["gate"] >= middle
    assert FILES // 4 < len(gated(records)) == summary["reasons"]["gated"]
    assert command("stats", runs.root, "--json").json()["reasons"] == summary["reasons"]
    assert command("verify", runs.root).code == 0


def test_another_threshold_or_none_decides_again_without_reading_a_file(runs: Runs) -> None:
    first, _ = runs()
    middle = str(statistics.median(gates(first)))
    closed, summary = runs("--gate-threshold", middle)
    assert summary["counts"]["classified"] == 0
    opened, summary = runs("--no-gate")
    assert summary["counts"]["classified"] == 0
    assert gates(opened) == gates(closed) == gates(first)
    assert gated(opened) == set() < gated(closed)
    assert runs("--gate-threshold", middle)[0] == closed


def test_a_file_with_known_content_takes_over_what_the_gate_said(
    command: CommandLine, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "small").mkdir()
    write_tone(tmp_path / "small/first.wav")
    runs = Runs(command, tmp_path / "small", bundle, tmp_path / "runs")
    runs()
    (tmp_path / "small/second.wav").write_bytes((tmp_path / "small/first.wav").read_bytes())
    (first, second), summary = runs()
    assert summary["counts"]["known_content"] == 1
    assert first["gate"] == second["gate"] is not None


def test_rebuild_decides_again_with_another_threshold_of_the_gate(
    runs: Runs, command: CommandLine, tmp_path: Path
) -> None:
    middle = str(statistics.median(gates(runs()[0])))
    asked = ((), ("--no-gate",), ("--gate-threshold", middle))
    expected = {options: misc(runs("--threshold", "0", *options)[0]) for options in asked}
    assert expected[("--no-gate",)] < expected[("--gate-threshold", middle)]

    def planned(*options: str) -> int:
        outcome = command("rebuild", runs.root, "--out", tmp_path / "out", "--dry-run", "--json", *options)
        assert outcome.code == 0, outcome.err
        return int(outcome.json()["plan"]["labels"].get("misc", {"files": 0})["files"])

    assert planned() == planned("--gate-threshold", middle) == expected[("--gate-threshold", middle)]
    assert planned("--no-gate") == expected[("--no-gate",)]
    assert planned("--gate") == expected[()]  # with the threshold that the gate was fitted for
    both = command("rebuild", runs.root, "--out", tmp_path / "out", "--no-gate", "--gate-threshold", "0.5")
    assert both.code == 2


def test_a_threshold_for_a_gate_that_is_not_there_is_refused(
    command: CommandLine, archive: Path, tmp_path: Path
) -> None:
    outcome = command("infer", archive, "--runs-root", tmp_path / "runs", "--gate-threshold", "0.5")
    assert outcome.code == 3
    assert "no gate" in outcome.err


def test_a_classifier_asks_the_gate_as_the_pipeline_does(bundle: Bundle, archive: Path, runs: Runs) -> None:
    records, _ = runs()
    middle = statistics.median(gates(records))
    paths = [archive / record["relative_path"] for record in records]
    for prediction, record in zip(Classifier(bundle, gate_threshold=middle)(paths), records, strict=True):
        assert prediction.gate == pytest.approx(record["gate"], abs=1e-4)
        assert (prediction.decision.assigned_reason == "gated") == (
            record["gate"] is not None and record["gate"] < middle
        )
    assert all(item.gate is None for item in Classifier()(paths[:3]))


def test_a_model_without_a_gate_writes_records_as_before(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    write_tone(tmp_path / "archive/kick.wav")
    assert command("infer", tmp_path / "archive", "--runs-root", tmp_path / "runs", "--quiet").code == 0
    (record,) = read_index(open_run(tmp_path / "runs").index_path)
    assert "gate" not in record


def test_a_bundle_whose_model_lacks_the_gate_it_names_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", linear_model(CLASSES), gate={"output": "gate", "threshold": 0.5})
    with pytest.raises(BundleError, match="no output 'gate'"):
        open_session(bundle, "cpu")
    two = make_bundle(
        tmp_path / "c", linear_model(CLASSES), gate={"output": "probabilities", "threshold": 0.5}
    )
    with pytest.raises(BundleError, match=f"the gate gives {CLASSES} values"):
        open_session(two, "cpu")


@pytest.mark.parametrize("gate", [{"output": "gate"}, {"output": "gate", "threshold": 2}, 3], ids=str)
def test_a_gate_that_is_not_described_whole_is_refused(tmp_path: Path, gate: Any) -> None:
    with pytest.raises(BundleError, match="gate"):
        make_bundle(tmp_path / "b", gate=gate)


def test_the_threshold_of_the_gate_changes_no_fingerprint_and_the_gate_does(tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: Any) -> str:
        return make_bundle(tmp_path / name, gated_model(CLASSES), **changes).fingerprint

    low, high = ({"output": "gate", "threshold": threshold} for threshold in (0.1, 0.9))
    assert fingerprint("low", gate=low) == fingerprint("high", gate=high) != fingerprint("none")
