"""When a rebuild looks for files in the archive, and what comes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drumline.errors import OutputError
from drumline.rebuild.tree import Sources
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


def test_what_stands_as_planned_is_not_looked_for_in_the_archive(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(b"a.wav")
    run, found, find = archive.run(), [], Sources.find

    def counted(self: Sources, file: object) -> object:
        found.append(file)
        return find(self, file)  # type: ignore[arg-type]

    monkeypatch.setattr(Sources, "find", counted)
    assert archive.rebuild(run).counts["made"] == 1
    assert found
    found.clear()
    assert archive.rebuild(run).counts["already_there"] == 1
    assert not found
