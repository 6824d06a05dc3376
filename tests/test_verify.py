"""`drumline verify`: damage of every kind is named, and what is sound is called so."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from drumline.errors import ArchiveError, IndexFormatError, OutputError
from drumline.index import MAX_LINE_BYTES, Codec, Compression, read_index
from drumline.rebuild import RebuildSettings, execute, plan_rebuild
from drumline.records import Record, encode_record, json_schema, relative_path
from drumline.runs import Run, list_runs
from drumline.settings import MiscSettings
from drumline.stub import create_stub
from drumline.verify import Check, Kind, Report, verify_run, verify_tree
from drumline.verify.frames import scan
from drumline.verify.judge import record_trouble
from tests.making import CommandLine, make_record, make_run, records, write_tone
from tests.workshop import FILES, FRAME_LINES, Workshop, edit_cache, edit_json, frames_of, rewrite

is_valid = Draft202012Validator(json_schema()).is_valid


@pytest.fixture
def run(workshop: Workshop, tmp_path: Path) -> Run:
    """A complete run, with its cache, in a runs root of its own."""
    return workshop.copy(tmp_path / "runs")


@pytest.fixture
def archive(workshop: Workshop, tmp_path: Path) -> Iterator[Path]:
    """The archive; afterwards as it was."""
    shutil.copytree(workshop.archive, tmp_path / "saved")
    yield workshop.archive
    shutil.rmtree(workshop.archive)
    shutil.copytree(tmp_path / "saved", workshop.archive)


def kinds(report: Report) -> set[str]:
    return set(report.kinds)


def test_a_sound_run_has_no_problem_and_every_check_is_made(run: Run) -> None:
    report = verify_run(run.directory, archive=True, content=True)
    assert report.ok, report.findings
    assert (report.complete, report.notes) == (True, ())
    in_a_run: set[Check] = set(get_args(Check)) - {"log", "files", "reports"}
    assert set(report.checks) == in_a_run
    assert report.checks["records"] == f"{FILES} records in {FILES} lines"


def test_quiet_prints_problems_alone(run: Run, command: CommandLine) -> None:
    sound = command("verify", run.directory, "-q")
    assert (sound.code, sound.out, sound.err) == (0, "", "")
    edit_json(run.summary_path, lambda summary: summary["counts"].update(indexed=1))
    told = command("verify", run.directory, "--quiet")
    assert told.code == 11
    assert told.out.startswith("problem  summary")
    assert "ok  " not in told.out


def test_a_run_of_one_file_is_spoken_of_in_the_singular(tmp_path: Path, command: CommandLine) -> None:
    (tmp_path / "archive").mkdir()
    write_tone(tmp_path / "archive" / "kick.wav")
    create_stub(tmp_path / "model")
    settings = ("--runs-root", tmp_path / "runs", "--model", tmp_path / "model", "--workers", "1", "--quiet")
    assert command("infer", tmp_path / "archive", *settings).code == 0
    checks = verify_run(tmp_path / "runs", archive=True).checks
    assert checks["frames"].startswith("1 whole frame, ")
    assert checks["records"] == "1 record in 1 line"
    assert checks["paths"] == "1 path, one record each"
    assert checks["cache"] == "1 frame and 1 file of this run"
    assert checks["archive"].startswith("1 file by ")


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_run_of_any_compression_and_hash_is_sound(
    workshop: Workshop, tmp_path: Path, compression: Compression
) -> None:
    algorithm = {"gzip": "md5", "none": "sha256"}[compression]
    workshop.infer(tmp_path / "runs", compress_index=compression, hash_algorithm=algorithm)
    report = verify_run(tmp_path / "runs", content=True)
    assert report.ok, report.findings


def test_a_runs_root_stands_for_its_newest_run_and_an_older_one_stays_sound(
    workshop: Workshop, run: Run
) -> None:
    workshop.infer(run.directory.parent, misc=MiscSettings(threshold=0.9))
    older, newer = list_runs(run.directory.parent)
    assert verify_run(run.directory.parent).subject == str(newer)
    for directory in (older, newer):
        report = verify_run(directory)
        assert report.ok, report.findings


def test_an_unfinished_run_is_noted_and_its_torn_tail_is_no_problem(run: Run) -> None:
    run.summary_path.unlink()
    with open(run.index_path, "ab") as stream:
        stream.write(b"\x28\xb5\x2f\xfd torn")
    report = verify_run(run.directory)
    assert report.ok, report.findings
    assert report.complete is False
    assert {note.kind for note in report.notes} == {"unfinished", "torn_tail"}


def test_a_lone_index_is_verified_without_a_run(run: Run, tmp_path: Path) -> None:
    index = shutil.copy(run.index_path, tmp_path / "of another name")
    report = verify_run(index)
    assert report.ok
    assert set(report.checks) == {"frames", "records", "paths"}
    os.truncate(index, index.stat().st_size - 1)
    assert kinds(verify_run(index)) == {"torn_tail"}


def test_a_missing_cache_is_noted_only(run: Run) -> None:
    for path in run.directory.parent.glob("cache.sqlite*"):
        path.unlink()
    report = verify_run(run.directory)
    assert report.ok
    assert [note.kind for note in report.notes] == ["no_cache"]


@pytest.mark.parametrize("place", ["", "nowhere", "empty"])
def test_where_there_is_no_run_the_error_says_so(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexFormatError):
        verify_run(tmp_path / place)


def test_a_run_of_another_version_is_refused(run: Run) -> None:
    edit_json(run.directory / "run.json", lambda info: info.update(schema_version=2))
    with pytest.raises(IndexFormatError, match="version 2"):
        verify_run(run.directory)


@pytest.mark.parametrize(
    ("code", "helps"), [(errno.EACCES, "permissions"), (errno.EIO, "disk"), (errno.EMFILE, "ulimit -n")]
)
def test_what_the_system_does_not_let_be_read_is_not_called_damaged(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int, helps: str
) -> None:
    def refuse(path: Path, largest: int) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("drumline.verify.inspection.read_regular", refuse)
    with pytest.raises(IndexFormatError, match=os.strerror(code)) as refused:
        verify_run(run.directory)
    assert helps in refused.value.way_out


def unpacked(index: Path) -> bytes:
    """Return what an index holds; a flipped byte may choose another way to the same, and nothing is wrong."""
    return b"".join(part.data for part in scan(index, Codec("zstd")) if part.data and part.checked)


def test_every_flipped_byte_of_the_last_two_frames_is_found(run: Run, tmp_path: Path) -> None:
    content = run.index_path.read_bytes()[frames_of(run)[-2][0] :]
    index = tmp_path / "index.jsonl.zst"
    index.write_bytes(content)
    held = unpacked(index)
    with open(index, "r+b", buffering=0) as stream:
        for place, byte in enumerate(content):
            os.pwrite(stream.fileno(), bytes([byte ^ 0xFF]), place)
            sound = [part for part in scan(index, Codec("zstd")) if part.data and part.checked]
            covered = sum(part.length for part in sound)
            assert covered < len(content) or unpacked(index) == held, f"byte {place} is not found"
            assert len(sound) >= 1, f"byte {place} costs the other frame"
            os.pwrite(stream.fileno(), bytes([byte]), place)


def test_a_run_with_a_flipped_byte_is_not_called_sound(run: Run) -> None:
    content, held = run.index_path.read_bytes(), unpacked(run.index_path)
    start, end = frames_of(run)[-2]
    for place in (*range(start, start + 12), *range(start + 12, end, 97), *range(end - 4, end)):
        run.index_path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        if unpacked(run.index_path) != held:
            report = verify_run(run.directory)
            assert kinds(report) & {"damaged_frame", "no_checksum"}, f"byte {place}"
            assert "summary" in report.kinds or "no_checksum" in report.kinds


def test_an_index_cut_at_any_byte_is_not_called_sound(run: Run) -> None:
    content = run.index_path.read_bytes()
    ends = [end for _, end in frames_of(run)]
    for length in (*range(ends[-3], len(content), 41), ends[-2], ends[-2] + 1, len(content) - 1, 0):
        run.index_path.write_bytes(content[:length])
        report = verify_run(run.directory)
        torn = set() if length in (0, *ends) else {"torn_tail"}
        assert kinds(report) == {"summary", "cache", *torn}, f"cut at {length}"


def test_bytes_behind_the_last_frame_of_a_complete_run_are_a_torn_tail(run: Run) -> None:
    with open(run.index_path, "ab") as stream:
        stream.write(b"\0")
    assert kinds(verify_run(run.directory)) == {"torn_tail"}


def test_damage_in_the_middle_does_not_hide_what_is_behind(run: Run) -> None:
    content = bytearray(run.index_path.read_bytes())
    start, end = frames_of(run)[1]
    content[start : end - 1] = bytes(end - 1 - start)
    run.index_path.write_bytes(content)
    report = verify_run(run.directory)
    (finding,) = [finding for finding in report.findings if finding.kind == "damaged_frame"]
    assert (finding.where, finding.message) == (
        f"byte {start:,}",
        f"{end - start:,} bytes are no whole frame",
    )
    assert report.checks["records"].startswith(f"{FILES - FRAME_LINES} records")


def test_damage_of_an_unfinished_run_is_a_problem_where_the_cache_counts_on_it(run: Run) -> None:
    run.summary_path.unlink()
    content = bytearray(run.index_path.read_bytes())
    content[frames_of(run)[-1][0] + 20] ^= 0xFF
    run.index_path.write_bytes(content)
    assert kinds(verify_run(run.directory)) == {"torn_tail", "cache"}


def test_a_complete_run_without_an_index_is_named(run: Run) -> None:
    run.index_path.unlink()
    assert "index_missing" in verify_run(run.directory).kinds


def test_every_record_that_infer_writes_is_a_record(workshop: Workshop, run: Run) -> None:
    assert [record_trouble(record) for record in read_index(run.index_path)] == [""] * FILES


_ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 2), st.floats(-1, 2), st.text(max_size=3)),
    *(
        st.just([]),
        st.just({}),
        st.just([{"label": "x", "prob": 2}]),
        st.just({"type": "odd", "message": ""}),
    ),
    st.just({"type": ["timeout"], "message": ""}),
    st.just({"Kick": 7}),
)


@given(records, st.sampled_from([*make_record(), "surplus"]), _ANYTHING)
def test_what_the_schema_refuses_is_no_record(record: Any, name: str, value: Any) -> None:
    assert record_trouble(record) == ""
    changed = orjson.loads(orjson.dumps({**record, name: value}))
    assert record_trouble(changed) or is_valid(changed)
    if name in record:
        del record[name]
        assert record_trouble(record)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 2**63},
        {"relative_path": "../../etc/passwd"},
        {"relative_path": "/etc/passwd"},
        {"relative_path": ""},
        {"relative_path_b64": "no base64!"},
        {"probs": None},
        {"errors": {"type": "timeout", "message": ""}},
        {"probs": {"NoSuchLabel": 1.0}, "label_top1": "NoSuchLabel"},
    ],
)
def test_a_line_that_makes_no_sense_is_named_by_its_place(run: Run, changes: dict[str, Any]) -> None:
    def change(found: list[Record]) -> list[Record]:
        place = next(n for n, record in enumerate(found) if n > FRAME_LINES and record["probs"])
        return [*found[:place], {**found[place], **changes}, *found[place + 1 :]]  # type: ignore[typeddict-item,list-item]

    rewrite(run, change)
    report = verify_run(run.directory)
    assert "bad_record" in report.kinds
    (finding,) = [finding for finding in report.findings if finding.kind == "bad_record"]
    assert finding.where.startswith(f"frame at byte {frames_of(run)[1][0]:,}, line")


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[1]\n", b"not json\n", b'{"schema_version": 2}\n'])
def test_a_line_that_is_no_record_is_named(run: Run, line: bytes) -> None:
    with open(run.index_path, "ab") as stream:
        stream.write(Codec("zstd").compress(line))
    assert "bad_record" in verify_run(run.directory).kinds


def test_a_doubled_record_is_named_by_its_path(run: Run) -> None:
    rewrite(run, lambda found: [*found, found[3]])
    report = verify_run(run.directory)
    (finding,) = [finding for finding in report.findings if finding.kind == "double_record"]
    assert finding.where == next(
        record["relative_path"] for n, record in enumerate(read_index(run.index_path)) if n == 3
    )


def test_many_doubles_are_counted_although_few_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drumline.verify.inspection.FINDINGS_KEPT", 5)
    rewrite(run, lambda found: [*found, *found])
    report = verify_run(run.directory)
    assert report.counts["paths", "double_record"] == FILES
    assert sum(finding.kind == "double_record" for finding in report.findings) == 5


def test_superseded_records_of_an_unfinished_run_are_no_problem(run: Run) -> None:
    run.summary_path.unlink()
    (run.directory.parent / "cache.sqlite").unlink()
    rewrite(run, lambda found: [*found, found[3]])
    assert verify_run(run.directory).ok


def test_a_decision_that_was_changed_is_named(run: Run) -> None:
    def change(found: list[Record]) -> list[Record]:
        place = next(n for n, record in enumerate(found) if record["probs"])
        found[place]["assigned_label"] = "Gong"
        return found

    rewrite(run, change)
    report = verify_run(run.directory)
    (finding,) = [finding for finding in report.findings if finding.kind == "other_decision"]
    assert finding.message.startswith("assigned_label is 'Gong', not ")


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary["counts"].update(indexed=FILES - 1),
        lambda summary: summary["counts"].update(discovered=FILES + 1),
        lambda summary: summary["counts"].update(failed=0),
        lambda summary: summary["counts"].update(classified=-1),
        lambda summary: summary["counts"].clear(),
        lambda summary: summary["labels"].update(Gong=1),
        lambda summary: summary["mean_confidence"].update({next(iter(summary["labels"])): 0.123}),
        lambda summary: summary.update(total_duration_sec=1),
        lambda summary: summary.update(complete=False),
        lambda summary: summary["model"].update(fingerprint="other"),
        lambda summary: summary.pop("errors"),
        lambda summary: summary.clear(),
    ],
)
def test_a_summary_that_was_changed_is_named(run: Run, change: Callable[[Any], Any]) -> None:
    edit_json(run.summary_path, change)
    assert kinds(verify_run(run.directory)) == {"summary"}


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}", b'{"counts": 3}', b"\xff\xfe"])
def test_a_summary_that_cannot_be_read_is_named(run: Run, content: bytes) -> None:
    run.summary_path.write_bytes(content)
    assert kinds(verify_run(run.directory)) == {"summary"}


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"[]", b"{}", b'{"schema_version": 1, "index": "../x", "archive_root": ""}']
)
def test_a_run_json_that_cannot_be_read_is_named(run: Run, content: bytes) -> None:
    (run.directory / "run.json").write_bytes(content)
    for path in (run.directory, run.index_path, run.directory.parent):
        report = verify_run(path)
        assert kinds(report) == {"run_json"}
        assert report.checks["records"].startswith(f"{FILES} records")


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["settings"]["misc"].update(threshold=0.4),
        lambda info: info["settings"]["misc"].update(gate_threshold=0.4),
        lambda info: info["settings"].update(top_k=5),
        lambda info: info["settings"].update(top_k="five"),
        lambda info: info["settings"].update(compress_index="gzip"),
        lambda info: info["settings"].pop("misc"),
        lambda info: info.update(settings=7),
        lambda info: info.update(canonical_map={}),
        lambda info: info.update(canonical_map=dict.fromkeys(info["canonical_map"], "Kick")),
        lambda info: info["model"]["labels"].reverse(),
        lambda info: info.update(archive_root="/elsewhere"),
    ],
)
def test_a_run_json_that_was_changed_is_named(run: Run, change: Callable[[Any], Any]) -> None:
    edit_json(run.directory / "run.json", change)
    assert kinds(verify_run(run.directory)) == {"run_json"}


def test_a_key_in_run_json_that_is_not_the_caches_is_found(run: Run) -> None:
    edit_json(run.directory / "run.json", lambda info: info.update(inference_key="other"))
    assert kinds(verify_run(run.directory)) == {"cache"}


# --- cache

_CACHE_EDITS = (
    "UPDATE frame SET offset = offset + 1 WHERE id = 1",
    "UPDATE frame SET length = length - 1 WHERE id = 2",
    "UPDATE frame SET length = 1 << 50 WHERE id = 2",
    "UPDATE frame SET offset = -1 WHERE id = 2",
    "UPDATE frame SET lines = lines + 1 WHERE id = 3",
    "UPDATE frame SET offset = 'x' WHERE id = 1",
    "UPDATE frame SET tally = (SELECT tally FROM frame WHERE id = 2) WHERE id = 1",
    "UPDATE frame SET tally = 'x' WHERE id = 1",
    "UPDATE file SET size = size + 1 WHERE line = 3",
    "UPDATE file SET mtime_ns = mtime_ns + 1 WHERE line = 3",
    "UPDATE file SET hash = 'other' WHERE line = 3",
    "UPDATE file SET failed = 1 WHERE line = 3",
    "UPDATE file SET line = line + 1 WHERE line = 3",
    "UPDATE file SET line = 511 WHERE line = 3",
    "UPDATE file SET frame = 1 WHERE frame = 2",
    "DELETE FROM file WHERE line = 3",
    "UPDATE directory SET path = path || 'x' WHERE id = 1",
    "UPDATE run SET valid = valid + 1",
    "UPDATE run SET valid = valid - 1",
    "UPDATE run SET decision_key = 'other'",
    "UPDATE scope SET inference_key = 'other'",
    "UPDATE scope SET archive = x'00'",
    "UPDATE seal SET digest = x'00'",
    "UPDATE seal SET failures = 7",
    "UPDATE seal SET failures = -1",
    "UPDATE seal SET coarse_ns = 9223372036854775807",
    "UPDATE file SET name = CAST(name AS TEXT)",
    "DROP TABLE seal",
    "DROP TRIGGER file_changed",
    "UPDATE seal SET places = 'x'",
    "UPDATE seal SET places = substr(places, 1, 70)",
)


@pytest.mark.parametrize("statement", _CACHE_EDITS)
def test_a_row_of_the_cache_that_is_not_as_the_index_says_is_found(run: Run, statement: str) -> None:
    edit_cache(run, statement)
    assert kinds(verify_run(run.directory)) == {"cache"}


def test_a_cache_that_is_no_database_is_found(run: Run) -> None:
    path = run.directory.parent / "cache.sqlite"
    path.write_bytes(b"garbage" * 1000)
    assert kinds(verify_run(run.directory)) == {"cache"}


def test_a_page_of_zeros_in_the_cache_is_found(run: Run) -> None:
    path = run.directory.parent / "cache.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 4] = bytes(4096 * 3)
    path.write_bytes(content)
    assert kinds(verify_run(run.directory)) == {"cache"}


def test_verify_leaves_no_trace(run: Run) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.directory.parent.rglob("*")}

    before = state()
    assert verify_run(run.directory, archive=True).ok
    assert state() == before


def test_a_cache_that_somebody_has_open_is_compared_with_its_log(run: Run) -> None:
    with closing(sqlite3.connect(run.directory.parent / "cache.sqlite")) as database:
        with database:
            database.execute("UPDATE file SET size = size + 1 WHERE line = 3")
        assert kinds(verify_run(run.directory)) == {"cache"}


def first_sound(run: Run) -> Record:
    return next(record for record in read_index(run.index_path) if record["probs"] and record["size"] > 100)


def test_files_that_are_gone_or_changed_are_named(run: Run, archive: Path) -> None:
    gone, larger, touched = [
        r for r in read_index(run.index_path) if r["probs"] and not r["relative_path_b64"]
    ][:3]
    os.remove(archive / gone["relative_path"])
    with open(archive / larger["relative_path"], "ab") as stream:
        stream.write(b"more")
    os.utime(archive / touched["relative_path"], ns=(0, touched["mtime_ns"] + 1))
    report = verify_run(run.directory, archive=True)
    assert {(finding.kind, finding.where) for finding in report.findings} == {
        ("missing", gone["relative_path"]),
        ("changed", larger["relative_path"]),
        ("changed", touched["relative_path"]),
    }
    assert verify_run(run.directory).ok


def test_other_content_of_the_same_size_and_time_is_found_by_hash_alone(run: Run, archive: Path) -> None:
    record = first_sound(run)
    path = os.path.join(os.fsencode(archive), relative_path(record))
    with open(path, "r+b") as stream:
        stream.seek(60)
        stream.write(b"\x55" * 8)
    os.utime(path, ns=(0, record["mtime_ns"]))
    assert verify_run(run.directory, archive=True).ok
    report = verify_run(run.directory, content=True)
    assert [(finding.kind, finding.where) for finding in report.findings] == [
        ("content", record["relative_path"])
    ]


def test_a_fifo_in_a_files_place_is_a_change_and_no_wait(run: Run, archive: Path) -> None:
    path = os.path.join(os.fsencode(archive), relative_path(first_sound(run)))
    os.remove(path)
    os.mkfifo(path)
    assert kinds(verify_run(run.directory, content=True)) == {"changed"}
    os.remove(path)


@pytest.mark.parametrize("work", ["verify", "repair"])
def test_a_fifo_in_the_indexs_place_is_an_index_that_is_missing_and_no_wait(
    run: Run, command: CommandLine, work: str
) -> None:
    run.index_path.unlink()
    os.mkfifo(run.index_path)
    begun = time.monotonic()
    told = command(work, run.directory)
    assert time.monotonic() - begun < 20
    assert told.code == (11 if work == "verify" else 0), told.err
    assert ("is not there" if work == "verify" else "are lost") in told.out


def test_an_archive_that_is_not_mounted_is_no_archive_of_missing_files(tmp_path: Path) -> None:
    run = make_run(tmp_path, [make_record()])
    assert "run_json" in verify_run(run.directory).kinds
    with pytest.raises(ArchiveError, match="Mount"):
        verify_run(run.directory, archive=True)


@pytest.fixture(params=["copy", "hardlink", "symlink"])
def tree(request: pytest.FixtureRequest, run: Run, archive: Path, tmp_path: Path) -> tuple[Path, str]:
    """A rebuilt tree, and its copy mode."""
    out = tmp_path / "out"
    with plan_rebuild(RebuildSettings(run.directory, out=out, copy_mode=request.param)) as plan:
        execute(plan)
    return out, request.param


def files_of(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*.wav") if not os.fsdecode(path.name).startswith("_"))


def test_a_sound_tree_has_no_problem(tree: tuple[Path, str]) -> None:
    report = verify_tree(tree[0], content=True)
    assert report.ok, report.findings
    assert set(report.checks) == {"log", "files", "reports"}
    assert report.notes == ()


def test_missing_and_edited_files_and_reports_of_a_tree_are_named(tree: tuple[Path, str]) -> None:
    out, _ = tree
    gone, edited, *_ = files_of(out)
    gone.unlink()
    edited.unlink()
    edited.write_bytes(b"other")
    (out / "_stats.json").unlink()
    (out / "_rebuild_summary.json").write_text("{}")
    report = verify_tree(out)
    assert {(finding.check, finding.kind, finding.where) for finding in report.findings} == {
        ("files", "missing", str(gone.relative_to(out))),
        ("files", "changed", str(edited.relative_to(out))),
        ("reports", "missing", "_stats.json"),
        ("reports", "changed", "_rebuild_summary.json"),
    }


def test_a_report_that_may_not_be_read_is_a_finding(
    tree: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("drumline.rebuild.manifests.content_hash", refuse)
    report = verify_tree(tree[0])
    assert {(finding.check, finding.kind) for finding in report.findings} == {("reports", "unreadable")}


def test_files_that_somebody_added_to_a_tree_are_noted_only(tree: tuple[Path, str]) -> None:
    out, _ = tree
    mine = files_of(out)[0].with_name("mine.wav")
    mine.write_bytes(b"x")
    (out / "Mine" / "deep").mkdir(parents=True)
    (out / "Mine" / "deep" / "too.wav").write_bytes(b"x")
    report = verify_tree(out)
    assert report.ok
    assert {note.where for note in report.notes} == {str(mine.relative_to(out)), "Mine"}


def test_what_a_tree_has_of_a_file_that_changed_in_the_archive(tree: tuple[Path, str], archive: Path) -> None:
    out, mode = tree
    path = next(path for path in files_of(out))
    lines = map(json.loads, (out / "_mapping.jsonl").read_bytes().splitlines())
    source = Path(next(line["source"] for line in lines if line.get("target") == str(path.relative_to(out))))
    content = source.read_bytes()
    source.unlink()
    expected = {"copy": set(), "hardlink": set(), "symlink": {"missing"}}[mode]
    report = verify_tree(out)
    assert (kinds(report), {note.kind for note in report.notes}) == (
        expected,
        {"last_copy"} if mode == "hardlink" else set(),
    )
    source.write_bytes(content)
    expected = {"copy": set(), "hardlink": {"not_linked"}, "symlink": {"changed"}}[mode]
    assert kinds(verify_tree(out)) == expected


def test_other_content_in_a_tree_is_found_by_hash_alone(tree: tuple[Path, str]) -> None:
    out, _ = tree
    path = files_of(out)[0]
    before = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(60)
        stream.write(b"\x55" * 8)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verify_tree(out).ok
    report = verify_tree(out, content=True)
    assert kinds(report) == {"content"}
    assert str(path.relative_to(out)) in {finding.where for finding in report.findings}


def test_a_link_that_leads_elsewhere_is_a_change(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with plan_rebuild(RebuildSettings(run.directory, out=out, copy_mode="symlink")) as plan:
        execute(plan)
    path = files_of(out)[0]
    path.unlink()
    path.symlink_to("/etc/passwd")
    (finding,) = verify_tree(out).findings
    assert (finding.kind, finding.message) == ("changed", "leads to /etc/passwd")


def test_a_mapping_log_that_makes_no_sense_is_a_problem_and_a_torn_one_is_not(
    run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with plan_rebuild(RebuildSettings(run.directory, out=out, copy_mode="hardlink")) as plan:
        execute(plan)
    with open(out / "_mapping.jsonl", "ab") as stream:
        stream.write(b'{"action": "ma')
    assert {note.kind for note in verify_tree(out).notes} == {"torn_tail"}
    with open(out / "_mapping.jsonl", "ab") as stream:
        stream.write(b"\n")
    assert kinds(verify_tree(out)) == {"log"}


def test_a_directory_that_drumline_did_not_make_is_no_tree(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was not made by drumline"):
        verify_tree(tmp_path)


def test_the_document_names_every_check_and_kind() -> None:
    text = (Path(__file__).parents[1] / "docs" / "verify.md").read_text()
    assert [name for name in (*get_args(Check), *get_args(Kind)) if f"`{name}`" not in text] == []


def test_the_command_prints_a_line_for_each_check(command: CommandLine, run: Run) -> None:
    outcome = command("verify", run.directory)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["ok", check] for check in ("run.json", "frames", "records", "paths", "decisions", "summary", "cache")
    ]


def test_the_command_names_problems_and_exits_with_11(command: CommandLine, run: Run) -> None:
    run.summary_path.write_text("{}")
    edit_cache(run, "UPDATE file SET size = size + 1 WHERE line = 3")
    outcome = command("verify", run.directory)
    assert outcome.code == 11
    assert "problem  summary    1 found" in outcome.out
    assert "summary: summary.json: is no summary of a run" in outcome.out
    assert "drumline repair" in outcome.err


def test_the_command_gives_json_and_nothing_else_on_stdout(command: CommandLine, run: Run) -> None:
    assert command("verify", run.directory, "--json").json()["ok"] is True
    os.truncate(run.index_path, run.index_path.stat().st_size - 1)
    outcome = command("verify", run.directory, "--json")
    assert outcome.code == 11
    report = outcome.json()
    assert (report["ok"], report["complete"]) == (False, True)
    assert {"check": "frames", "kind": "torn_tail", "count": 1} in report["problems"]
    assert {"check", "kind", "where", "message"} == set(report["findings"][0])


def test_the_command_tells_a_tree_from_a_run(command: CommandLine, tree: tuple[Path, str]) -> None:
    out, _ = tree
    assert command("verify", out, "--hash").code == 0
    files_of(out)[0].unlink()
    outcome = command("verify", out)
    assert outcome.code == 11
    assert "missing" in outcome.out
    assert "drumline rebuild" in outcome.err
    assert command("verify", out, "--archive").code == 2


def test_the_command_exits_with_7_where_there_is_no_run(command: CommandLine, tmp_path: Path) -> None:
    assert command("verify", tmp_path).code == 7


def test_control_characters_of_a_hostile_path_do_not_reach_the_terminal(
    command: CommandLine, run: Run
) -> None:
    line = encode_record(make_record(b"evil\x1b[2J.wav", {"Kick": 0.9}, assigned_label="Gong"))
    with open(run.index_path, "ab") as stream:
        stream.write(Codec("zstd").compress(line * 2))
    outcome = command("verify", run.directory)
    assert outcome.code == 11
    assert "\x1b[2J" not in outcome.out


@pytest.mark.parametrize("garbage", [b"\0" * 1000 + b"\n", b"\0" * (3 << 19) + b"\n", b"\0" * (3 << 19)])
def test_a_scan_of_plain_lines_goes_on_behind_garbage_of_any_length(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "index.jsonl"
    lines = [encode_record(make_record(b"%d.wav" % number)) for number in range(600)]
    path.write_bytes(b"".join(lines[:10]) + garbage + b"".join(lines[10:]))
    parts = list(scan(path, Codec("none")))
    assert sum(part.length for part in parts) == path.stat().st_size
    found = b"".join(part.data or b"" for part in parts).splitlines(keepends=True)
    assert set(lines[:10] + lines[11:]) <= set(found)


def test_a_plain_line_of_the_largest_length_is_read_by_a_scan_as_by_anybody(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_BYTES - 1) + b"\n")
    assert [part.data for part in scan(path, Codec("none"))] == [path.read_bytes()]
