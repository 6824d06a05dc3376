"""Documents that commands can check are checked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context, Group

from bench.synth import write_archive
from drumline.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("workshop")
    write_archive(directory / "samples", 40, seed=11)
    return directory


def test_the_command_line_reference_is_what_the_commands_say() -> None:
    # In a process of its own: commands that other tests have called remember the options of those calls.
    made = subprocess.run(
        [sys.executable, "-m", "drumline.cli.reference"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "cli.md").read_text() == made.stdout.removesuffix("\n"), "run 'make docs'"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_its_help(name: str) -> None:
    context = Context(cli, info_name="drumline")
    command = cli.get_command(context, name)
    assert command is not None
    if not isinstance(command, Group):
        assert (
            f"drumline {name}"
            in command.get_help(Context(command, parent=context, info_name=name)).split("Examples")[1]
        )


def test_the_blocks_of_the_python_page_run_in_order(workshop: Path) -> None:
    program = "\n".join(_blocks(ROOT / "docs" / "api.md", "python"))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=workshop, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "no archive at 'nowhere'" in run.stdout


def _readme_commands() -> list[str]:
    lines = "\n".join(_blocks(ROOT / "README.md", "sh")).splitlines()
    return [line for line in lines if line.startswith("drumline ")]


def test_the_readme_shows_at_least_five_things_to_do() -> None:
    assert len(_readme_commands()) >= 5


def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    write_archive(tmp_path / "Samples", 40, seed=12)
    (tmp_path / "kick.wav").write_bytes(next((tmp_path / "Samples").rglob("*.wav")).read_bytes())
    (tmp_path / "corrections.jsonl").write_text("")
    drumline = f'drumline() {{ {shlex.quote(sys.executable)} -m drumline "$@"; }}'
    for line in _readme_commands():
        run = subprocess.run(
            ["bash", "-c", f"{drumline}\n{line}"],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        # On a busy machine, progress is told.
        complaints = re.sub(
            r"^drumline: (\w+: )?[\d,]+ (of .*)?files.*\n", "", run.stderr, flags=re.MULTILINE
        )
        assert (run.returncode, "drumline: " in complaints) == (0, False), f"{line}\n{run.stderr}"


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named - targets == set()


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_every_file_that_the_architecture_page_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "engine" / "drumline"
    for name in set(re.findall(r"`([a-z_/]+\.py|[a-z_]+/)`", text)):
        assert (package / name).exists() or (ROOT / name).exists(), name


def test_no_page_or_source_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    for name in filter(None, listed.split(b"\0")):
        path = ROOT / os.fsdecode(name)
        if path.suffix in (".md", ".py", ".cfg", ".toml", ".json") and path.exists():
            found = re.search(r"(?<![\w.~}])/(?:home|root|work)/\w", path.read_text(errors="replace"))
            assert found is None, f"{path}: {found and found.group()}"
