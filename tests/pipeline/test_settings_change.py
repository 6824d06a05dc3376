"""Decisions are a pure function of what is stored: changing them decodes nothing, changing the model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Infer
from tests.pipeline.support import Records, assert_equal, records_of, runs_of, tree


@pytest.mark.parametrize(
    "options",
    [
        ("--threshold", "0.9"),
        ("--threshold", "0"),
        ("--labels", "Kick,Snare"),
        ("--misc-label", "unsorted"),
        ("--top-k", "7"),
        ("--compress-index", "gzip"),
        ("--compress-index", "none", "--threshold", "0.7"),
    ],
    ids=" ".join,
)
def test_other_decisions_read_no_file_and_give_what_a_fresh_run_gives(
    tidy: Infer, options: tuple[str, ...]
) -> None:
    before = tree(tidy.run)
    counts = tidy.counts(*options, no_workers=True, frame_lines=16)
    assert (counts["carried_over"], counts["classified"]) == (40, 0)
    assert tree(runs_of(tidy.runs_root)[0]) == before
    assert_equal(tidy.records(), tidy.fresh_records(*options))


def test_other_decisions_keep_failures(calm: Infer, undisturbed: Records) -> None:
    first = calm.counts(frame_lines=16)
    counts = calm.counts("--threshold", "0.9", no_workers=True, frame_lines=16)
    assert (counts["carried_over"], counts["failed"]) == (first["classified"], first["failed"])
    for path, record in calm.records().items():
        assert record["errors"] == undisturbed[path]["errors"]


def test_a_canonical_map_of_ones_own_reads_no_file(tidy: Infer, tmp_path: Path) -> None:
    mapping = json.loads((tidy.model / "canonical_mapping.json").read_text())
    mapping["map"] = {
        label: "Tom" if canonical == "misc" else canonical for label, canonical in mapping["map"].items()
    }
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    options = ("--canonical-map", str(tmp_path / "map.json"))
    before = tidy.records()
    assert tidy.counts(*options, no_workers=True)["carried_over"] == 40
    assert tidy.records() != before
    assert_equal(tidy.records(), tidy.fresh_records(*options))


def test_going_back_to_earlier_decisions_gives_the_earlier_records(tidy: Infer) -> None:
    before = tidy.records()
    tidy.counts("--threshold", "0.9", no_workers=True)
    assert tidy.records() != before
    tidy.counts(no_workers=True)
    assert_equal(tidy.records(), before)


@pytest.mark.parametrize(
    "options", [("--batch-size", "3"), ("--formats", "wav,aif,aiff"), ("--no-dedup-hash",)], ids=" ".join
)
def test_settings_that_change_no_record_carry_everything_over(tidy: Infer, options: tuple[str, ...]) -> None:
    before = tidy.records()
    assert tidy.counts(*options, no_workers=True)["carried_over"] == 40
    assert_equal(tidy.records(), before)


def test_fewer_formats_drop_files_and_all_of_them_come_back(tidy: Infer, sounds: list[Path]) -> None:
    before = tidy.records()
    wavs = sum(sound.suffix.lower() == ".wav" for sound in sounds)
    assert 0 < wavs < len(sounds)
    counts = tidy.counts("--formats", "wav", "--accept-missing", no_workers=True)
    assert (counts["discovered"], counts["classified"]) == (wavs, 0)
    tidy.counts()
    assert_equal(tidy.records(), before)


@pytest.mark.parametrize(
    "options", [("--no-audio-stats",), ("--hash-algorithm", "md5"), ("--hash-algorithm", "sha256")]
)
def test_what_changes_the_content_of_records_reads_all_files_again(
    tidy: Infer, options: tuple[str, ...]
) -> None:
    counts = tidy.counts(*options)
    assert (counts["carried_over"], counts["known_content"], counts["classified"]) == (0, 0, 40)
    assert_equal(tidy.records(), tidy.fresh_records(*options))


@pytest.fixture
def warmer(model: Path, tmp_path: Path) -> Path:
    """A copy of the model with another temperature."""
    copy = Path(shutil.copytree(model, tmp_path / "warmer"))
    calibration = json.loads((copy / "calibration.json").read_text())
    (copy / "calibration.json").write_text(json.dumps({**calibration, "temperature": 2.5}))
    return copy


def test_another_model_classifies_all_files_again(tidy: Infer, warmer: Path) -> None:
    before = tidy.records()
    tidy.model = warmer
    counts = tidy.counts()
    assert (counts["carried_over"], counts["known_content"], counts["classified"]) == (0, 0, 40)
    for path, record in tidy.records().items():
        assert record["hash"] == before[path]["hash"]
        assert record["conf_top1"] < before[path]["conf_top1"]


def test_two_models_keep_what_they_know_side_by_side(tidy: Infer, model: Path, warmer: Path) -> None:
    tidy.model = warmer
    tidy.counts()
    for tidy.model in (model, warmer, model):
        assert tidy.counts(no_workers=True)["carried_over"] == 40


def test_an_unfinished_run_is_not_continued_with_other_decisions(tidy: Infer) -> None:
    """Both are finished in the end, and each holds its own decisions."""
    for sound in sorted(tidy.archive.rglob("*.wav"))[:20]:
        sound.write_bytes(sound.read_bytes() + b"\0")
    place = "after drumline.cache:Cache.set_valid 2"
    assert tidy("--threshold", "0.9", die=place, frame_lines=4, slow=0.005).code == 10
    tidy.counts()
    assert_equal(tidy.records(), tidy.fresh_records())
    tidy.counts("--threshold", "0.9", no_workers=True)
    assert_equal(tidy.records(), tidy.fresh_records("--threshold", "0.9"))
    complete = [run for run in runs_of(tidy.runs_root) if (run / "summary.json").exists()]
    assert len(complete) >= 3
    for run in complete:
        assert len(records_of(run)) == 40


def test_switching_between_two_unfinished_runs_loses_and_doubles_nothing(infer: Infer) -> None:
    """Each of two settings is interrupted twice; rows wander between their indexes."""
    cut = {"die": "after drumline.cache:Cache.set_valid 2", "frame_lines": 8, "slow": 0.002}
    for options in 2 * [("--threshold", "0.9"), ("--threshold", "0.2")]:
        assert infer(*options, **cut).code == 10
    for options in [("--threshold", "0.9"), ("--threshold", "0.2")]:
        infer.counts(*options)
        assert_equal(infer.records(), infer.fresh_records(*options))
    assert len(runs_of(infer.runs_root)) == 3
