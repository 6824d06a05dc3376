"""The mapping log: what in a tree is rebuild's own, and where it came from.

``_mapping.jsonl`` is appended to, never rewritten. Its first line marks the directory as made by drumline.
A line is on disk *before* what it speaks of appears, so that after a kill nothing of ours is unknown; a line
whose file never appeared does no harm. ``removed`` lines come after the removal is on disk.

===========  ====================================================================================
action       says
===========  ====================================================================================
created      first line: version of the log, and whether the directory itself was made
rebuild      a rebuild began: run, archive, settings, which labels were wanted
dir          a directory is about to be made
make         a file is about to appear: target, source, mode, size, mtime_ns, hash; again, with doubted,
             where its original failed when it was indexed last
report       a manifest or summary is about to be written: target, hash of its content
removed      what stood at target is gone (or never came)
synced       all that stands above is on disk
===========  ====================================================================================

Paths that are no UTF-8 have their exact bytes in ``target_b64`` and ``source_b64`` too.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any, NamedTuple

import orjson

from drumline.durable import output_errors
from drumline.errors import OutputError
from drumline.failpoints import step
from drumline.rebuild.actions import Action
from drumline.rebuild.names import MAX_TARGET, is_safe
from drumline.rebuild.store import Made, Store
from drumline.rebuild.tree import STAGING, Tree, not_a_tree, write_all
from drumline.records import path_fields

__all__ = [
    "LOG_NAME",
    "LogState",
    "MappingLog",
    "Removals",
    "load_log",
    "make_line",
    "path_line",
    "rebuild_line",
]

LOG_NAME = b"_mapping.jsonl"
LOG_VERSION = 2
_READABLE = (1, LOG_VERSION)
"""Logs of version 1 do not say what was synced."""

_MAX_LINE = 1 << 17
_HOLE = b"\0"
"""What lost power leaves where a later part of a write is on disk, and an earlier one not."""

_SYNCED = b'{"action":"synced"}\n'
_REPORT = b'{"action":"report"'

_LINES_TOGETHER = 10_000


def path_line(action: str, target: bytes, **more: Any) -> bytes:
    """Return a line about a target."""
    text, encoded = path_fields(target)
    exact = {} if encoded is None else {"target_b64": encoded}
    return _line({"action": action, "target": text, **exact, **more})


def make_line(action: Action | Made, mode: str, source: bytes, *, doubted: bool = False) -> bytes:
    """Return the line that announces a file, or says again of one that its original is doubted."""
    target, target_b64 = path_fields(action.target)
    origin, origin_b64 = path_fields(source)
    line: dict[str, Any] = {"action": "make", "target": target, "source": origin, "mode": mode}
    line.update(size=action.size, mtime_ns=action.mtime_ns, hash=action.hash)
    if target_b64 is not None:
        line["target_b64"] = target_b64
    if origin_b64 is not None:
        line["source_b64"] = origin_b64
    if doubted:
        line["doubted"] = True
    return _line(line)


def rebuild_line(about: dict[str, Any]) -> bytes:
    """Return the line that says that a rebuild began."""
    return _line({"action": "rebuild", **about})


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


class MappingLog:
    """The log, open for appending; whole lines or nothing."""

    def __init__(self, tree: Tree, length: int) -> None:
        self._tree = tree
        self._before = b""
        with output_errors(tree.path):
            self._descriptor = tree.open_file(LOG_NAME, os.O_WRONLY | os.O_CREAT)
            self._length = length
            if os.fstat(self._descriptor).st_size > length:
                with step("log.cut"):
                    os.ftruncate(self._descriptor, length)
                os.fsync(self._descriptor)  # no old bytes may show through in what is appended
            os.lseek(self._descriptor, length, os.SEEK_SET)
            if length == 0:
                tree.sync_names()

    def begin(self, *, made_root: bool) -> None:
        """Write the first line."""
        self.append([_line({"action": "created", "drumline_mapping": LOG_VERSION, "made_root": made_root})])

    def append(self, lines: list[bytes], *, sync: bool = True) -> None:
        """Append lines; on disk when this returns, unless `sync` is false.

        What follows a sync begins by saying so: then a hole above it is damage, and no lost power.
        """
        if not lines:
            return
        data = b"".join([self._before, *lines])
        with output_errors(self._tree.path):
            try:
                with step("log.write"):
                    write_all(self._descriptor, data)
                if sync:
                    with step("log.sync"):
                        os.fsync(self._descriptor)
            except BaseException:  # of Ctrl-C, too: nobody knows whether what was written was synced
                os.ftruncate(self._descriptor, self._length)
                os.lseek(self._descriptor, self._length, os.SEEK_SET)
                raise
            self._length += len(data)
            self._before = _SYNCED if sync else b""

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Removals:
    """Notes what was removed, once that is on disk: a removal that lost power takes back is still known."""

    def __init__(self, tree: Tree, log: MappingLog) -> None:
        self._tree, self._log = tree, log
        self._lines: list[bytes] = []

    def add(self, target: bytes) -> None:
        """Note a file or directory that was just removed, soon."""
        self._lines.append(path_line("removed", target))
        if len(self._lines) >= _LINES_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Put the removals on disk, then note them."""
        if self._lines:
            self._tree.sync()
            self._log.append(self._lines, sync=False)
            self._lines.clear()


