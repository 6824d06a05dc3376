from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drumline.cli import rebuild as rebuild_module
from drumline.cli.meter import _BarMeter, _PlainMeter
from drumline.rebuild import Progress, RebuildSummary, execute
from tests.making import CommandLine
from tests.rebuild.archives import KICK, SETTINGS, Archive, snapshot


def test_a_dry_run_shows_what_a_real_run_then_does(drums: Archive, command: CommandLine) -> None:
    run = drums.run().directory
    before = snapshot(os.fsencode(drums.base))
    shown = command("rebuild", run, "--out", drums.out, "--dry-run")
    assert shown.code == 0
    assert snapshot(os.fsencode(drums.base)) == before
    assert "5 files" in shown.out
    assert "Vendor B/hat.wav → Hihat/Vendor B/hat.wav" in shown.out
    assert "Nothing was written" in shown.out
    planned = command("rebuild", run, "--out", drums.out, "--dry-run", "--json").json()
    done = command("rebuild", run, "--out", drums.out, "--json").json()
    assert planned["summary"] is None
    assert planned["plan"] == done["plan"]
    assert done["summary"]["counts"]["made"] == planned["plan"]["counts"]["make"] == 5


def test_the_whole_way_from_plan_to_undo(drums: Archive, command: CommandLine) -> None:
    drums.run()
    done = command("rebuild", drums.base / "runs", "--out", drums.out, "--copy-mode", "hardlink")
    assert done.code == 0
    assert "5 made" in done.out
    assert "drumline undo" in done.out
    assert (
        "5 already there"
        in command("rebuild", drums.base / "runs", "--out", drums.out, "--copy-mode", "hardlink").out
    )
    assert "5 files" in command("undo", drums.out, "--dry-run").out
    undone = command("undo", drums.out, "--json").json()
    assert (undone["removed"], undone["complete"]) == (5, True)
    assert not drums.out.exists()


def test_missing_and_changed_files_are_a_warning_not_a_failure(drums: Archive, command: CommandLine) -> None:
    run = drums.run().directory
    os.remove(drums.path(b"Vendor B/hat.wav"))
    done = command("rebuild", run, "--out", drums.out, "--quiet")
    assert done.code == 0
    assert done.out == ""
    assert "warning: 1 file could not be placed" in done.err
    assert "missing: Hihat/Vendor B/hat.wav" in done.err
    told = command("rebuild", run, "--out", drums.out, "--json").json()
    assert told["problems"] == [
        {"problem": "missing", "path": "Hihat/Vendor B/hat.wav", "message": "No such file or directory"}
    ]


def test_names_are_never_printed_raw(archive: Archive, command: CommandLine) -> None:
    archive.add(b"esc\x1b[31m [red]\xff\n.wav")
    archive.add(b"gone\x1b.wav", mtime_ns=1)
    shown = command("rebuild", archive.run().directory, "--out", archive.out, "--dry-run")
    assert "\x1b" not in shown.out + shown.err
    assert r"esc\x1b[31m [red]\xff\n.wav" in shown.out
    done = command("rebuild", archive.run().directory, "--out", archive.out)
    assert "\x1b" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--threshold", "1.5"], 3, "threshold"),
        (["--labels", "Kik"], 3, "Kik"),
        (["--labels", "Kick", "--allow-all"], 2, "contradict"),
        (["--overrides", "nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["--copy-mode", "move"], 2, "move"),
        (["--index", "x.jsonl"], 2, "either RUN or --index"),
        (["--archive-root", "nowhere"], 6, "nowhere"),
    ],
)
def test_what_makes_no_sense_ends_with_its_exit_code(
    drums: Archive, command: CommandLine, arguments: list[str], code: int, told: str
) -> None:
    ended = command("rebuild", drums.run().directory, "--out", drums.out, *arguments)
    assert ended.code == code
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert not drums.out.exists()


def test_a_bad_correction_names_its_line_in_a_dry_run(drums: Archive, command: CommandLine) -> None:
    path = drums.base / "corrections.jsonl"
    path.write_text('\n{"hash": "feed", "correct_label": "Kick"}\n')
    ended = command("rebuild", drums.run().directory, "--out", drums.out, "--overrides", path, "--dry-run")
    assert ended.code == 3
    assert "line 2" in ended.err
    assert "feed" in ended.err


def test_an_index_file_serves_as_well(drums: Archive, command: CommandLine) -> None:
    index = drums.run().index_path
    assert command("rebuild", "--index", index, "--out", drums.out, "--quiet").code == 0
    assert len(drums.tree()) == 5
    assert command("rebuild", index, "--out", drums.out, "--quiet").code == 0


