"""A first run: every file has one record, and nothing else happens to anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import psutil  # type: ignore[import-untyped]
import pytest

from bench.synth import Entry, write_archive
from drumline import InferSettings, __version__
from drumline.errors import StageError
from drumline.pipeline.infer import infer
from drumline.progress import Progress, Rates, Snapshot
from drumline.records import json_schema
from drumline.walk import Walk
from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, assert_equal, audio_files, last_run, read_lines, records_of, tree


def test_every_file_has_one_valid_record(infer: Infer) -> None:
    counts = infer.counts()
    records = infer.records()
    assert sorted(records) == audio_files(infer.archive)
    assert counts["discovered"] == len(records)
    assert counts["carried_over"] == 0
    assert counts["failed"] == sum(record["errors"] is not None for record in records.values()) > 0
    validator = jsonschema.Draft202012Validator(json_schema())
    for record in records.values():
        validator.validate(record)


def test_broken_files_and_no_others_are_typed_failures(infer: Infer, tmp_path: Path) -> None:
    truth = write_archive(tmp_path / "broken", 60, seed=9, tiny=True, broken_fraction=0.3)
    infer.archive = tmp_path / "broken"
    infer.counts()
    records = infer.records()
    types = {}
    for entry in truth:
        if entry.kind != "clutter":
            error = records[entry.path]["errors"]
            assert (error is not None) == (entry.kind == "broken"), entry
            if error:
                types[entry.format] = error["type"]
                assert error["message"]
    assert len(types) == 6
    assert types["empty"] == types["claims-gigabytes"] == "empty_audio"
    assert set(types.values()) <= {"empty_audio", "unsupported_format", "decode_error", "needs_ffmpeg"}


def test_the_total_is_known_while_most_files_are_still_to_be_read(tmp_path: Path, model: Path) -> None:
    write_archive(tmp_path / "archive", 900, seed=3, tiny=True, broken_fraction=0)
    files = len(audio_files(tmp_path / "archive"))
    watched = _Watched()
    settings = InferSettings(
        archive=tmp_path / "archive", runs_root=tmp_path / "runs", model_path=model, workers=1
    )
    infer(settings, watched)
    foreseen = [snapshot for snapshot in watched.snapshots if snapshot.found_all]
    assert {snapshot.found for snapshot in foreseen} == {files}
    assert foreseen[0].done < files / 2


def test_nothing_is_counted_ahead_where_nobody_sees_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts(_walk: Walk) -> Iterator[int]:
        yield from ()
        raise AssertionError("the archive is walked twice")

    monkeypatch.setattr(Walk, "counts", counts)
    write_archive(tmp_path / "archive", 900, seed=3, tiny=True, broken_fraction=0)
    settings = InferSettings(
        archive=tmp_path / "archive", runs_root=tmp_path / "runs", model_path=model, workers=1
    )
    assert infer(settings)["counts"]["classified"] == len(audio_files(tmp_path / "archive"))
    with pytest.raises(StageError):
        infer(replace(settings, runs_root=tmp_path / "watched"), _Watched())


def test_a_polite_run_lets_everything_else_go_first(infer: Infer) -> None:
    # With fewer slots than files, discover is still there when it is looked at.
    running = infer.start("--nice", "--batch-size", "1", "--workers", "1", slow=0.02)
    for stage in ("write", "discover", "extract", "predict"):
        process = psutil.Process(running.stage(stage))
        running.reach(lambda process=process: process.nice() == 19, f"polite {stage}")  # type: ignore[misc]
    assert psutil.Process(running.pid).nice() == 0
    assert running.wait().code == 0


class _Watched(Progress):
    interval_sec = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.snapshots: list[Snapshot] = []

    def _show(self, snapshot: Snapshot, _: Rates) -> None:
        self.snapshots.append(snapshot)


def test_the_archive_is_only_read(infer: Infer) -> None:
    before = tree(infer.archive)
    infer.counts()
    assert tree(infer.archive) == before


def test_the_summary_says_what_the_index_holds(infer: Infer) -> None:
    summary = infer().json()
    run = last_run(infer.runs_root)
    records = list(records_of(run).values())
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["complete"] is True
    assert summary["run"] == run.name
    assert summary["index"] == str(run / "index.jsonl.zst")
    assert summary["archive_root"] == str(infer.archive)
    labels = [record["assigned_label"] for record in records if record["errors"] is None]
    assert summary["labels"] == {label: labels.count(label) for label in labels}
    reasons = [record["assigned_reason"] for record in records]
    assert summary["reasons"] == {reason: reasons.count(reason) for reason in reasons}
    errors = [record["errors"]["type"] for record in records if record["errors"]]
    assert summary["errors"] == {error: errors.count(error) for error in errors}
    assert summary["size_bytes"] == sum(record["size"] for record in records)
    assert sum(map(sum, summary["confidence_histogram"].values())) == len(labels)
    assert summary["elapsed_sec"] > 0
    assert summary["files_per_sec"] > 0
    assert summary["model"]["name"] == "stub"
    assert summary["model"]["label_checksum"]


def test_run_json_says_what_was_asked(infer: Infer) -> None:
    infer.counts("--threshold", "0.3", "--labels", "Kick,Snare")
    info = json.loads((last_run(infer.runs_root) / "run.json").read_text())
    assert info["archive_root"] == str(infer.archive)
    assert info["drumline_version"] == __version__
    assert info["index"] == "index.jsonl.zst"
    assert info["settings"]["misc"]["threshold"] == 0.3
    assert info["settings"]["target_labels"] == ["Kick", "Snare"]
    assert info["model"]["fingerprint"]
    assert info["canonical_map"]["Kick"] == "Kick"


def test_nothing_but_the_run_the_cache_and_the_lock_is_left(infer: Infer) -> None:
    infer.counts()
    run = last_run(infer.runs_root)
    assert sorted(path.name for path in infer.runs_root.iterdir()) == [".lock", "cache.sqlite", run.name]
    assert sorted(path.name for path in run.iterdir()) == ["index.jsonl.zst", "run.json", "summary.json"]


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd program")
def test_the_zstd_program_reads_the_index(infer: Infer) -> None:
    infer.counts(frame_lines=16)
    index = last_run(infer.runs_root) / "index.jsonl.zst"
    output = subprocess.run(["zstd", "-dc", index], check=True, capture_output=True).stdout
    assert output.splitlines() == read_lines(index)
    subprocess.run(["zstd", "-tq", index], check=True)


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", "jsonl.gz"), ("none", "jsonl")])
def test_other_compressions_hold_the_same_records(
    infer: Infer, compression: str, suffix: str, undisturbed: Records
) -> None:
    infer.counts("--compress-index", compression, frame_lines=16)
    run = last_run(infer.runs_root)
    assert (run / f"index.{suffix}").exists()
    assert_equal(records_of(run), undisturbed, "abs_path", "abs_path_b64")


def test_probabilities_are_left_to_the_records_exactly_as_decided(undisturbed: Records) -> None:
    for record in undisturbed.values():
        if record["errors"]:
            assert record["probs"] is None
            assert record["topk"] == []
            assert record["assigned_reason"] == "load_error"
        else:
            assert sum(record["probs"].values()) == pytest.approx(1, abs=1e-4)
            assert record["topk"][0] == {"label": record["label_top1"], "prob": record["conf_top1"]}
            assert record["conf_top1"] == max(record["probs"].values())


def test_duplicates_have_equal_hashes_and_equal_predictions(infer: Infer, tmp_path: Path) -> None:
    truth: list[Entry] = write_archive(
        tmp_path / "twins", 60, seed=2, tiny=True, broken_fraction=0, duplicate_fraction=0.4
    )
    infer.archive = tmp_path / "twins"
    infer.counts()
    records = infer.records()
    pairs = [(entry.path, entry.duplicate_of) for entry in truth if entry.duplicate_of]
    assert len(pairs) > 15
    for path, original in pairs:
        for name in ("hash", "probs", "duration_sec", "format", "rms_db", "spectral_centroid", "channels"):
            assert records[path][name] == records[original][name]
