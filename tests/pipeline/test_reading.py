"""In what order files are read, and that the system is told; never at the price of a record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from drumline.pipeline import reading
from drumline.pipeline.reading import Reading
from drumline.storage import STORAGES, Storage
from tests.pipeline.support import Server, eventually, last_run, records_of

PATHS = [b"a/1", b"a/2", b"a/3", b"b/1", b"b/2"]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Five files that lie on the disk the other way round."""
    places = {}
    for number, path in enumerate(PATHS):
        place = tmp_path / os.fsdecode(path)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"x" * 5_000)
        places[place.stat().st_ino] = 1_000 - number
    monkeypatch.setattr(reading, "_first_extent", lambda descriptor: places[os.fstat(descriptor).st_ino])
    return bytes(tmp_path)


def order(archive: bytes, storage: Storage, findings: list[bytes]) -> list[bytes]:
    path_of = {path: path for path in findings if not path.startswith(b"known")}
    return list(Reading(archive, storage).ordered(findings, path_of.get))


def test_a_spinning_disk_is_read_as_the_files_lie_directory_by_directory(disk: bytes) -> None:
    assert order(disk, "hdd", PATHS) == [b"a/3", b"a/2", b"a/1", b"b/2", b"b/1"]


@pytest.mark.parametrize("storage", ["ssd", "network"])
def test_elsewhere_the_order_of_names_stays(disk: bytes, storage: Storage) -> None:
    assert order(disk, storage, PATHS) == PATHS


def test_what_is_known_goes_on_at_once_and_what_cannot_be_opened_is_read_all_the_same(disk: bytes) -> None:
    found = order(disk, "hdd", [b"a/1", b"known", b"a/gone", b"a/2"])
    assert found == [b"known", b"a/gone", b"a/2", b"a/1"]


def test_a_very_large_directory_is_sorted_part_by_part(disk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SORTED_AT_ONCE", 2)
    assert order(disk, "hdd", PATHS) == [b"a/2", b"a/1", b"a/3", b"b/2", b"b/1"]


def test_the_real_disk_says_where_a_file_lies_or_nothing(tmp_path: Path) -> None:
    files = [tmp_path / "file", tmp_path / "later"]
    for file in files:
        file.write_bytes(b"x" * 100_000)
    os.sync()
    (place, inode), (later, _) = (reading.place_of(bytes(file)) for file in files)
    assert inode == files[0].stat().st_ino
    assert reading.place_of(bytes(tmp_path / "none")) == (0, 0)
    if not place:
        pytest.skip("this disk tells no places")
    assert place != later


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_files_are_announced_but_on_a_network(disk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(
        reading.os, "posix_fadvise", lambda _fd, _start, size, advice: said.append(advice) or None
    )
    os.mkfifo(os.path.join(disk, b"pipe"))
    announced = [Reading(disk, storage) for storage in STORAGES]
    for each in announced:
        each.announce([b"a/1", b"pipe", b"none"])
    eventually(lambda: not any(each._announcer.is_alive() for each in announced), "end of announcements")
    assert said == [os.POSIX_FADV_WILLNEED] * 4


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """What has to happen before ``a/2`` can be opened."""
    event = Event()

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, path: bytes, flags: int) -> int:
            if path.endswith(b"a/2"):
                event.wait()
            return os.open(path, flags)

    monkeypatch.setattr(reading, "os", Slow())
    yield event
    event.set()


def test_places_that_are_not_told_in_time_are_waited_for_once_and_no_file_is_lost(
    disk: bytes, opens: Event
) -> None:
    asked = Reading(disk, "hdd", patience_sec=0.2)
    assert list(asked.ordered(PATHS, lambda path: path)) == [b"a/2", b"a/3", b"a/1", b"b/1", b"b/2"]
    opens.set()
    asked._locator.join()
    assert list(asked.ordered(PATHS, lambda path: path)) == [b"a/3", b"a/2", b"a/1", b"b/2", b"b/1"]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_announcements_behind_one_that_hangs_are_kept_within_bounds(disk: bytes, opens: Event) -> None:
    asked = Reading(disk, "ssd")
    asked.announce([b"a/2"])
    for _ in range(100):
        asked.announce([b"a/1"] * 32)
    assert len(asked._to_announce) == 1_024
    opens.set()
    asked._announcer.join()
    assert not asked._to_announce


def test_every_way_of_reading_gives_the_same_records(
    server: Server, pristine: Path, model: Path, tmp_path: Path
) -> None:
    found = {}
    for storage in STORAGES:
        command = (
            "infer",
            pristine,
            "--runs-root",
            tmp_path / storage,
            "--model",
            model,
            "--json",
            "--quiet",
        )
        result = server.start(*command, "--workers", "2", "--io", storage).wait()
        assert result.code == 0, result.err
        assert result.json()["storage"] == storage
        records = records_of(last_run(tmp_path / storage))
        found[storage] = {path: (record["hash"], record["label_top1"]) for path, record in records.items()}
    assert found["ssd"] == found["hdd"] == found["network"]
