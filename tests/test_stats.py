"""`drumline stats`: counted from the summary or the index, and drawn as text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.charts import bar_text, sparkline_text
from drumline.errors import IndexFormatError
from drumline.index import read_index
from drumline.rebuild import RebuildSettings, plan_rebuild
from drumline.records import encode_record
from drumline.runs import Run, open_run
from drumline.stats import read_stats
from drumline.tally import Tally
from tests.making import CommandLine, make_record, make_run, write_index

RECORDS = [
    *(make_record(b"k%d.wav" % number, {"Kick": 0.8, "Clap": 0.2}, duration_sec=0.4) for number in range(6)),
    *(make_record(b"s%d.wav" % number, {"Snare": 0.5, "Rim": 0.3, "Kick": 0.2}) for number in range(3)),
    make_record(b"weak.wav", {"Kick": 0.4, "Snare": 0.3, "Clap": 0.3}),
    make_record(b"bad.wav", error="decode_error"),
]


def complete(run: Run, records: list[Any] = RECORDS) -> None:
    tally = Tally.of(records)
    counts = {"indexed": tally.records, "failed": tally.failed}
    run.summary_path.write_text(json.dumps({"counts": counts, **tally.report(), "complete": True}))


def test_counts_are_those_of_the_index(tmp_path: Path) -> None:
    stats = read_stats(make_run(tmp_path, RECORDS)).to_json()
    assert (stats["records"], stats["classified"], stats["failed"]) == (11, 10, 1)
    assert stats["labels"] == {"Kick": 6, "Snare": 3, "misc": 1}
    assert stats["errors"] == {"decode_error": 1}
    assert stats["mean_confidence"] == {"Kick": 0.8, "Snare": 0.8, "misc": 0.4}
    assert stats["archive_root"] == "/archive"
    assert stats["complete"] is False


def test_failures_name_each_file_and_its_reason(tmp_path: Path, command: CommandLine) -> None:
    run = make_run(tmp_path, [*RECORDS, make_record(b"odd\n\xff.wav", error="timeout")])
    lines = command("stats", run.directory, "--failures").out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["decode_error", "bad.wav"],
        ["timeout", "odd\\n\N{REPLACEMENT CHARACTER}.wav"],
    ]
    listed = json.loads(command("stats", run.directory, "--failures", "--json").out)
    assert [failure["type"] for failure in listed] == ["decode_error", "timeout"]


def test_the_files_of_a_label_are_listed_with_hash_and_confidence(
    tmp_path: Path, command: CommandLine
) -> None:
    odd = make_record(b"odd\n\xff.wav", {"Kick": 0.6, "Snare": 0.4}, hash="00000000deadbeef")
    run = make_run(tmp_path, [*RECORDS, odd])
    lines = command("stats", run.directory, "--label", "Kick").out.splitlines()
    kick = RECORDS[0]["hash"]
    assert lines[0] == f"{kick}  0.8000  k0.wav"
    assert lines[6:] == ["00000000deadbeef  0.6000  odd\\n\N{REPLACEMENT CHARACTER}.wav"]
    listed = command("stats", run.directory, "--label", "Kick", "--label", "Snare", "--json").json()
    assert [file["label"] for file in listed] == ["Kick"] * 6 + ["Snare"] * 3 + ["Kick"]
    assert listed[-1] == {
        "hash": "00000000deadbeef",
        "label": "Kick",
        "confidence": 0.6,
        "relative_path": "odd\n\N{REPLACEMENT CHARACTER}.wav",
        "relative_path_b64": "b2RkCv8ud2F2",
    }


def test_a_label_that_no_file_has_is_said_and_lists_nothing(tmp_path: Path, command: CommandLine) -> None:
    run = make_run(tmp_path, RECORDS)
    outcome = command("stats", run.directory, "--label", "kick")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == "No file has the label kick; labels of this run: Kick, Snare, misc.\n"
    assert command("stats", run.directory, "--label", "kick", "--json").json() == []
    assert command("stats", run.directory, "--label", "Kick", "--failures").code == 2


def test_the_files_of_a_label_are_printed_while_the_index_is_read(
    tmp_path: Path, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(_: Path) -> Iterator[Any]:
        yield RECORDS[0]
        raise IndexFormatError("torn")

    run = make_run(tmp_path, RECORDS)
    monkeypatch.setattr("drumline.stats.read_index", torn)
    for how in ((), ("--json",)):
        outcome = command("stats", run.directory, "--label", "Kick", *how)
        assert outcome.code == IndexFormatError.exit_code
        assert "k0.wav" in outcome.out


def test_a_listed_hash_corrects_a_rebuild(tmp_path: Path, command: CommandLine) -> None:
    wrong = make_record(b"rim.wav", {"Kick": 0.9, "Snare": 0.1}, hash="00000000deadbeef")
    run = make_run(tmp_path, [*RECORDS, wrong])
    found = command("stats", run.directory, "--label", "Kick").out.splitlines()[-1].split()[0]
    fixes = tmp_path / "fixes.jsonl"
    fixes.write_text(json.dumps({"hash": found, "correct_label": "Snare"}))
    plan = plan_rebuild(RebuildSettings(run.directory, tmp_path / "out", copy_mode="none", overrides=fixes))
    with plan:
        assert (plan.counts["overridden"], plan.tally.labels["Kick"], plan.tally.labels["Snare"]) == (1, 6, 4)


def test_a_complete_runs_summary_saves_reading_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, RECORDS)
    from_index = read_stats(run).to_json()
    complete(run)
    monkeypatch.setattr("drumline.stats.read_frames", pytest.fail)
    assert read_stats(run).to_json() == {**from_index, "complete": True}


def test_a_summary_that_does_not_belong_to_the_index_is_not_believed(tmp_path: Path) -> None:
    run = make_run(tmp_path, RECORDS)
    complete(run, RECORDS[:4])
    before = run.index_path.stat().st_mtime_ns - 10**9
    os.utime(run.summary_path, ns=(before, before))
    assert read_stats(run).records == 11


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"counts": 3}', '{"counts": {"indexed": 9, "failed": 1}}']
)
def test_a_damaged_summary_is_passed_over(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path, RECORDS)
    run.summary_path.write_text(content)
    assert read_stats(run).records == 11


def test_a_torn_tail_is_reported_and_the_rest_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, RECORDS)
    content = run.index_path.read_bytes()
    run.index_path.write_bytes(content[:-5])
    stats = read_stats(run)
    assert stats.records == 9
    assert 0 < stats.torn_bytes < len(content)


@pytest.mark.parametrize(
    "line", [b'{"schema_version": 1}', b'{"schema_version": 1, "assigned_label": [], "size": "x"}']
)
def test_a_garbled_record_is_an_index_error(tmp_path: Path, line: bytes, command: CommandLine) -> None:
    path = tmp_path / "index.jsonl"
    path.write_bytes(encode_record(RECORDS[0]) + line + b"\n")
    with pytest.raises(IndexFormatError, match="garbled"):
        read_stats(open_run(path))
    assert command("stats", path).code == IndexFormatError.exit_code
    assert command("diff", path, path).code == IndexFormatError.exit_code


def test_json_is_alone_on_stdout(command: CommandLine, tmp_path: Path) -> None:
    outcome = command("stats", make_run(tmp_path, RECORDS).directory, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json()["labels"]["Kick"] == 6


def test_bars_are_as_wide_as_the_terminal_and_nothing_but_text(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, RECORDS)
    for width in (60, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        outcome = command("stats", run.directory)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out
        assert max(map(len, outcome.out.splitlines())) <= width
        for text in ("Kick", "60.0 %", "0.80", "up to 0.4 s"[:5], "decode_error", "1 failed", "█"):
            assert text in outcome.out


def test_odd_names_are_shown_escaped_and_never_as_markup(command: CommandLine, tmp_path: Path) -> None:
    odd = [make_record(format="[bold]x\x1b[31m")]
    outcome = command("stats", make_run(tmp_path, odd).directory)
    assert outcome.code == 0
    assert "[bold]x\\x1b[31m" in outcome.out


@pytest.mark.parametrize(
    ("size", "seconds", "said"),
    [
        (2_500_000, 4.5, "1 file, 2.5 MB, 4.5 s of sound"),
        (2_500_000_000, 359.0, "1 file, 2.5 GB, 5 min 59 s of sound"),
        (900, 5400.0, "1 file, 900 B, 1.50 h of sound"),
    ],
)
def test_sizes_and_times_have_units_that_suit_them(
    size: int, seconds: float, said: str, command: CommandLine, tmp_path: Path
) -> None:
    run = make_run(tmp_path, [make_record(size=size, duration_sec=seconds)])
    assert said in command("stats", run.directory).out


def test_an_empty_run_has_nothing_to_draw(command: CommandLine, tmp_path: Path) -> None:
    outcome = command("stats", make_run(tmp_path).directory)
    assert outcome.code == 0
    assert "0 files" in outcome.out


def test_a_lone_index_is_enough(command: CommandLine, tmp_path: Path) -> None:
    write_index(tmp_path / "some.jsonl.gz", RECORDS)
    assert command("stats", tmp_path / "some.jsonl.gz", "--json").json()["complete"] is None


def test_where_there_is_no_run_the_exit_code_says_so(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("stats")
    assert outcome.code == IndexFormatError.exit_code
    assert "ClassifiedArchive" in outcome.err
    assert "Make one with 'drumline infer ARCHIVE'" in outcome.err


@given(st.floats(0, 1), st.integers(1, 100), st.booleans())
def test_a_bar_never_exceeds_its_width_and_never_hides_what_is_there(
    fraction: float, width: int, ascii_only: bool
) -> None:
    bar = bar_text(fraction, width, ascii_only)
    assert len(bar) <= width
    assert bool(bar) == (fraction > 0)
    assert bar.isascii() or not ascii_only


@given(st.lists(st.integers(0, 10**9), min_size=1))
def test_a_sparkline_shows_every_count_that_is_not_zero(counts: list[int]) -> None:
    line = sparkline_text(counts)
    assert [char != " " for char in line] == [count > 0 for count in counts]
    assert max(counts) == 0 or line[counts.index(max(counts))] == "█"


def test_an_empty_line_is_no_record_for_any_reader(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    path.write_bytes(encode_record(make_record(b"a.wav")) + b"\n" + encode_record(make_record(b"b.wav")))
    readers: list[Callable[[], object]] = [
        lambda: list(read_index(path)),
        lambda: read_stats(open_run(path)),
        lambda: plan_rebuild(RebuildSettings(path, tmp_path / "out", copy_mode="none")),
    ]
    for read in readers:
        with pytest.raises(IndexFormatError, match="no record"):
            read()
