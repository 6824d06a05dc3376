"""A cache that is made anew takes the old one's place whole, or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drumline import recover
from drumline.cache import Cache, FileRow
from drumline.errors import OutputError
from drumline.index import Frame, Written
from drumline.recover import open_cache, rebuild_cache
from drumline.tally import Tally
from tests.making import make_record, make_run
from tests.test_index import no_file_beyond

FRAMES, ROWS = 90, 512


def fill(cache: Cache, _runs_root: Path) -> None:
    """Store 46,000 files in a cache of about 14 MB, in many transactions."""
    for frame in range(FRAMES):
        rows = [
            FileRow(b"%d" % frame, b"%0100d" % row, 1, 1, f"{frame * ROWS + row:016x}", 0, row)
            for row in range(ROWS)
        ]
        with cache.transaction():
            scope = cache.scope(b"/archive %d" % frame, "key")
            cache.add_frame(
                scope, cache.add_run(scope, f"run {frame}", "key"), Written(0, 1, b""), 0, Tally(), rows
            )


@pytest.mark.parametrize("megabytes", [1, 10, 12, 13, 30])
def test_a_disk_that_is_nearly_full_never_costs_a_good_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int
) -> None:
    path = tmp_path / "cache.sqlite"
    run = make_run(tmp_path, [make_record()])
    open_cache(path, tmp_path).close()
    before = path.read_bytes()
    monkeypatch.setattr(recover, "_fill", fill)
    monkeypatch.setattr(recover, "_is_good", lambda *_: False)
    try:
        with no_file_beyond(megabytes << 20):
            open_cache(path, tmp_path).close()
    except OutputError:
        assert path.read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == sorted([run.name, "cache.sqlite"])
    else:
        with closing(Cache(path, "look")) as cache:
            assert sum(cache.count_files(scope + 1) for scope in range(FRAMES)) == FRAMES * ROWS


def test_nothing_of_the_old_cache_stands_beside_the_new_one(tmp_path: Path) -> None:
    run, path = make_run(tmp_path, [make_record()]), tmp_path / "cache.sqlite"
    path.write_bytes(b"garbage")
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).write_bytes(b"garbage")
    rebuild_cache(path, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([run.name, "cache.sqlite"])


def test_a_good_cache_is_only_read_to_see_that_it_is_good(tmp_path: Path) -> None:
    make_run(tmp_path, [make_record()])
    path = tmp_path / "cache.sqlite"
    rebuild_cache(path, tmp_path)
    before = path.read_bytes()
    assert recover._is_good(path, tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("table", ["run", "frame"])
def test_a_cache_that_lacks_a_table_is_made_anew(tmp_path: Path, table: str) -> None:
    make_run(tmp_path, [make_record()])
    path = tmp_path / "cache.sqlite"
    with closing(open_cache(path, tmp_path)) as cache:
        cache._db.execute(f"DROP TABLE {table}")
    with closing(open_cache(path, tmp_path)) as cache:
        assert cache.count_files(1) == 1


def test_a_disk_that_fails_while_an_index_is_read_is_an_error_and_costs_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = make_run(tmp_path, [make_record()]), tmp_path / "cache.sqlite"
    open_cache(path, tmp_path).close()
    before = path.read_bytes()

    def failing(_path: Path) -> Iterator[Frame]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(recover, "read_frames", failing)
    with pytest.raises(OutputError, match=r"cannot read the index .* Input/output error"):
        rebuild_cache(path, tmp_path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([run.name, "cache.sqlite"])


def test_a_cache_whose_last_change_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    """A kill while the new cache is switched to its log leaves a journal that has to be rolled back."""
    run, path = make_run(tmp_path, [make_record()]), tmp_path / "cache.sqlite"
    rebuild_cache(path, tmp_path)
    program = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN')\n"
        "db.execute('CREATE TABLE large (content)')\n"
        "db.executemany('INSERT INTO large VALUES (?)', ((bytes(9000),) for _ in range(50)))\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.with_name("cache.sqlite-journal").exists()
    with closing(open_cache(path, tmp_path)) as cache:
        assert [name for name, _ in cache.runs_in_use()] == [run.name]
    assert not path.with_name("cache.sqlite-journal").exists()
