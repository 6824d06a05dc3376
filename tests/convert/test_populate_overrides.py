"""Recordings are copied out of an archive by content, and corrections become rows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from drumline.errors import ArchiveError, ConfigError, IndexFormatError, OutputError
from drumline.runs import Run
from drumline_convert.manifest import Manifest, Row, read_manifest
from drumline_convert.overrides import Merged, MergeSettings, merge_overrides
from drumline_convert.populate import copy_recordings, hashed_archive, hashed_run, plan_copies
from drumline_convert.taxonomy import TrainingTaxonomy
from tests.convert.drums import manifest_row
from tests.making import make_record, make_run, write_tone


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for number, name in enumerate(("a/kick.wav", "b/kick.wav", "b/snare.wav", "c/hat.wav")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_tone(root / name, 0.01, 200 + 10 * number)
    return root


def rows_of(archive: Path, *names: str, kit: str = "808") -> list[Row]:
    """Rows of a data set whose recordings are those of the archive, under other paths."""
    rows = [manifest_row(archive / name, "Kick", kit) for name in names]
    return [replace(row, path=Path("/elsewhere") / row.path.parent.name / "k.wav") for row in rows]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_recordings_are_found_by_content_and_copied(archive: Path, tmp_path: Path) -> None:
    rows = rows_of(archive, "a/kick.wav", "c/hat.wav")
    before = content(archive)
    out = tmp_path / "out"
    plan = plan_copies(Manifest(tuple(rows)), hashed_archive(archive), out)
    assert not out.exists()
    assert copy_recordings(plan) == 2
    made = read_manifest(out / "manifest.jsonl")
    assert [(row.hash, row.label, row.kit) for row in made] == [(row.hash, "Kick", "808") for row in rows]
    assert [row.path.read_bytes() for row in made] == [before["a/kick.wav"], before["c/hat.wav"]]
    assert content(archive) == before
    assert copy_recordings(plan_copies(made, hashed_archive(archive), out)) == 0


def test_names_that_meet_are_told_apart_and_stay_below_the_output(archive: Path, tmp_path: Path) -> None:
    rows = rows_of(archive, "a/kick.wav", "b/kick.wav", kit="../../up")
    rows += [replace(row, path=Path("/x") / ("n" * 240 + ".wav")) for row in rows_of(archive, "c/hat.wav")]
    out = tmp_path / "out"
    plan = plan_copies(Manifest(tuple(rows)), hashed_archive(archive), out)
    targets = {copy.row.path for copy in plan.copies}
    assert len(targets) == 3
    assert all(os.path.normpath(target).startswith(f"{out}/audio/") for target in targets)
    assert copy_recordings(plan) == 3


def test_what_the_archive_lacks_is_missing(archive: Path, tmp_path: Path) -> None:
    (row,) = rows_of(archive, "a/kick.wav")
    lacking = replace(row, path=Path("/y.wav"), hash="f" * 16)
    plan = plan_copies(Manifest((row, lacking)), hashed_archive(archive), tmp_path / "out")
    assert plan.missing == (lacking,)
    assert len(plan.copies) == 1


def test_nothing_that_is_in_the_way_is_replaced(archive: Path, tmp_path: Path) -> None:
    rows = rows_of(archive, "a/kick.wav")
    plan = plan_copies(Manifest(tuple(rows)), hashed_archive(archive), tmp_path / "out")
    target = plan.copies[0].row.path
    target.parent.mkdir(parents=True)
    target.write_text("mine")
    with pytest.raises(OutputError, match="another file is at"):
        copy_recordings(plan)
    assert target.read_text() == "mine"


def test_a_file_that_changed_since_it_was_hashed_is_refused(archive: Path, tmp_path: Path) -> None:
    rows = rows_of(archive, "a/kick.wav")
    plan = plan_copies(Manifest(tuple(rows)), hashed_archive(archive), tmp_path / "out")
    (archive / "a/kick.wav").write_bytes(b"other")
    with pytest.raises(ArchiveError, match="is not what it was"):
        copy_recordings(plan)
    assert content(tmp_path / "out") == {}


def run_of(archive: Path, tmp_path: Path, algorithm: str = "xxh3_64", *names: str) -> Run:
    names = names or tuple(content(archive))
    records = []
    for name in sorted(names):
        digest = getattr(xxhash, algorithm)((archive / name).read_bytes()).hexdigest()
        records.append(make_record(name.encode(), hash=digest, abs_path=str(archive / name)))
    settings = {
        "target_labels": None,
        "misc": {"threshold": 0.5, "label": "misc"},
        "hash_algorithm": algorithm,
    }
    return make_run(tmp_path / "runs", records, settings=settings, archive_root=str(archive))


def test_an_index_spares_hashing_the_archive(archive: Path, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)
    assert sorted(hashed_run(run)) == sorted(hashed_archive(archive))


def test_an_index_with_other_hashes_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="has hashes by xxh64"):
        list(hashed_run(run_of(archive, tmp_path, "xxh64")))


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no archive at"):
        list(hashed_archive(tmp_path / "nowhere"))


def merged(
    tmp_path: Path,
    run: Run,
    taxonomy: TrainingTaxonomy,
    corrections: dict[str, str],
    old: list[Row] | None = None,
) -> Merged:
    path = tmp_path / "corrections.jsonl"
    lines = [{"hash": digest, "correct_label": label} for digest, label in corrections.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    into = Manifest(tuple(old)) if old else None
    return merge_overrides(path, run, MergeSettings(taxonomy, licence="own"), into)


@pytest.mark.parametrize("algorithm", ["xxh3_64", "xxh64"])
def test_corrections_become_rows(
    archive: Path, tmp_path: Path, taxonomy: TrainingTaxonomy, algorithm: str
) -> None:
    run = run_of(archive, tmp_path, algorithm)
    hash_of = _index_hashes(run)
    corrections = {
        hash_of["a/kick.wav"]: "TomLow",
        hash_of["b/snare.wav"]: "misc",
        hash_of["c/hat.wav"]: "Crash",
    }
    rows = merged(tmp_path, run, taxonomy, corrections).rows
    found = {row.path.relative_to(archive).as_posix(): (row.label, row.kit) for row in rows}
    assert found == {
        "a/kick.wav": ("TomLow", "archive/a"),
        "b/snare.wav": ("Other", "archive/b"),
        "c/hat.wav": ("Crash", "archive/c"),
    }
    assert {row.hash for row in rows} <= {digest for _, digest in hashed_archive(archive)}
    assert {(row.source, row.licence, row.split) for row in rows} == {("archive", "own", None)}


def _index_hashes(run: Run) -> dict[str, str]:
    from drumline.index import read_index

    return {record["relative_path"]: str(record["hash"]) for record in read_index(run.index_path)}


def test_a_recording_of_the_manifest_is_relabelled_on_its_side(
    archive: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    run = run_of(archive, tmp_path)
    hash_of = _index_hashes(run)
    first, second = rows_of(archive, "a/kick.wav", "b/kick.wav")
    old = [replace(first, split="test"), replace(second, split="train", family="other")]
    corrections = {hash_of["a/kick.wav"]: "Snare", hash_of["c/hat.wav"]: "HihatOpen"}
    result = merged(tmp_path, run, taxonomy, corrections, old)
    assert (result.added, result.relabelled, result.gone) == (1, 1, ())
    assert result.rows[:2] == (replace(old[0], label="Snare"), old[1])
    assert (result.rows[2].label, result.rows[2].split) == ("HihatOpen", "train")


def test_a_correction_may_name_a_recording_that_only_the_manifest_has(
    archive: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    run = run_of(archive, tmp_path, "xxh3_64", "a/kick.wav")
    old = rows_of(archive, "b/kick.wav", "c/hat.wav")
    result = merged(tmp_path, run, taxonomy, {old[0].hash: "Snare"}, old)
    assert (result.added, result.relabelled, result.gone) == (0, 1, ())
    assert result.rows == (replace(old[0], label="Snare"), old[1])


def test_a_new_row_stands_on_its_familys_side(
    archive: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    run = run_of(archive, tmp_path)
    old = [replace(rows_of(archive, "b/kick.wav")[0], family="archive/b", split="test")]
    result = merged(tmp_path, run, taxonomy, {_index_hashes(run)["b/snare.wav"]: "Snare"}, old)
    assert result.rows[1].split == "test"


def test_a_file_that_changed_since_it_was_heard_becomes_no_row(
    archive: Path, tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    run = run_of(archive, tmp_path)
    hash_of = _index_hashes(run)
    (archive / "a/kick.wav").write_bytes(b"other")
    (archive / "c/hat.wav").unlink()
    corrections = {hash_of[name]: "Snare" for name in ("a/kick.wav", "b/snare.wav", "c/hat.wav")}
    result = merged(tmp_path, run, taxonomy, corrections)
    assert [row.path for row in result.rows] == [archive / "b/snare.wav"]
    assert result.gone == (archive / "a/kick.wav", archive / "c/hat.wav")


@pytest.mark.parametrize(
    ("correction", "message"),
    [({"0" * 16: "Kick"}, "no file of the index"), ({"0" * 16: "Kik"}, "unknown label 'Kik'")],
)
def test_a_correction_that_is_wrong_names_its_line(
    archive: Path, tmp_path: Path, taxonomy: TrainingTaxonomy, correction: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"line 1: {message}"):
        merged(tmp_path, run_of(archive, tmp_path), taxonomy, correction)
