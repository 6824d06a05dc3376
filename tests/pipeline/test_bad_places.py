"""Archives and runs roots that will not do: what, why and the way out; nothing that was there is harmed."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline.conftest import Infer
from tests.pipeline.support import (
    LIMIT_SEC,
    ROOT,
    Records,
    Result,
    assert_equal,
    copy,
    environment,
    last_run,
    read_lines,
    runs_of,
    tree,
)


def refused(result: Result, code: int, *words: str) -> None:
    """Hold that a command ended with a code, words on stderr, nothing on stdout and no traceback."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.startswith("drumline: ")
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) >= 2, "no way out"
    for word in words:
        assert word in result.err


def test_an_archive_that_is_not_there(tidy: Infer) -> None:
    before = tree(tidy.runs_root)
    tidy.archive = tidy.archive / "nowhere"
    refused(tidy(), 6, "nowhere", "mounted")
    assert tree(tidy.runs_root) == before


def test_an_archive_that_is_a_file(tidy: Infer, sounds: list[Path]) -> None:
    tidy.archive = sounds[0]
    refused(tidy(), 6, "is a file")


def test_an_archive_that_is_the_runs_root(tidy: Infer) -> None:
    tidy.runs_root = tidy.archive
    before = tree(tidy.archive)
    refused(tidy(), 8, "same directory", "--runs-root")
    assert tree(tidy.archive) == before


def test_an_empty_archive(tidy: Infer, tmp_path: Path) -> None:
    (tmp_path / "empty" / "directory").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no sound")
    tidy.archive, tidy.runs_root = tmp_path / "empty", tmp_path / "results"
    refused(tidy(), 6, "no audio file", "supported_formats")


def test_an_archive_whose_files_are_all_gone_keeps_what_is_known(tidy: Infer) -> None:
    """An archive that is not mounted looks like an empty directory."""
    known = tidy.records()
    away = tidy.archive.rename(tidy.archive.with_name("away"))
    tidy.archive.mkdir()
    refused(tidy(), 6, "no audio file")
    tidy.archive.rmdir()
    away.rename(tidy.archive)
    assert tidy.counts(no_workers=True)["carried_over"] == 40
    assert_equal(tidy.records(), known)


def test_an_archive_most_of_whose_files_are_gone_is_taken_only_when_that_is_accepted(
    tidy: Infer, sounds: list[Path]
) -> None:
    known = tidy.records()
    away = tidy.archive.with_name("away")
    shutil.copytree(tidy.archive, away, copy_function=shutil.copy2)
    for sound in sounds[2:]:
        sound.unlink()
    refused(tidy(), 6, "38 of 40 known files", "--accept-missing", "mounted")
    shutil.copytree(away, tidy.archive, copy_function=shutil.copy2, dirs_exist_ok=True)
    assert tidy.counts(no_workers=True)["carried_over"] == 40
    assert_equal(tidy.records(), known)
    for sound in sounds[2:]:
        sound.unlink()
    counts = tidy.counts("--accept-missing")
    assert (counts["discovered"], counts["gone"]) == (2, 38)
    assert_equal(tidy.records(), tidy.fresh_records())


