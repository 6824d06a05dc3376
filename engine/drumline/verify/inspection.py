"""A run: where its parts are, whatever state they are in, and what is the matter with each."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from math import isclose
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import xxhash

from drumline import __version__
from drumline.decide import DecisionSettings
from drumline.durable import way_out_of
from drumline.errors import DrumlineError, IndexFormatError
from drumline.index import GARBLED, Codec
from drumline.inputs import LARGEST_JSON_BYTES, read_regular
from drumline.labels import Taxonomy
from drumline.pipeline.job import decision_key
from drumline.rebuild.actions import Progress, report_to
from drumline.records import SCHEMA_VERSION, Record, absolute_path, display_path, relative_path
from drumline.runs import Run, locate_run, newest_complete_run
from drumline.settings import InferSettings
from drumline.tally import Tally
from drumline.thresholds import resolve_gate, resolve_threshold
from drumline.verify.cached import cached_run, check_cache
from drumline.verify.findings import FINDINGS_KEPT, Ledger, Report
from drumline.verify.frames import Stretch, codec_named, scan
from drumline.verify.judge import Judge
from drumline.verify.originals import Originals
from drumline.wording import counted

__all__ = ["Inspection", "inspect_run", "path_hash", "verify_run"]

_REPORT_EVERY: Final = 5_000


def verify_run(
    path: Path,
    archive: bool = False,
    content: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Verify a run: index, records, summary and cache; on demand, that the archive is what was indexed.

    Parameters
    ----------
    path
        A run directory, an index file, or a runs root (its newest complete run).
    archive
        Whether files must have the size and mtime that their records say.
    content
        Whether they must have the content, too; reads the whole archive. Implies `archive`.
    progress
        Called now and then with how far it got.

    Raises
    ------
    IndexFormatError
        When there is no run or index, or it is of another version.
    ArchiveError
        When the archive is to be looked at and its root is not there.
    """
    return inspect_run(path, archive or content, content, progress).report()


