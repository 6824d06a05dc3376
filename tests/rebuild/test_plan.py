from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import orjson
import pytest

from drumline.bundle import Gate, load_bundle
from drumline.errors import ConfigError, IndexFormatError, OutputError
from drumline.index import Frame, measured_frames
from drumline.rebuild import (
    Action,
    Plan,
    RebuildSettings,
    collect,
    execute,
    plan_rebuild,
)
from tests.making import CANONICAL_OF, make_bundle, write_index
from tests.rebuild.archives import CLAP, HIHAT, KICK, SETTINGS, SNARE, Archive, redecided, snapshot


def mapping(plan: Plan) -> list[tuple[bytes, bytes, str]]:
    return [(action.source, action.target, action.state) for action in plan.actions()]


@pytest.mark.parametrize("layout", ["mirror", "flat"])
@pytest.mark.parametrize("dedup", ["keep-all", "first"])
def test_the_plan_does_not_depend_on_the_order_of_the_records(
    archive: Archive, layout: str, dedup: str
) -> None:
    for number, name in enumerate([b"a/X.wav", b"a/x.wav", b"A/x.wav", b"b x.wav", b"b-x.wav", b"a/x.WAV"]):
        archive.add(name, [KICK, SNARE][number % 2], content=b"same" if number > 3 else None)
    plans = []
    for seed in range(5):
        records = list(archive.records)
        random.Random(seed).shuffle(records)
        with archive.plan(archive.run(records), layout=layout, dedup=dedup) as plan:
            plans.append(mapping(plan))
    assert all(plan == plans[0] for plan in plans)


def test_a_plan_writes_nothing(drums: Archive) -> None:
    run = drums.run()
    before = snapshot(os.fsencode(drums.base))
    with drums.plan(run) as plan:
        assert plan.files == 5
        assert len(list(plan.actions())) == 5
    assert snapshot(os.fsencode(drums.base)) == before


def test_what_is_planned_is_what_is_done(drums: Archive) -> None:
    drums.add(b"gone.wav")
    os.remove(drums.path(b"gone.wav"))
    with drums.plan() as plan:
        planned = [action for action in plan.actions() if action.state == "make"]
        counts = dict(plan.counts)
        summary = execute(plan)
    assert {action.target for action in planned} == set(drums.tree())
    assert summary.counts["made"] == counts["make"] == 5
    assert summary.counts["missing"] == counts["missing"] == 1


def test_wanted_labels_send_the_others_to_misc(drums: Archive) -> None:
    drums.rebuild(labels=("Kick", "Hihat"))
    assert {path.split(b"/")[0] for path in drums.tree()} == {b"Kick", b"Hihat", b"misc"}
    assert b"misc/Vendor A/snare.wav" in drums.tree()


def test_allow_all_undoes_the_runs_own_choice(drums: Archive) -> None:
    chosen = {**SETTINGS, "target_labels": ["Kick"]}
    records = [
        {**record, "assigned_label": "misc"} if record["assigned_label"] != "Kick" else record
        for record in drums.records
    ]
    run = drums.run(records, settings=chosen)
    drums.rebuild(run)
    assert {path.split(b"/")[0] for path in drums.tree()} == {b"Kick", b"misc"}
    drums.rebuild(run, allow_all=True)
    assert {path.split(b"/")[0] for path in drums.tree()} == {b"Kick", b"Snare", b"Hihat", b"misc"}


def test_another_threshold_decides_anew(drums: Archive) -> None:
    drums.rebuild(threshold=0.85)
    assert {path.split(b"/")[0] for path in drums.tree()} == {b"Kick", b"misc"}
    drums.rebuild(threshold=0.0)
    assert {path.split(b"/")[0] for path in drums.tree()} == {b"Kick", b"Snare", b"Hihat", b"misc"}


@pytest.mark.parametrize("wrong", [{"labels": ("Kik",)}, {"threshold": 1.5}])
def test_unknown_labels_and_impossible_thresholds_are_named(drums: Archive, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"Kik|1\.5"):
        drums.plan(**wrong)


