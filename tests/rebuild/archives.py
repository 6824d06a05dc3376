"""Tiny archives of random bytes, their indexes, and what stands in a tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from drumline.decide import decide
from drumline.rebuild import Plan, RebuildSettings, RebuildSummary, execute, plan_rebuild
from drumline.records import Record, path_fields
from drumline.runs import Run, create_run
from tests.making import CANONICAL_OF, make_record, write_index

KICK = {"Kick": 0.9, "Clap": 0.1}
SNARE = {"Rim": 0.5, "Snare": 0.3, "Kick": 0.2}
HIHAT = {"HihatOpen": 0.6, "Kick": 0.4}
CLAP = {"Clap": 0.8, "Kick": 0.2}
SETTINGS = {"target_labels": None, "misc": {"threshold": 0.5, "label": "misc"}}


class Archive:
    """An archive below `base`, the records of its files, and a place for a tree beside it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = os.fsencode(base / "archive")
        self.out = base / "out"
        self.records: list[Record] = []
        os.mkdir(self.root)

    def add(
        self,
        path: bytes,
        probs: dict[str, float] | None = None,
        content: bytes | None = None,
        **changes: Any,
    ) -> Record:
        """Write a file and index it."""
        content = os.urandom(200) if content is None else content
        place = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as stream:
            stream.write(content)
        digest = xxhash.xxh3_64_hexdigest(content)
        return self.index(path, probs, **{"hash": digest, **stat_fields(place), **changes})

    def index(self, path: bytes, probs: dict[str, float] | None = None, **changes: Any) -> Record:
        """Index a path without writing a file."""
        text, encoded = path_fields(os.path.join(self.root, path))
        record = make_record(path, probs or KICK, abs_path=text, abs_path_b64=encoded, **changes)
        self.records.append(record)
        return record

    def path(self, relative: bytes) -> bytes:
        """Return where a file of the archive stands."""
        return os.path.join(self.root, relative)

    def run(self, records: Iterable[Record] | None = None, **info: Any) -> Run:
        """Write a complete run."""
        about = {"index": "index.jsonl.zst", "canonical_map": CANONICAL_OF, "settings": SETTINGS, **info}
        run = create_run(self.base / "runs", about, self.root)
        write_index(run.index_path, self.records if records is None else records)
        run.summary_path.write_text("{}")
        return run

    def plan(self, run: Run | None = None, **settings: Any) -> Plan:
        """Plan a rebuild."""
        source = (run or self.run()).directory
        return plan_rebuild(RebuildSettings(source, **{"out": self.out, "copy_mode": "copy", **settings}))

    def rebuild(self, run: Run | None = None, **settings: Any) -> RebuildSummary:
        """Plan a rebuild and execute it."""
        with self.plan(run, **settings) as plan:
            return execute(plan)

    def tree(self) -> dict[bytes, bytes]:
        """Return path → content of the samples in the tree."""
        return {
            path: entry[1]
            for path, entry in snapshot(os.fsencode(self.out)).items()
            if not path.startswith(b"_") and entry[0] != "directory"
        }


def stat_fields(path: bytes) -> dict[str, Any]:
    """Return what an index says of a file's stat."""
    status = os.stat(path)
    return {"size": status.st_size, "mtime": status.st_mtime, "mtime_ns": status.st_mtime_ns}


def snapshot(root: bytes) -> dict[bytes, tuple[str, bytes]]:
    """Return all that stands below a directory: (kind, content or where a link points)."""
    found: dict[bytes, tuple[str, bytes]] = {}
    for directory, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = _entry(path)
    return found


def _entry(path: bytes) -> tuple[str, bytes]:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return "link", os.readlink(path)
    if stat.S_ISDIR(mode):
        return "directory", b""
    with open(path, "rb") as stream:
        return "file", stream.read()


def redecided(record: Record, label: str) -> Record:
    """Return a record as a run with other probabilities has it."""
    from tests.making import DECISIONS

    probs = {label: 0.9, "Clap": 0.1}
    return {**record, "probs": probs, **decide(probs, DECISIONS)._asdict()}  # type: ignore[typeddict-item]
