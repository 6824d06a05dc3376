"""The walk: every audio file once, by its own path, in a fixed order, from bytes to bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drumline import walk as walk_module
from drumline.walk import Directory, Walk, WalkSettings, mtime_of
from tests.making import paths

WAV = frozenset({b"wav", b"flac"})


@pytest.fixture(autouse=True, params=["kernel", "Python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who lists directories."""
    if request.param == "Python":
        monkeypatch.setattr(walk_module, "listing_kernel", lambda: None)
    elif walk_module.listing_kernel() is None:
        pytest.skip("drumline was installed without a C compiler")
    return str(request.param)


def walk(root: Path, **options: object) -> tuple[list[Directory], Walk]:
    found = Walk(WalkSettings(os.fsencode(root), WAV, **options))  # type: ignore[arg-type]
    return list(found), found


def names(root: Path, **options: object) -> list[bytes]:
    return [
        os.path.join(directory.path, entry.name)
        for directory in walk(root, **options)[0]
        for entry in directory.files
    ]


def put(root: Path, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_counting_ahead_finds_as_many_files_as_the_walk(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number % 3}" / "deeper").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{number % 3}" / "deeper" / f"{number}.WAV").touch()
        (tmp_path / f"{number}.txt").touch()
    wanted = WalkSettings(os.fsencode(tmp_path), frozenset({b"wav"}))
    counts = list(Walk(wanted).counts())
    assert counts == [len(directory.files) for directory in Walk(wanted)]
    assert sum(counts) == 7


def test_directories_come_depth_first_and_all_is_sorted_by_name(tmp_path: Path) -> None:
    put(tmp_path, "b/2.wav", "b/10.wav", "a/z/1.wav", "a/1.wav", "0.wav", "c.wav", "B/1.wav")
    assert names(tmp_path) == [
        *(b"0.wav", b"c.wav", b"B/1.wav", b"a/1.wav", b"a/z/1.wav", b"b/10.wav", b"b/2.wav")
    ]
    assert [directory.path for directory in walk(tmp_path)[0]] == [b"", b"B", b"a", b"a/z", b"b"]


def test_only_wanted_extensions_count_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "b.WAV", "c.Flac", "d.mp3", "e.wav.txt", "wav", "g.wav.", "._h.wav", "i.x.wav")
    assert names(tmp_path) == [b"a.wav", b"b.WAV", b"c.Flac", b"i.x.wav"]


def test_size_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    put(tmp_path, "a.wav")
    os.utime(tmp_path / "a.wav", ns=(0, 123_456_789_012_345_678))
    (entry,) = walk(tmp_path)[0][0].files
    assert (entry.size, entry.error) == (5, "")
    assert entry.mtime_ns == (tmp_path / "a.wav").stat().st_mtime_ns


def test_links_to_files_count_with_what_they_point_to(tmp_path: Path) -> None:
    put(tmp_path, "inside/a.wav")
    put(tmp_path, "outside/long name.wav")
    (tmp_path / "inside" / "b.wav").symlink_to(tmp_path / "outside" / "long name.wav")
    (directory,), found = walk(tmp_path / "inside")
    assert [entry.name for entry in directory.files] == [b"a.wav", b"b.wav"]
    assert directory.files[1].size == len("outside/long name.wav")
    assert found.skipped_links == 0


def test_links_to_nowhere_are_files_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "dangling.wav").symlink_to("nowhere")
    (tmp_path / "circle.wav").symlink_to("circle.wav")
    ((directory,), _) = walk(tmp_path)
    assert [entry.name for entry in directory.files] == [b"circle.wav", b"dangling.wav"]
    assert all(entry.error for entry in directory.files)


def test_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "a/1.wav")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "up.wav").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    assert names(tmp_path) == [b"a/1.wav"]
    assert walk(tmp_path)[1].skipped_links == 1


