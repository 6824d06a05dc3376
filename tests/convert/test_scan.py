"""Directories of recordings become manifests, and what is left out is listed with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.synth import write_archive
from drumline.errors import ConfigError
from drumline_convert.corpus import default_corpus
from drumline_convert.manifest import Row, read_manifest, write_manifest
from drumline_convert.scan import (
    Scan,
    ScanSettings,
    scan_directory,
    without_undecodable,
    write_left_out,
)
from drumline_convert.taxonomy import TrainingTaxonomy
from tests.making import write_tone


def tree(root: Path, *files: str, **twins: str) -> Path:
    """Write files, each of its own content; ``a="b"`` makes path a a copy of b."""
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tone(path, 0.01, 200 + 10 * number)
    for copy, original in twins.items():
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        (root / copy).write_bytes((root / original).read_bytes())
    return root


def seen(scan: Scan, root: Path) -> dict[str, str]:
    rows = {str(row.path.relative_to(root)): f"{row.label} of {row.kit}" for row in scan.rows}
    return {**rows, **{str(entry.path.relative_to(root)): entry.reason for entry in scan.left_out}}


def test_labels_come_from_names_and_kits_from_folders(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        *(
            "Vendor/808/Kicks/01.wav",
            "Vendor/808/Snares/rim 2.wav",
            "Snares/909/x.wav",
            "909/Samples/hat.wav",
        ),
        *("Vendor/808/Kicks/snare.wav", "Vendor/808/notes.wav", "LoFi_kick_3.wav", "kick 4.wav", "text.txt"),
    )
    scan = scan_directory(root)
    assert scan.by == "names"
    assert seen(scan, root) == {
        "Vendor/808/Kicks/01.wav": "Kick of Vendor/808",
        "Vendor/808/Snares/rim 2.wav": "Rim of Vendor/808",
        "Snares/909/x.wav": "Snare of 909",
        "909/Samples/hat.wav": "Hihat of 909",
        "LoFi_kick_3.wav": "Kick of LoFi",
        "kick 4.wav": "Kick of kick 4.wav",
        "Vendor/808/Kicks/snare.wav": "ambiguous",
        "Vendor/808/notes.wav": "unlabelled",
    }
    assert scan.kitless == (root / "kick 4.wav",)
    assert {row.source for row in scan.rows} == {tmp_path.name}


def test_folders_of_training_data_are_labels_and_names_are_not_asked(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        *(
            "TrainingData/TomLow/Pearl/kick.wav",
            "TrainingData/Kick/Pearl/9.wav",
            "TrainingData/misc/Pearl/a.wav",
        ),
        *("TrainingData/Kick/808_Kick_1.wav", "TrainingData/stray.wav", "elsewhere/kick.wav"),
    )
    scan = scan_directory(root)
    assert scan.by == "folders"
    assert seen(scan, root) == {
        "TrainingData/TomLow/Pearl/kick.wav": "TomLow of Pearl",
        "TrainingData/Kick/Pearl/9.wav": "Kick of Pearl",
        "TrainingData/misc/Pearl/a.wav": "Other of Pearl",
        "TrainingData/Kick/808_Kick_1.wav": "Kick of 808",
        "TrainingData/stray.wav": "unlabelled",
    }


def test_a_vendors_tree_is_not_taken_for_folders_of_labels(tmp_path: Path) -> None:
    assert scan_directory(tree(tmp_path, "Kick/a.wav", "Open Hats/a2.wav")).by == "names"


def test_kits_that_share_a_file_are_one_family(tmp_path: Path) -> None:
    root = tree(tmp_path, *("b/kick.wav", "c/kick.wav", "a/kick.wav"), **{"c/kick 2.wav": "b/kick.wav"})
    scan = scan_directory(root)
    assert {row.kit: row.family for row in scan.rows} == {"a": "a", "b": "b", "c": "b"}
    assert [entry.reason for entry in scan.left_out] == ["duplicate"]


def test_families_can_be_the_first_folders_of_kits(tmp_path: Path) -> None:
    scan = scan_directory(tree(tmp_path, "V/a/kick.wav", "V/b/kick.wav"), ScanSettings(family_level=1))
    assert {row.kit: row.family for row in scan.rows} == {"V/a": "V", "V/b": "V"}


def test_one_content_with_two_labels_is_left_out_altogether(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/kick.wav", "a/hat.wav", **{"b/snare.wav": "a/kick.wav"})
    scan = scan_directory(root)
    assert [row.label for row in scan.rows] == ["Hihat"]
    assert {entry.detail for entry in scan.left_out} == {"the same content is labelled Kick and Snare"}


def test_metadata_of_a_corpus_are_taken_over_and_checked(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.wav", "b.wav", "c.wav")
    stated = {"kit": "K", "family": "F", "source": "S", "licence": "CC0-1.0", "samples": 441}
    lines = [
        {"path": "a.wav", "label": "Kick", "label_conf": "medium", **stated},
        {"path": "b.wav", "label": "Kick", "xxh64": "0" * 16},
        {"path": "c.wav", "label": "Theremin"},
        {"path": "d.wav", "label": "Kick"},
    ]
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scan = scan_directory(root)
    (row,) = scan.rows
    assert (row.kit, row.family, row.source, row.licence, row.weight) == ("K", "F", "S", "CC0-1.0", 0.6)
    assert [entry.reason for entry in scan.left_out] == ["changed", "unknown_label", "unreadable"]


def test_a_manifest_scanned_again_stays_what_it_was(tiny_corpus: Path) -> None:
    manifest = read_manifest(tiny_corpus / "manifest.jsonl")
    assert sorted(scan_directory(tiny_corpus).rows, key=str) == sorted(manifest, key=str)


@pytest.mark.parametrize("line", ["no json", "[]", '{"path": "a.wav"}', '{"path": 3, "label": "Kick"}'])
def test_metadata_that_are_wrong_name_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "manifest.jsonl").write_text("\n" + line)
    with pytest.raises(ConfigError, match="line 2: not a row with path and label"):
        scan_directory(tmp_path)


def test_a_split_that_cannot_be_is_left_out_as_incomplete(tmp_path: Path) -> None:
    tree(tmp_path, "a.wav")
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav", "label": "Kick", "split": "dev"}')
    (entry,) = scan_directory(tmp_path).left_out
    assert entry.reason == "incomplete"
    assert "split 'dev'" in entry.detail


def test_nothing_found_is_an_error_when_a_manifest_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 files were left out"):
        _ = scan_directory(tree(tmp_path, "a.wav")).manifest


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory at"):
        scan_directory(tmp_path / "nowhere")


def test_names_that_are_no_utf8_go_through(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/Gro\xdfe/Kicks"
    os.makedirs(root)
    write_tone(root + b"/k\xff.wav", 0.01)
    write_tone(root + b"/\xff snare.wav", 0.02)
    scan = scan_directory(tmp_path)
    out = tmp_path / "m.jsonl"
    write_manifest(out, scan.rows)
    (row,) = read_manifest(out)
    assert os.fsencode(row.path) == root + b"/k\xff.wav"
    assert row.kit == "Gro\\xdfe"
    write_left_out(tmp_path / "left.jsonl", scan.left_out)
    (entry,) = map(json.loads, (tmp_path / "left.jsonl").read_text().splitlines())
    assert entry["reason"] == "ambiguous"
    assert "path_b64" in entry


def test_a_messy_archive_gives_no_wrong_label_and_nothing_that_cannot_be_decoded(
    tmp_path: Path, taxonomy: TrainingTaxonomy
) -> None:
    entries = write_archive(tmp_path / "archive", 250, seed=5)
    truth = {
        os.path.join(os.fsencode(tmp_path / "archive"), entry.path): entry.canonical for entry in entries
    }
    scan = without_undecodable(scan_directory(tmp_path / "archive"))
    found = {os.fsencode(row.path): taxonomy.canonical_index(row.label) for row in scan.rows}
    assert len(found) > 150
    assert {path: taxonomy.canonical[index or 0] for path, index in found.items()} == {
        path: truth[path] for path in found
    }
    left_out = {entry.reason for entry in scan.left_out}
    assert {"undecodable", "duplicate", "unlabelled", "ambiguous"} <= left_out


def test_the_corpus_becomes_a_manifest_whole(tmp_path: Path) -> None:
    corpus = default_corpus()
    if not (corpus / "manifest.jsonl").exists():
        pytest.skip("no corpus: set DRUMLINE_CORPUS")
    scan = scan_directory(corpus)
    stated = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    assert not scan.left_out
    assert not scan.kitless
    key = {(str(corpus.resolve() / row["path"]), row["label"], row["kit"], row["family"]) for row in stated}
    assert {(str(row.path.resolve()), row.label, row.kit, row.family) for row in scan.rows} == key
    assert {type(row) for row in scan.rows} == {Row}
