"""Every exit code of the table, from a command that ends with it."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import drumline.verify
from drumline import errors
from drumline.errors import DrumlineError
from drumline.rebuild.tree import Tree
from tests.making import CommandLine, make_record, make_run, write_tone
from tests.pipeline.support import environment

TABLE = Path(__file__).parents[1] / "docs" / "cli.md"

End = Callable[[CommandLine, Path, pytest.MonkeyPatch], int]
ENDS: dict[int, End] = {}


def ends_with(code: int) -> Callable[[End], End]:
    """Register what ends with a code."""

    def register(end: End) -> End:
        ENDS[code] = end
        return end

    return register


@ends_with(0)
def _done(command: CommandLine, _place: Path, _patch: pytest.MonkeyPatch) -> int:
    return command("doctor", "--help").code


@ends_with(1)
def _broken_promise(command: CommandLine, place: Path, patch: pytest.MonkeyPatch) -> int:
    def break_promise(*_: object, **__: object) -> None:
        raise DrumlineError("found 3 files, but the index has 2", "Please report it.")

    patch.setattr(drumline.verify, "verify_run", break_promise)
    return command("verify", make_run(place, [make_record()]).directory).code


@ends_with(2)
def _senseless(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    return command("infer", place, "--workers", "many").code


@ends_with(3)
def _wrong_config(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    (place / "config.yml").write_text("colour: red\n")
    return command("infer", place, "--config", place / "config.yml").code


@ends_with(4)
def _no_bundle(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    write_tone(place / "a.wav")
    return command("infer", place, "--runs-root", place / "runs", "--model", place / "nothing").code


@ends_with(5)
def _no_runtime(command: CommandLine, place: Path, patch: pytest.MonkeyPatch) -> int:
    patch.setattr("drumline.inference._is_installed", lambda _name: True)
    write_tone(place / "a.wav")
    return command("infer", place, "--runs-root", place / "runs").code


@ends_with(6)
def _no_archive(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    return command("infer", place / "nowhere", "--runs-root", place / "runs").code


@ends_with(7)
def _no_index(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    return command("stats", place / "nothing").code


@ends_with(8)
def _not_ours(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    (place / "mine").mkdir()
    return command("undo", place / "mine").code


@ends_with(9)
def _busy(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    with closing(Tree(place)):
        return command("undo", place).code


@ends_with(10)
def _no_process(command: CommandLine, place: Path, patch: pytest.MonkeyPatch) -> int:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    write_tone(place / "a.wav")
    patch.setattr("drumline.pipeline.process.os.fork", refuse)
    return command("infer", place, "--runs-root", place / "runs").code


@ends_with(11)
def _damaged(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    run = make_run(place, [make_record()])
    run.index_path.write_bytes(run.index_path.read_bytes()[:-3])
    return command("verify", run.directory).code


@ends_with(12)
def _faulty_data(command: CommandLine, place: Path, _patch: pytest.MonkeyPatch) -> int:
    pytest.importorskip("drumline_convert")
    (place / "kits" / "Kick").mkdir(parents=True)
    write_tone(place / "kits" / "Kick" / "a.wav")
    assert command("dataset", "scan", place / "kits", "--out", place / "kits.jsonl", "--quiet").code == 0
    return command("dataset", "check", place / "kits.jsonl", "--minimum", "2", "--quiet").code


@ends_with(130)
def _stopped(command: CommandLine, place: Path, patch: pytest.MonkeyPatch) -> int:
    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    patch.setattr(drumline.verify, "verify_run", stop)
    return command("verify", make_run(place, [make_record()]).directory).code


@ends_with(141)
def _reader_gone(_command: CommandLine, _place: Path, _patch: pytest.MonkeyPatch) -> int:
    running = subprocess.Popen(
        [sys.executable, "-m", "drumline", "--help"], stdout=subprocess.PIPE, env=environment()
    )
    assert running.stdout is not None
    running.stdout.close()
    return running.wait()


@pytest.mark.parametrize("code", ENDS)
def test_a_command_ends_with_each_code(
    code: int, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ENDS[code](command, tmp_path, monkeypatch) == code


def test_the_table_lists_the_codes_that_commands_end_with() -> None:
    rows = re.findall(r"^\| (\d+) \| (.)", TABLE.read_text(), re.MULTILINE)
    codes = [int(code) for code, _ in rows]
    listed = set(codes)
    assert listed == set(ENDS)
    assert len(codes) == len(listed)
    assert all(letter.isupper() for _, letter in rows)
    assert listed >= {getattr(errors, name).exit_code for name in errors.__all__}