def overrides(archive: Archive, *lines: str) -> Path:
    path = archive.base / "corrections.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_corrections_move_every_file_of_that_content(archive: Archive) -> None:
    record = archive.add(b"a.wav", KICK, b"same")
    archive.add(b"b.wav", KICK, b"same")
    archive.add(b"c.wav", KICK)
    path = overrides(
        archive, f'{{"hash": "{record["hash"]}", "correct_label": "Rim", "note": "a rim shot"}}', ""
    )
    summary = archive.rebuild(overrides=path)
    assert set(archive.tree()) == {b"Snare/a.wav", b"Snare/b.wav", b"Kick/c.wav"}
    assert summary.counts["overridden"] == 2


def test_a_correction_to_a_label_that_is_not_wanted_goes_to_misc(archive: Archive) -> None:
    record = archive.add(b"a.wav", KICK)
    path = overrides(archive, f'{{"hash": "{record["hash"]}", "correct_label": "Snare"}}')
    archive.rebuild(overrides=path, labels=("Kick",))
    assert set(archive.tree()) == {b"misc/a.wav"}


def test_a_correction_may_say_misc_where_the_run_calls_it_otherwise(archive: Archive) -> None:
    record = archive.add(b"a.wav", KICK)
    settings = {**SETTINGS, "misc": {"threshold": 0.5, "label": "rest"}}
    run = archive.run(settings=settings, canonical_map={**CANONICAL_OF, "Clap": "rest"})
    path = overrides(archive, f'{{"hash": "{record["hash"]}", "correct_label": "misc"}}')
    archive.rebuild(run, overrides=path)
    assert set(archive.tree()) == {b"rest/a.wav"}


def test_corrections_may_begin_with_a_byte_order_mark(archive: Archive) -> None:
    record = archive.add(b"a.wav", KICK)
    path = overrides(archive, f'\ufeff{{"hash": "{record["hash"]}", "correct_label": "Snare"}}')
    archive.rebuild(overrides=path)
    assert set(archive.tree()) == {b"Snare/a.wav"}


def test_corrections_that_are_no_regular_file_are_refused_with_a_way_out(archive: Archive) -> None:
    archive.add(b"a.wav", KICK)
    pipe = archive.base / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="Give a regular file"):
        archive.plan(overrides=pipe)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: hash is missing"),
        ('{"hash": "HASH"}', "line 2: correct_label is missing"),
        ('{"hash": 7, "correct_label": "Kick"}', "line 2: hash is missing"),
        ('{"hash": "HASH", "correct_label": "Kik"}', "line 2: unknown label 'Kik'"),
        ('{"hash": "nope", "correct_label": "Kick"}', "line 2: no file of the index has the hash 'nope'"),
        ('{"hash": "HASH", "correct_label": "Snare"}', "'Kick' in line 1"),
        ('{"note": "' + "x" * (1 << 20) + '"}', "line 2: longer than"),
    ],
)
def test_a_wrong_correction_names_file_and_line(archive: Archive, line: str, complaint: str) -> None:
    record = archive.add(b"a.wav", KICK)
    first = f'{{"hash": "{record["hash"]}", "correct_label": "Kick"}}'
    path = overrides(archive, first, line.replace("HASH", str(record["hash"])))
    with pytest.raises(ConfigError, match=complaint) as error:
        archive.plan(overrides=path)
    assert str(path) in error.value.what
    assert not archive.out.exists()


def test_a_missing_overrides_file_is_named(drums: Archive) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl"):
        drums.plan(overrides=drums.base / "nowhere.jsonl")


def test_dedup_keeps_the_first_by_path(archive: Archive) -> None:
    for name in (b"z.wav", b"a/y.wav", b"m.wav"):
        archive.add(name, KICK, b"same")
    archive.add(b"other.wav", KICK)
    archive.add(b"unhashed.wav", KICK, hash=None)
    summary = archive.rebuild(dedup="first")
    assert set(archive.tree()) == {b"Kick/a/y.wav", b"Kick/other.wav", b"Kick/unhashed.wav"}
    assert summary.counts["duplicate"] == 2


