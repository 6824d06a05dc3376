"""Archives over several file systems: really mounted ones, in a mount namespace of the command's own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.making import write_tone
from tests.pipeline.support import environment, last_run, path_of, records_of, tree

UNSHARE = ("unshare", "--mount", "--map-root-user", "--user")
MOUNT = "mount -t tmpfs none archive/mounted && cp -a volume/. archive/mounted && "

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


def why_not() -> str:
    """Say why nothing can be mounted here; empty when it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare tool"
    tried = subprocess.run(
        [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
    )
    return f"no file system may be mounted here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def _mounting() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def shell(tmp_path: Path, model: Path) -> Shell:
    """Runs shell commands beside an archive, in a namespace of their own: what they mount ends with them."""
    for name, sounds in (("archive", 3), ("archive/mounted", 0), ("volume", 30)):
        (tmp_path / name).mkdir()
        for number in range(sounds):
            write_tone(tmp_path / name / f"{name} {number:02}.wav", hertz=100 + 10 * number + sounds)
    infer = shlex.join([sys.executable, "-m", "drumline", "infer", "archive", "--json", "--workers", "1"])
    options = shlex.join(["--runs-root", "runs", "--model", str(model)])

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*UNSHARE, "sh", "-c", script.replace("INFER", f"{infer} {options}")],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def counted(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Return the counts of a run that came to its good end."""
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)["counts"]
    return counts


def test_what_is_mounted_below_is_read_or_passed_over_as_asked(shell: Shell, tmp_path: Path) -> None:
    assert counted(shell(MOUNT + "INFER"))["discovered"] == 33
    assert counted(shell(MOUNT + "INFER --one-file-system --accept-missing"))["discovered"] == 3
    assert {path.count(b"/") for path in records_of(last_run(tmp_path / "runs"))} == {0}


def test_an_archive_that_is_itself_mounted_is_read_with_one_file_system(shell: Shell) -> None:
    done = shell("mount -t tmpfs none archive && cp volume/*.wav archive && INFER --one-file-system")
    assert counted(done)["discovered"] == 30


def test_an_archive_that_is_mounted_into_itself_is_walked_to_an_end(shell: Shell, tmp_path: Path) -> None:
    """And every file has its record by each of its paths."""
    assert counted(shell("mount --rbind archive archive/mounted && INFER"))["discovered"] == 6
    paths = {path_of(record) for record in records_of(last_run(tmp_path / "runs")).values()}
    assert {path for path in paths if not path.startswith(b"mounted/")} == {
        os.path.basename(path) for path in paths
    }


def test_a_volume_that_is_no_longer_mounted_is_refused_and_its_run_stays(
    shell: Shell, tmp_path: Path
) -> None:
    counted(shell(MOUNT + "INFER"))
    earlier = last_run(tmp_path / "runs")
    before = tree(earlier)
    refused = shell("INFER")
    assert refused.returncode == 6
    assert "30 of 33 known files are no longer in" in refused.stderr
    assert "mounted" in refused.stderr
    # What is still there may be in the refused run already: the next command goes on with it.
    assert tree(earlier) == before
    assert counted(shell(MOUNT + "INFER"))["carried_over"] == 33


def test_an_archive_that_is_another_volume_now_is_named_so(shell: Shell) -> None:
    counted(shell("mount -t tmpfs none archive && cp volume/*.wav archive && INFER"))
    refused = shell("INFER")
    assert refused.returncode == 6
    assert "on another device than at the last run" in refused.stderr


def test_hard_links_to_another_file_system_are_refused_before_anything_is_written(shell: Shell) -> None:
    counted(shell("INFER"))
    rebuild = shlex.join([sys.executable, "-m", "drumline", "rebuild", "runs", "--out", "other/tree"])
    mounted = "mkdir other && mount -t tmpfs none other"
    done = shell(f"{mounted} && {rebuild} --copy-mode hardlink; echo $?; ls -A other")
    assert done.stdout.splitlines() == ["8"], done
    assert "--copy-mode copy" in done.stderr
