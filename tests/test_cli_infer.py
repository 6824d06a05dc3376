"""``drumline infer`` as people and programs use it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.synth import write_archive
from drumline.stub import create_stub
from tests.pipeline.support import ROOT, environment, eventually, prompt, records_of, runs_of, tree

FILES = 30
PATCHED = """
import json, sys
from tests.pipeline import mischief
mischief.apply(json.loads(sys.argv[1]))
from drumline.cli import main
main(sys.argv[2:])
"""
TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)" + PATCHED


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small archive and a stub model; runs go elsewhere."""
    root = tmp_path_factory.mktemp("command")
    write_archive(root / "archive", FILES, seed=8, tiny=True, broken_fraction=0.04, odd_fraction=0)
    create_stub(root / "stub")
    return root


@pytest.fixture
def arguments(place: Path, tmp_path: Path) -> list[str]:
    archive, model, runs = place / "archive", place / "stub", tmp_path / "runs"
    return [
        *("infer", str(archive), "--runs-root", str(runs), "--model", str(model), "--workers", "1"),
    ]


def drumline(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drumline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=cwd, check=False)


def patched(patches: dict[str, Any], *arguments: str) -> list[str]:
    return [sys.executable, "-c", PATCHED, json.dumps(patches), *arguments]


def test_json_is_alone_on_stdout(arguments: list[str], tmp_path: Path) -> None:
    done = drumline(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    (run,) = runs_of(tmp_path / "runs")
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["counts"]["discovered"] == len(records_of(run)) == FILES


def test_quiet_prints_nothing(arguments: list[str]) -> None:
    done = drumline(*arguments, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_errors_are_printed_however_quiet(arguments: list[str]) -> None:
    done = drumline(*arguments, "--quiet", "--labels", "Nonsense")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "Nonsense" in done.stderr


def test_without_a_terminal_the_end_says_what_was_done_and_what_comes_next(arguments: list[str]) -> None:
    done = drumline(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{FILES} files in " in done.stdout
    assert "mean confidence" in done.stdout
    assert "index.jsonl.zst" in done.stdout
    assert "Next:  drumline rebuild" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_without_a_terminal_progress_is_plain_lines_on_stderr(arguments: list[str]) -> None:
    command = patched({"slow": 0.02, "lines_every": 0.05}, *arguments, "--json")
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True)
    json.loads(done.stdout)
    lines = done.stderr.splitlines()
    assert len(lines) >= 3
    line = r"drumline: [\d,]+ of [\d,]+\+? files, [\d,]+ files/s, [\d,.]+ MB/s(, \d+ failed)?(, .* left)?"
    for each in lines:
        assert re.fullmatch(line, each)


def test_a_dry_run_writes_nothing_and_foretells_the_run(arguments: list[str], tmp_path: Path) -> None:
    plan = json.loads(drumline(*arguments, "--dry-run", "--json").stdout)["counts"]
    assert not (tmp_path / "runs").exists()
    counts = json.loads(drumline(*arguments, "--json").stdout)["counts"]
    assert (plan["discovered"], plan["to_read"], plan["carried_over"]) == (FILES, FILES, 0)
    assert counts["discovered"] == plan["discovered"]
    assert counts["classified"] + counts["failed"] == plan["to_read"]


def test_a_dry_run_of_a_known_archive_foretells_the_run(
    arguments: list[str], place: Path, tmp_path: Path
) -> None:
    subprocess.run(["cp", "-a", place / "archive", tmp_path / "archive"], check=True)
    arguments[1] = str(tmp_path / "archive")
    first = json.loads(drumline(*arguments, "--json").stdout)["counts"]
    sounds = [path for path in sorted((tmp_path / "archive").rglob("*.wav")) if _is_sound(path)]
    sounds[0].unlink()
    sounds[1].write_bytes(sounds[2].read_bytes() + b"\0")
    sounds[3].rename(tmp_path / "archive" / "moved.wav")
    before = tree(tmp_path)
    plan = json.loads(drumline(*arguments, "--dry-run", "--json").stdout)["counts"]
    assert tree(tmp_path) == before
    counts = json.loads(drumline(*arguments, "--json").stdout)["counts"]
    assert plan["discovered"] == counts["discovered"] == FILES - 1
    assert plan["to_read"] == 2
    assert plan["gone"] == counts["gone"] == 2
    assert counts["classified"] == 2
    assert plan["carried_over"] == counts["carried_over"] + first["failed"]


def _is_sound(path: Path) -> bool:
    return path.stat().st_size > 1000 and path.read_bytes().startswith(b"RIFF")


def test_the_end_of_a_resumed_run_says_how_many_files_were_done_before(
    arguments: list[str], tmp_path: Path
) -> None:
    half = {"die": "after drumline.pipeline.write:_Writer._commit 2", "frame_lines": 4, "flush": 0.0}
    command = patched({**half, "slow": 0.01}, *arguments)
    subprocess.run(command, capture_output=True, env=environment(), cwd=ROOT, check=False)
    left = json.loads(drumline(*arguments, "--dry-run", "--json").stdout)["counts"]["to_read"]
    done = drumline(*arguments)
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(tmp_path / "runs")
    counts = json.loads((run / "summary.json").read_text())["counts"]
    assert counts["resumed"] == FILES - left > 0
    assert counts["discovered"] == counts["carried_over"] + counts["classified"] + counts["failed"]
    assert f"  {counts['resumed']} of these were done before the run was interrupted\n" in done.stdout
    assert "interrupted" not in drumline(*arguments).stdout


def test_a_dry_run_of_an_unfinished_run_counts_what_is_left(arguments: list[str], tmp_path: Path) -> None:
    half = {"die": "after drumline.pipeline.write:_Writer._commit 2", "frame_lines": 4, "flush": 0.0}
    command = patched({**half, "slow": 0.01}, *arguments)
    assert (
        subprocess.run(command, capture_output=True, env=environment(), cwd=ROOT, check=False).returncode
        == 10
    )
    before = {path: facts for path, facts in tree(tmp_path / "runs").items() if not path.endswith(b"-shm")}
    plan = json.loads(drumline(*arguments, "--dry-run", "--json").stdout)["counts"]
    after = {path: facts for path, facts in tree(tmp_path / "runs").items() if not path.endswith(b"-shm")}
    assert after == before
    assert 0 < plan["to_read"] < FILES
    assert plan["to_read"] + plan["carried_over"] == FILES


def test_a_dry_run_prints_its_plan_for_people(arguments: list[str]) -> None:
    done = drumline(*arguments, "--dry-run")
    assert done.returncode == 0
    assert f"{FILES} audio files in " in done.stdout
    assert f"{FILES} would be read (" in done.stdout
    assert "0 would be carried over" in done.stdout


def test_verbose_names_settings_model_and_cache_on_stderr_as_yaml(
    arguments: list[str], place: Path, tmp_path: Path
) -> None:
    done = drumline(*arguments, "-v", "-q", "--labels", "Kick,Snare")
    said = yaml.safe_load(done.stderr)
    assert (said["batch_size"], said["workers"], said["label_map"]) == (64, 1, None)
    assert said["target_labels"] == ["Kick", "Snare"]
    assert said["misc"]["threshold"] == 0.5
    assert said["model"].startswith("stub 0.0.0, ")
    assert said["cache"] == f"{tmp_path}/runs/cache.sqlite, not there yet"


def test_the_end_names_kinds_of_errors_as_records_do_and_what_miscs_confidence_is(
    arguments: list[str], tmp_path: Path
) -> None:
    done = drumline(*arguments, "--threshold", "1.0")
    (run,) = runs_of(tmp_path / "runs")
    failed = json.loads((run / "summary.json").read_text())["errors"]
    assert failed
    for kind, count in failed.items():
        assert f"  {count:,} {kind}\n" in done.stdout
    note = "misc: the confidence is that of each file's likeliest label, believed or not"
    assert note in done.stdout
    assert note in drumline("stats", str(run)).stdout


def test_paths_are_shown_from_the_current_directory_where_that_is_shorter(
    arguments: list[str], tmp_path: Path
) -> None:
    below = drumline(*arguments, cwd=tmp_path).stdout
    assert "\nIndex: runs/run_" in below
    assert "Next:  drumline rebuild runs/run_" in below
    assert "Which: drumline stats runs/run_" in below
    beside = drumline(*arguments, cwd=place_beside(tmp_path)).stdout
    assert "\nIndex: ../runs/run_" in beside
    assert f"\nIndex: {tmp_path}/runs/run_" in drumline(*arguments, cwd=Path("/usr/share")).stdout


def place_beside(path: Path) -> Path:
    (path / "beside").mkdir()
    return path / "beside"


def test_a_profile_is_shown_after_the_result(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "drumline", *arguments, "--profile"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0
    assert 0 < done.stdout.index("Next:") < done.stdout.index("waits for") < done.stdout.index("Bound:")


def test_a_quiet_dry_run_prints_nothing(arguments: list[str]) -> None:
    done = drumline(*arguments, "--dry-run", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_works_from_any_directory_with_relative_paths(place: Path, tmp_path: Path) -> None:
    (tmp_path / "archive").symlink_to(place / "archive")
    done = drumline("infer", "archive", "--model", str(place / "stub"), "--json", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(tmp_path / "ClassifiedArchive")
    assert json.loads(done.stdout)["run_directory"] == str(run)


def test_the_model_that_comes_along_is_the_default(place: Path, tmp_path: Path) -> None:
    done = drumline("infer", str(place / "archive"), "--runs-root", str(tmp_path / "runs"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["classified"] > 0


def test_a_config_file_says_what_the_command_line_does_not(
    arguments: list[str], place: Path, tmp_path: Path
) -> None:
    config = {
        "model_path": str(place / "stub"),
        "compress_index": "gzip",
        "misc": {"threshold": 0.2},
        "paths": {"archive_root": str(place / "archive"), "runs_root": "results"},
    }
    (tmp_path / "config.yml").write_text(json.dumps(config))
    done = drumline("infer", "--config", str(tmp_path / "config.yml"), "--threshold", "0.9", "--json")
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(tmp_path / "results")
    info = json.loads((run / "run.json").read_text())
    assert info["settings"]["misc"]["threshold"] == 0.9
    assert (run / "index.jsonl.gz").exists()


def test_of_two_runs_at_once_the_second_is_told_within_six_seconds(
    arguments: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        patched({"slow": 5.0}, *arguments, "-q"), env=environment(), cwd=ROOT, start_new_session=True
    ) as first:
        eventually(lambda: runs_of(tmp_path / "runs"), "run")
        begun = time.monotonic()
        done = drumline(*arguments, "--json")
        assert time.monotonic() - begun < prompt(8.0)  # six, and Python's start
        os.killpg(first.pid, signal.SIGKILL)
    assert (done.returncode, done.stdout) == (9, "")
    assert f"is in use by process {first.pid}" in done.stderr
    assert "Wait until it has ended" in done.stderr
    again = drumline(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    assert len(runs_of(tmp_path / "runs")) == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--threshold", "2"], 3, "misc.threshold"),
        (["--batch-size", "0"], 3, "batch_size"),
        (["--compress-index", "rar"], 3, "compress_index"),
        (["--device", "tpu"], 3, "device"),
        (["--labels", "Kick,Banjo"], 3, "Banjo"),
        (["--model", "/nowhere"], 4, "/nowhere"),
        (["--config", "/nowhere.yml"], 3, "/nowhere.yml"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    arguments: list[str], tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    done = drumline(*arguments, *options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_python_interface_returns_the_summary(place: Path, tmp_path: Path) -> None:
    script = """
import json, sys
from pathlib import Path
from drumline.pipeline.infer import infer
from drumline.settings import InferSettings
archive, runs, model = map(Path, sys.argv[1:])
print(json.dumps(infer(InferSettings(archive=archive, runs_root=runs, model_path=model, workers=1))))
"""
    command = [sys.executable, "-c", script, place / "archive", tmp_path / "runs", place / "stub"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True)
    (run,) = runs_of(tmp_path / "runs")
    assert json.loads(done.stdout) == json.loads((run / "summary.json").read_text())
    assert done.stderr == ""


class Terminal:
    """A terminal, and a command on it."""

    def __init__(self, patches: dict[str, Any], *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        self._settings = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-c", TERMINAL, json.dumps(patches), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment(), "TERM": "xterm", "LC_ALL": "C.UTF-8"},
            cwd=ROOT,
            start_new_session=True,
        )
        self.shown = b""

    def read(self, until: Callable[[bytes], bool], limit: float = 60.0) -> None:
        """Read until something is shown or the command ends."""
        deadline = time.monotonic() + limit
        while not until(self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 0.05)[0]:
                self.shown += os.read(self.master, 1 << 16)
            elif self.process.poll() is not None:
                return

    def end(self) -> int:
        """Read to the end, and return the exit code; the terminal must be as it was."""
        self.read(lambda _: False)
        code = self.process.wait()
        assert termios.tcgetattr(self._slave) == self._settings
        os.close(self.master)
        os.close(self._slave)
        return code


def screen(shown: bytes) -> tuple[list[str], bool]:
    """Return the lines that are left on a terminal, and whether its cursor is visible."""
    lines, row, column, visible = [""], 0, 0, True
    for text, code in re.findall(r"([^\x1b]+)|\x1b\[([0-9;?]*[A-Za-z])", shown.decode()):
        for char in text:
            if char == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif char == "\r":
                column = 0
            else:
                lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
                column += 1
        if code.endswith("A"):
            row = max(0, row - int(code[:-1] or 1))
        elif code == "2K":
            lines[row] = ""
        elif code in ("?25h", "?25l"):
            visible = code.endswith("h")
    return [line.rstrip() for line in lines], visible


def test_on_a_terminal_a_live_panel_is_shown_and_leaves_no_trace(arguments: list[str]) -> None:
    terminal = Terminal({"slow": 0.03, "flush": 0.02}, *arguments)
    assert terminal.end() == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.shown.decode())
    assert re.search(r"[\d,]+ of 30\+? files", shown)
    assert re.search(r"\d+ files/s   [\d.]+ MB/s", shown)
    assert "waiting to be  read" in shown
    assert re.search(r"│ (Kick|Snare|Hihat|Tom|Crash|Ride|misc) ", shown)
    lines, visible = screen(terminal.shown)
    assert visible
    text = "\n".join(lines)
    assert "╭" not in text
    assert "waiting to be" not in text
    assert lines[0].startswith("30 files in ")
    assert "Next:  drumline rebuild" in text


def test_ctrl_c_on_a_terminal_stops_in_order_and_leaves_it_clean(
    arguments: list[str], tmp_path: Path
) -> None:
    terminal = Terminal({"slow": 0.1}, *arguments)
    terminal.read(lambda shown: b"files/s" in shown and bool(runs_of(tmp_path / "runs")))
    pressed = time.monotonic()
    os.write(terminal.master, b"\x03")
    assert terminal.end() == 130
    assert time.monotonic() - pressed < prompt(2.5)  # two, and what was measured of the reading
    lines, visible = screen(terminal.shown)
    assert visible
    text = "\n".join(lines)
    assert "╭" not in text
    assert "drumline: stopped: " in text
    assert "give the same command again to go on" in text
    done = drumline(*arguments, "--json")
    assert json.loads(done.stdout)["counts"]["discovered"] == FILES
    assert len(runs_of(tmp_path / "runs")) == 1


def test_an_error_on_a_terminal_leaves_it_clean(arguments: list[str]) -> None:
    terminal = Terminal({"die": "before drumline.pipeline.predict:_start"}, *arguments)
    assert terminal.end() == 10
    lines, visible = screen(terminal.shown)
    assert visible
    assert "╭" not in "".join(lines)
    assert "drumline: the predict stage was ended by SIGKILL" in lines


def test_a_closed_terminal_ends_the_run_and_the_same_command_goes_on(
    arguments: list[str], tmp_path: Path
) -> None:
    """The kernel sends SIGHUP, and nothing can be shown any more."""
    terminal = Terminal({"slow": 0.1}, *arguments)
    terminal.read(lambda shown: b"files/s" in shown and bool(runs_of(tmp_path / "runs")))
    os.close(terminal.master)
    os.close(terminal._slave)
    closed = time.monotonic()
    terminal.process.wait(60)
    assert time.monotonic() - closed < prompt(2.5)
    done = drumline(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert len(runs_of(tmp_path / "runs")) == 1


@pytest.mark.parametrize("kilobytes", [150_000, 200_000, 250_000])
def test_too_small_a_limit_of_memory_is_said_at_once(arguments: list[str], kilobytes: int) -> None:
    """With so little, loading a library fails, or never ends."""
    limits = (kilobytes * 1024, resource.RLIM_INFINITY)
    result = subprocess.run(
        [sys.executable, "-m", "drumline", *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )
    assert result.returncode == 10
    assert "at least 300 MB" in result.stderr
    assert "ulimit -v" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_stdout_is_named_with_the_way_out(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "drumline", *arguments, "--json"]
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT, check=False
        )
    assert result.returncode == 8
    assert "drumline: 'stdout': No space left on device\n  Free some space" in result.stderr
    assert "Exception ignored" not in result.stderr


def test_a_runs_root_that_is_a_file_is_refused_with_a_way_out(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    result = drumline(*arguments)
    assert result.returncode == 8
    assert "choose another place" in result.stderr
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_runs_root_whose_name_is_too_long_is_refused_with_a_way_out(arguments: list[str]) -> None:
    arguments[3] = f"{arguments[3]}/{'n' * 300}"
    result = drumline(*arguments)
    assert result.returncode == 8
    assert "Choose a shorter name" in result.stderr


def test_a_misc_label_that_no_directory_can_have_is_refused(arguments: list[str]) -> None:
    result = drumline(*arguments, "--misc-label", "m" * 252)
    assert result.returncode == 3
    assert "251 bytes" in result.stderr
    assert drumline(*arguments, "--misc-label", "m" * 251, "--dry-run").returncode == 0


def test_the_next_command_can_be_pasted_whatever_the_runs_root_is_called(
    arguments: list[str], tmp_path: Path
) -> None:
    arguments[3] = str(tmp_path / "two\nlines 'of\t1")
    result = drumline(*arguments)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Next:"))
    word = line.removeprefix("Next:  drumline rebuild ").removesuffix(" --out organised")
    printed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True)
    assert Path(os.path.abspath(printed.stdout)).parent == Path(arguments[3])  # may be relative


def test_formats_that_no_file_has_are_named_with_the_option_and_what_is_there(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    for name in ("a.flac", "b.flac", "c.txt"):
        (tmp_path / "archive" / name).touch()
    result = drumline("infer", str(tmp_path / "archive"), *arguments[2:], "--formats", "wav")
    assert result.returncode == 6
    assert "2 audio files there have another extension" in result.stderr
    assert "--formats" in result.stderr


def test_a_wrong_option_is_not_offered_what_only_a_file_can_say(arguments: list[str]) -> None:
    result = drumline(*arguments, "--workers", "0")
    assert result.returncode == 3
    assert "Allowed: a whole number from 1 to 1024." in result.stderr
    assert "null" not in result.stderr


def test_runs_that_go_inside_the_archive_are_said_to(
    arguments: list[str], place: Path, tmp_path: Path
) -> None:
    assert "inside the archive" not in drumline(*arguments).stderr
    archive = Path(shutil.copytree(place / "archive", tmp_path / "archive"))
    result = drumline("infer", ".", "--model", str(place / "stub"), "--workers", "1", cwd=archive)
    assert result.returncode == 0, result.stderr
    assert "inside the archive" in result.stderr
    assert "--runs-root" in result.stderr