def test_a_record_that_stands_twice_is_placed_once(archive: Archive) -> None:
    record = archive.add(b"a.wav", KICK)
    archive.records += [record, record]
    summary = archive.rebuild()
    assert set(archive.tree()) == {b"Kick/a.wav"}
    assert summary.counts["duplicate_record"] == 2


def test_a_lone_index_is_rebuilt_as_it_was_decided(drums: Archive) -> None:
    run = drums.run()
    lone = drums.base / "lone.jsonl.zst"
    lone.write_bytes(run.index_path.read_bytes())
    with plan_rebuild(RebuildSettings(lone, drums.out)) as plan:
        assert plan.archive_root == drums.root
        assert "no run.json" in plan.warnings[0]
        execute(plan)
    assert len(drums.tree()) == 5


def test_a_lone_index_is_decided_anew_with_the_default_bundles_mapping(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [redecided(record, "Kick") for record in drums.records if not record["errors"]]
    lone = drums.base / "lone.jsonl.zst"
    lone.write_bytes(drums.run(records).index_path.read_bytes())
    make_bundle(drums.base / "models" / "mfcc-cnn")
    monkeypatch.chdir(drums.base)
    with plan_rebuild(RebuildSettings(lone, drums.out, labels=("Snare",))) as plan:
        assert {label for label, total in plan.labels.items() if total.files} == {"misc"}


def test_a_moved_archive_is_found_where_it_is_now(drums: Archive) -> None:
    run = drums.run()
    moved = drums.base / "moved"
    os.rename(drums.root, moved)
    summary = drums.rebuild(run, archive_root=moved)
    assert summary.counts["made"] == 5


def test_an_unfinished_run_is_warned_about(drums: Archive) -> None:
    run = drums.run()
    run.summary_path.unlink()
    with drums.plan(run) as plan:
        assert "not complete" in plan.warnings[0]


def test_an_empty_index_makes_an_empty_tree(archive: Archive) -> None:
    summary = archive.rebuild()
    assert summary.counts["planned"] == 0
    assert (archive.out / "_manifests" / "errors.txt").read_bytes() == b""


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "x"},
        {"size": -1},
        {"size": 2**63},
        {"mtime_ns": 0.5},
        {"hash": 7},
        {"assigned_label": 7},
        {"assigned_label": None},
        {"relative_path": 7},
        {"errors": "x"},
        {"assigned_conf": -1e308},
        {"assigned_conf": 1e308},
        {"probs": {"Unheard": 1.0}},
        {"probs": [1]},
    ],
)
def test_a_record_that_makes_no_sense_is_named_and_nothing_written(
    drums: Archive, changes: dict[str, object]
) -> None:
    drums.records.append({**drums.records[0], **changes})  # type: ignore[typeddict-item]
    run = drums.run()
    with pytest.raises(IndexFormatError):
        drums.plan(run, threshold=0.1 if "probs" in changes else None)
    assert not drums.out.exists()


def test_a_run_without_settings_is_named(drums: Archive) -> None:
    with pytest.raises(IndexFormatError, match="settings"):
        drums.plan(drums.run(settings={}), threshold=0.1)


def test_every_action_is_counted_once(drums: Archive) -> None:
    drums.add(b"gone.wav", HIHAT)
    os.remove(drums.path(b"gone.wav"))
    with drums.plan() as plan:
        states = [action.state for action in plan.actions()]
        assert {state: states.count(state) for state in set(states)} == {"make": 5, "missing": 1}
        assert isinstance(next(plan.actions()), Action)
        assert next(plan.actions()).label == "Hihat"
        assert plan.to_json()["labels"]["misc"] == {"files": 1, "bytes": 200}


def test_files_are_planned_label_by_label_in_the_order_of_directories(archive: Archive) -> None:
    for name in (b"b/2.wav", b"a.wav", b"b/1.wav", b"b-/1.wav"):
        archive.add(name, CLAP)
    archive.add(b"b/0.wav", KICK)
    with archive.plan() as plan:
        assert [action.target for action in plan.actions()] == [
            b"Kick/b/0.wav",
            b"misc/a.wav",
            b"misc/b/1.wav",
            b"misc/b/2.wav",
            b"misc/b-/1.wav",
        ]


