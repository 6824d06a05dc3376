"""Rescans and rebuilds, against the programs that look at trees and copy them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from bench.measure import interleaved, median, ratio_text, ratios, run_command, seconds_text
from bench.report import Measure
from bench.workshop import Sizes, Workshop, say, verdict

__all__ = ["measure_rebuild", "measure_rescan"]


def measure_rescan(workshop: Workshop) -> list[Measure]:
    """Compare the rescan of an archive with what else looks at every file of a tree."""
    files = workshop.sizes.rescan_files
    with workshop.room("rescan") as room:
        archive, same, runs = room / "archive", room / "same", room / "runs"
        workshop.tiny_archive(archive, files)
        run_command(("cp", "-al", archive, same))
        say("rescan: first run")
        workshop.infer(archive, runs)
        carried: list[int] = []

        def ours() -> float:
            outcome = workshop.infer(archive, runs)
            carried.append(json.loads(outcome.stdout)["counts"]["carried_over"])
            return outcome.seconds

        rescanners = _rescanners(archive, same)
        say("rescan: repetitions")
        sides = [partial(_timed, command) for command in rescanners.values()]
        rescans, *others = interleaved(workshop.sizes.repeats, ours, *sides)
        changed = _measure_changed(workshop, room)
    theirs = dict(zip(rescanners, others, strict=True))
    details: dict[str, object] = {"files": files, "ours_sec": rescans, "carried": carried, **theirs}
    against = [_rescan_against(name, files, rescans, seconds, details) for name, seconds in theirs.items()]
    return [*against, changed]


def _rescanners(archive: Path, same: Path) -> dict[str, tuple[str | Path, ...]]:
    """Return the commands that are there to look at every file of `archive`, by name."""
    commands: dict[str, tuple[str | Path, ...]] = {
        "rsync -an": ("rsync", "-an", f"{archive}/", f"{same}/"),
        "find -printf": ("find", archive, "-type", "f", "-printf", "%p %s %T@\n"),
        "fclones group": ("fclones", "group", "--cache", "--quiet", archive),
        "czkawka dup": ("czkawka_cli", "dup", "--directories", archive),
    }
    return {name: command for name, command in commands.items() if shutil.which(str(command[0]))}


def _timed(command: tuple[str | Path, ...]) -> float:
    return run_command(command).seconds


def _measure_changed(workshop: Workshop, room: Path) -> Measure:
    """Compare a rescan with 1 % changed with an unchanged one.

    The changed files' own cost is the first run over these files alone, less what a run costs that has
    nothing to do: that is in both rescans.
    """
    archive, runs, files = room / "archive", room / "runs", workshop.sizes.rescan_files
    sounds = sorted(path for path in archive.rglob("*.wav") if path.is_file() and not path.is_symlink())
    unchanged, changed, own = [], [], []
    for number in range(workshop.sizes.repeats):
        few = sounds[number % 100 :: 100]
        _change(few, number)
        changed.append(workshop.infer(archive, runs).seconds)
        unchanged.append(workshop.infer(archive, runs).seconds)
        own.append(_own_cost(workshop, room, few))
    less = [with_them - alone for with_them, alone in zip(changed, own, strict=True)]
    extra = ratios(less, unchanged)
    return Measure(
        "rescan-changed",
        f"rescan of {files:,} files with 1 % changed, less what those cost, against unchanged",
        f"{ratio_text(extra)} its time",
        f"{seconds_text(changed)}, of it their own {seconds_text(own)}",
        seconds_text(unchanged),
        "≤ 2.5×",
        verdict(median(extra) <= 2.5, files >= Sizes().rescan_files),
        {"changed_sec": changed, "unchanged_sec": unchanged, "own_sec": own, "ratios": extra},
    )


def _change(sounds: list[Path], number: int) -> None:
    """Give files other content, as if they were saved anew."""
    for place, path in enumerate(sounds):
        content = path.read_bytes()
        path.unlink()  # the copy that other commands look at shares its inode
        path.write_bytes(content + f"changed {number} {place}".encode())


def _own_cost(workshop: Workshop, room: Path, sounds: list[Path]) -> float:
    archive, runs = room / "few", room / "few-runs"
    archive.mkdir()
    for place, path in enumerate(sounds):
        shutil.copy2(path, archive / f"{place}{path.suffix}")
    first, again = (workshop.infer(archive, runs).seconds for _ in range(2))
    shutil.rmtree(archive)
    shutil.rmtree(runs)
    return max(0.0, first - again)


def _rescan_against(
    name: str, files: int, ours: list[float], theirs: list[float], details: dict[str, object]
) -> Measure:
    found, first = ratios(ours, theirs), name == "rsync -an"
    return Measure(
        f"rescan-{name.split()[0]}",
        f"rescan of {files:,} unchanged files against {name}",
        f"{ratio_text(found)} its time",
        seconds_text(ours),
        seconds_text(theirs),
        "≤ 1.3×" if first else "",
        verdict(median(found) <= 1.3, files >= Sizes().rescan_files) if first else None,
        {**details, "ratios": found},
    )


def measure_rebuild(workshop: Workshop) -> list[Measure]:
    """Compare ``drumline rebuild`` by hardlink with ``cp -al``, and by copy with ``cp -a``."""
    files = workshop.sizes.rescan_files
    with workshop.room("rebuild") as room:
        archive, runs, tree = room / "archive", room / "runs", room / "tree"
        workshop.tiny_archive(archive, files)
        say("rebuild: first run")
        workshop.infer(archive, runs)
        workshop.rebuild(runs, tree, "hardlink")
        rivals = [
            Rival("hardlink", "cp -al", ("cp", "-al", archive), has_bar=True),
            Rival("hardlink", "cp -al of the tree", ("cp", "-al", tree)),
            Rival(
                "hardlink", "rsync -a --link-dest", ("rsync", "-a", f"--link-dest={archive}", f"{archive}/")
            ),
            Rival("copy", "cp -a", ("cp", "-a", archive), has_bar=True),
        ]
        return [_rebuild_against(workshop, room, rival) for rival in rivals if shutil.which(rival.command[0])]


class Rival(NamedTuple):
    """What a rebuild is compared with.

    Parameters
    ----------
    mode
        How drumline rebuilds.
    name
        What the other is called.
    command
        The other, but for where to.
    has_bar
        Whether drumline is to keep up with it. A tree has a directory of the archive's once for each label in
        it, so that it takes longer to make than the archive's own; a copy of the tree shows how much.
    """

    mode: str
    name: str
    command: tuple[str | Path, ...]
    has_bar: bool = False


def _rebuild_against(workshop: Workshop, room: Path, rival: Rival) -> Measure:
    files, mode = workshop.sizes.rescan_files, rival.mode
    say(f"rebuild: {mode} and {rival.name}")
    # A new place each time, and nothing is removed meanwhile: for a minute after a removal, ext4 searches
    # past the freed inodes, and every directory that is made then costs several times as much.
    places = (room / f"{mode} {rival.name} {number}" for number in count())
    ours, theirs = interleaved(
        workshop.sizes.repeats,
        lambda: workshop.rebuild(room / "runs", next(places), mode).seconds,
        lambda: run_command((*rival.command, next(places))).seconds,
    )
    found = ratios(ours, theirs)
    return Measure(
        f"rebuild-{mode}-{rival.name.replace(' ', '-')}",
        f"rebuild of {files:,} files by {mode} against {rival.name}",
        f"{ratio_text(found)} its time",
        seconds_text(ours),
        seconds_text(theirs),
        "≤ 1.5×" if rival.has_bar else "",
        verdict(median(found) <= 1.5, files >= Sizes().rescan_files) if rival.has_bar else None,
        {"files": files, "ours_sec": ours, "theirs_sec": theirs, "ratios": found},
    )