def test_places_can_stand_in_the_configuration(drums: Archive, command: CommandLine) -> None:
    drums.run()
    config = drums.base / "config.yml"
    config.write_text("paths:\n  runs_root: runs\n  regenerated_root: out\n")
    assert command("rebuild", "--config", config, "--quiet").code == 0
    assert len(drums.tree()) == 5
    config.write_text("paths:\n  runs_root: runs\n")
    assert "--out" in command("rebuild", "--config", config).err
    assert "RUN" in command("rebuild", "--out", drums.out).err


def test_somebodys_directory_is_refused_by_both(drums: Archive, command: CommandLine) -> None:
    (drums.base / "mine").mkdir()
    (drums.base / "mine" / "x").write_text("x")
    assert command("rebuild", drums.run().directory, "--out", drums.base / "mine").code == 8
    assert command("undo", drums.base / "mine").code == 8


def test_undo_says_what_stays(drums: Archive, command: CommandLine) -> None:
    drums.rebuild()
    os.remove(drums.path(b"Vendor B/hat.wav"))
    (drums.out / "Snare/Vendor A/snare.wav").write_bytes(b"edited")
    undone = command("undo", drums.out)
    assert undone.code == 0
    assert "stays: Snare/Vendor A/snare.wav: changed since it was made" in undone.err
    assert "--drop-last-copies" in undone.err
    assert "2 stay" in undone.out


def test_every_help_page_has_examples_and_exit_codes(command: CommandLine) -> None:
    for name in ("rebuild", "undo"):
        page = command(name, "--help").out
        assert "Examples:" in page
        assert "Exit codes:" in page


def test_progress_is_plain_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = _PlainMeter()
    meter(Progress("placing", 1, 9))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("drumline.cli.meter._PLAIN_SECONDS", 0.0)
    meter(Progress("placing", 2_000, 9_000))
    meter(Progress("reading", 5, None))
    assert capsys.readouterr().err == "drumline: placing: 2,000 of 9,000 files\ndrumline: reading: 5 files\n"


def test_progress_is_a_bar_for_each_phase_on_a_terminal() -> None:
    class Bars:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def add_task(self, phase: str, total: int | None) -> str:
            self.seen.append((phase, total))
            return phase

        def update(self, task: str, completed: int, total: int | None) -> None:
            self.seen.append((task, completed, total))

        def refresh(self) -> None:
            pass

    bars = Bars()
    meter = _BarMeter(bars)
    meter(Progress("placing", 0, 4))
    meter(Progress("placing", 4, 4))
    assert bars.seen == [("placing", 4), ("placing", 0, 4), ("placing", 4, 4)]


def test_progress_is_told_to_the_end(drums: Archive) -> None:
    told: list[Progress] = []
    with drums.plan() as plan:
        summary = execute(plan, told.append)
    assert isinstance(summary, RebuildSummary)
    assert Progress("placing", 5, 5) in told
    assert {progress.phase for progress in told} == {"placing", "writing"}


def test_the_command_line_prints_to_a_pipe_that_closes(drums: Archive) -> None:
    """``drumline rebuild … --dry-run | head -1`` is no error."""
    checkout = Path(__file__).resolve().parents[2]
    command = (
        f"{sys.executable} -m drumline rebuild {drums.run().directory} --out {drums.out} --dry-run | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout / "engine")},
        timeout=60,
    )
    assert "5 files" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_plan_says_what_decides_the_labels(drums: Archive, command: CommandLine) -> None:
    run = drums.run().directory
    kept = command("rebuild", run, "--out", drums.out, "--dry-run").out
    assert f"decided as in {run.name}: threshold 0.5; all labels" in kept
    anew = command("rebuild", run, "--out", drums.out, "--dry-run", "--threshold", "0.8", "--labels", "Kick")
    assert "decided anew: threshold 0.8; labels Kick" in anew.out


def test_a_plan_names_the_operating_point_and_its_thresholds(drums: Archive, command: CommandLine) -> None:
    run = drums.run().directory
    info = json.loads((run / "run.json").read_bytes())
    labels = sorted(set(info["canonical_map"].values()) - {"misc"})
    thresholds = dict.fromkeys(labels) | {"Kick": 0.625}
    info["model"] = {**info.get("model", {}), "operating_points": {"precision=0.95": thresholds}}
    (run / "run.json").write_text(json.dumps(info))
    shown = command("rebuild", run, "--out", drums.out, "--dry-run", "--threshold", "precision=0.95")
    assert shown.code == 0, shown.err
    assert "decided anew: precision=0.95 (" in shown.out
    assert "Kick 0.625" in shown.out
    assert "Hihat never" in shown.out


