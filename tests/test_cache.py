"""The cache: where the record of every file lies."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drumline.cache import Cache, Failure, FileRow, FrameRow, KnownFile, Split, digest_of
from drumline.cache_file import Mode, cache_way_out
from drumline.errors import OutputError
from drumline.index import Written
from drumline.tally import Tally
from drumline.walk import Directory
from tests.making import make_record, paths, records

ARCHIVE, KEY = b"/archive \xff", "key"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache.sqlite")
    yield cache
    cache.close()


def row(path: bytes, line: int, digest: str | None = None, size: int = 1) -> FileRow:
    return FileRow(*os.path.split(path), size, 2, digest, Failure.NONE, line)


def add(cache: Cache, scope: int, run: int, *rows: FileRow, offset: int = 0, failed: int = 0) -> int:
    tally = Tally(records=len(rows), failed=failed, size=sum(each.size for each in rows))
    return cache.add_frame(scope, run, Written(offset, 10, b""), 0, tally, rows)


def known(cache: Cache, scope: int) -> dict[bytes, KnownFile]:
    return {
        os.path.join(directory, name): file
        for directory, number in cache.directories(scope).items()
        for name, file in cache.files(number).items()
    }


file_rows = st.builds(
    lambda path, size, mtime, digest, failed: FileRow(*os.path.split(path), size, mtime, digest, failed, 0),
    paths,
    st.integers(0, 2**62),
    st.integers(1 - 2**63, 2**63 - 1),
    st.none() | st.text("0123456789abcdef", min_size=16, max_size=64),
    st.sampled_from([Failure.NONE, Failure.LASTING, Failure.TRANSIENT]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(file_rows, min_size=1, max_size=20, unique_by=lambda each: each[:2]))
def test_rows_come_back_as_they_were_stored(
    tmp_path_factory: pytest.TempPathFactory, rows: list[FileRow]
) -> None:
    path = tmp_path_factory.mktemp("cache") / "cache.sqlite"
    cache = Cache(path)
    rows = [each._replace(line=line) for line, each in enumerate(rows)]
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "decisions")
        frame = add(cache, scope, run, *rows)
    cache.close()
    cache = Cache(path, "read")
    expected = {
        os.path.join(each.directory, each.name): KnownFile(
            each.size, each.mtime_ns, each.failed, frame, each.line
        )
        for each in rows
    }
    assert known(cache, scope) == expected
    assert cache.count_files(scope) == cache.count_run_files(run) == len(expected)
    assert [found for _, _, found in cache.live_frames(run)] == [rows]
    for each in rows:
        if each.hash is not None:
            twin = cache.twin(each.hash, KEY)
            assert twin is not None
            assert (twin.frame.id, twin.run) == (frame, "run")
            assert rows[twin.line].hash == each.hash
    cache.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(records, min_size=1, max_size=6))
def test_tallies_add_up_over_frames(tmp_path_factory: pytest.TempPathFactory, found: list) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache") / "cache.sqlite")
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "decisions")
        for number, record in enumerate(found):
            cache.add_frame(scope, run, Written(number, 1, b""), number % 2, Tally.of([record]), [])
    total, carried = cache.tally(run)
    expected = Tally.of(found)
    assert (total.records, total.failed, total.size) == (expected.records, expected.failed, expected.size)
    assert (total.labels, total.errors, total.formats) == (expected.labels, expected.errors, expected.formats)
    assert carried == len(found) // 2
    cache.close()


def test_a_file_has_one_row_that_of_its_last_record(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "decisions")
        first = add(cache, scope, run, row(b"a/1.wav", 0), row(b"a/2.wav", 1))
        second = add(cache, scope, run, row(b"a/1.wav", 0, size=9), offset=10)
    assert known(cache, scope)[b"a/1.wav"] == KnownFile(9, 2, 0, second, 0)
    assert known(cache, scope)[b"a/2.wav"].frame == first
    assert cache.tally(run)[0].records == 3
    assert cache.count_run_files(run) == 2


def test_one_of_thousands_of_equal_files_is_found_without_reading_the_others(cache: Cache) -> None:
    steps: list[None] = []
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "decisions")
        failed = row(b"a/failed.wav", 0, "1234")._replace(failed=Failure.LASTING)
        add(cache, scope, run, failed, *(row(b"a/%d.wav" % line, line, "1234") for line in range(1, 3000)))
    cache._db.set_progress_handler(lambda: steps.append(None), 1)
    twin = cache.twin("1234", KEY)
    cache._db.set_progress_handler(None, 1)
    assert twin is not None
    assert twin.line > 0
    assert len(steps) < 500


def test_scopes_share_nothing_but_content(cache: Cache) -> None:
    with cache.transaction():
        one, other = cache.scope(ARCHIVE, KEY), cache.scope(b"/other", KEY)
        strange = cache.scope(ARCHIVE, "another model")
        add(cache, one, cache.add_run(one, "run 1", "d"), row(b"a.wav", 0, "1234"))
    assert len({one, other, strange}) == 3
    assert cache.scope(ARCHIVE, KEY) == cache.find_scope(ARCHIVE, KEY) == one
    assert cache.find_scope(ARCHIVE, "unheard of") is None
    assert known(cache, other) == known(cache, strange) == {}
    assert cache.twin("1234", KEY) is not None
    assert cache.twin("1234", "another model") is None
    assert cache.twin("4321", KEY) is None


def test_a_frame_that_is_carried_over_lies_in_the_other_run(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        old, new = (cache.add_run(scope, name, "d") for name in ("old", "new"))
        frame = add(cache, scope, old, row(b"a.wav", 0), row(b"b.wav", 1), row(b"c.wav", 2), failed=1)
        cache.carry_frame(frame, new, 77)
    found = cache.frame(frame)
    assert found is not None
    assert found[0] == (frame, new, 77, 10, 3, None)
    assert found[1:] == (b"", "new")
    assert cache.count_run_files(old) == 0
    total, carried = cache.tally(new)
    assert (total.records, total.failed, carried) == (3, 1, 2)


def test_a_frame_that_is_split_leaves_the_rows_that_no_longer_hold_where_they_were(cache: Cache) -> None:
    names = [b"a/0.wav", b"a/1.wav", b"b/2.wav", b"3.wav", b"b/4.wav"]
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        old, new, newest = (cache.add_run(scope, name, "d") for name in ("old", "new", "newest"))
        rows = [row(name, line, f"{line:016x}") for line, name in enumerate(names)]
        frame = add(cache, scope, old, *rows)
    for run, kept, dropped in ((new, 0b11101, [b"a/1.wav"]), (newest, 0b10100, [b"a/0.wav", b"3.wav"])):
        before = cache.frame(frame)
        assert before is not None
        left = cache.frame_tally(frame).without(Tally(records=len(dropped), size=len(dropped)))
        with cache.transaction():
            cache.split_frame(scope, run, Split(before[0], kept, Written(70 + run, 7, b""), left, dropped))
    places = {}
    for line in range(len(names)):
        twin = cache.twin(f"{line:016x}", KEY)
        assert twin is not None
        places[line] = (twin.run, twin.frame.place(twin.line))
    assert places == {0: ("new", 0), 1: ("old", 1), 2: ("newest", 0), 3: ("new", 2), 4: ("newest", 1)}
    assert [cache.count_run_files(run) for run in (old, new, newest)] == [1, 2, 2]
    assert cache.tally(newest) == (Tally(records=2, size=2), 2)
    with cache.transaction():
        for name in (b"a/0.wav", b"a/1.wav", b"3.wav"):
            directory, last = os.path.split(name)
            cache.forget_file(cache.directories(scope)[directory], last)
        cache.drop_unused(scope, newest)
    assert set(cache.frames(scope)) == {frame}
    assert set(cache.runs(scope)) == {newest}


def test_a_line_that_was_left_out_has_no_place() -> None:
    frame = FrameRow(1, 1, 0, 10, 2, b"\x05")
    assert [frame.place(line) for line in (0, 2)] == [0, 1]
    for line in (-1, 1, 3, 600):
        with pytest.raises(LookupError):
            frame.place(line)


def test_what_is_forgotten_is_gone_and_nothing_else(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "d")
        add(cache, scope, run, *(row(path, line) for line, path in enumerate([b"a/1", b"a/2", b"b/1", b"3"])))
        directories = cache.directories(scope)
        cache.forget_file(directories[b"a"], b"1")
        cache.forget_directory(directories[b"b"])
    assert set(known(cache, scope)) == {b"a/2", b"3"}
    assert set(cache.directories(scope)) == {b"", b"a"}
    with cache.transaction():
        again = add(cache, scope, run, row(b"b/9", 0))
    assert known(cache, scope)[b"b/9"].frame == again


def sealed(cache: Cache, scope: int) -> set[bytes]:
    return {path for path, number in cache.directories(scope).items() if cache.seal(number)}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(file_rows, min_size=1, max_size=12, unique_by=lambda each: each[:2]))
def test_a_seal_says_all_that_the_rows_of_a_directory_say(
    tmp_path_factory: pytest.TempPathFactory, rows: list[FileRow]
) -> None:
    rows = [each._replace(line=line) for line, each in enumerate(rows)]
    with closing(Cache(tmp_path_factory.mktemp("cache") / "cache.sqlite")) as cache, cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        frame = add(cache, scope, cache.add_run(scope, "run", "d"), *rows)
        cache.seal_directories(scope)
        for path, number in cache.directories(scope).items():
            held = sorted(each for each in rows if each.directory == path)
            failures = [each.failed for each in held]
            seal = cache.seal(number)
            assert (seal is None) == (Failure.TRANSIENT in failures)
            if seal is not None:
                names, sizes, times = ([each[column] for each in held] for column in (1, 2, 3))
                coarse = max((time for time in times if time % 10**9 == 0), default=None)  # type: ignore[operator]
                assert seal.digest == digest_of(Directory.of(path, names, sizes, times))  # type: ignore[arg-type]
                assert (seal.failures, seal.coarse_ns) == (failures.count(Failure.LASTING), coarse)
                assert seal.places == {frame: sum(1 << each.line for each in held)}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda cache, scope, run, frame: add(cache, scope, run, row(b"a/1.wav", 0, size=9)), {b"b", b""}),
        (lambda cache, scope, run, frame: add(cache, scope, run, row(b"a/new.wav", 0)), {b"b", b""}),
        (
            lambda cache, scope, run, frame: cache.forget_file(cache.directories(scope)[b"a"], b"1.wav"),
            {b"b", b""},
        ),
        (
            lambda cache, scope, run, frame: cache.forget_directory(cache.directories(scope)[b"a"]),
            {b"b", b""},
        ),
        (lambda cache, scope, run, frame: cache.forget_frame(frame), {b""}),
        (lambda cache, scope, run, frame: cache.carry_frame(frame, run, 70), {b"a", b"b", b""}),
        (lambda cache, scope, run, frame: cache.forget_scope(scope), set()),
    ],
    ids=[
        "replaced",
        "added",
        "forgotten",
        "directory forgotten",
        "frame forgotten",
        "carried",
        "scope forgotten",
    ],
)
def test_a_change_of_a_row_breaks_the_seal_of_its_directory_and_no_other(
    cache: Cache, change: Callable[[Cache, int, int, int], object], left: set[bytes]
) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run, new = (cache.add_run(scope, name, "d") for name in ("run", "new"))
        frame = add(cache, scope, run, row(b"a/1.wav", 0), row(b"a/2.wav", 1), row(b"b/3.wav", 2))
        add(cache, scope, run, row(b"4.wav", 0))
        cache.seal_directories(scope)
        assert sealed(cache, scope) == {b"a", b"b", b""}
        change(cache, scope, new, frame)
    assert sealed(cache, scope) == left


def test_a_frame_that_is_split_breaks_the_seals_of_what_was_left_out(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        old, new = (cache.add_run(scope, name, "d") for name in ("old", "new"))
        frame = add(cache, scope, old, row(b"a/1.wav", 0), row(b"b/2.wav", 1))
        cache.seal_directories(scope)
    found = cache.frame(frame)
    assert found is not None
    with cache.transaction():
        left = cache.frame_tally(frame).without(Tally(records=1, size=1))
        cache.split_frame(scope, new, Split(found[0], 0b01, Written(70, 7, b""), left, [b"b/2.wav"]))
    assert sealed(cache, scope) == {b"a"}


def test_a_scope_can_be_forgotten_whole(cache: Cache) -> None:
    with cache.transaction():
        one, other = cache.scope(ARCHIVE, KEY), cache.scope(b"/other", KEY)
        for scope in (one, other):
            add(cache, scope, cache.add_run(scope, f"run {scope}", "d"), row(b"a.wav", 0, f"{scope}"))
        cache.forget_scope(one)
    assert known(cache, one) == {}
    assert cache.runs(one) == {}
    assert list(known(cache, other)) == [b"a.wav"]
    assert len(cache.frames(other)) == 1


def test_what_nobody_points_to_is_dropped(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        old, older, new = (cache.add_run(scope, name, "d") for name in ("old", "older", "new"))
        kept = add(cache, scope, old, row(b"a", 0), row(b"b", 1))
        add(cache, scope, older, row(b"c", 0))
        empty = cache.add_frame(scope, new, Written(0, 1, b""), 0, Tally(), [])
        last = add(cache, scope, new, row(b"b", 0), row(b"c", 1))
        cache.drop_unused(scope, new)
    assert set(cache.frames(scope)) == {kept, empty, last}
    assert set(cache.runs(scope)) == {old, new}
    with cache.transaction():
        cache.drop_dead_frames(new)
    assert set(cache.frames(scope)) == {kept, last}


def test_a_transaction_that_fails_changes_nothing(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "d")
    with pytest.raises(sqlite3.Error), cache.transaction():
        _change_and_fail(cache, scope, run)
    assert known(cache, scope) == {}
    assert cache.directories(scope) == {}
    assert cache.runs(scope)[run] == ("run", "d", 0)
    with cache.transaction():
        add(cache, scope, run, row(b"new directory/a.wav", 0))
    assert set(known(cache, scope)) == {b"new directory/a.wav"}


def _change_and_fail(cache: Cache, scope: int, run: int) -> None:
    add(cache, scope, run, row(b"new directory/a.wav", 0))
    cache.set_valid(run, 99)
    raise sqlite3.OperationalError("disk full")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_transaction_of_a_killed_process_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    pid = os.fork()
    if pid == 0:
        cache = Cache(path)
        with cache.transaction():
            scope = cache.scope(ARCHIVE, KEY)
            cache.set_valid(cache.add_run(scope, "run", "d"), 7)
        with cache.transaction():
            add(cache, scope, 1, row(b"a.wav", 0))
            cache.set_valid(1, 99)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    cache = Cache(path)
    assert cache.runs(1) == {1: ("run", "d", 7)}
    assert known(cache, 1) == {}
    cache.close()


def test_reading_goes_on_while_somebody_writes(cache: Cache) -> None:
    with cache.transaction():
        scope = cache.scope(ARCHIVE, KEY)
        run = cache.add_run(scope, "run", "d")
    reader = Cache(cache.path, "read")
    with cache.transaction():
        add(cache, scope, run, row(b"a.wav", 0))
        assert known(reader, scope) == {}
    assert set(known(reader, scope)) == {b"a.wav"}
    reader.close()


def test_who_only_reads_cannot_write(cache: Cache) -> None:
    reader = Cache(cache.path, "read")
    with pytest.raises((sqlite3.OperationalError, OutputError)), reader.transaction():
        reader.scope(ARCHIVE, KEY)
    reader.close()


def test_nothing_is_left_beside_a_cache_that_was_closed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache.sqlite")
    with cache.transaction():
        cache.scope(ARCHIVE, KEY)
    cache.close()
    assert [path.name for path in tmp_path.iterdir()] == ["cache.sqlite"]


@pytest.mark.parametrize("name", ["odd ? # % name", "a 'quoted' \"name\"", "caf\udce9"])
def test_a_cache_may_lie_at_any_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    cache = Cache(tmp_path / name / "cache.sqlite")
    with cache.transaction():
        cache.scope(ARCHIVE, KEY)
    cache.close()
    assert (tmp_path / name / "cache.sqlite").exists()


def test_another_version_is_not_read(tmp_path: Path) -> None:
    Cache(tmp_path / "cache.sqlite").close()
    with sqlite3.connect(tmp_path / "cache.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(sqlite3.DatabaseError, match="version 99"):
        Cache(tmp_path / "cache.sqlite")


def test_what_a_failure_is_worth_depends_on_its_kind() -> None:
    from drumline.cache import file_row

    found = {
        error: file_row(make_record(b"a/b.wav", error=error), 3) for error in ("vanished", "decode_error")
    }
    assert found["vanished"].failed == Failure.TRANSIENT
    assert found["decode_error"].failed == Failure.LASTING
    assert found["decode_error"].hash is None
    good = file_row(make_record(b"a/b.wav"), 3)
    assert good == FileRow(b"a", b"b.wav", 88_244, 1_700_000_000_000_000_000, "0123456789abcdef", 0, 3)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("SQLITE_FULL", "free space"),
        ("SQLITE_IOERR_SHMSIZE", "free space"),
        ("SQLITE_READONLY", "permissions"),
        ("SQLITE_CORRUPT", "Delete cache.sqlite"),
        ("SQLITE_NOTADB", "Delete cache.sqlite"),
    ],
)
def test_the_way_out_of_an_error_fits_it(name: str, way_out: str) -> None:
    error = sqlite3.OperationalError("it fails")
    error.sqlite_errorname = name
    assert way_out in cache_way_out(error)
    assert "same command again" in cache_way_out(error)


def test_looking_into_a_cache_at_rest_leaves_nothing_beside_it(tmp_path: Path) -> None:
    Cache(tmp_path / "cache.sqlite").close()
    for _ in range(2):
        Cache(tmp_path / "cache.sqlite", "look").close()
    assert [path.name for path in tmp_path.iterdir()] == ["cache.sqlite"]


def test_a_database_of_another_kind_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE mine (value)")
    before = path.read_bytes()
    for mode in get_args(Mode):
        with pytest.raises(sqlite3.DatabaseError, match="version 0"):
            Cache(path, mode)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["cache.sqlite"]


def test_a_prediction_is_known_by_its_inference_key_and_a_failure_is_none(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        scopes = {key: cache.scope(b"/archive", key) for key in ("failed", "sound")}
        for key, scope in scopes.items():
            run = cache.add_run(scope, key, "decision")
            cache.add_frame(
                scope, run, Written(0, 1, b""), 0, Tally(records=2, failed=2 if key == "failed" else 1), ()
            )
        assert cache.has_prediction("sound")
        assert not cache.has_prediction("failed")
        assert not cache.has_prediction("never used")
