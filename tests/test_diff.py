"""`drumline diff`: what changed between two runs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline import diff as diff_module
from drumline.diff import diff_runs
from drumline.errors import IndexFormatError, OutputError
from drumline.records import Record
from drumline.runs import open_run
from tests.making import CommandLine, make_record, make_run, paths, write_index

KICK, SNARE, WEAK = (
    {"Kick": 0.9, "Clap": 0.1},
    {"Snare": 0.7, "Kick": 0.3},
    {"Kick": 0.4, "Snare": 0.35, "Clap": 0.25},
)


def compare(directory: Path, before: list[Record], after: list[Record], limit: int = 20) -> dict[str, Any]:
    write_index(directory / "a.jsonl.zst", before)
    write_index(directory / "b.jsonl.gz", after)
    runs = open_run(directory / "a.jsonl.zst"), open_run(directory / "b.jsonl.gz")
    return diff_runs(*runs, limit).to_json()


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    records = [make_record(b"%d.wav" % number) for number in range(5)]
    diff = compare(tmp_path, records, records[::-1])
    assert diff["counts"] == {
        "files_a": 5, "files_b": 5, "common": 5, "added": 0, "gone": 0, "changed": 0, "fine_changed": 0,
        "edited": 0,
    }  # fmt: skip
    assert diff["confidence_change"]["mean"] == 0
    assert (diff["transitions"], diff["added"], diff["gone"], diff["changed"]) == ([], [], [], [])


def test_files_added_and_gone_are_named_with_their_label(tmp_path: Path) -> None:
    diff = compare(
        tmp_path,
        [make_record(b"a.wav"), make_record(b"b.wav")],
        [make_record(b"b.wav"), make_record(b"c.wav")],
    )
    assert diff["gone"] == [{"path": "a.wav", "label": "Kick"}]
    assert diff["added"] == [{"path": "c.wav", "label": "Kick"}]
    assert (diff["counts"]["added"], diff["counts"]["gone"], diff["counts"]["common"]) == (1, 1, 1)


def test_changed_labels_are_named_and_counted_from_to(tmp_path: Path) -> None:
    before = [make_record(b"%d.wav" % number, KICK) for number in range(4)]
    after = [
        make_record(b"0.wav", SNARE),
        make_record(b"1.wav", SNARE),
        make_record(b"2.wav", WEAK),
        before[3],
    ]
    diff = compare(tmp_path, before, after)
    assert diff["transitions"] == [
        {"from": "Kick", "to": "Snare", "files": 2},
        {"from": "Kick", "to": "misc", "files": 1},
    ]
    first = diff["changed"][0]
    assert first == {
        "path": "0.wav", "from": "Kick", "to": "Snare", "confidence_from": 0.9, "confidence_to": 0.7
    }  # fmt: skip
    assert diff["counts"]["fine_changed"] == 2


def test_confidence_changes_have_mean_and_percentiles(tmp_path: Path) -> None:
    before = [make_record(b"%02d.wav" % number, assigned_conf=0.5) for number in range(100)]
    after = [make_record(b"%02d.wav" % number, assigned_conf=0.5 + number / 1000) for number in range(100)]
    change = compare(tmp_path, before, after)["confidence_change"]
    assert change["files"] == 100
    assert change["mean"] == change["mean_magnitude"] == pytest.approx(0.0495)
    assert change["percentiles"] == pytest.approx(
        {"1": 0.0, "5": 0.004, "25": 0.024, "50": 0.049, "75": 0.074, "95": 0.094, "99": 0.098}
    )


def test_a_file_that_fails_has_no_label_and_no_confidence(tmp_path: Path) -> None:
    diff = compare(tmp_path, [make_record()], [make_record(error="timeout")])
    assert diff["transitions"] == [{"from": "Kick", "to": None, "files": 1}]
    assert diff["confidence_change"] == {"files": 0, "mean": None, "mean_magnitude": None, "percentiles": {}}


def test_a_file_with_other_content_is_edited(tmp_path: Path) -> None:
    before = [make_record(b"a.wav"), make_record(b"b.wav")]
    diff = compare(tmp_path, before, [make_record(b"a.wav", hash="ff"), make_record(b"b.wav", hash=None)])
    assert diff["counts"]["edited"] == 1


def test_names_are_limited_and_counts_are_not(tmp_path: Path) -> None:
    diff = compare(tmp_path, [], [make_record(b"%d.wav" % number) for number in range(9)], limit=2)
    assert [entry["path"] for entry in diff["added"]] == ["0.wav", "1.wav"]
    assert diff["counts"]["added"] == 9


@given(st.sets(paths, max_size=8), st.sets(paths, max_size=8))
def test_files_are_matched_by_the_exact_bytes_of_their_path(
    tmp_path_factory: pytest.TempPathFactory, before: set[bytes], after: set[bytes]
) -> None:
    counts = compare(tmp_path_factory.getbasetemp(), [*map(make_record, before)], [*map(make_record, after)])[
        "counts"
    ]
    assert counts["added"] == len(after - before)
    assert counts["gone"] == len(before - after)
    assert counts["common"] == len(before & after)


def test_names_that_are_no_utf_8_keep_their_bytes_and_print(command: CommandLine, tmp_path: Path) -> None:
    one, two = make_run(tmp_path), make_run(tmp_path, [make_record(b"\xff\x1b[2J.wav")])
    entry = command("diff", one.directory, two.directory, "--json").json()["added"][0]
    assert entry == {"path": "\ufffd\x1b[2J.wav", "path_b64": "/xtbMkoud2F2", "label": "Kick"}
    assert "\x1b" not in command("diff", one.directory, two.directory).out


def test_the_command_shows_both_runs_the_table_and_the_files(command: CommandLine, tmp_path: Path) -> None:
    one = make_run(tmp_path, [make_record(b"x.wav", KICK)], model={"name": "old", "version": "1.0"})
    two = make_run(tmp_path, [make_record(b"x.wav", SNARE)], model={"name": "new", "version": "2.0"})
    outcome = command("diff", one.directory, two.directory)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("model old 1.0", "model new 2.0", "1 with another label", "x.wav  Kick 0.90 → Snare 0.70"):
        assert text in outcome.out
    about = command("diff", one.directory, two.directory, "--json").json()
    assert (about["a"]["model"]["name"], about["b"]["run"]) == ("old", two.name)


def test_misc_is_shown_without_the_confidence_in_the_label_it_was_preferred_to(
    command: CommandLine, tmp_path: Path
) -> None:
    one = make_run(tmp_path, [make_record(b"x.wav", KICK)])
    two = make_run(tmp_path, [make_record(b"x.wav", KICK, assigned_label="misc")])
    assert "x.wav  Kick 0.90 → misc\n" in command("diff", one.directory, two.directory).out


def test_a_run_that_is_not_there_is_named(command: CommandLine, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    outcome = command("diff", run.directory, tmp_path / "none")
    assert outcome.code == IndexFormatError.exit_code
    assert "none" in outcome.err


def test_a_full_disk_under_the_temporary_table_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(diff_module, "_by_path", full)
    with pytest.raises(OutputError, match="disk is full") as error:
        compare(tmp_path, [], [])
    assert "SQLITE_TMPDIR" in error.value.way_out


def test_of_two_records_of_one_file_the_last_is_compared(tmp_path: Path) -> None:
    first = [make_record(b"a.wav", KICK)]
    for order in ([KICK, SNARE], [SNARE, KICK]):
        twice = [make_record(b"a.wav", probs) for probs in order]
        assert compare(tmp_path, first, twice)["counts"]["changed"] == (order[-1] is SNARE)
