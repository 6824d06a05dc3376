"""Runs: their directories, and what opens one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from drumline.errors import IndexFormatError, OutputError
from drumline.runs import create_run, list_runs, open_run
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
    [({"schema_version": 7}, "version 7"), ({"index": "../../etc/passwd"}, "outside")],
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
