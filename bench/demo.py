"""`make demo`: a messy archive is made, classified and rebuilt, and a picture shows what came of it.

python -m bench.demo demo
python -m bench.demo demo --archive ~/Samples
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import xxhash
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from bench.engine import ENGINE, EngineError, call, shown_command
from bench.synth import iter_archive, with_progress, write_truth
from drumline.charts import Bar
from drumline.cli.common import safe_text, stdout_console
from drumline.wording import counted

__all__ = ["Picture", "main"]

FILES, SEED = 600, 1
_COLOURS = {
    "Kick": "red", "Snare": "yellow", "Hihat": "cyan", "Tom": "magenta", "Crash": "blue", "Ride": "green",
}  # fmt: skip
_FOLDERS_SHOWN = 3
_SVG_COLUMNS = 100


@dataclass(frozen=True, slots=True)
class Picture:
    """What came of a demo.

    Parameters
    ----------
    infer
        Summary that ``drumline infer --json`` printed.
    organised
        The rebuilt tree.
    run
        The run's directory.
    command
        How a person starts drumline here.
    own
        Whether the archive is somebody's own, not a synthesised one.
    """

    infer: dict[str, Any]
    organised: Path
    run: Path
    command: str
    own: bool = False

    def __rich__(self) -> RenderableType:
        body = Table.grid(expand=True, padding=(0, 4))
        body.add_column(ratio=3)
        body.add_column(ratio=4)
        body.add_row(self._labels(), self._tree())
        inside = Group(self._speed(), "", body, "", self._errors())
        return Panel(inside, title="drumline", padding=(1, 2))

    def show(self, console: Console) -> None:
        """Print the picture, and below it commands that can be pasted: neither wrapped nor filled up."""
        console.print(self)
        console.print(self._next_steps(), soft_wrap=True)

    def _speed(self) -> Text:
        counts, seconds = self.infer["counts"], self.infer["elapsed_sec"]
        done, carried = counts["discovered"], counts["carried_over"]
        if done and not counts["classified"] and carried:
            text = Text.assemble((f"Rescan: {done:,} files, none changed", "bold"), f", in {seconds:.2f} s.")
            return text.append(" Nothing was decoded or inferred again.", "dim")
        text = Text.assemble((f"{done:,} files in {seconds:.1f} s", "bold"))
        text.append(f"   {self.infer['files_per_sec']:,.0f} files/s")
        text.append(f"   {self.infer['size_bytes'] / 1e6:,.0f} MB of samples")
        return text.append(f"   {carried:,} carried over" if carried else "")

    def _labels(self) -> Table:
        labels: dict[str, int] = self.infer["labels"]
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column()
        table.add_column(justify="right", style="bold")
        table.add_column(ratio=1)
        for label, count in sorted(labels.items(), key=lambda item: (item[0] not in _COLOURS, -item[1])):
            colour = _COLOURS.get(label, "bright_black")
            bar = Bar(count / max(labels.values()), colour)
            table.add_row(Text(safe_text(label), colour), f"{count:,}", bar)
        return table

    def _tree(self) -> Tree:
        organised = self.organised
        tree = Tree(Text(f"{os.path.relpath(organised)}/", "bold"), guide_style="dim")
        expanded = False
        for label in _folders(organised):
            branch = tree.add(_folder_text(organised / label))
            if label in _COLOURS and not expanded:
                expanded = True
                _add_folders(branch, organised / label)
        return tree

    def _errors(self) -> Text:
        errors: dict[str, int] = self.infer["errors"]
        links = " The tree is of links to your files: nothing was copied." if self.own else ""
        if not errors:
            return Text.assemble(("No file failed.", "green"), links)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in errors.items())
        text = Text.assemble(
            (f"{counted(sum(errors.values()), 'file')} could not be read", "yellow"), f" ({kinds})."
        )
        return text.append(" They cost a record each, not the run.", "dim").append(links)

    def _next_steps(self) -> Text:
        kicks = self.organised.with_name(f"{self.organised.name}-kicks")
        runs, out = (shlex.quote(os.path.relpath(path)) for path in (self.run.parent, kicks))
        steps = {
            "How sure, how long, what failed": f"{self.command} stats {runs}",
            "Kicks that are beyond doubt; all else under misc": (
                f"{self.command} rebuild {runs} \\\n        --out {out} --labels Kick --threshold 0.9"
            ),
        }
        if self.own:
            steps["Take the tree back"] = (
                f"{self.command} undo {shlex.quote(os.path.relpath(self.organised))}"
            )
        else:
            steps["Your own samples, which are only read"] = "make demo ARCHIVE=~/Samples"
        text = Text("\n  Next\n", "bold")
        for what, command in steps.items():
            text.append(f"    {what}\n", "not bold dim").append(f"      {command}\n", "not bold cyan")
        return text


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink())


def _folder_text(path: Path) -> Text:
    count = sum(len(files) for _, _, files in os.walk(path))
    return Text.assemble(f"{safe_text(path.name)}/ ", (f"{count:,}", "bold"))


def _add_folders(branch: Tree, path: Path) -> None:
    """Show the first folders below a label, and how many more there are."""
    folders = _folders(path)
    for name in folders[:_FOLDERS_SHOWN]:
        branch.add(_folder_text(path / name))
    if len(folders) > _FOLDERS_SHOWN:
        branch.add(Text(f"… {len(folders) - _FOLDERS_SHOWN} more folders", "dim"))


def make_archive(archive: Path, truth: Path) -> None:
    """Synthesise the demo's archive, unless a whole one is there; what is half done is made anew."""
    if truth.exists():
        return
    shutil.rmtree(archive, ignore_errors=True)
    print(f"Synthesising {FILES} drum one-shots, as messy as real archives are …", file=sys.stderr)
    half = truth.with_suffix(".part")
    write_truth(with_progress(iter_archive(archive, FILES, SEED), FILES), half)
    half.replace(truth)


