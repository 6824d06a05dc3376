"""``drumline dataset`` as people and programs use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from drumline_convert import cli_common, cli_dataset
from drumline_convert import dataset as features
from drumline_convert.content import hash_file
from drumline_convert.manifest import read_manifest, write_manifest
from tests.convert.drums import write_corpus
from tests.making import CommandLine, make_record, make_run, write_tone


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def manifest(tiny_corpus: Path, place: Path) -> Path:
    path = place / "manifest.jsonl"
    write_manifest(path, read_manifest(tiny_corpus / "manifest.jsonl"))
    return path


def test_importing_the_commands_is_light() -> None:
    code = "import sys, drumline_convert.cli_dataset; print({'numpy', 'scipy', 'keras'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("command", cli_dataset.dataset.commands.values(), ids=lambda c: str(c.name))
def test_every_command_shows_an_example(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert f"drumline dataset {command.name}" in result.output.partition("Examples")[2]


def test_scan_writes_a_manifest_and_the_list_of_what_it_left_out(command: CommandLine, place: Path) -> None:
    write_corpus(place / "samples")
    (place / "samples" / "manifest.jsonl").unlink()
    (place / "samples" / "audio" / "kit0" / "what.wav").write_bytes(b"RIFF")
    (place / "samples" / "audio" / "kit0" / "broken kick.wav").write_bytes(b"RIFF....")
    outcome = command("dataset", "scan", "samples", "--licence", "CC0-1.0", "--json")
    assert outcome.code == 0
    report = outcome.json()
    assert (report["recordings"], report["families"], report["by"]) == (72, 6, "names")
    assert report["left_out"] == {"undecodable": 1, "unlabelled": 1}
    entries = list(map(json.loads, (place / "manifest.left-out.jsonl").read_text().splitlines()))
    assert [Path(entry["path"]).name for entry in entries] == ["broken kick.wav", "what.wav"]
    assert {row.licence for row in read_manifest(place / "manifest.jsonl")} == {"CC0-1.0"}
    said = command("dataset", "scan", "samples").out
    assert "72 recordings of 4 labels, 6 kits in 6 families" in said
    assert "2 files left out: 1 undecodable, 1 unlabelled" in said


def test_scan_counts_what_it_left_out_in_words(command: CommandLine, place: Path) -> None:
    write_corpus(place / "samples", families=1)
    (place / "samples" / "manifest.jsonl").unlink()
    kit = place / "samples" / "audio" / "kit0"
    kick = next(path for path in sorted(kit.iterdir()) if "kick" in path.name.lower())
    shutil.copy(kick, kit / "snare 99.wav")
    assert "2 files left out: 2 contradiction" in command("dataset", "scan", "samples").out
    shutil.rmtree(kit)
    kit.mkdir()
    write_tone(kit / "kick 1.wav")
    said = command("dataset", "scan", "samples", "--out", "one.jsonl").out
    assert "1 recording of 1 label, 1 kit in 1 family, " in said


def test_scan_says_that_files_without_a_kit_flatter(command: CommandLine, place: Path) -> None:
    write_corpus(place / "kit", families=1)
    (place / "kit" / "manifest.jsonl").unlink()
    shutil.move(place / "kit" / "audio" / "kit0", place / "flat")
    assert "12 recordings name no kit" in command("dataset", "scan", "flat").out


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ((), {"train", "validation", "test"}),
        (("--test", "0"), {"train", "validation"}),
        (("--folds", "3"), {"fold0", "fold1", "fold2"}),
        (("--folds", "2", "--test", "0.3"), {"fold0", "fold1", "test"}),
    ],
)
def test_split_makes_the_sides_that_are_asked_for(
    command: CommandLine, manifest: Path, options: tuple[str, ...], sides: set[str]
) -> None:
    outcome = command("dataset", "split", manifest, "--out", manifest, "--json", *options)
    assert outcome.code == 0
    assert set(outcome.json()["sides"]) == sides
    assert set(read_manifest(manifest).splits) == sides
    assert command("dataset", "check", manifest, "--quiet").code == 0


def test_the_same_seed_gives_the_same_split(command: CommandLine, manifest: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        command("dataset", "split", manifest, "--folds", "3", "--seed", "4", "--out", name)
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", "3", "--validation", "0.2"), "folds take turns as validation"),
        (("--test", "0.6", "--validation", "0.4"), "together below 1"),
        (("--test", "nan"), "together below 1"),
        (("--validation", "nan"), "together below 1"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(
    command: CommandLine, manifest: Path, options: tuple[str, ...], message: str
) -> None:
    outcome = command("dataset", "split", manifest, *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_more_folds_than_families_are_refused(command: CommandLine, manifest: Path) -> None:
    outcome = command("dataset", "split", manifest, "--folds", "7")
    assert outcome.code == 3
    assert "6 families cannot be split into 7 sides" in outcome.err


@pytest.mark.parametrize("name", ["kick.wav", "model.onnx", "cache.sqlite", "notes.jsonl", "directory"])
@pytest.mark.parametrize("verb", ["scan", "split"])
def test_what_is_no_manifest_is_never_replaced_by_one(
    command: CommandLine, manifest: Path, tiny_corpus: Path, place: Path, verb: str, name: str
) -> None:
    there = place / name
    if name == "directory":
        there.mkdir()
    else:
        there.write_bytes(b'{"notes": 1}\n')
    outcome = command("dataset", verb, tiny_corpus if verb == "scan" else manifest, "--out", there)
    assert outcome.code == 8
    assert "exists already and is not replaced" in outcome.err
    assert there.is_dir() or there.read_bytes() == b'{"notes": 1}\n'


def test_a_device_is_not_replaced_by_a_manifest(command: CommandLine, manifest: Path, place: Path) -> None:
    os.mkfifo(place / "pipe")
    assert command("dataset", "split", manifest, "--out", "pipe").code == 8
    assert (place / "pipe").is_fifo()


def test_a_list_of_what_was_left_out_replaces_nothing_else(
    command: CommandLine, tiny_corpus: Path, place: Path
) -> None:
    (place / "k.left-out.jsonl").write_text("mine")
    assert command("dataset", "scan", tiny_corpus, "--out", "k.jsonl").code == 8
    assert (place / "k.left-out.jsonl").read_text() == "mine"
    assert not (place / "k.jsonl").exists()


def test_scan_never_writes_into_the_archive(
    command: CommandLine, tiny_corpus: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "link").symlink_to(tiny_corpus / "audio")
    before = sorted(tiny_corpus.rglob("*"))
    monkeypatch.chdir(tiny_corpus)
    for out in ("x.jsonl", "audio/x.jsonl", place / "link" / "x.jsonl"):
        outcome = command("dataset", "scan", ".", "--out", out)
        assert outcome.code == 8
        assert "which is never written to" in outcome.err
    assert sorted(tiny_corpus.rglob("*")) == before


@pytest.mark.parametrize("verb", ["check", "extract", "populate", "split", "stats"])
def test_a_manifest_that_is_missing_or_empty_ends_alike(command: CommandLine, place: Path, verb: str) -> None:
    (place / "empty.jsonl").touch()
    options = ("--archive", ".", "--out", "copies") if verb == "populate" else ()
    for name in ("missing.jsonl", "empty.jsonl"):
        outcome = command("dataset", verb, name, *options)
        assert outcome.code == 3
        assert name in outcome.err


def test_stats_count_and_draw(command: CommandLine, manifest: Path, place: Path) -> None:
    report = command("dataset", "stats", manifest, "--plots", "plots", "--quiet", "--json").json()
    assert (report["recordings"], report["families"], report["effective_families"]) == (72, 6, 6.0)
    assert report["durations"]["median_sec"] == 0.2
    assert sorted(path.name for path in (place / "plots").iterdir()) == [
        "durations.png",
        "families.png",
        "labels.png",
    ]
    assert "72 recordings, 6 kits, 6 families" in command("dataset", "stats", manifest).out


@pytest.mark.parametrize("name", ["dataset", "train", "convert"])
def test_without_the_training_side_its_commands_say_how_to_get_it(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("drumline.cli.find_spec", lambda module: None)
    outcome = command(name, "--help")
    assert outcome.code == 5
    assert "pip install 'path/to/drumline[train,cpu]'" in outcome.err


def test_plots_without_matplotlib_say_how_to_get_it(
    command: CommandLine, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_common, "find_spec", lambda name: None)
    outcome = command("dataset", "stats", manifest, "--plots", "plots")
    assert outcome.code == 5
    assert "pip install 'path/to/drumline[train,cpu]'" in outcome.err


def test_check_fails_for_errors_and_when_strict_for_warnings(command: CommandLine, manifest: Path) -> None:
    sound = command("dataset", "check", manifest, "--json", "--quiet")
    assert (sound.code, sound.json()["errors"]) == (0, 0)
    assert command("dataset", "check", manifest, "--strict", "--quiet").code == 12
    thin = command("dataset", "check", manifest, "--minimum", "19", "--json", "--quiet")
    assert (thin.code, thin.json()["counts"]["few"]) == (12, 4)
    assert "few: 4 errors" in command("dataset", "check", manifest, "--minimum", "19").out


def test_quiet_commands_print_only_what_is_wrong(command: CommandLine, manifest: Path) -> None:
    counted = command("dataset", "stats", manifest, "-q")
    assert (counted.code, counted.out, counted.err) == (0, "", "")
    checked = command("dataset", "check", manifest, "--minimum", "19", "-q")
    assert checked.out.startswith("few: 4 errors\n")
    assert "72 recordings" not in checked.out


def test_check_of_a_manifest_that_is_wrong_names_the_line(command: CommandLine, place: Path) -> None:
    Path("bad.jsonl").write_text("{}\n")
    outcome = command("dataset", "check", "bad.jsonl")
    assert outcome.code == 3
    assert "bad.jsonl', line 1: not a manifest row" in outcome.err


def test_populate_copies_one_side_and_its_dry_run_the_same_plan(
    command: CommandLine, manifest: Path, tiny_corpus: Path, place: Path
) -> None:
    command("dataset", "split", manifest, "--out", manifest)
    arguments = (
        "dataset",
        "populate",
        manifest,
        "--split",
        "test",
        "--archive",
        tiny_corpus,
        "--out",
        "copies",
    )
    dry = command(*arguments, "--dry-run", "--json").json()
    assert not Path("copies").exists()
    done = command(*arguments, "--json").json()
    assert dry["copies"] == done["copies"]
    assert done["copied"] == len(done["copies"]) == len(read_manifest(manifest).side("test"))
    assert command("dataset", "check", "copies", "--minimum", "1", "--quiet").code == 0
    assert "0 copied" in command(*arguments).out


def test_populate_says_what_the_archive_lacks(command: CommandLine, manifest: Path, place: Path) -> None:
    (place / "empty").mkdir()
    outcome = command("dataset", "populate", manifest, "--archive", "empty", "--out", "copies")
    assert outcome.code == 6
    assert "72 missing" in outcome.out


def test_populate_never_writes_into_the_archive(
    command: CommandLine, manifest: Path, tiny_corpus: Path, place: Path
) -> None:
    before = sorted(tiny_corpus.rglob("*"))
    for out in (tiny_corpus, tiny_corpus / "sub", tiny_corpus.parent):
        outcome = command("dataset", "populate", manifest, "--archive", tiny_corpus, "--out", out)
        assert outcome.code == 8
    run = make_run(place / "runs", [make_record(b"a.wav")], archive_root=str(tiny_corpus))
    outcome = command("dataset", "populate", manifest, "--run", run.directory, "--out", tiny_corpus / "sub")
    assert outcome.code == 8
    assert sorted(tiny_corpus.rglob("*")) == before


def test_populate_leaves_another_manifest_alone(
    command: CommandLine, manifest: Path, tiny_corpus: Path, place: Path
) -> None:
    (place / "copies").mkdir()
    (place / "copies" / "manifest.jsonl").write_text("mine")
    outcome = command("dataset", "populate", manifest, "--archive", tiny_corpus, "--out", "copies")
    assert outcome.code == 8
    assert [path.name for path in (place / "copies").iterdir()] == ["manifest.jsonl"]


def test_populate_wants_one_place_to_look_in(command: CommandLine, manifest: Path) -> None:
    assert command("dataset", "populate", manifest, "--out", "copies").code == 2


def test_populate_of_a_side_that_is_not_there_is_refused(command: CommandLine, manifest: Path) -> None:
    outcome = command("dataset", "populate", manifest, "--archive", ".", "--out", "x", "--split", "test")
    assert outcome.code == 3
    assert "it is not split" in outcome.err


def test_merge_overrides_adds_corrections_to_a_manifest(
    command: CommandLine, manifest: Path, tiny_corpus: Path, place: Path
) -> None:
    path = next((tiny_corpus / "audio" / "kit3").glob("Kick*"))
    record = make_record(b"kit3/Kick_0.wav", hash=hash_file(path), abs_path=str(path))
    run = make_run(place / "runs", [record])
    Path("corrections.jsonl").write_text(json.dumps({"hash": record["hash"], "correct_label": "Tom"}))
    arguments = ("dataset", "merge-overrides", "corrections.jsonl", "--run", run.directory)
    report = command(*arguments, "--into", manifest, "--out", "next.jsonl", "--json").json()
    assert (report["recordings"], report["added"], report["relabelled"]) == (72, 0, 1)
    labels = {row.path: row.label for row in read_manifest(Path("next.jsonl"))}
    assert labels[path] == "Tom"
    assert "1 recording, 1 added, 0 relabelled" in command(*arguments).out


def test_corrections_never_replace_what_is_no_manifest_nor_go_into_the_archive(
    command: CommandLine, tiny_corpus: Path, place: Path
) -> None:
    run = make_run(place / "runs", [make_record(b"a.wav")], archive_root=str(tiny_corpus))
    Path("corrections.jsonl").write_text("")
    Path("kick.wav").write_text("sample")
    for out in ("kick.wav", tiny_corpus / "x.jsonl"):
        outcome = command(
            *("dataset", "merge-overrides", "corrections.jsonl", "--run", run.directory, "--out", out)
        )
        assert outcome.code == 8
    assert Path("kick.wav").read_text() == "sample"
    assert not (tiny_corpus / "x.jsonl").exists()


def test_extract_computes_features_once(
    command: CommandLine, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("dataset", "extract", manifest, "--variants", "1", "--workers", "1", "--json")
    first = command(*arguments).json()
    assert first["shape"] == [72, 1, 40, 98]

    def forbidden(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(features, "read_recording", forbidden)
    assert command(*arguments).json() == first
    with pytest.raises(AssertionError, match="read again"):
        command("dataset", "extract", manifest, "--variants", "2", "--workers", "1")


def test_extract_keeps_features_where_it_is_told(command: CommandLine, manifest: Path, place: Path) -> None:
    options = ("--variants", "1", "--workers", "1", "--out", "kept")
    assert command("dataset", "extract", manifest, *options, "--quiet").out == ""
    assert (place / "kept" / "features").is_dir()
    assert not (place / "build").exists()