def test_many_files_that_are_gone_have_to_be_confirmed(tidy: Infer, sounds: list[Path]) -> None:
    known = tidy.records()
    for sound in sounds[:20]:
        sound.unlink()
    refused(tidy(), 6, "20 of 40 known files", "--yes")
    assert_equal(tidy.records(), known)
    counts = tidy.counts("--yes", no_workers=True)
    assert (counts["discovered"], counts["gone"]) == (20, 20)
    assert_equal(tidy.records(), tidy.fresh_records())


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 6)])
def test_at_a_terminal_it_asks_whether_files_are_meant_to_be_gone(
    tidy: Infer, sounds: list[Path], answer: str, code: int
) -> None:
    for sound in sounds[:20]:
        sound.unlink()
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "drumline", "infer", tidy.archive, "--runs-root", tidy.runs_root]
    done = subprocess.run(
        [*command, "--model", tidy.model, "--workers", "1"],
        stdin=theirs,
        capture_output=True,
        env=environment(),
        timeout=LIMIT_SEC,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code
    assert b"Go on without them? [y/N]" in done.stderr


def test_an_archive_on_another_device_is_named_when_files_are_gone(tidy: Infer, sounds: list[Path]) -> None:
    for sound in sounds[:20]:
        sound.unlink()
    described = last_run(tidy.runs_root) / "run.json"
    info = json.loads(described.read_text())
    described.write_text(json.dumps({**info, "archive_device": info["archive_device"] + 1}))
    refused(tidy(), 6, "20 of 40 known files", "another device")


def test_a_runs_root_that_is_a_file(tidy: Infer, sounds: list[Path]) -> None:
    tidy.runs_root = sounds[0]
    before = tree(tidy.archive)
    refused(tidy(), 8, "cannot write")
    assert tree(tidy.archive) == before


def test_a_runs_root_below_a_file(tidy: Infer, sounds: list[Path]) -> None:
    tidy.runs_root = sounds[0] / "results"
    refused(tidy(), 8, "cannot write")


def test_a_missing_bundle_leaves_nothing_behind(tidy: Infer, tmp_path: Path) -> None:
    tidy.model, tidy.runs_root = tmp_path / "no such bundle", tmp_path / "results"
    refused(tidy(), 4, "no such bundle")
    assert not tidy.runs_root.exists()


def test_a_model_that_gives_nothing_finite_ends_the_run_before_it_blames_the_files(
    calm: Infer, undisturbed: Records
) -> None:
    refused(calm(nothing_finite=1_000_000), 4, "bundle stub", "no finite output", "--model")
    assert not any(b"finite" in line for run in runs_of(calm.runs_root) for line in lines_of(run))
    calm.counts()
    assert_equal(calm.records(), undisturbed)


def lines_of(run: Path) -> list[bytes]:
    return read_lines(next(run.glob("index.jsonl*")))


def test_a_model_that_answered_before_is_not_at_fault_where_all_files_that_are_left_are(
    tidy: Infer, sounds: list[Path]
) -> None:
    for number, sound in enumerate(sounds[:25]):
        sound.write_bytes(sound.read_bytes() + bytes([number]))
    counts = tidy.counts("--batch-size", "8", nothing_finite=1_000_000)
    assert (counts["carried_over"], counts["failed"]) == (15, 25)
    retried = tidy("--retry-failed", nothing_finite=1_000_000)
    assert retried.counts["failed"] == 25
    assert "no finite output" not in retried.err
    assert tidy.counts("--retry-failed")["failed"] == 0


def test_a_few_files_without_a_finite_output_are_failed_records(tidy: Infer) -> None:
    """They were held back until the model had shown that it can do better; a batch holds fewer of them."""
    counts = tidy.counts("--fresh", "--batch-size", "4", nothing_finite=9)
    assert (counts["classified"], counts["failed"]) == (31, 9)
    failed = [record["errors"] for record in tidy.records().values() if record["errors"]]
    assert failed == 9 * [
        {"type": "invalid_samples", "message": "the model gives no finite output for this file"}
    ]


def test_files_without_a_finite_output_keep_no_others_waiting(tidy: Infer) -> None:
    """Where memory allows so few slots that those that are held back would be all of them."""
    counts = tidy.counts("--fresh", "--batch-size", "1", nothing_finite=9, slots_allowed=4)
    assert (counts["classified"], counts["failed"]) == (31, 9)


def test_a_small_archive_without_any_finite_output_is_told_of_with_the_model(
    tidy: Infer, sounds: list[Path]
) -> None:
    for path in sounds[5:]:
        path.unlink()
    result = tidy("--fresh", "--accept-missing", nothing_finite=1_000_000)
    assert result.code == 0
    assert result.counts["failed"] == 5
    assert "bundle stub gave no finite output for any of 5 files" in result.err


@pytest.mark.parametrize("after_bytes", [0, 700, 5000])
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(
    calm: Infer, after_bytes: int, undisturbed: Records
) -> None:
    result = calm(full_disk=after_bytes, frame_lines=8, flush=0.02)
    refused(result, 8, "cannot write", "No space left", "space")
    begun = runs_of(calm.runs_root)
    calm.counts()
    assert begun in ([calm.run], [])  # a run without a single record is not kept
    assert_equal(calm.records(), undisturbed)


def test_a_full_disk_harms_no_earlier_run(tidy: Infer, sounds: list[Path]) -> None:
    old = tree(tidy.run)
    earlier = tidy.run
    for sound in sounds[::3]:
        sound.write_bytes(sound.read_bytes() + b"\0")
    refused(tidy(full_disk=300, frame_lines=8), 8, "No space left")
    assert tree(earlier) == old
    tidy.counts()
    assert tree(earlier) == old
    assert_equal(tidy.records(), tidy.fresh_records())


@pytest.mark.parametrize("limit", [700, 2048, 30_000])
def test_a_limit_of_file_sizes_is_like_a_full_disk(calm: Infer, undisturbed: Records, limit: int) -> None:
    refused(calm(file_size_limit=limit), 8)
    calm.counts()
    assert_equal(calm.records(), undisturbed)


NAMESPACE = """
mount -t tmpfs -o size=2m none "$1" || exit 77
cp -a "$2/." "$1" || exit 77
dd if=/dev/zero of="$1/ballast" bs=1k count=4096 2>/dev/null
shift 2
"$@" --runs-root "$0"
code=$?
cp -a "$0/." "$OUT"
exit $code
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount of its own")
def test_a_disk_that_is_really_full(tidy: Infer, sounds: list[Path], tmp_path: Path) -> None:
    for sound in sounds[::3]:
        sound.write_bytes(sound.read_bytes() + b"\0")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "drumline", "infer", tidy.archive, "--model", tidy.model, "--json"]
    shell = ["unshare", "-m", "sh", "-c", NAMESPACE, tmp_path / "disk", tmp_path / "disk", tidy.runs_root]
    done = subprocess.run(
        [*shell, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment(), "OUT": str(tmp_path / "out")},
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no mount is permitted here")
    refused(Result(done.returncode, done.stdout, done.stderr, 0.0), 8)
    old = tree(tidy.run)
    assert tree(tmp_path / "out" / tidy.run.name) == old
    (tmp_path / "out" / "ballast").unlink()
    tidy.runs_root = tmp_path / "out"
    tidy.counts()
    assert_equal(tidy.records(), tidy.fresh_records())


@pytest.fixture
def as_anybody(tidy: Infer) -> Callable[..., Result]:
    """Run the command without the right to pass over permissions, which root has."""
    drop = []
    if os.geteuid() == 0:
        drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
        if not shutil.which("setpriv"):
            pytest.skip("root passes over permissions")

    def run(*options: str) -> Result:
        command = [*drop, sys.executable, "-m", "drumline", "infer", tidy.archive, "--model", tidy.model]
        done = subprocess.run(
            [*command, "--runs-root", tidy.runs_root, "--workers", "1", "--json", *options],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=ROOT,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr, 0.0)

    return run


def test_a_runs_root_that_cannot_be_written(tidy: Infer, as_anybody: Callable[..., Result]) -> None:
    before = tree(tidy.runs_root)
    tidy.runs_root.chmod(0o555)
    refused(as_anybody(), 8, "Permission denied", "permissions")
    assert tree(tidy.runs_root) == before
    plan = as_anybody("--dry-run")
    assert plan.code == 0, plan.err
    assert plan.counts["carried_over"] == 40


def test_an_archive_that_cannot_be_read(tidy: Infer, as_anybody: Callable[..., Result]) -> None:
    tidy.archive.chmod(0o000)
    refused(as_anybody(), 6, "permission denied", "permissions")
    tidy.archive.chmod(0o755)


def test_files_and_directories_that_cannot_be_read(
    tidy: Infer, sounds: list[Path], as_anybody: Callable[..., Result]
) -> None:
    shutil.rmtree(tidy.runs_root)
    sounds[0].chmod(0o000)
    hidden = sounds[-1].parent
    inside = sum(sound.parent == hidden for sound in sounds)
    assert hidden not in sounds[0].parents
    hidden.chmod(0o000)
    result = as_anybody()
    hidden.chmod(0o755)
    assert result.code == 0, result.err
    counts = result.counts
    assert (counts["discovered"], counts["failed"]) == (40 - inside, 1)
    assert counts["unreadable_directories"] == 1
    tidy.run = Path(result.json()["run_directory"])
    error = tidy.records()[os.fsencode(sounds[0].relative_to(tidy.archive))]["errors"]
    assert error == {"type": "unreadable", "message": "Permission denied"}
    sounds[0].chmod(0o644)
    counts = tidy.counts()
    assert (counts["discovered"], counts["failed"], counts["carried_over"]) == (40, 0, 39 - inside)


def test_what_lies_in_a_directory_that_cannot_be_read_for_a_while_is_not_forgotten(
    tidy: Infer, sounds: list[Path], as_anybody: Callable[..., Result]
) -> None:
    before = tidy.records()
    hidden = sounds[-1].parent
    inside = sum(sound.parent == hidden for sound in sounds)
    hidden.chmod(0o000)
    result = as_anybody()
    hidden.chmod(0o755)
    assert result.code == 0, result.err
    counts = result.counts
    assert (counts["discovered"], counts["gone"], counts["unreadable_directories"]) == (40 - inside, 0, 1)
    counts = tidy.counts(no_workers=True)
    assert (counts["discovered"], counts["carried_over"]) == (40, 40)
    assert_equal(tidy.records(), before)


@pytest.mark.parametrize("options", [("--fresh",), ("--no-audio-stats",)], ids=" ".join)
def test_an_archive_that_is_mostly_gone_is_refused_whatever_is_asked_of_it(
    tidy: Infer, sounds: list[Path], options: tuple[str, ...]
) -> None:
    """Neither --fresh nor another inference key compares paths; how many there were is known all the same."""
    known = runs_of(tidy.runs_root)
    for sound in sounds[2:]:
        sound.unlink()
    refused(tidy(*options), 6, "38 of 40 known files", "--accept-missing")
    assert runs_of(tidy.runs_root) == known
    assert tidy.counts(*options, "--accept-missing")["discovered"] == 2
    assert tidy.counts(*options)["discovered"] == 2


def test_a_fresh_run_that_is_refused_forgets_nothing(tidy: Infer, tmp_path: Path) -> None:
    """Also where the cache knows of another archive, so that it does not look empty."""
    other = replace(tidy, archive=copy(tidy.archive, tmp_path / "other"))
    other.counts()
    away = tidy.archive.rename(tidy.archive.with_name("away"))
    tidy.archive.mkdir()
    refused(tidy("--fresh"), 6, "no audio file")
    tidy.archive.rmdir()
    away.rename(tidy.archive)
    assert tidy.counts(no_workers=True)["carried_over"] == 40
