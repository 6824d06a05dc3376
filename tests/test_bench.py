"""The harness: what it runs, what it compares, what it shows. The engine is played by a small script here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench.compare import YARDSTICK, changes
from bench.demo import Picture, run_demo
from bench.engine import ENGINE, EngineError, call
from bench.first_run import agreement
from bench.measure import CommandFailed, interleaved, run_command
from bench.peers import PEERS
from bench.report import Measure, write_report
from bench.run import run_measures
from bench.soak import Sample, fit_line, fit_samples, soak
from bench.synth import write_archive
from bench.workshop import Sizes, Workshop
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd

PLAYER = """
import json, os, shutil, sys
from pathlib import Path

command, subject, *rest = sys.argv[1:]
options = [rest[place + 1] for place, option in enumerate(rest) if option in ("--runs-root", "--out")]
out = Path(options[0])
with open(Path(__file__).with_name("calls.txt"), "a") as calls:
    print(*sys.argv[1:], file=calls)
if command == "infer":
    names = [name for _, _, files in os.walk(subject) for name in files if name.endswith(".wav")]
    again = out.exists()
    (out / "run_1").mkdir(parents=True, exist_ok=True)
    print(json.dumps({
        "run_directory": str(out / "run_1"),
        "counts": {"discovered": len(names), "carried_over": len(names) if again else 0,
                   "classified": 0 if again else len(names)},
        "labels": {"Kick": len(names) - 3, "misc": 2},
        "errors": {"decode_error": 1},
        "elapsed_sec": 0.5, "files_per_sec": 2.0 * len(names), "size_bytes": 1_000_000,
    }))
else:
    (out / "Kick" / "Pack").mkdir(parents=True, exist_ok=True)
    (out / "Kick" / "Pack" / "a.wav").touch()
    print("{}")
"""


@pytest.fixture
def player(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "player.py"
    script.write_text(PLAYER)
    return (sys.executable, str(script))


def shown(picture: Picture, width: int = 300) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        picture.show(console)
    return console.export_text()


def test_the_demo_ends_with_labels_tree_errors_and_the_next_commands(
    tmp_path: Path, player: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.demo.FILES", 20)
    text = shown(run_demo(tmp_path / "demo", engine=player))
    for part in (
        " files in ",
        "MB of samples",
        "Kick",
        "organised/",
        "Pack/ 1",
        "1 decode_error",
        "drumline stats",
        "make demo",
    ):
        assert part in text
    again = shown(run_demo(tmp_path / "demo", engine=player))
    assert "none changed" in again


def test_the_next_commands_can_be_pasted_from_a_narrow_terminal(
    tmp_path: Path, player: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.demo.FILES", 6)
    picture = run_demo(tmp_path / ("long " * 20) / "demo", engine=player)
    next_steps = shown(picture, width=80).partition("Next\n")[2]
    assert all(line == line.rstrip() for line in next_steps.splitlines())
    commands = [line for line in next_steps.replace("\\\n", "").splitlines() if picture.command in line]
    assert shlex.split(commands[0])[-2:] == ["stats", os.path.relpath(picture.run.parent)]
    assert shlex.split(commands[1])[-4:] == ["--labels", "Kick", "--threshold", "0.9"]


def test_the_demo_of_somebodys_own_files_makes_links_and_no_archive(
    tmp_path: Path, player: tuple[str, ...]
) -> None:
    write_archive(tmp_path / "mine", 5)
    run_demo(tmp_path / "demo", tmp_path / "mine", engine=player)
    assert not (tmp_path / "demo" / "archive").exists()
    assert "--copy-mode symlink" in (tmp_path / "calls.txt").read_text()


def test_a_half_made_demo_archive_is_made_anew(
    tmp_path: Path, player: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.demo.FILES", 6)
    (tmp_path / "demo" / "archive").mkdir(parents=True)
    (tmp_path / "demo" / "archive" / "half.wav").touch()
    run_demo(tmp_path / "demo", engine=player)
    assert not (tmp_path / "demo" / "archive" / "half.wav").exists()


def test_a_failed_command_is_told_by_its_exit_code() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(EngineError, match="exit code 7") as caught:
        call("stats", engine=(sys.executable, "-c", "import sys; sys.exit(7)"))
    assert caught.value.exit_code == 7
    assert signal.getsignal(signal.SIGINT) is before


def test_a_measured_command_that_fails_says_why() -> None:
    with pytest.raises(CommandFailed, match="no such sample"):
        run_command((sys.executable, "-c", "raise SystemExit('no such sample')"))


def test_memory_is_that_of_all_processes_together() -> None:
    child = "b = bytearray(60_000_000); import time; time.sleep(0.4)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run_command((sys.executable, "-c", parent), pss_every=0.05).peak_pss > 60_000_000


def test_a_slower_machine_is_not_taken_for_slower_code() -> None:
    before = {YARDSTICK: 1.0, "test_hash": 4.0, "test_decode": 2.0}
    now = {YARDSTICK: 2.0, "test_hash": 8.0, "test_decode": 6.0, "test_gather": 1.0}
    found = changes(before, now)
    assert [(change.name, change.ratio) for change in found] == [
        ("test_decode", 1.5),
        ("test_hash", 1.0),
        ("test_gather", None),
    ]


def test_sides_take_turns() -> None:
    turns: list[str] = []

    def side(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    assert interleaved(2, lambda: side("a"), lambda: side("b")) == [[1.0, 3.0], [2.0, 4.0]]
    assert turns == ["a", "b", "a", "b"]


def test_the_report_is_a_table_with_the_result_first(tmp_path: Path) -> None:
    measures = [
        Measure("infer", "first run", "9.0× as fast", "900 files/s", "100 files/s", "≥ 8×", True, {"a": [1]})
    ]
    text = write_report(tmp_path, measures, "python -m bench.run")
    assert "| first run | **9.0× as fast** | 900 files/s | 100 files/s | ≥ 8× | met |" in text
    assert (tmp_path / "REPORT.md").read_text() == text
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["measures"][0]["details"] == {"a": [1]}
    assert values["machine"]["usable_cpus"] >= 1
    assert str(Path.cwd()) not in text


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync")
def test_rescan_memory_and_rebuild_are_measured_and_leave_nothing(
    tmp_path: Path, player: tuple[str, ...]
) -> None:
    sizes = Sizes(rescan_files=30, memory_files=(10, 20), repeats=1)
    workshop = Workshop(tmp_path / "work", sizes, engine=player)
    measures = run_measures(workshop, ("rebuild", "rescan", "memory"))
    kinds = [measure.name.partition("-")[0] for measure in measures]
    assert list(dict.fromkeys(kinds)) == ["rescan", "memory", "rebuild"]
    assert all(measure.met is None for measure in measures)
    assert measures[0].details["carried"][0] > 0
    assert list((tmp_path / "work").iterdir()) == []


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an archive of ten files, one of them broken, and a run of the engine over it."""
    place = tmp_path_factory.mktemp("classified")
    write_archive(place / "archive", 10, seed=5, odd_fraction=0, broken_fraction=0.1)
    run_command((*ENGINE, "infer", place / "archive", "--runs-root", place / "runs", "--quiet"))
    return place


