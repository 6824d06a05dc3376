"""Repair: restore of a run what can be restored, and keep what is replaced.

==============  ========================================================================================
damaged         what is done
==============  ========================================================================================
run.json        set aside: nothing else says all that it does, so the next run classifies anew
index           written anew from all whole frames and sound records, frames with nothing wrong in them
                byte for byte; of records of one path the last stays; decisions that run.json's settings
                do not make are made again
summary.json    counted anew from the index; set aside where records are lost: the run is then an
                unfinished one
cache.sqlite    made anew from the indexes of the runs root
==============  ========================================================================================

What is replaced is kept beside, as ``<name>.damaged-<n>``. The order keeps every moment safe: first the cache
and, where records are lost, the summary are set aside, then the damaged index gets its second name, and last
the new one takes its place. Killed anywhere, the same command goes on; `infer` would, too, but cut the index
at its first damage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from drumline.cache_file import SIDE_FILES
from drumline.durable import output_errors, sync_directory, write_json
from drumline.errors import DrumlineError, IndexFormatError
from drumline.failpoints import step
from drumline.index import GARBLED, IndexAppender
from drumline.inputs import open_regular
from drumline.lock import exclusive
from drumline.rebuild.actions import Progress
from drumline.records import display_path, encode_record
from drumline.recover import open_cache
from drumline.runs import INFO_NAME, LOCK_NAME, SUMMARY_NAME, Run, list_runs, locate_run
from drumline.summary import HOW_IT_WENT, NOT_IN_THE_INDEX, make_summary
from drumline.tally import Tally
from drumline.verify.cached import cache_path
from drumline.verify.findings import Finding, Kind
from drumline.verify.frames import Stretch, scan
from drumline.verify.inspection import Inspection, inspect_run, path_hash, verify_run

__all__ = ["Part", "RepairReport", "Step", "repair_run"]

Part = Literal["run.json", "index", "summary", "cache"]

_INDEX_TROUBLES: Final[tuple[Kind, ...]] = (
    "damaged_frame",
    "torn_tail",
    "no_checksum",
    "bad_record",
    "double_record",
    "other_decision",
)
_LOSSES: Final[tuple[Kind, ...]] = ("index_missing", "damaged_frame", "torn_tail", "bad_record")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done, or would be.

    Parameters
    ----------
    part
        What it was done to.
    message
        What was done, and to what effect.
    """

    part: Part
    message: str


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Parameters
    ----------
    run
        The run; text for people.
    dry_run
        Whether nothing was done.
    steps
        What was done, or would be; none where nothing was wrong.
    kept
        What was set aside, and where.
    lost
        Records that are lost; None when nobody can tell how many.
    resumable
        Whether `infer` has to classify what is missing.
    unrepaired
        Problems that stay.
    """

    run: str
    dry_run: bool
    steps: tuple[Step, ...]
    kept: tuple[str, ...]
    lost: int | None
    resumable: bool
    unrepaired: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def repair_run(
    path: Path, *, dry_run: bool = False, progress: Callable[[Progress], None] | None = None
) -> RepairReport:
    """Restore of a run what can be restored.

    Parameters
    ----------
    path
        A run directory, or a runs root (its newest complete run).
    dry_run
        Only tell what would be done.
    progress
        Called now and then with how far it got.

    Raises
    ------
    IndexFormatError
        When there is no run, or it is of another version.
    OutputError
        When something cannot be written; what was there before is still there, or set aside.
    BusyError
        When another process holds the runs root.
    """
    run = locate_run(path.resolve())[0]
    if not os.path.lexists(run.directory / INFO_NAME):
        raise IndexFormatError(
            f"{str(path)!r} is an index without a run", "Give the run directory that holds its run.json."
        )
    root = run.directory.parent
    lock = exclusive(
        root / LOCK_NAME, f"the runs root {display_path(root)!r}", f"repair of {run.display_name}"
    )
    with nullcontext() if dry_run else lock:
        repair = _Repair(inspect_run(run.directory, progress=progress), dry_run)
        try:
            repair.repair()
        finally:
            repair.close()
        unrepaired = (
            () if dry_run or repair.retired else verify_run(run.directory, progress=progress).findings
        )
        return repair.report(unrepaired)


class _Repair:
    """Repairs one run; `inspection` says what is wrong with it."""

    def __init__(self, inspection: Inspection, dry_run: bool) -> None:
        self._inspection, self._dry_run = inspection, dry_run
        self._run, self._cache = inspection.run, cache_path(inspection.run)
        self._new_index = self._run.index_path.with_name(f".{self._run.index_path.name}.tmp")
        self._steps: list[Step] = []
        self._kept: list[Path] = []
        self._lost: int | None = 0
        self._unfinished = inspection.complete is False
        self.retired = bool(inspection.trouble)

    def repair(self) -> None:
        """Restore what can be restored, in the order that keeps every moment safe."""
        renew = self._has("cache") or not self._cache.exists()
        if self.retired:
            self._retire()
            renew = True
        else:
            renew |= self._mend()
        if renew:
            self._renew_cache()

    def close(self) -> None:
        """Leave nothing half done behind."""
        if not self._dry_run:
            self._new_index.unlink(missing_ok=True)

    def report(self, unrepaired: tuple[Finding, ...]) -> RepairReport:
        """Tell what was done."""
        return RepairReport(
            run=display_path(self._run.directory),
            dry_run=self._dry_run,
            steps=tuple(self._steps),
            kept=tuple(display_path(path) for path in self._kept),
            lost=self._lost,
            resumable=self.retired or (self._unfinished and not self._is_outdated()),
            unrepaired=unrepaired,
        )

    def _has(self, *kinds: Kind) -> bool:
        return self._inspection.ledger.count(*kinds) > 0

    def _step(self, part: Part, message: str) -> None:
        self._steps.append(Step(part, message))

    def _retire(self) -> None:
        """Set a run.json aside that nobody can go by: the directory is then no run any more."""
        self._step("run.json", f"{self._inspection.trouble}: set aside; the next run classifies anew")
        if not self._dry_run:
            self._set_aside(self._run.directory / INFO_NAME)

    def _mend(self) -> bool:
        """Restore index and summary; return whether the cache has to follow."""
        complete, damaged = self._inspection.complete, self._has(*_INDEX_TROUBLES)
        tally = self._salvage() if damaged else self._inspection.tally
        is_lost = bool(complete) and self._is_lost(tally)
        if damaged or is_lost:
            self._set_cache_aside()
        if is_lost:
            self._unfinish(tally)
        if damaged:
            if not complete and self._has(*_LOSSES):
                self._lost = None
            self._replace_index(tally)
        if complete and not is_lost and (damaged or self._has("summary")):
            self._write_summary(tally)
        return damaged or is_lost

    def _salvage(self) -> Tally:
        """Write a new index of all that is sound, beside the old one; return what it holds."""
        tally, left = Tally(), dict(zip(*map(np.ndarray.tolist, self._inspection.doubled), strict=True))
        with ExitStack() as stack:
            stream = stack.enter_context(open_regular(self._run.index_path))
            appender = None
            if not self._dry_run:
                appender = stack.enter_context(
                    closing(IndexAppender(self._new_index, self._inspection.codec))
                )
            for stretch in scan(self._run.index_path, self._inspection.codec):
                data = b"".join(self._sound_lines(stretch, left, tally))
                if appender and data:
                    if stretch.checked and data == stretch.data:
                        appender.append(os.pread(stream.fileno(), stretch.length, stretch.offset))
                    else:
                        appender.append(appender.codec.compress(data))
            if appender:
                appender.sync()
        return tally

    def _sound_lines(self, stretch: Stretch, left: dict[int, int], tally: Tally) -> Iterator[bytes]:
        """Iterate over the lines that stay; `left` counts down the records of paths that have many."""
        for line in BytesIO(stretch.data or b""):
            verdict = self._inspection.judge.judge(line)
            if verdict.record is None or verdict.decided is None:
                continue
            number = path_hash(verdict.record)
            if number in left:
                left[number] -= 1
                if left[number]:
                    continue
            tally.add(verdict.decided)
            yield encode_record(verdict.decided) if verdict.trouble else line

    def _is_lost(self, tally: Tally) -> bool:
        """Tell whether the run held more records than are left."""
        claims = _claims(self._inspection.summary)
        if self._has(*_LOSSES):
            return not claims or any(claim != tally.records for claim in claims)
        if claims:
            return min(claims) > tally.records
        cached = self._inspection.cached
        return cached is not None and cached.valid > self._inspection.end

    def _replace_index(self, tally: Tally) -> None:
        self._step("index", f"written anew from what is sound of it: {tally.records:,} records")
        if not self._dry_run:
            self._copy_aside(self._run.index_path)
            with output_errors(self._run.index_path):
                with step("repair.replace"):
                    os.replace(self._new_index, self._run.index_path)
                sync_directory(self._run.directory)

    def _unfinish(self, tally: Tally) -> None:
        """Make a complete run an unfinished one."""
        claims = _claims(self._inspection.summary)
        self._lost = max(claims) - tally.records if claims else None
        count = "an unknown number" if self._lost is None else f"{self._lost:,}"
        self._unfinished = True
        self._step("summary", f"set aside: {count} of the records are lost, so the run is an unfinished one")
        if not self._dry_run:
            self._set_aside(self._run.summary_path)

    def _is_outdated(self) -> bool:
        """Tell whether a newer complete run has taken this one's place: `infer` goes on from that."""
        for directory in list_runs(self._run.directory.parent):
            if directory.name > self._run.name and (directory / SUMMARY_NAME).exists():
                with suppress(DrumlineError):
                    info = locate_run(directory)[0].info
                    if all(
                        info.get(key) == self._run.info.get(key) for key in ("archive_root", "inference_key")
                    ):
                        return True
        return False

    def _write_summary(self, tally: Tally) -> None:
        self._step("summary", f"counted anew from the index: {tally.records:,} records")
        if not self._dry_run:
            self._copy_aside(self._run.summary_path)  # it stays what says: complete
            write_json(self._run.summary_path, _summary(self._run, tally, self._inspection.summary))

    def _set_cache_aside(self) -> None:
        """Set the cache aside, with the log that belongs to it, so that it can still be opened."""
        if self._dry_run or not self._cache.exists():
            return
        target = self._set_aside(self._cache)
        with output_errors(self._cache):
            for suffix in SIDE_FILES:
                with suppress(FileNotFoundError):
                    os.rename(f"{self._cache}{suffix}", f"{target}{suffix}")

    def _renew_cache(self) -> None:
        self._step("cache", "made anew from the indexes of the runs root")
        if not self._dry_run:
            self._set_cache_aside()
            open_cache(self._cache, self._cache.parent).close()

    def _set_aside(self, path: Path) -> Path:
        with output_errors(path):
            target = self._free_name(path)
            with step("repair.set-aside"):
                os.rename(path, target)
            sync_directory(path.parent)
        self._kept.append(target)
        return target

    def _copy_aside(self, path: Path) -> None:
        """Give a file another name, by a copy where the file system has no hard links."""
        with output_errors(path):
            target = self._free_name(path)
            with step("repair.set-aside"):
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copy2(path, target)
                    with open(target, "rb") as stream:
                        os.fsync(stream.fileno())
            sync_directory(target.parent)
        self._kept.append(target)

    @staticmethod
    def _free_name(path: Path) -> Path:
        names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
        return next(name for name in names if not os.path.lexists(name))


def _claims(summary: dict[str, Any]) -> list[int]:
    """Return how many records a summary speaks of, by each of its counts that tells; none: no summary."""
    try:
        counts, labels = summary["counts"], sum(summary["labels"].values())
        sums = (sum(summary[name].values()) for name in ("reasons", "formats"))
        return [int(claim) for claim in (counts["indexed"], labels + counts["failed"], *sums)]
    except GARBLED:
        return []


def _summary(run: Run, tally: Tally, old: dict[str, Any]) -> dict[str, Any]:
    """Return a summary; what no index tells is taken from the old one, and null where that does not say."""
    counts = old.get("counts", {})
    carried = counts.get("carried_over")
    is_sound = type(carried) is int and 0 <= carried <= tally.records - tally.failed
    counted = {name: counts.get(name) for name in NOT_IN_THE_INDEX}
    went = {name: old.get(name) for name in HOW_IT_WENT}
    return make_summary(run, tally, carried if is_sound else 0, counted, went)