def test_a_plan_says_with_what_other_settings_the_tree_was_made(drums: Archive, command: CommandLine) -> None:
    run = drums.run().directory
    asked = ("rebuild", run, "--out", drums.out, "--copy-mode", "hardlink", "--threshold", "0.7")
    assert "before:" not in command(*asked).out
    assert "before:" not in command(*asked, "--dry-run").out
    other = command("rebuild", run, "--out", drums.out, "--dry-run").out
    assert "  before: copy mode hardlink, threshold 0.7\n" in other


def test_a_plan_says_which_labels_the_tree_had(drums: Archive, command: CommandLine) -> None:
    command("rebuild", drums.run().directory, "--out", drums.out)
    fewer = drums.run(settings={**SETTINGS, "target_labels": ["Snare", "Kick"]}).directory
    shown = command("rebuild", fewer, "--out", drums.out, "--dry-run").out
    assert "; labels Kick, Snare\n  before: all labels\n" in shown
    assert "before:" not in command("rebuild", fewer, "--out", drums.out, "--dry-run", "--allow-all").out


def test_a_plan_says_that_the_tree_had_no_corrections(drums: Archive, command: CommandLine) -> None:
    run = drums.run().directory
    command("rebuild", run, "--out", drums.out)
    corrections = drums.base / "corrections.jsonl"
    corrections.write_text(json.dumps({"hash": drums.records[0]["hash"], "correct_label": "Snare"}) + "\n")
    shown = command("rebuild", run, "--out", drums.out, "--overrides", corrections, "--dry-run").out
    assert "  before: overrides none\n" in shown


def test_statistics_of_a_tree_name_the_command_for_trees(drums: Archive, command: CommandLine) -> None:
    command("rebuild", drums.run().directory, "--out", drums.out)
    asked = command("stats", drums.out)
    assert asked.code == 7
    assert f"drumline verify {drums.out}" in asked.err


def test_a_dry_run_names_a_few_files_and_all_of_them_when_asked(
    archive: Archive, command: CommandLine
) -> None:
    for number in range(15):
        archive.add(b"%02d.wav" % number, KICK)
    run = archive.run().directory
    few = command("rebuild", run, "--out", archive.out, "--dry-run").out
    assert few.count(" → Kick/") == 10
    assert "… and 5 more" in few
    every = command("rebuild", run, "--out", archive.out, "--dry-run", "--verbose").out
    assert every.count(" → Kick/") == 15
    assert "more" not in every


def test_nothing_is_printed_while_bars_are_on_the_terminal(
    drums: Archive, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed below live bars is erased with them."""
    happened = []

    @contextmanager
    def watched(_quiet: bool) -> Iterator[None]:
        happened.append("bars")
        yield None
        happened.append("no bars")

    monkeypatch.setattr(rebuild_module, "meter", watched)
    for name in ("_show_plan", "_show_outcome"):
        monkeypatch.setattr(rebuild_module, name, lambda *_, name=name: happened.append(name))
    assert command("rebuild", drums.run().directory, "--out", drums.out).code == 0
    assert happened == ["bars", "no bars", "_show_plan", "bars", "no bars", "_show_outcome"]


def test_quiet_still_warns_of_records_that_are_left_out(archive: Archive, command: CommandLine) -> None:
    archive.add(b"kick.wav", KICK)
    archive.records.append(archive.records[0])
    archive.add(b"long.wav", KICK, assigned_label="x" * 300)
    archive.index(b"../out.wav", KICK)
    done = command("rebuild", archive.run().directory, "--out", archive.out, "-q")
    assert (done.code, done.out) == (0, "")
    assert "2 files left out for an unsafe path or label, 1 file with several records" in done.err
    for name in ("unsafe_label: long.wav", "unsafe_path: ../out.wav", "duplicate_record: kick.wav"):
        assert name in done.err


def test_undo_names_no_option_that_it_does_not_have(drums: Archive, command: CommandLine) -> None:
    refused = command("undo", drums.base / "archive")
    assert refused.code == 8
    assert "--out" not in refused.err
    assert "Give the directory that rebuild made" in refused.err


@pytest.mark.parametrize(
    ("place", "way_out"),
    [("x" * 300, "Choose a shorter name"), ("file/tree", "A file stands where a directory should be")],
)
def test_a_place_that_cannot_be_says_what_helps(
    drums: Archive, command: CommandLine, place: str, way_out: str
) -> None:
    (drums.base / "file").touch()
    refused = command("rebuild", drums.run().directory, "--out", drums.base / place)
    assert refused.code == 8
    assert way_out in refused.err
