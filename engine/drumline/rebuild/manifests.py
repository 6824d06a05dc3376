r"""Manifests, statistics and summary: what `rebuild` tells about a tree, as files at its top.

A manifest lists one file a line, relative to the tree. In names, a backslash is written ``\\``, and each byte
of a control character, of a mark that turns the direction of writing, or that is no UTF-8, ``\xNN``; every
other name stands as it is.

A report that somebody edited, or a file of that name that somebody put there, is left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
import xxhash

from drumline.durable import output_errors
from drumline.failpoints import step
from drumline.rebuild.actions import Refused
from drumline.rebuild.log import MappingLog, path_line
from drumline.rebuild.plan import Plan
from drumline.rebuild.store import Store
from drumline.rebuild.tree import Tree, staged_name

__all__ = [
    "ERRORS",
    "MANIFESTS",
    "STATS",
    "SUMMARY",
    "Reports",
    "content_hash",
    "escaped",
    "is_ours",
    "manifest_name",
]

MANIFESTS = b"_manifests"
ERRORS = MANIFESTS + b"/errors.txt"
STATS = b"_stats.json"
SUMMARY = b"_rebuild_summary.json"
_STAGED = staged_name("report")
# ASCII's controls and backslash; in UTF-8 the controls U+0080 to 9F, and what begins lines or turns writing.
_SPECIAL = re.compile(
    rb"[\x00-\x1f\x7f\\]|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]"
)
_PLAIN = re.compile(rb"[\x20-\x5b\x5d-\x7e]*")
_BLOCK = 1 << 20
_ROWS = 1_000


def escaped(name: bytes) -> bytes:
    """Return a name as it stands in a manifest."""
    if _PLAIN.fullmatch(name):
        return name
    name = _SPECIAL.sub(_escape, name)
    return name.decode("utf-8", "backslashreplace").encode()


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\\\" if found[0] == b"\\" else b"".join(b"\\x%02x" % byte for byte in found[0])


def manifest_name(label: str) -> bytes:
    """Return where a label's manifest stands."""
    return MANIFESTS + b"/" + label.encode() + b".txt"


def content_hash(tree: Tree, target: bytes) -> str | None:
    """Return the hash of a file's content; None when there is none, and "" for what is no file."""
    status = tree.lstat(target)
    if status is None:
        return None
    if not stat.S_ISREG(status.st_mode):
        return ""
    digest = xxhash.xxh3_128()
    with open(tree.open_file(target, os.O_RDONLY), "rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def is_ours(tree: Tree, store: Store, target: bytes) -> bool:
    """Tell whether a report still reads as rebuild wrote it."""
    try:
        digest = content_hash(tree, target)
    except Refused:
        return False
    return digest is not None and store.is_our_report(target, digest)


class Reports:
    """Writes the reports of one plan."""

    def __init__(self, plan: Plan, tree: Tree, log: MappingLog) -> None:
        self._plan, self._tree, self._log, self._store = plan, tree, log, plan.store
        self.published = False

    def write_manifests(self) -> int:
        """Write a manifest for each label and the list of errors; remove those of labels that are gone.

        Returns
        -------
        int
            How many were left as somebody else wrote them.
        """
        wanted, left = {ERRORS}, 0
        for label, first, last in self._store.spans():
            if label in self._plan.labels and self._plan.labels[label].files:
                wanted.add(manifest_name(label))
                left += not self.write(manifest_name(label), self._listed(label, first, last))
        left += not self.write(ERRORS, self._errors())
        for target in self._store.reports():
            if target.startswith(MANIFESTS + b"/") and target not in wanted:
                left += not self._remove(target)
        return left

    def _listed(self, label: str, first: int, last: int) -> Iterator[bytes]:
        rows = self._store.placed_targets(label, first, last)
        while chunk := rows.fetchmany(_ROWS):
            yield b"".join([escaped(target) + b"\n" for (target,) in chunk])

    def _errors(self) -> Iterator[bytes]:
        for path, kind, message in self._store.failed_files():
            yield b"\t".join((escaped(path), escaped(kind.encode()), escaped(message.encode()))) + b"\n"

    def write_json(self, target: bytes, value: Any) -> bool:
        """Write an object as indented JSON; as `write`."""
        option = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
        return self.write(target, [orjson.dumps(value, option=option)])

    def write(self, target: bytes, lines: Iterable[bytes]) -> bool:
        """Replace a report atomically, unless it is not ours; tell whether it reads so now.

        Its content is on disk before it takes the old one's place; the new name is once the tree is synced.
        """
        with output_errors(self._tree.path):
            digest, size = self._stage(lines)
            try:
                self._publish(target, digest, size)
            except Refused as refused:
                self._leave(target, refused.message)
                return False
            finally:
                self._tree.unlink(_STAGED)
        return True

    def _stage(self, lines: Iterable[bytes]) -> tuple[str, int]:
        digest, size = xxhash.xxh3_128(), 0
        with open(
            self._tree.open_file(_STAGED, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", _BLOCK
        ) as stream:
            for line in lines:
                digest.update(line)
                size += stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        return digest.hexdigest(), size

    def _publish(self, target: bytes, digest: str, size: int) -> None:
        current = content_hash(self._tree, target)
        ours = current is not None and self._store.is_our_report(target, current)
        if current is not None and not ours:
            raise Refused("occupied", "edited by somebody, or not made by drumline")
        if current == digest:
            return
        self._log.append([path_line("report", target, hash=digest, size=size)])
        self._store.note_report(target, digest)
        self._store.flush()
        self._rename(target)
        self.published = True

    def _rename(self, target: bytes) -> None:
        staging, number = self._tree.locate(_STAGED)
        staging = os.dup(staging)
        try:
            directory, name = self._tree.locate(target)
            with step("report.publish"):
                os.rename(number, name, src_dir_fd=staging, dst_dir_fd=directory)
        finally:
            os.close(staging)

    def _remove(self, target: bytes) -> bool:
        """Remove a report, unless it is not ours; tell whether it is gone."""
        if is_ours(self._tree, self._store, target):
            self._tree.unlink(target)
            self._tree.sync()
            self._log.append([path_line("removed", target)])
        elif self._tree.lstat(target) is not None:
            self._leave(target, "edited by somebody")
            return False
        return True

    def _leave(self, target: bytes, why: str) -> None:
        self._store.note_problem("edited", target, why)
