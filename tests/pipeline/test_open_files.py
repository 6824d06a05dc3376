"""A low limit of open files (``ulimit -n``): commands work within it, or say what helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making import write_tone
from tests.pipeline.conftest import Infer
from tests.pipeline.support import Result, Server, tree

FOLDERS = 90


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of more directories than are kept open, each of them deep down."""
    archive = tmp_path_factory.mktemp("scattered") / "archive"
    for number in range(FOLDERS):
        folder = archive / f"{number:02}" / "deep" / "deeper"
        folder.mkdir(parents=True)
        write_tone(folder / f"{number}.wav", hertz=100 + number)
    return archive


@pytest.fixture
def place(server: Server, scattered: Path, model: Path, tmp_path: Path) -> Infer:
    return Infer(server, scattered, tmp_path / "runs", model)


def work(place: Infer, out: Path, **limit: int) -> list[Result]:
    """Rebuild, rebuild otherwise, verify and undo."""
    command, rebuild = place.server.start, ("rebuild", place.runs_root, "--out", out, "--copy-mode")
    orders: tuple[tuple[str | Path, ...], ...] = (
        (*rebuild, "copy"),
        (*rebuild, "symlink"),
        ("verify", out),
        ("verify", place.run, "--archive"),
        ("undo", out),
    )
    return [command(*order, **limit).wait() for order in orders]


@pytest.mark.parametrize("limit", [64, 24])
def test_few_open_files_are_enough(place: Infer, tmp_path: Path, limit: int) -> None:
    counts = place.counts(workers=2, open_files=limit)
    assert counts["classified"] == FOLDERS
    results = work(place, tmp_path / "out", open_files=limit)
    assert [result.code for result in results] == 5 * [0], results
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [8, 10, 12])
def test_too_few_open_files_are_named_with_what_helps(place: Infer, tmp_path: Path, limit: int) -> None:
    """And do no harm: the same commands without the limit do all."""
    tried = [place(workers=2, open_files=limit)]
    assert tried[0].code in (8, 10)
    place.counts()
    before, out = tree(place.runs_root), tmp_path / "out"
    rebuild = ("rebuild", place.runs_root, "--out", out)
    for order in (rebuild, ("verify", out), ("verify", place.run), ("undo", out)):
        tried.append(place.server.start(*order, open_files=limit).wait())
        if order == rebuild:
            assert place.server.start(*rebuild).wait().code == 0
    for result in tried:
        assert result.code in (0, 7, 8, 10), result
        assert "Traceback" not in result.err
        assert result.code == 0 or "ulimit -n" in result.err, result
    assert tree(place.runs_root) == before
    for result in work(place, out):
        assert result.code == 0, result