@pytest.mark.parametrize(
    ("links", "expected", "skipped"),
    [
        ("all", ["a.wav", "in.wav", "nowhere.wav", "out.wav", "round.wav"], 0),
        ("inside", ["a.wav", "in.wav", "round.wav"], 2),
        ("none", ["a.wav"], 4),
    ],
)
def test_links_are_followed_as_asked(tmp_path: Path, links: str, expected: list[str], skipped: int) -> None:
    root = tmp_path / "archive"
    put(tmp_path, "archive/a.wav", "archive-2/b.wav")
    (root / "in.wav").symlink_to("a.wav")
    (root / "round.wav").symlink_to("../archive/a.wav")
    (root / "out.wav").symlink_to("../archive-2/b.wav")
    (root / "nowhere.wav").symlink_to("../nowhere.wav")
    (directory,), found = walk(root, links=links)
    assert [entry.name.decode() for entry in directory.files] == expected
    assert found.skipped_links == skipped


def test_what_is_mounted_below_is_passed_over_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/1.wav", "mounted/2.wav", "mounted/deeper/3.wav")
    inode = os.stat(tmp_path / "mounted").st_ino
    identity = walk_module._identity

    def elsewhere(directory: bytes) -> tuple[int, int] | None:
        found = identity(directory)
        return (-1, found[1]) if found and found[1] == inode else found

    monkeypatch.setattr(walk_module, "_identity", elsewhere)
    assert names(tmp_path, one_file_system=True) == [b"a/1.wav"]
    assert len(names(tmp_path)) == 3


