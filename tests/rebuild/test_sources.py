"""When a rebuild looks for files in the archive, and what comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drumline.errors import OutputError
from drumline.rebuild import tree
from drumline.rebuild.actions import Action, Refused
from drumline.rebuild.tree import Sources
from drumline.walk import listing_kernel, mtime_of
from tests.rebuild.archives import Archive


@pytest.fixture
def elsewhere(archive: Archive, tmp_path: Path) -> Path:
    """A directory on another device than the archive, which a link in the archive leads to."""
    if os.stat(tmp_path).st_dev == os.stat(archive.root).st_dev:
        pytest.skip("one device only")
    os.symlink(tmp_path, archive.path(b"z"))
    return tmp_path


def test_an_original_that_was_edited_in_place_is_named_once(archive: Archive) -> None:
    archive.add(b"k/a.wav")
    run = archive.run()
    archive.rebuild(run, copy_mode="hardlink")
    with open(archive.path(b"k/a.wav"), "ab") as stream:
        stream.write(b"and more")
    with archive.plan(run, copy_mode="hardlink") as plan:
        assert [problem for problem, _, _ in plan.problems()] == ["changed"]
        assert plan.counts["changed"] == 1


@pytest.mark.usefixtures("elsewhere")
def test_files_that_are_not_placed_may_lie_on_another_device(archive: Archive) -> None:
    archive.add(b"a/kick.wav", content=b"x" * 300)
    archive.add(b"z/kick.wav", content=b"x" * 300)
    assert archive.rebuild(copy_mode="hardlink", dedup="first").counts["made"] == 1


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("stands", [False, True])
def test_a_file_on_another_device_is_no_hard_link_and_nothing_is_made(archive: Archive, stands: bool) -> None:
    archive.add(b"a/kick.wav")
    if stands:
        archive.rebuild(copy_mode="hardlink")
    before = archive.tree() if stands else {}
    archive.add(b"z/kick.wav")
    with pytest.raises(OutputError, match="one file system"):
        archive.rebuild(copy_mode="hardlink")
    assert (archive.tree() if archive.out.exists() else {}) == before


def counted(look: Callable[[Sources, Action], object], found: list[object]) -> object:
    """Return a method of `Sources` that notes what it was asked for."""

    def look_and_note(sources: Sources, file: Action) -> object:
        found.append(file)
        return look(sources, file)

    return look_and_note


def test_what_stands_as_planned_is_not_looked_for_in_the_archive(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(b"a.wav")
    run, found = archive.run(), list[object]()

    for name in ("find", "stat"):
        monkeypatch.setattr(Sources, name, counted(getattr(Sources, name), found))
    assert archive.rebuild(run).counts["made"] == 1
    assert found
    found.clear()
    assert archive.rebuild(run).counts["already_there"] == 1
    assert not found


@pytest.fixture(params=["kernel", "Python"])
def sources(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sources]:
    """An archive with ``d/kick.wav``, looked at by the kernel or without it."""
    if request.param == "Python":
        monkeypatch.setattr(tree, "listing_kernel", lambda: None)
    elif listing_kernel() is None:
        pytest.skip("there is no kernel")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kick.wav").write_bytes(b"boom")
    found = Sources(os.fsencode(tmp_path))
    yield found
    found.close()


def planned(path: Path, size: int = 4, mtime_ns: int | None = None) -> Action:
    if mtime_ns is None:
        mtime_ns = path.stat().st_mtime_ns
    return Action(0, "make", "Kick", b"Kick/kick.wav", b"d/kick.wav", size, mtime_ns, None)


@pytest.mark.parametrize("links", [False, True])
def test_a_file_is_found_as_it_was_indexed_over_links_too(
    sources: Sources, tmp_path: Path, links: bool
) -> None:
    path = tmp_path / "d" / "kick.wav"
    if links:
        path.rename(tmp_path / "elsewhere.wav")
        path.symlink_to("../elsewhere.wav")
    directory, name, device = sources.find(planned(path))
    assert name == b"kick.wav"
    assert os.path.samestat(os.stat(name, dir_fd=directory), path.stat())
    assert device == path.stat().st_dev
    assert os.path.samestat(sources.stat(planned(path)), path.stat())


@pytest.mark.parametrize(
    ("change", "problem", "why"),
    [
        ({"size": 5}, "changed", "4 bytes now, 5 when it was indexed"),
        ({"size": 2**63 - 1}, "changed", "4 bytes now"),
        ({"mtime_ns": 1}, "changed", "modified since"),
        ("directory", "changed", "no regular file"),
        ("fifo", "changed", "no regular file"),
        ("gone", "missing", "No such file"),
        ("nowhere", "missing", "No such file"),
    ],
)
def test_why_a_file_is_not_as_it_was_indexed_is_said(
    sources: Sources, tmp_path: Path, change: dict[str, int] | str, problem: str, why: str
) -> None:
    path = tmp_path / "d" / "kick.wav"
    file = planned(path, **(change if isinstance(change, dict) else {}))
    if isinstance(change, str):
        path.unlink()
    if change == "directory":
        path.mkdir()
    elif change == "fifo":
        os.mkfifo(path)
    elif change == "nowhere":
        path.parent.rmdir()
    for look in (sources.find, sources.stat):
        with pytest.raises(Refused, match=why) as refused:
            look(file)
        assert refused.value.problem == problem


def test_a_file_of_a_far_year_is_found_where_its_file_system_knows_the_year(
    sources: Sources, tmp_path: Path
) -> None:
    path = tmp_path / "d" / "kick.wav"
    os.utime(path, (9_500_000_000, 9_500_000_000))
    assert sources.find(planned(path, mtime_ns=mtime_of(path.stat())))[1] == b"kick.wav"


@pytest.mark.parametrize("mtime_ns", [1_795_971_346_793_853_203, 0, -1_500_000_000])
def test_the_kernel_tells_a_byte_and_a_nanosecond(tmp_path: Path, mtime_ns: int) -> None:
    kernel = listing_kernel()
    if kernel is None:
        pytest.skip("there is no kernel")
    path = tmp_path / "kick.wav"
    path.write_bytes(b"boom")
    os.utime(path, ns=(0, mtime_ns))
    mtime_ns = path.stat().st_mtime_ns  # as exactly as the file system keeps it
    (tmp_path / "dangling.wav").symlink_to("nowhere")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert kernel.unchanged(directory, b"kick.wav", 4, mtime_ns) == path.stat().st_dev
        for size, time_ns in ((3, mtime_ns), (5, mtime_ns), (4, mtime_ns - 1), (4, mtime_ns + 1)):
            assert kernel.unchanged(directory, b"kick.wav", size, time_ns) is None
        assert kernel.unchanged(directory, b"dangling.wav", 4, mtime_ns) is None
        status = tmp_path.stat()
        assert kernel.unchanged(directory, b".", status.st_size, status.st_mtime_ns) is None
    finally:
        os.close(directory)