def inspect_run(
    path: Path,
    archive: bool = False,
    content: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Inspection:
    """Look at a run as `verify_run` does, and return all that was learnt."""
    run, trouble = locate_run(path.resolve())  # the cache knows a run by the name of its directory
    inspection = Inspection(run, trouble, report_to(progress))
    originals = Originals(run.archive_root, content, inspection.ledger) if archive else None
    inspection.look(originals)
    return inspection


def _content(path: Path) -> bytes:
    """Read a file; a disk or permissions in the way say nothing of what is in it."""
    try:
        return read_regular(path, LARGEST_JSON_BYTES)
    except OSError as error:
        raise IndexFormatError(
            f"cannot read {str(path)!r}: {error.strerror}",
            way_out_of(error, "Check the disk and the permissions."),
        ) from error


def _decided_with(run: Run) -> tuple[DecisionSettings, int]:
    """Return decision settings and top_k of a run.json that agrees with itself.

    Raises
    ------
    DrumlineError, KeyError, TypeError, ValueError, AttributeError
        When it does not.
    """
    info, model = run.info, run.info["model"]
    decisions, settings = run.decision_settings(), info["settings"]
    assert decisions is not None
    asked = InferSettings(
        archive=Path(os.fsdecode(run.archive_root or b"")),
        top_k=settings["top_k"],
        compress_index=settings["compress_index"],
    )
    taxonomy = Taxonomy(tuple(model["labels"]), decisions.canonical_of, decisions.misc)
    if taxonomy.checksum != model["label_checksum"]:
        raise ValueError("its labels do not have the checksum that it gives")
    if run.index_path.name != "index" + Codec(asked.compress_index).suffix:
        raise ValueError(f"it names another index than {asked.compress_index} makes")
    # Another version may have made its key otherwise.
    if info["drumline_version"] == __version__ and decision_key(asked, decisions) != info["decision_key"]:
        raise ValueError("what it says was set is not what its decision_key is made of")
    _check_resolved(run, settings["misc"], decisions)
    return decisions, asked.top_k


def _check_resolved(run: Run, misc: dict[str, Any], decisions: DecisionSettings) -> None:
    """See that the thresholds that were decided with are those that the settings ask for."""
    threshold, by_label = resolve_threshold(misc["threshold"], run.operating_points(), run.name)
    fitted, asked = run.gate_threshold(), misc.get("gate_threshold")
    gate = resolve_gate(misc.get("gate", True), asked, fitted, run.name)
    resolved = (decisions.threshold, dict(decisions.thresholds), decisions.gate_threshold)
    if (threshold, dict(by_label), gate) != resolved:
        raise ValueError("its thresholds are not those that its settings ask for")


def path_hash(record: Record) -> int:
    """Return the 64 bits by which records of one path are found."""
    return xxhash.xxh3_64_intdigest(relative_path(record))


class Inspection:
    """Looks at one run, and keeps what `drumline.repair` has to know.

    Parameters
    ----------
    run, trouble
        The run, and why its run.json cannot be read.
    progress
        Is told how far it got.

    Attributes
    ----------
    trouble
        Why run.json cannot be believed; empty when it can.
    is_lone
        Whether there is only an index, without a run.
    complete
        Whether the run came to its end; None for a lone index.
    codec
        How the index is compressed.
    cached
        The run as the cache knows it.
    judge
        Judges lines by the run's settings.
    summary
        What summary.json says; empty where it cannot be read.
    tally
        Counts of all records.
    end
        End of the last whole frame, in bytes.
    doubled
        Hashes of the paths that have more than one record, and how many they have: uint64, int64.
    """

    def __init__(self, run: Run, trouble: str, progress: Callable[[Progress], None]) -> None:
        self.run, self.trouble = run, trouble
        self.is_lone = not run.info and not trouble
        self.complete = None if self.is_lone else run.complete
        self.ledger = Ledger()
        self.codec = codec_named(run.index_path)
        self.cached = None if self.is_lone else cached_run(run)
        self.judge = Judge(None, None)
        self.tally, self.end = Tally(), 0
        self.doubled = (np.empty(0, np.uint64), np.empty(0, np.int64))
        self._progress = progress
        self._frames = self._lines = self._elsewhere = 0
        self._hashes = array("Q")
        self.summary, self._summary_trouble = self._read_summary()

    def report(self) -> Report:
        """Return the report."""
        name = self.run.index_path if self.is_lone else self.run.directory
        return self.ledger.report(display_path(name), self.complete)

    def look(self, originals: Originals | None) -> None:
        """Make every check."""
        self._check_info()
        self._check_index(originals)
        if not self.trouble:
            self._check_root()
        self._check_paths()
        if self.complete:
            self._check_summary()
        elif not self.is_lone:
            text = f"the run is not complete: {self._end_of_it()}"
            self.ledger.note("summary", "unfinished", os.fsencode(self.run.name), text)
        if not self.is_lone:
            believed = replace(self.run, info={}) if self.trouble else self.run
            check_cache(believed, self.codec, self.tally, self.ledger)

    def _end_of_it(self) -> str:
        root = self.run.archive_root
        newest = None if root is None else newest_complete_run(self.run.directory.parent, root)
        if newest is None or newest.name < self.run.name:
            return "the same 'drumline infer' command finishes it"
        return f"{newest.name} took its place, and nothing goes on with it; its directory may be removed"

    def _check_info(self) -> None:
        if self.is_lone:
            return
        if not self.trouble:
            try:
                self.judge = Judge(*_decided_with(self.run))
            except DrumlineError as error:
                self.trouble = error.what
            except KeyError as error:
                self.trouble = f"lacks {error}"
            except GARBLED as error:
                self.trouble = str(error)
        if self.trouble:
            self.ledger.problem("run.json", "run_json", "run.json", self.trouble)
        decided = (
            "not looked at, as run.json is not sound" if self.trouble else "as run.json's settings decide"
        )
        self.ledger.checked("decisions", decided)
        if not self.trouble:
            self.ledger.checked("run.json", "agrees with itself and with the index")

    def _check_root(self) -> None:
        """Where the records of all frames lie below another archive root, run.json's was changed."""
        if self._frames and self._elsewhere == self._frames:
            self.trouble = "the records' files lie below another archive root"
            self.ledger.problem("run.json", "run_json", "run.json", self.trouble)

    def _check_index(self, originals: Originals | None) -> None:
        if not self.run.index_path.is_file():
            if self.complete:
                self.ledger.problem("frames", "index_missing", self.run.index_path.name, "is not there")
            return
        total = self._claimed_records()
        for stretch in scan(self.run.index_path, self.codec):
            if stretch.data is None:
                self._gap(stretch)
                continue
            before = self.tally.records
            records = self._frame(stretch)
            if originals:
                originals.compare(records)
            if before // _REPORT_EVERY != self.tally.records // _REPORT_EVERY:
                self._progress(Progress("reading", self.tally.records, total))
        if originals:
            originals.close()
        self.ledger.checked("frames", f"{counted(self._frames, 'whole frame')}, {counted(self.end, 'byte')}")
        self.ledger.checked(
            "records", f"{counted(self.tally.records, 'record')} in {counted(self._lines, 'line')}"
        )

    def _claimed_records(self) -> int | None:
        try:
            return int(self.summary["counts"]["indexed"])
        except GARBLED:
            return None

    def _gap(self, stretch: Stretch) -> None:
        end = stretch.offset + stretch.length
        is_tail = end >= self.run.index_path.stat().st_size
        where, message = f"byte {stretch.offset:,}", f"{stretch.length:,} bytes are no whole frame"
        valid = self.cached.valid if self.cached else -1
        if self.complete is False and (is_tail if valid < 0 else stretch.offset >= valid):
            self.ledger.note("frames", "torn_tail", where, f"{message}: the run was interrupted")
        else:
            self.ledger.problem("frames", "torn_tail" if is_tail else "damaged_frame", where, message)

    def _frame(self, stretch: Stretch) -> list[Record]:
        assert stretch.data is not None
        if not stretch.checked:
            where = f"byte {stretch.offset:,}"
            self.ledger.problem("frames", "no_checksum", where, "the frame carries no checksum")
        self._frames += 1
        self.end = stretch.offset + stretch.length
        records = []
        for number, line in enumerate(BytesIO(stretch.data)):
            self._lines += 1
            verdict = self.judge.judge(line)
            if verdict.record is None:
                where = f"frame at byte {stretch.offset:,}, line {number}"
                self.ledger.problem("records", "bad_record", where, verdict.trouble)
                continue
            if verdict.trouble:
                path = relative_path(verdict.record)
                self.ledger.problem("decisions", "other_decision", path, verdict.trouble)
            records.append(verdict.record)
            if len(records) == 1 and self._is_elsewhere(verdict.record):
                self._elsewhere += 1
            self._hashes.append(path_hash(verdict.record))
            self.tally.add(verdict.record)
        return records

    def _is_elsewhere(self, record: Record) -> bool:
        root = None if self.trouble else self.run.archive_root
        return root is not None and absolute_path(record) != absolute_path(record, root)

    def _check_paths(self) -> None:
        if self.complete is False:
            return  # what was superseded while a run was interrupted is dropped when it ends
        hashes = np.sort(np.frombuffer(self._hashes, np.uint64))
        again = hashes[1:][hashes[1:] == hashes[:-1]]
        doubled, more = np.unique(again, return_counts=True)
        self.doubled = (doubled, more + 1)
        named = self._name_doubles(set(doubled[:FINDINGS_KEPT].tolist())) if again.size else 0
        self.ledger.unnamed("paths", "double_record", int(again.size) - named)
        self.ledger.checked("paths", f"{counted(self.tally.records - again.size, 'path')}, one record each")

    def _name_doubles(self, hashes: set[int]) -> int:
        paths: Counter[bytes] = Counter()
        for stretch in scan(self.run.index_path, self.codec):
            for line in BytesIO(stretch.data or b""):
                record = self.judge.judge(line).record
                if record is not None and path_hash(record) in hashes:
                    paths[relative_path(record)] += 1
        for path, count in paths.items():
            for _ in range(count - 1):
                self.ledger.problem("paths", "double_record", path, f"has {count} records")
        return sum(paths.values()) - len(hashes)

    def _read_summary(self) -> tuple[dict[str, Any], str]:
        if not self.run.complete:
            return {}, "is not there"
        try:
            summary = orjson.loads(_content(self.run.summary_path))
        except orjson.JSONDecodeError as error:
            return {}, f"is no JSON: {error}"
        if not isinstance(summary, dict) or not isinstance(summary.get("counts"), dict):
            return {}, "is no summary of a run"
        return summary, ""

    def _check_summary(self) -> None:
        if self._summary_trouble:
            self.ledger.problem("summary", "summary", "summary.json", self._summary_trouble)
        else:
            info = {} if self.trouble else self.run.info
            for where, message in _summary_troubles(self.summary, self.tally, info):
                self.ledger.problem("summary", "summary", where, message)
        self.ledger.checked("summary", "counts what the index holds")


def _summary_troubles(summary: dict[str, Any], tally: Tally, info: dict[str, Any]) -> list[tuple[str, str]]:
    counts = summary["counts"]
    troubles = [
        (name, f"{found!r:.60} in the summary, {expected!r:.60} by index and run.json")
        for name, found, expected in _summary_pairs(summary, tally, info)
        if not _same(found, expected, 1.5e-3 if name == "total_duration_sec" else 1.5e-4)
    ]
    parts = [counts.get(name) for name in ("carried_over", "classified", "failed")]
    if not all(type(part) is int and part >= 0 for part in parts) or sum(parts) != tally.records:
        troubles.append(("counts", f"carried_over, classified and failed are {parts!r:.60}"))
    return troubles


def _summary_pairs(
    summary: dict[str, Any], tally: Tally, info: dict[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over (name, value in the summary, value that it should have)."""
    counted = {"discovered": tally.records, "indexed": tally.records, "failed": tally.failed}
    for name, count in counted.items():
        yield f"counts.{name}", summary["counts"].get(name), count
    same_as_info = {name: info.get(name) for name in ("archive_root", "archive_root_b64", "model") if info}
    fixed = {"schema_version": SCHEMA_VERSION, "complete": True}
    for name, value in {**tally.report(), **fixed, **same_as_info}.items():
        yield name, summary.get(name), value


def _same(found: Any, expected: Any, tolerance: float) -> bool:
    """Tell whether two values are equal, but for the rounding of means and sums."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            _same(found[name], value, tolerance) for name, value in expected.items()
        )
    if isinstance(expected, float) and type(found) in (int, float):
        return isclose(found, expected, rel_tol=1e-9, abs_tol=tolerance)
    return type(found) is type(expected) and bool(found == expected)