def test_of_two_records_of_one_file_the_last_in_the_index_counts(archive: Archive) -> None:
    record = archive.add(b"kick.wav", KICK)
    archive.records.append(redecided(record, "Snare"))
    with archive.plan() as plan:
        assert [path for kind, path, _ in plan.problems() if kind == "duplicate_record"] == [b"kick.wav"]
        execute(plan)
    assert set(archive.tree()) == {b"Snare/kick.wav"}


def test_a_later_record_takes_the_place_of_a_failure_and_the_other_way_round(archive: Archive) -> None:
    archive.index(b"late.wav", error="timeout", hash=None)
    archive.add(b"late.wav", KICK)
    record = archive.add(b"bad.wav", KICK)
    archive.index(b"bad.wav", error="decode_error", hash=None, size=record["size"])
    summary = archive.rebuild()
    assert set(archive.tree()) == {b"Kick/late.wav"}
    assert (summary.counts["failed"], summary.counts["duplicate_record"]) == (1, 2)


def test_labels_that_differ_by_case_share_a_directory_and_a_manifest(archive: Archive) -> None:
    for name, label in ((b"a.wav", "Kick"), (b"b.wav", "kick"), (b"c\xff.wav", "kick")):
        archive.add(name, KICK)
        archive.records[-1]["assigned_label"] = label
    archive.rebuild()
    assert set(archive.tree()) == {b"Kick/a.wav", b"Kick/b.wav", b"Kick/c\xff.wav"}
    assert {path.name for path in (archive.out / "_manifests").iterdir()} == {"Kick.txt", "errors.txt"}


def test_what_a_person_said_is_counted_as_that(archive: Archive) -> None:
    record = archive.add(b"kick.wav", KICK)
    archive.add(b"other.wav", KICK)
    path = overrides(archive, f'{{"hash": "{record["hash"]}", "correct_label": "Snare"}}')
    for wanted, label in ((None, "Snare"), (("Kick",), "misc")):
        with archive.plan(overrides=path, labels=wanted) as plan:
            assert plan.tally.reasons == {"override": 1, "top1": 1}
            assert plan.tally.labels == {label: 1, "Kick": 1}


@pytest.mark.parametrize("given", ["run", "index"])
def test_a_complete_run_that_was_cut_is_refused_by_its_index_too(drums: Archive, given: str) -> None:
    run = drums.run()
    run.summary_path.write_text('{"counts": {"indexed": 7}}')
    source = run.directory if given == "run" else run.index_path
    with pytest.raises(IndexFormatError, match="holds 6 records, its summary 7"):
        plan_rebuild(RebuildSettings(source, drums.out))


def test_a_lone_index_in_a_directory_whose_name_is_no_utf8_is_rebuilt(drums: Archive) -> None:
    lone = drums.base / os.fsdecode(b"idx\xff")
    lone.mkdir()
    index = lone / "index.jsonl.zst"
    shutil.copy(drums.run().index_path, index)
    with plan_rebuild(RebuildSettings(index, drums.out)) as plan:
        execute(plan)
    assert len(drums.tree()) == 5


@pytest.mark.parametrize("lone", [True, False])
def test_a_gate_that_the_model_does_not_have_is_refused(drums: Archive, lone: bool) -> None:
    run = drums.run()
    index = drums.base / run.index_path.name
    shutil.copy(run.index_path, index)
    with pytest.raises(ConfigError, match=f"the {'default bundle' if lone else 'model of run'}.*no gate"):
        plan_rebuild(RebuildSettings(index if lone else run.directory, drums.out, gate=True))


