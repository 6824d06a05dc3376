"""The file of the cache: where it can be, and whose it must be."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import drumline
from drumline.cache import Cache
from drumline.cache_file import SIDE_FILES, Mode, check_length, check_permissions, is_damage
from drumline.errors import CacheError, DrumlineError, OutputError
from drumline.recover import rebuild_cache
from drumline.settings import InferSettings
from drumline.stub import create_stub
from tests.making import write_tone
from tests.pipeline.support import environment

LONGEST = 511 - len("/cache.sqlite") - len(".new-journal") - len(".")

PLAIN_USER = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    if os.geteuid() == 0
    else ()
)


def directory_of(length: int, base: Path) -> Path:
    """Return a directory below `base` whose path has so many bytes; it is not made."""
    rest = length - len(os.fsencode(base)) - 1
    names = ["x" * 99] * ((rest - 1) // 100)
    return base.joinpath(*names, "y" * (rest - 100 * len(names)))


def test_in_the_longest_runs_root_that_is_allowed_a_cache_is_made_anew(tmp_path: Path) -> None:
    root = directory_of(LONGEST, tmp_path)
    root.mkdir(parents=True)
    check_length(root / "cache.sqlite")
    rebuild_cache(root / "cache.sqlite", root)
    with closing(Cache(root / "cache.sqlite")) as cache, cache.transaction():
        cache.scope(b"/archive", "key")


def test_a_runs_root_with_a_longer_path_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    root = directory_of(LONGEST + 1, tmp_path)
    with pytest.raises(OutputError, match="1 byte too long") as refused:
        check_length(root / "cache.sqlite")
    assert "shorter" in refused.value.way_out
    write_tone(tmp_path / "archive.wav")
    for options in ((), ("--dry-run",)):
        ended = infer(tmp_path, root, options=options)
        assert ended.returncode == 8, ended.stderr
        assert "too long" in ended.stderr
        assert not root.parent.exists()


def test_a_runs_root_with_a_name_that_is_too_long_is_no_fault_of_drumline(tmp_path: Path) -> None:
    write_tone(tmp_path / "archive.wav")
    ended = infer(tmp_path, tmp_path / ("x" * 300))
    assert ended.returncode == 8
    assert "Choose a shorter name" in ended.stderr


@pytest.mark.parametrize("again", [True, False])
def test_a_cache_that_is_found_damaged_right_after_it_was_made_anew_is_a_fault_of_drumline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    outcomes = iter([CacheError("found 3 files", "") for _ in range(1 + again)])

    def run(*_: object) -> dict[str, int]:
        if error := next(outcomes, None):
            raise error
        return {"files": 3}

    monkeypatch.setattr("drumline.pipeline.infer._infer", run)
    settings = InferSettings(archive=tmp_path, runs_root=tmp_path / "runs")
    if not again:
        assert drumline.infer(settings) == {"files": 3}
        return
    with pytest.raises(DrumlineError, match="found 3 files") as ended:
        drumline.infer(settings)
    assert ended.value.exit_code == 1
    assert "report it" in ended.value.way_out


def infer(
    archive: Path, runs_root: Path, *before: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run infer; `before` is what the command is given to."""
    if not (archive / "model").exists():
        create_stub(archive / "model")
    options += ("--runs-root", str(runs_root), "--model", str(archive / "model"), "--workers", "1", "--quiet")
    command = (*before, sys.executable, "-m", "drumline", "infer", archive, *options)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(bool(PLAIN_USER) and shutil.which("setpriv") is None, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o444, 0o200, 0])
def test_a_cache_without_permissions_is_named_and_serves_again_when_it_has_them(
    tmp_path: Path, mode: int
) -> None:
    archive, cache = tmp_path / "archive", tmp_path / "runs" / "cache.sqlite"
    archive.mkdir()
    write_tone(archive / "kick.wav")
    assert infer(archive, cache.parent, *PLAIN_USER).returncode == 0
    cache.chmod(mode)
    before = sorted(path.name for path in cache.parent.iterdir())
    ended = infer(archive, cache.parent, *PLAIN_USER)
    assert ended.returncode == 8, ended.stderr
    assert str(cache) in ended.stderr
    assert "permissions" in ended.stderr
    assert sorted(path.name for path in cache.parent.iterdir()) == before
    cache.chmod(0o644)
    assert infer(archive, cache.parent, *PLAIN_USER).returncode == 0


def test_a_log_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache.sqlite"
    with closing(Cache(cache)) as held:
        held.runs(1)
        assert all((tmp_path / f"cache.sqlite{suffix}").exists() for suffix in SIDE_FILES[:2])
        monkeypatch.setattr("os.access", lambda path, _mode: not str(path).endswith("-shm"))
        with pytest.raises(OutputError, match=r"cache\.sqlite-shm"):
            check_permissions(cache)


@pytest.mark.parametrize(
    "change", ["DROP TABLE seal", "DROP INDEX file_by_hash", "ALTER TABLE run ADD COLUMN x"]
)
def test_a_database_without_all_that_a_cache_has_is_none(tmp_path: Path, change: str) -> None:
    Cache(tmp_path / "cache.sqlite").close()
    with closing(sqlite3.connect(tmp_path / "cache.sqlite")) as database:
        database.execute(change)
    for mode in ("write", "read", "look"):
        with pytest.raises(sqlite3.DatabaseError, match="not those of a cache"):
            Cache(tmp_path / "cache.sqlite", mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize(
    "name", ["cache.sqlite", "cache.sqlite-wal", "cache.sqlite-journal", ".cache.sqlite.new"]
)
def test_what_is_no_file_in_place_of_the_cache_is_named_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    archive, runs_root = tmp_path / "archive", tmp_path / "runs"
    for directory in (archive, runs_root):
        directory.mkdir()
    write_tone(archive / "kick.wav")
    make(runs_root / name)
    for options in ((), ("--dry-run",)):
        begun = time.monotonic()
        ended = infer(archive, runs_root, options=options)
        assert time.monotonic() - begun < 20
        assert ended.returncode == 8, ended.stderr
        assert str(runs_root / name) in ended.stderr
        assert "it is no file" in ended.stderr
    with pytest.raises(OutputError, match="no file"):
        Cache(runs_root / (name if name == ".cache.sqlite.new" else "cache.sqlite"), "look")


def test_a_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    Cache(path, "build").close()
    data = path.read_bytes()
    assert b"indexfile_by_hashfile" in data
    path.write_bytes(data.replace(b"indexfile_by_hashfile", b"index\xbfile_by_hashfile"))
    modes: tuple[Mode, ...] = ("write", "read", "look")
    for mode in modes:
        with pytest.raises(sqlite3.DatabaseError) as found:
            Cache(path, mode)
        assert is_damage(found.value)