class LogState(NamedTuple):
    """What stands in a log besides the paths.

    Parameters
    ----------
    length
        In bytes, of whole lines.
    made_root
        Whether rebuild made the directory itself.
    settings
        Those of the latest rebuild; empty where the log has none.
    reported
        Whether what was done last came as far as its reports, that is, has removed what it emptied.
    wanted
        Which labels the latest rebuild wanted, in words; empty where the log does not tell.
    """

    length: int
    made_root: bool
    settings: dict[str, Any]
    reported: bool
    wanted: str = ""


def load_log(tree: Tree, store: Store) -> LogState | None:
    """Read a tree's log into `store`; None when the directory was not made by drumline.

    Raises
    ------
    OutputError
        When the log is of a newer version, or a line in it makes no sense.
    """
    try:
        descriptor = tree.open_file(LOG_NAME, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise not_a_tree(
            tree.path, f"has a {LOG_NAME.decode()} that cannot be read: {error.strerror}"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_a_tree(tree.path, f"has a {LOG_NAME.decode()} that is no file")
    with open(descriptor, "rb") as stream:
        return _load(tree, stream, store)


def _load(tree: Tree, stream: IO[bytes], store: Store) -> LogState:
    first = stream.readline(_MAX_LINE)
    if not first.endswith(b"\n") or _HOLE in first:
        # Killed while it was begun; `guard` checks that nothing else is there.
        _check_torn(tree, chain([first], _lines_of(stream)), 1)
        return LogState(0, made_root=False, settings={}, reported=False)
    head = _parse(tree, first, 1)
    if head.get("drumline_mapping") not in _READABLE:
        raise OutputError(
            f"{str(tree.path)!r} has a mapping log of version {head.get('drumline_mapping')!r}; "
            f"this drumline reads version {LOG_VERSION}",
            "Use the drumline that made it.",
        )
    length, settings, wanted, reported = len(first), dict[str, Any](), "", False
    for number, line in enumerate(_lines_of(stream), 2):
        if _HOLE in line:
            _check_torn(tree, chain([line], _lines_of(stream)), number)
            break
        if not line.endswith(b"\n") and len(line) < _MAX_LINE:
            break  # torn by a kill: what it announces never came
        value = _parse(tree, line, number)
        _apply(tree, store, value, number)
        reported = _reports(value, before=reported)
        if isinstance(latest := value.get("settings"), dict):
            settings, wanted = latest, str(value.get("wanted", ""))
        length += len(line)
    store.flush()
    return LogState(length, bool(head.get("made_root")), settings, reported, wanted)


def _reports(line: dict[str, Any], *, before: bool) -> bool:
    """Tell whether nothing but the staging directory came or went since the reports, up to a line."""
    if line["action"] == "synced":
        return before
    if line["action"] in ("report", "rebuild"):
        return bool(line["action"] == "report")
    return before and _exact(line, "target") == STAGING


def _lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.readline(_MAX_LINE), b"")


def _check_torn(tree: Tree, lines: Iterable[bytes], number: int) -> None:
    """Refuse a hole, in the first of these lines, before what was synced.

    All up to a report is on disk before a line follows it; of version 1, no other line tells.
    """
    before, reported = b"", False
    for line in lines:
        # What is no line of ours can be longer than is read at once, and end with half of the mark.
        if reported or _SYNCED in before + line:
            raise _damaged(tree, number)
        reported = line.startswith(_REPORT)
        before = line[-len(_SYNCED) :]


def _parse(tree: Tree, line: bytes, number: int) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(tree, number)
    return value


def _damaged(tree: Tree, number: int) -> OutputError:
    return OutputError(
        f"line {number} of {LOG_NAME.decode()} in {str(tree.path)!r} makes no sense",
        "The log was changed by hand or damaged. Nothing was touched; rebuild into a new directory.",
    )


def _apply(tree: Tree, store: Store, line: dict[str, Any], number: int) -> None:
    action = line.get("action")
    if action in ("rebuild", "synced"):
        return
    try:
        target = _exact(line, "target")
        if not is_safe(target, MAX_TARGET):
            raise ValueError(target)
        if action == "make":
            store.note_made(Made(target, *_made_fields(line)))
        elif action == "dir":
            store.note_folder(target)
        elif action == "report":
            store.note_report(target, str(line["hash"]))
        elif action == "removed":
            store.note_removed(target)
        else:
            raise ValueError(action)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(tree, number) from error


def _made_fields(line: dict[str, Any]) -> tuple[str, int, int, bytes, str | None, bool]:
    size, mtime_ns, mode, digest = line["size"], line["mtime_ns"], line["mode"], line["hash"]
    if not (isinstance(size, int) and isinstance(mtime_ns, int) and max(abs(size), abs(mtime_ns)) < 1 << 63):
        raise ValueError(size)
    digest = None if digest is None else str(digest)
    return str(mode), size, mtime_ns, _exact(line, "source"), digest, bool(line.get("doubted"))


def _exact(line: dict[str, Any], name: str) -> bytes:
    encoded = line.get(name + "_b64")
    return line[name].encode() if encoded is None else base64.b64decode(encoded, validate=True)
