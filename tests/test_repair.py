"""`drumline repair`: what can be restored is, what cannot is classified again, and nothing is deleted."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from drumline import failpoints
from drumline.errors import BusyError, IndexFormatError, OutputError
from drumline.index import Codec, Compression, read_index
from drumline.lock import exclusive
from drumline.records import Record, relative_path
from drumline.repair import RepairReport, repair_run
from drumline.runs import Run, list_runs, open_run
from drumline.settings import MiscSettings
from drumline.verify import verify_run
from tests.making import CommandLine
from tests.workshop import (
    FILES,
    FRAME_LINES,
    Workshop,
    edit_cache,
    edit_json,
    frames_of,
    rewrite,
)

Records = dict[bytes, Record]
INFERRED = ("probs", "topk", "conf_top1", "assigned_conf")
"""Fields that depend on the batch by some 1e-6."""


@pytest.fixture
def run(workshop: Workshop, tmp_path: Path) -> Run:
    """A complete run, with its cache, in a runs root of its own."""
    return workshop.copy(tmp_path / "runs")


@pytest.fixture(scope="module")
def original(workshop: Workshop) -> Records:
    """The records of the undamaged run."""
    return records_of(open_run(workshop.runs_root))


def records_of(run: Run) -> Records:
    found = list(read_index(run.index_path))
    records = {relative_path(record): record for record in found}
    assert len(found) == len(records)
    return records


def assert_same(found: Records, expected: Records) -> None:
    """Hold that two sets of records are equal, but for what a batch changes."""
    assert sorted(found) == sorted(expected)
    for path, record in found.items():
        plain = {name: value for name, value in record.items() if name not in INFERRED}
        assert plain == {name: expected[path][name] for name in plain}  # type: ignore[literal-required]
        assert record["probs"] == pytest.approx(expected[path]["probs"], abs=1e-4)


def damage(run: Run, frame: int) -> None:
    """Overwrite the middle of a frame."""
    content = bytearray(run.index_path.read_bytes())
    start = frames_of(run)[frame][0]
    content[start + 30 : start + 60] = bytes(30)
    run.index_path.write_bytes(content)


def content_of(root: Path) -> dict[str, bytes]:
    """Return what is in a runs root, but for the lock and what SQLite keeps beside the cache."""
    passing = (".lock", "-wal", "-shm")
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(passing))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def assert_kept(report: RepairReport, before: dict[str, bytes], root: Path) -> None:
    """Hold that every file that was there before is there still, as it was, under its own or its new name."""
    after = content_of(root)
    for name, content in before.items():
        held = [
            after.get(name),
            *(value for other, value in after.items() if other.startswith(f"{name}.damaged-")),
        ]
        assert content in held, name
    assert all(Path(path).exists() for path in report.kept)


def assert_restored(run: Run, original: Records) -> None:
    """Hold that repair loses nothing, keeps what it replaces, and leaves a complete and sound run."""
    before = content_of(run.directory.parent)
    report = repair_run(run.directory)
    assert (report.lost, report.resumable) == (0, False)
    assert_kept(report, before, run.directory.parent)
    assert records_of(run) == original
    assert verify_run(run.directory).ok


def completed(workshop: Workshop, run: Run) -> Run:
    """Give the same infer command again; return the run that it completes."""
    summary = workshop.infer(run.directory.parent)
    assert summary["counts"]["discovered"] == summary["counts"]["indexed"] == FILES
    done = open_run(Path(summary["run_directory"]))
    report = verify_run(done.directory)
    assert report.ok, report.findings
    return done


def test_a_sound_run_is_left_alone(run: Run) -> None:
    before = content_of(run.directory.parent)
    report = repair_run(run.directory)
    assert (report.steps, report.kept, report.lost, report.resumable) == ((), (), 0, False)
    assert content_of(run.directory.parent) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary["counts"].update(indexed=FILES - 1),
        lambda summary: summary["counts"].update(indexed=FILES + 5),
        lambda summary: summary["labels"].update(Gong=1),
        lambda summary: summary["counts"].clear(),
        lambda summary: summary.clear(),
    ],
)
def test_a_changed_summary_is_counted_anew(run: Run, change: Callable[[Any], Any]) -> None:
    expected = json.loads(run.summary_path.read_text())
    edit_json(run.summary_path, change)
    before = content_of(run.directory.parent)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["summary"]
    assert (report.lost, report.resumable, report.unrepaired) == (0, False, ())
    assert_kept(report, before, run.directory.parent)
    found = json.loads(run.summary_path.read_text())
    known = ("labels", "errors", "reasons", "formats", "confidence_histogram", "model", "complete")
    assert {name: found[name] for name in known} == {name: expected[name] for name in known}
    assert found.keys() == expected.keys()
    assert found["counts"].keys() == expected["counts"].keys()
    assert verify_run(run.directory).ok


def test_a_summary_that_cannot_be_read_says_null_for_what_no_index_tells(run: Run) -> None:
    run.summary_path.write_text("garbage")
    repair_run(run.directory)
    found = json.loads(run.summary_path.read_text())
    assert (found["counts"]["indexed"], found["counts"]["skipped_links"]) == (FILES, None)
    assert verify_run(run.directory).ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE frame SET offset = offset + 1",
        "DELETE FROM file WHERE line = 3",
        "UPDATE file SET hash = 'other'",
        "UPDATE run SET valid = valid + 1",
    ],
)
def test_a_cache_that_differs_is_made_anew(workshop: Workshop, run: Run, statement: str) -> None:
    edit_cache(run, statement)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["cache"]
    assert verify_run(run.directory).ok
    (kept,) = report.kept
    with closing(sqlite3.connect(kept)) as database:  # still opens, with what was changed in it
        assert database.execute("SELECT count(*) FROM run").fetchone() == (1,)
    assert workshop.infer(run.directory.parent)["counts"]["carried_over"] > 0


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 999])
def test_a_cache_that_is_gone_or_garbage_is_made_anew(run: Run, content: bytes | None) -> None:
    path = run.directory.parent / "cache.sqlite"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["cache"]
    assert len(report.kept) == (content is not None)
    verified = verify_run(run.directory)
    assert (verified.ok, verified.notes) == (True, ())


def test_bytes_behind_the_last_frame_are_cut(run: Run, original: Records) -> None:
    with open(run.index_path, "ab") as stream:
        stream.write(b"\x28\xb5\x2f\xfd and then nothing of ours")
    assert_restored(run, original)


def test_doubled_records_are_dropped_and_the_last_stays(run: Run, original: Records) -> None:
    def double(found: list[Record]) -> list[Record]:
        outdated: Any = {**found[3], "size": found[3]["size"] + 1}
        return [outdated, *found, found[5]]

    rewrite(run, double)
    assert_restored(run, original)


def test_changed_decisions_are_made_again(run: Run, original: Records) -> None:
    def change(found: list[Record]) -> list[Record]:
        for record in found:
            if record["probs"]:
                record["assigned_label"], record["topk"] = "Gong", []
        return found

    rewrite(run, change)
    assert_restored(run, original)


def test_a_line_that_was_put_in_is_dropped_and_the_run_stays_complete(run: Run, original: Records) -> None:
    with open(run.index_path, "ab") as stream:
        stream.write(Codec("zstd").compress(b'{"no": "record"}\n'))
    assert_restored(run, original)


def test_frames_without_a_checksum_are_given_one(run: Run, original: Records) -> None:
    import zstandard

    content = run.index_path.read_bytes()
    start, end = frames_of(run)[1]
    lines = zstandard.decompress(content[start:end])
    plain = zstandard.ZstdCompressor(write_checksum=False).compress(lines)
    run.index_path.write_bytes(content[:start] + plain + content[end:])
    assert_restored(run, original)


def test_a_damaged_frame_costs_its_own_records_and_infer_classifies_them_again(
    workshop: Workshop, run: Run, original: Records
) -> None:
    damage(run, 1)
    before = content_of(run.directory.parent)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["summary", "index", "cache"]
    assert (report.lost, report.resumable, report.unrepaired) == (FRAME_LINES, True, ())
    assert_kept(report, before, run.directory.parent)
    verified = verify_run(run.directory)
    assert (verified.ok, verified.complete) == (True, False)
    assert len(records_of(run)) == FILES - FRAME_LINES
    done = completed(workshop, run)
    assert done.directory == run.directory
    assert_same(records_of(done), original)


@pytest.mark.parametrize("frame", [0, -1])
def test_damage_of_the_first_or_last_bytes_is_repaired_too(
    workshop: Workshop, run: Run, original: Records, frame: int
) -> None:
    content = bytearray(run.index_path.read_bytes())
    content[0 if frame == 0 else -1] ^= 0xFF
    run.index_path.write_bytes(content)
    assert repair_run(run.directory).resumable
    assert_same(records_of(completed(workshop, run)), original)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_damage_is_repaired_in_any_compression(
    workshop: Workshop, tmp_path: Path, compression: Compression
) -> None:
    summary = workshop.infer(tmp_path / "runs", compress_index=compression)
    run = open_run(Path(summary["run_directory"]))
    expected = records_of(run)
    content = bytearray(run.index_path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 9] = b"\n{damage}"
    run.index_path.write_bytes(content)
    report = repair_run(run.directory)
    assert report.resumable
    assert 0 < (report.lost or 0) <= FRAME_LINES
    workshop.infer(tmp_path / "runs", compress_index=compression)
    assert_same(records_of(run), expected)
    assert verify_run(run.directory).ok


def test_an_index_cut_anywhere_loses_what_was_cut_and_no_more(
    workshop: Workshop, run: Run, original: Records
) -> None:
    content, summary = run.index_path.read_bytes(), run.summary_path.read_bytes()
    ends = [end for _, end in frames_of(run)]
    for length in (0, 5, ends[0] - 1, ends[0], ends[1], ends[1] + 1, len(content) - 1):
        run.index_path.write_bytes(content[:length])
        run.summary_path.write_bytes(summary)
        report = repair_run(run.directory)
        left = FRAME_LINES * sum(end <= length for end in ends)
        assert (report.lost, report.resumable) == (FILES - left, True), f"cut at {length}"
        assert len(records_of(run)) == left
        assert verify_run(run.directory).ok
    run.index_path.write_bytes(content[: ends[1]])
    run.summary_path.write_bytes(summary)
    repair_run(run.directory)
    assert_same(records_of(completed(workshop, run)), original)


def test_a_truncated_index_is_noticed_by_the_cache_where_the_summary_is_garbage(
    workshop: Workshop, run: Run, original: Records
) -> None:
    os.truncate(run.index_path, frames_of(run)[1][1])
    run.summary_path.write_text("garbage")
    report = repair_run(run.directory)
    assert (report.lost, report.resumable) == (None, True)
    assert_same(records_of(completed(workshop, run)), original)


def test_a_missing_index_is_classified_again(workshop: Workshop, run: Run, original: Records) -> None:
    run.index_path.unlink()
    report = repair_run(run.directory)
    assert (report.lost, report.resumable) == (FILES, True)
    assert_same(records_of(completed(workshop, run)), original)


def test_a_bad_record_is_dropped_and_its_file_classified_again(
    workshop: Workshop, run: Run, original: Records
) -> None:
    def spoil(found: list[Record]) -> list[Record]:
        found[9]["size"] = "large"  # type: ignore[typeddict-item]
        return found

    rewrite(run, spoil)
    report = repair_run(run.directory)
    assert (report.lost, report.resumable) == (1, True)
    assert_same(records_of(completed(workshop, run)), original)


def test_an_unfinished_run_keeps_what_is_whole_behind_the_damage(
    workshop: Workshop, run: Run, original: Records
) -> None:
    run.summary_path.unlink()
    damage(run, 0)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["index", "cache"]
    assert (report.lost, report.resumable) == (None, True)
    assert len(records_of(run)) == FILES - FRAME_LINES
    done = completed(workshop, run)
    assert done.directory == run.directory
    assert_same(records_of(done), original)


@pytest.mark.parametrize("content", [b"garbage", b"{}", None])
def test_a_run_json_that_cannot_be_believed_is_set_aside_and_infer_begins_anew(
    workshop: Workshop, run: Run, original: Records, content: bytes | None
) -> None:
    if content is None:
        edit_json(run.directory / "run.json", lambda info: info["settings"]["misc"].update(threshold=0.4))
    else:
        (run.directory / "run.json").write_bytes(content)
    before = content_of(run.directory.parent)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["run.json", "cache"]
    assert (report.resumable, report.unrepaired) == (True, ())
    assert_kept(report, before, run.directory.parent)
    done = completed(workshop, run)
    assert done.directory != run.directory
    assert_same(records_of(done), original)


def test_an_older_run_is_mended_but_infer_goes_on_from_the_newer_one(workshop: Workshop, run: Run) -> None:
    workshop.infer(run.directory.parent, misc=MiscSettings(threshold=0.9))
    damage(run, 1)
    report = repair_run(run.directory)
    assert (report.lost, report.resumable) == (FRAME_LINES, False)
    assert verify_run(run.directory).ok
    newer = list_runs(run.directory.parent)[-1]
    assert verify_run(newer).ok
    counts = workshop.infer(run.directory.parent, misc=MiscSettings(threshold=0.9))["counts"]
    assert counts["carried_over"] + counts["failed"] == FILES


def test_repairs_that_follow_one_another_keep_each_original(run: Run) -> None:
    for number in (1, 2):
        run.summary_path.write_text(f"garbage {number}")
        repair_run(run.directory)
        kept = run.summary_path.with_name(f"summary.json.damaged-{number}")
        assert kept.read_text() == f"garbage {number}"


def test_a_dry_run_tells_the_same_and_writes_nothing(run: Run) -> None:
    damage(run, 1)
    before = content_of(run.directory.parent)
    told = repair_run(run.directory, dry_run=True)
    assert content_of(run.directory.parent) == before
    done = repair_run(run.directory)
    assert (told.steps, told.lost, told.resumable) == (done.steps, done.lost, done.resumable)


def test_repair_waits_for_nobody_elses_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "drumline.repair.exclusive", lambda path, what, doing: exclusive(path, what, doing, 0.0)
    )
    with exclusive(run.directory.parent / ".lock", "the runs root", "it"), pytest.raises(BusyError):
        repair_run(run.directory)


def test_a_repair_that_fails_at_any_step_is_completed_by_the_next(
    workshop: Workshop, tmp_path: Path, original: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(30):
        run = workshop.copy(tmp_path / f"runs {step}")
        damage(run, 1)
        damaged = run.index_path.read_bytes()
        if not fails_at(step, run, monkeypatch):
            break
        assert damaged in content_of(run.directory).values(), f"step {step}"
        repair_run(run.directory)
        assert damaged in content_of(run.directory).values(), f"step {step}"
        assert len(records_of(run)) == FILES - FRAME_LINES
        verified = verify_run(run.directory)
        assert (verified.ok, verified.complete) == (True, False), f"step {step}"
    assert step >= 6


@pytest.mark.parametrize("step", [2, 4, 6])
def test_after_a_repair_that_failed_infer_goes_on_as_well(
    workshop: Workshop, run: Run, original: Records, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    damage(run, 1)
    assert fails_at(step, run, monkeypatch)
    assert_same(records_of(completed(workshop, run)), original)


def fails_at(step: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Repair, and fail at the n-th change of a name; tell whether it came to that."""
    calls = iter(range(100))

    def failing(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if next(calls) == step:
                raise OSError(errno.EIO, "input/output error")
            function(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "fsync"):
            patch.setattr(os, name, failing(getattr(os, name)))
        try:
            repair_run(run.directory)
        except OutputError:
            return True
    return False


def test_a_lone_index_cannot_be_repaired(run: Run, tmp_path: Path) -> None:
    index = tmp_path / "index.jsonl.zst"
    index.write_bytes(run.index_path.read_bytes())
    with pytest.raises(IndexFormatError, match="without a run"):
        repair_run(index)


def test_the_command_says_what_it_did_and_what_is_next(command: CommandLine, run: Run) -> None:
    damage(run, 1)
    assert command("verify", run.directory).code == 11
    told = command("repair", run.directory, "--dry-run")
    assert told.code == 0
    assert "would  index" in told.out
    outcome = command("repair", run.directory)
    assert outcome.code == 0
    assert "done  index" in outcome.out
    assert f"{FRAME_LINES} of the records are lost" in outcome.out
    assert "index.jsonl.zst.damaged-1" in outcome.out
    assert "the same 'drumline infer' command" in outcome.out
    assert command("verify", run.directory).code == 0
    assert "nothing to repair" in command("repair", run.directory).out
    assert command("repair", run.directory, "-q").out == ""


def test_the_command_gives_json(command: CommandLine, run: Run) -> None:
    run.summary_path.write_text("garbage")
    report = command("repair", run.directory, "--json").json()
    assert [step["part"] for step in report["steps"]] == ["summary"]
    assert report["resumable"] is False


def test_what_cannot_be_repaired_is_printed_and_the_exit_code_is_11(
    command: CommandLine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drumline.repair._Repair._write_summary", lambda *_: None)
    run.summary_path.write_text("garbage")
    outcome = command("repair", run.directory)
    assert outcome.code == 11
    assert "stays summary" in outcome.out


@pytest.mark.parametrize("moment", ["repair.set-aside", "durable.write", "durable.replace"])
def test_a_repair_of_the_summary_that_is_killed_leaves_the_run_complete(
    run: Run, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run.summary_path.write_text("garbage")
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_armed", {})
        failpoints.arm(f"{moment}.before=errno:EIO; {moment}.after=errno:EIO")
        with pytest.raises(OutputError):
            repair_run(run.directory)
        assert run.complete
        with pytest.raises(OutputError):
            repair_run(run.directory)
        assert run.complete
    report = repair_run(run.directory)
    assert (report.lost, report.resumable, report.unrepaired) == (0, False, ())
    assert verify_run(run.directory).complete


def test_decisions_made_again_in_an_unfinished_run_lose_nothing(run: Run, original: Records) -> None:
    def change(found: list[Record]) -> list[Record]:
        found[3]["out_of_target"] = not found[3]["out_of_target"]
        return found

    run.summary_path.unlink()
    rewrite(run, change)
    report = repair_run(run.directory)
    assert [step.part for step in report.steps] == ["index", "cache"]
    assert (report.lost, report.resumable) == (0, True)
    assert records_of(run) == original


def test_garbage_within_plain_lines_costs_the_records_that_it_hits(
    workshop: Workshop, tmp_path: Path, original: Records
) -> None:
    workshop.infer(tmp_path / "runs", compress_index="none")
    run = open_run(tmp_path / "runs")
    lines = run.index_path.read_bytes().splitlines(keepends=True)
    run.index_path.write_bytes(b"".join([*lines[:5], b"\0" * (3 << 19), *lines[5:]]))
    assert repair_run(run.directory).lost == 1
    assert len(records_of(run)) == FILES - 1


def test_a_run_in_a_directory_whose_name_is_no_utf_8_is_repaired(run: Run, tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(run.directory.parent) + b"/mine \xff"))
    run.directory.rename(directory)
    (directory / "summary.json").write_text("garbage")
    report = repair_run(directory)
    assert "summary" in [step.part for step in report.steps]
    assert (report.lost, report.unrepaired) == (0, ())
    assert json.loads((directory / "summary.json").read_text())["run"] == "mine \ufffd"