def test_a_lone_index_takes_the_gate_of_the_default_bundle(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = replace(load_bundle(), gate=Gate("gate", 0.25))
    monkeypatch.setattr("drumline.bundle.load_bundle", lambda: bundle)
    index = drums.base / "index.jsonl.zst"
    shutil.copy(drums.run().index_path, index)
    with plan_rebuild(RebuildSettings(index, drums.out, gate=True)) as plan:
        assert plan.decisions is not None
        assert plan.decisions.gate_threshold == 0.25


@pytest.mark.parametrize(
    ("reader", "suffix"),
    [("measured_frames", ".jsonl.zst"), ("read_frame", ".jsonl.zst"), ("read_frames", ".jsonl")],
)
def test_an_index_that_cannot_be_read_is_named(
    drums: Archive, monkeypatch: pytest.MonkeyPatch, reader: str, suffix: str
) -> None:
    index = drums.base / f"index{suffix}"
    write_index(index, drums.records)

    def broken(*_: object) -> Iterator[Frame]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(collect, reader, broken)
    with pytest.raises(IndexFormatError, match=r"cannot read .*index.*Input/output error"):
        plan_rebuild(RebuildSettings(index, drums.out))


def test_other_errors_are_not_called_errors_of_the_index(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory for helpers")

    monkeypatch.setattr(collect, "helpers_for", full)
    with pytest.raises(OutputError, match="no memory for helpers"):
        drums.plan()


@pytest.mark.parametrize("measured", [0, 1, 2])
def test_frames_whose_end_cannot_be_told_are_read_like_the_others(
    drums: Archive, monkeypatch: pytest.MonkeyPatch, measured: int
) -> None:
    run = drums.run()
    with drums.plan(run) as plan:
        actions, tally = list(plan.actions()), plan.tally
    monkeypatch.setattr(collect, "measured_frames", lambda path: islice(measured_frames(path), measured))
    with drums.plan(run) as plan:
        assert list(plan.actions()) == actions
        assert plan.tally == tally


@pytest.mark.parametrize("torn", [1, 40])
def test_a_torn_end_of_the_index_is_named(drums: Archive, torn: int) -> None:
    index = drums.base / "index.jsonl.zst"
    ends = write_index(index, drums.records)
    with plan_rebuild(RebuildSettings(index, drums.out)) as plan:
        assert not [warning for warning in plan.warnings if "no whole frame" in warning]
    os.truncate(index, ends[-1] - torn)
    with plan_rebuild(RebuildSettings(index, drums.out)) as plan:
        left = ends[-1] - torn - ends[-2]
        named = f"the last {left:,} bytes of the index are no whole frame"
        assert any(named in warning for warning in plan.warnings)
        assert plan.tally.records == 3


@pytest.mark.parametrize("change", ["cut off", "written anew"])
def test_an_index_that_changes_while_it_is_read_makes_no_plan(
    drums: Archive, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    index = drums.base / "index.jsonl.zst"
    write_index(index, drums.records)

    def measured(path: Path) -> list[tuple[int, int]]:
        places = list(measured_frames(path))
        assert len(places) > 1
        if change == "cut off":
            os.truncate(path, places[-1][0] + 10)
        else:
            path.write_bytes(path.read_bytes()[places[0][1] :] * 3)
        return places

    monkeypatch.setattr(collect, "measured_frames", measured)
    with pytest.raises(IndexFormatError, match=r"index.jsonl.zst' is damaged, or was changed just now"):
        plan_rebuild(RebuildSettings(index, drums.out))


def test_corrections_that_are_left_out_the_next_time_are_named(drums: Archive, tmp_path: Path) -> None:
    overrides = tmp_path / "corrections.jsonl"
    digest = str(drums.records[0]["hash"]).upper()
    overrides.write_bytes(orjson.dumps({"hash": digest, "correct_label": "Snare"}))
    run = drums.run()
    assert drums.rebuild(run, overrides=overrides).counts["overridden"] == 1
    with drums.plan(run, overrides=overrides) as plan:
        assert not plan.warnings
    with drums.plan(run) as plan:
        assert any("corrections are taken back" in warning for warning in plan.warnings)


def test_a_label_in_another_case_is_guessed(drums: Archive, tmp_path: Path) -> None:
    (tmp_path / "corrections.jsonl").write_text('{"hash": "0", "correct_label": "snare"}')
    with pytest.raises(ConfigError, match="unknown label 'snare'") as refused:
        drums.plan(overrides=tmp_path / "corrections.jsonl")
    assert "Did you mean Snare?" in refused.value.way_out