def test_entries_that_cannot_be_told_apart_cost_no_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems say what an entry is only when asked, and may refuse to."""
    put(tmp_path, "a.wav", "b.wav", "Kicks/c.wav", "z/d.wav")

    class Mute:
        def __init__(self, entry: os.DirEntry[bytes]) -> None:
            self.name, self.path = entry.name, entry.path

        def refuse(self, **_options: bool) -> bool:
            raise PermissionError(errno.EACCES, "Permission denied")

        is_dir = is_file = is_symlink = stat = refuse

    entries = Walk._entries

    def muted(self: Walk, path: bytes) -> list[Any] | None:
        found = entries(self, path)
        return found and [Mute(entry) if entry.name in (b"b.wav", b"Kicks") else entry for entry in found]

    monkeypatch.setattr(Walk, "_entries", muted)
    monkeypatch.setattr(walk_module, "listing_kernel", lambda: None)
    directories, found = walk(tmp_path)
    files = {entry.name: entry.error for directory in directories for entry in directory.files}
    assert files == {b"a.wav": "", b"b.wav": "Permission denied", b"d.wav": ""}
    assert found.unreadable == [(b"Kicks", "Permission denied")]


def test_a_directory_of_200_000_entries_is_walked_whole(fast_path: Path) -> None:
    for number in range(200_000):
        os.mknod(f"{fast_path}/{number:06}.{'wav' if number % 2 else 'txt'}")
    (directory,), _ = walk(fast_path)
    assert [entry.name for entry in directory.files] == [b"%06d.wav" % n for n in range(1, 200_000, 2)]


def test_what_is_no_file_is_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "kick.wav").mkdir()
    (tmp_path / "link.wav").symlink_to("pipe.wav")
    found = walk(tmp_path)[1]
    assert names(tmp_path) == []
    assert (found.skipped_special, found.skipped_links) == (1, 1)


def test_our_own_output_is_left_out_wherever_it_is(tmp_path: Path) -> None:
    put(tmp_path, "a/1.wav", "a/runs/2.wav", "runs/3.wav")
    state = os.stat(tmp_path / "a" / "runs")
    assert names(tmp_path, skip=frozenset({(state.st_dev, state.st_ino)})) == [b"a/1.wav", b"runs/3.wav"]


def test_a_directory_that_goes_during_the_walk_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a/1.wav", "b/1.wav")
    found = Walk(WalkSettings(os.fsencode(tmp_path), WAV))
    directories = iter(found)
    next(directories)
    (tmp_path / "a" / "1.wav").unlink()
    (tmp_path / "a").rmdir()
    assert [directory.path for directory in directories] == [b"b"]
    assert [path for path, _ in found.unreadable] == [b"a"]


def test_a_root_that_is_not_there_is_counted(tmp_path: Path) -> None:
    directories, found = walk(tmp_path / "nowhere")
    assert directories == []
    assert found.unreadable == [(b"", "No such file or directory")]


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [(5, 5), (-5, -5), (2**63, 2**63 - 1), (10**30, 2**63 - 1), (-(10**30), 1 - 2**63)],
)
def test_modification_times_fit_63_bits(nanoseconds: int, expected: int) -> None:
    class Found:
        st_mtime_ns = nanoseconds

    assert mtime_of(Found()) == expected  # type: ignore[arg-type]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(paths, max_size=8))
def test_any_tree_of_any_names_is_walked_whole(
    tmp_path_factory: pytest.TempPathFactory, files: list[bytes]
) -> None:
    root = os.fsencode(tmp_path_factory.mktemp("tree"))
    for path in files:
        try:
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path) + b".wav", "xb"):
                pass
        except OSError:
            continue  # a name that is taken, or that this file system does not hold
    expected = [
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, found in os.walk(root)
        for name in found
        if not name.startswith(b"._")
    ]
    assert sorted(names(Path(os.fsdecode(root)))) == sorted(expected)


def test_a_walk_is_one_pass_so_nothing_is_counted_twice(tmp_path: Path) -> None:
    put(tmp_path, "a.wav")
    (tmp_path / "dangling.wav").symlink_to("nowhere")
    (tmp_path / "link.wav").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.wav")
    directories, found = walk(tmp_path, links="none")
    assert len(directories) == 1
    assert list(found) == []
    assert (found.skipped_links, found.skipped_special) == (2, 1)


NAMES = st.one_of(
    st.binary(min_size=1, max_size=9).map(lambda name: name.translate(None, b"\0/") or b"x"),
    st.sampled_from([b"wav", b"._a.wav", b".wav", b"a.wav.", b"a.WAV", b"a.fLaC", b"\xff.wav", b"a.wave"]),
)
KINDS = st.sampled_from(
    [*3 * ["file"], "directory", "link", "dangling", "pipe", "old", "far", "before", "late"]
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(found=st.dictionaries(NAMES, KINDS, max_size=12))
def test_the_kernel_finds_what_python_finds(
    tmp_path_factory: pytest.TempPathFactory, way: str, found: dict[bytes, str]
) -> None:
    if way == "Python":
        pytest.skip("once is enough")
    root = os.fsencode(tmp_path_factory.mktemp("archive"))
    for number, (name, kind) in enumerate(found.items()):
        make(os.path.join(root, name if name not in (b".", b"..") else b"dots"), kind, number)
    both = [Walk(WalkSettings(root, WAV), use_kernel=use) for use in (True, False)]
    assert list(both[0]) == list(both[1])
    assert both[0].skipped_links == both[1].skipped_links
    assert both[0].skipped_special == both[1].skipped_special


def make(path: bytes, kind: str, size: int) -> None:
    """Put something of a kind in a place."""
    if os.path.lexists(path):
        return
    if kind == "directory":
        os.mkdir(path)
        make(os.path.join(path, b"inside.wav"), "file", size)
    elif kind in ("link", "dangling"):
        os.symlink(b"." if kind == "link" else b"nowhere", path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as stream:
            stream.write(bytes(size))
        if kind != "file":
            seconds = {"old": -(2**31), "far": 2**33 + 5, "before": -(10**10), "late": 10**10}[kind]
            os.utime(path, ns=(0, seconds * 10**9 + 123_456_789))


def test_the_kernel_says_nothing_where_python_has_to_look(tmp_path: Path, way: str) -> None:
    kernel = walk_module.listing_kernel()
    if way == "Python" or kernel is None:
        pytest.skip("there is no kernel")
    place = os.fsencode(tmp_path)
    put(tmp_path, "a.wav")
    assert kernel.listed(place, b"wav\0") is not None
    (tmp_path / "b.txt").symlink_to("a.wav")
    assert kernel.listed(place, b"wav\0") is not None
    (tmp_path / "b.wav").symlink_to("a.wav")
    assert kernel.listed(place, b"wav\0") is None
    assert kernel.listed(place + b"/nowhere", b"wav\0") is None
    with pytest.raises(ValueError, match="NUL"):
        kernel.listed(place, b"wav")