def run_demo(out: Path, archive: Path | None = None, engine: tuple[str, ...] = ENGINE) -> Picture:
    """Make, classify and rebuild; returns the picture.

    Parameters
    ----------
    out
        The demo's directory; made when it is not there.
    archive
        What to classify in place of a synthesised archive; it is only read.
    engine
        How drumline is started.
    """
    out.mkdir(parents=True, exist_ok=True)
    if archive is None:
        archive = out / "archive"
        make_archive(archive, out / "truth.jsonl")
    synthesised = archive == out / "archive"
    archive = archive.expanduser()
    place = out if synthesised else out / f"of-{archive.resolve().name}-{_fingerprint(archive)}"
    runs = place / "runs"
    summary = call("infer", archive, "--runs-root", runs, engine=engine)
    # Links cost no space; symbolic ones leave somebody's own files as they are and cross file systems.
    mode, organised = "hardlink" if synthesised else "symlink", place / "organised"
    call("rebuild", summary["run_directory"], "--out", organised, "--copy-mode", mode, engine=engine)
    return Picture(summary, organised, Path(summary["run_directory"]), shown_command(), not synthesised)


def _fingerprint(archive: Path) -> str:
    """Return some letters that tell archives of the same name apart."""
    return xxhash.xxh3_64_hexdigest(os.fsencode(archive.resolve()))[:4]


@click.command(help="Synthesise, classify and rebuild an archive in OUT, and show what came of it.")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    help="Classify this directory; nothing in it is changed.",
)
@click.option("--svg", type=click.Path(path_type=Path), help="Write the picture to this file as well.")
def main(out: Path, archive: Path | None, svg: Path | None) -> None:
    """Run the demo."""
    try:
        picture = run_demo(out, archive)
    except EngineError as error:
        # The command has said on stderr what was wrong and what to do.
        sys.exit(error.exit_code)
    picture.show(stdout_console())
    if svg:
        _write_svg(picture, svg)


def _write_svg(picture: Picture, path: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=_SVG_COLUMNS, file=nowhere, force_terminal=True)
        picture.show(console)
    drawing = console.export_svg(title="make demo")
    # The fonts would be fetched from the web; the viewer's own monospaced one does.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