@pytest.mark.parametrize("name", [peer.name for peer in PEERS if peer.name != "tfdata"])
def test_a_peer_gives_the_labels_of_the_engine(tmp_path: Path, classified: Path, name: str) -> None:
    (peer,) = (peer for peer in PEERS if peer.name == name)
    if not peer.available:
        pytest.skip(f"{peer.needs} is not installed")
    index = tmp_path / "peer.jsonl"
    outcome = run_command((sys.executable, "-m", peer.module, classified / "archive", index))
    assert json.loads(outcome.stdout)["files"] == 10
    same = agreement(classified / "runs", index, classified / "archive")
    assert (same["compared"], same["same_label"]) == (10, 1.0)
    assert same["largest_confidence_difference"] < 1e-3


def test_a_line_with_a_known_slope_is_fitted_within_its_interval() -> None:
    noise = np.random.default_rng(1).normal(0, 1, 500)
    x = np.arange(500.0)
    rising, level = fit_line(x, 3 + 0.25 * x + noise), fit_line(x, 3 + noise)
    assert abs(rising.slope - 0.25) <= rising.interval < 0.01
    assert not rising.is_flat
    assert abs(level.slope) <= level.interval
    assert level.is_flat


def test_a_long_run_that_leaks_is_told_from_one_whose_samples_only_flicker() -> None:
    random = np.random.default_rng(1)
    wandering = 180e6 + np.convolve(random.normal(0, 1e5, 700), np.ones(61) / 8, "valid")[:640]
    flicker = 79 + random.integers(0, 4, 640)
    rows = [
        (i / 2, i * 1500, int(pss), int(held), 7, 1)
        for i, (pss, held) in enumerate(zip(wandering, flicker, strict=True))
    ]
    even = [Sample(*row) for row in rows]
    leaking = [
        s._replace(pss=s.pss + 40 * s.done, descriptors=s.descriptors + s.done // 200_000) for s in even
    ]
    for name in ("pss", "descriptors"):
        assert fit_samples(even, name).is_flat
        assert not fit_samples(leaking, name).is_flat


def test_a_short_soak_counts_every_file_and_every_change(tmp_path: Path) -> None:
    figures = soak(tmp_path, 150, 2, 150)
    counts = figures["first"]["counts"]
    assert counts["discovered"] == counts["classified"] + counts["failed"] > 140
    rescans = figures["rescans"]["runs"]
    assert [row["changed"] for row in rescans] == [5, 5]
    assert all(row["classified"] < 10 < row["carried_over"] for row in rescans)
    assert {"pss", "descriptors", "threads", "shared_memory"} <= set(figures["first"]["per_million_files"])


def test_transforms_of_tensorflow_give_the_mfcc_of_drumline() -> None:
    tf = pytest.importorskip("tensorflow")
    from bench.peers.common import padded
    from bench.peers.tfdata import Graph

    front_end, sound = FrontEnd(), np.random.default_rng(3).normal(size=9000).astype(np.float32)
    mfcc, *_ = Graph(tf, front_end)(padded(sound, front_end)[None], np.array([len(sound)]))
    expected = FeatureExtractor(front_end).features(sound)
    assert np.abs(mfcc.numpy()[0] - expected).max() < 0.02


def test_the_pipeline_alone_writes_a_record_for_every_slot() -> None:
    result = run_command((sys.executable, "-m", "bench.alone", "--files", "700"))
    figures = json.loads(result.stdout)
    assert figures["files"] == 700
    assert figures["cpu_us_by_stage"]["write"] > 0.0
