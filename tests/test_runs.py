"""Runs: their directories, and what opens one."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drumline.errors import IndexFormatError, OutputError
from drumline.runs import Run, create_run, list_runs, locate_run, open_run, started_ns
from tests.making import ARCHIVE, CANONICAL_OF, make_record, make_run


def test_a_run_is_opened_by_directory_by_index_and_by_runs_root(tmp_path: Path) -> None:
    run = make_run(tmp_path, [make_record()])
    run.summary_path.write_text("{}")
    for path in (run.directory, run.index_path, tmp_path):
        opened = open_run(path)
        assert (opened.directory, opened.index_path, opened.info) == (run.directory, run.index_path, run.info)
        assert opened.complete


def test_a_runs_root_stands_for_its_newest_complete_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path) for _ in range(3)]
    for run in runs[:2]:
        run.summary_path.write_text("{}")
    assert open_run(tmp_path).name == runs[1].name


def test_a_runs_root_with_only_unfinished_runs_names_the_newest_and_what_finishes_it(tmp_path: Path) -> None:
    make_run(tmp_path)
    newest = make_run(tmp_path)
    with pytest.raises(IndexFormatError) as error:
        open_run(tmp_path)
    assert f"{newest.name} of {ARCHIVE.decode()} is not finished" in error.value.what
    assert "same 'drumline infer ARCHIVE' command" in error.value.way_out
    assert f"drumline stats {newest.directory}" in error.value.way_out


def test_an_unfinished_run_with_a_damaged_run_json_is_named_too(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.directory / "run.json").write_text("{")
    with pytest.raises(IndexFormatError, match=f"{run.name} of an archive that its run.json does not name"):
        open_run(tmp_path)


def test_an_empty_runs_root_says_how_to_make_a_run(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError) as error:
        open_run(tmp_path)
    assert error.value.way_out == "Make one with 'drumline infer ARCHIVE'."


def test_runs_made_within_one_second_keep_their_order(tmp_path: Path) -> None:
    names = [make_run(tmp_path).name for _ in range(12)]
    assert len(set(names)) == 12
    assert [path.name for path in list_runs(tmp_path)] == names


def test_a_clock_that_goes_back_does_not_reorder_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_run(tmp_path)
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1999, 1, 1, 0, 0, 0, 4, 1, 0)))
    second = make_run(tmp_path)
    assert [path.name for path in list_runs(tmp_path)] == [first.name, second.name]


def test_the_archive_root_keeps_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    settings = {"target_labels": None, "misc": {"threshold": 0.5, "label": "misc"}}
    about = {"index": "index.jsonl", "canonical_map": {}, "settings": settings}
    run = create_run(tmp_path, about, b"/samples/\xff")
    run.index_path.write_bytes(b"")
    assert open_run(run.directory).archive_root == b"/samples/\xff"


def test_a_lone_index_has_no_run_json_and_default_settings(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_bytes(b"")
    run = open_run(tmp_path / "some.jsonl")
    assert (run.info, run.archive_root, run.decision_settings(), run.misc_label()) == ({}, None, None, "misc")


def test_an_index_beside_the_runs_own_does_not_take_its_settings(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.directory / "other.jsonl").write_bytes(b"")
    assert open_run(run.directory / "other.jsonl").info == {}


def test_the_runs_decision_settings_are_those_it_was_made_with(tmp_path: Path) -> None:
    settings = {"target_labels": ["Kick"], "misc": {"threshold": 0.7, "label": "rest"}}
    canonical = {**CANONICAL_OF, "Clap": "rest"}
    decisions = make_run(tmp_path, settings=settings, canonical_map=canonical).decision_settings()
    assert decisions is not None
    assert (decisions.threshold, decisions.misc, decisions.target_labels) == (0.7, "rest", {"Kick"})
    assert decisions.canonical_of == canonical


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema_version": 7}, "version 7"), ({"index": "../../etc/passwd"}, "names the index")],
)
def test_a_run_of_another_version_or_with_a_crafted_index_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    run = make_run(tmp_path)
    (run.directory / "run.json").write_text(json.dumps({**run.info, **change}))
    with pytest.raises(IndexFormatError, match=message):
        open_run(run.directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_run_json_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path)
    (run.directory / "run.json").write_bytes(content)
    with pytest.raises(IndexFormatError, match=r"run\.json"):
        open_run(run.directory)


def test_a_run_without_an_index_says_that_it_was_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.index_path.unlink()
    with pytest.raises(IndexFormatError, match="it was removed"):
        open_run(run.directory)


@pytest.mark.parametrize("name", ["", "nothing-here"])
def test_where_there_is_no_run_the_error_names_the_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(IndexFormatError, match=tmp_path.name):
        open_run(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_runs_root_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write"):
        create_run(tmp_path, {"index": "index.jsonl"}, ARCHIVE)


def test_a_runs_root_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        create_run(tmp_path / "file", {"index": "index.jsonl"}, ARCHIVE)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_copy_that_somebody_made_of_a_run_is_no_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.summary_path.write_text("{}")
    for name in ("run_backup", "run_20269999T999999Z"):
        shutil.copytree(run.directory, tmp_path / name)
    assert list_runs(tmp_path) == [run.directory]
    assert open_run(tmp_path).name == run.name
    assert open_run(tmp_path / "run_backup").complete


@pytest.mark.parametrize("name", ["run_backup", "run_20269999T999999Z", "run"])
def test_only_the_name_of_a_run_says_when_it_began(name: str) -> None:
    with pytest.raises(ValueError, match="run"):
        started_ns(name)


def remove_index(run: Run) -> None:
    run.index_path.unlink()


def garble(run: Run) -> None:
    (run.directory / "run.json").write_text("{")


def change_version(run: Run) -> None:
    (run.directory / "run.json").write_text(json.dumps({**run.info, "schema_version": 99}))


@pytest.mark.parametrize("damage", [remove_index, garble, change_version])
def test_a_damaged_old_run_hides_no_newer_one(tmp_path: Path, damage: Callable[[Run], None]) -> None:
    runs = [make_run(tmp_path) for _ in range(2)]
    for run in runs:
        run.summary_path.write_text("{}")
    damage(runs[0])
    assert open_run(tmp_path).name == runs[1].name


def test_a_damaged_newest_run_is_named_and_no_older_one_taken_in_its_place(tmp_path: Path) -> None:
    runs = [make_run(tmp_path) for _ in range(2)]
    for run in runs:
        run.summary_path.write_text("{}")
    garble(runs[1])
    with pytest.raises(IndexFormatError, match=runs[1].name) as caught:
        open_run(tmp_path)
    assert "drumline repair" in caught.value.way_out


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({"schema_version": "1"}, "version '1'"),
        ({"index": None}, "names the index None"),
        ({"canonical_map": []}, "lacks 'canonical_map'"),
    ],
)
def test_a_garbled_run_is_located_with_its_trouble_where_opening_it_is_an_error(
    tmp_path: Path, change: dict[str, object], trouble: str
) -> None:
    run = make_run(tmp_path)
    (run.directory / "run.json").write_text(json.dumps({**run.info, **change}))
    located, found = locate_run(run.directory)
    assert (located.directory, located.index_path, located.info) == (run.directory, run.index_path, {})
    assert trouble in found
    with pytest.raises(IndexFormatError, match=re.escape(trouble)):
        open_run(run.directory)


@pytest.mark.parametrize("counts", [None, {"indexed": "1"}, {"indexed": True}])
def test_a_summary_whose_counts_are_none_is_an_error_with_a_way_out(tmp_path: Path, counts: object) -> None:
    run = make_run(tmp_path)
    run.summary_path.write_text(json.dumps({"counts": counts}))
    with pytest.raises(IndexFormatError, match="garbled") as caught:
        run.check_count(1)
    assert "drumline repair" in caught.value.way_out
