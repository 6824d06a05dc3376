"""The working table of a plan: a private SQLite database that lives in memory until it outgrows its cache.

SQLite's unnamed database does what is wanted: up to the cache size nothing touches the disk; beyond it pages
go to a file in the temporary directory (``SQLITE_TMPDIR``, ``TMPDIR``, /var/tmp, /tmp) that has no name and
so vanishes with the process, however that ends. Sorting and joining 10^7 rows needs no more memory than
10^5. Measured: 4 µs a record inserted, 4 µs sorted thrice (doubles, names, plan).

==========  =================================================================================
record      a file of the index that is to be placed, its place in the index, its wanted target, the
            collision key, and how it was found in the archive
content     content that several files have, and which of them is placed (only with dedup)
spare       keys that are taken and hold a ``~``: only these can clash with a spare name
plan        the plan: one row per file, numbered in the order of execution, with what stands against it
failed      files of the index that have an error, with their place in the index
problem     what stands against a file, and why
made        from the mapping log: files that rebuild made earlier
failed_file of the files that have an error: device and inode, where the archive was moved
doubt       of what was made: whose original failed in this index, which the log does not know yet
folder      from the mapping log: directories that it made
report      from the mapping log: manifests and summaries that it wrote, by content hash
stale       made earlier and no longer in the plan: to be removed. A last copy only once what the plan
            places elsewhere in its stead stands
==========  =================================================================================
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from drumline.errors import OutputError
from drumline.rebuild.actions import Action, Problem, State

__all__ = ["PLACED", "SOURCE_PROBLEMS", "TO_DO", "Made", "Row", "Store", "working_space"]

PLACED = ("make", "replace", "adopt", "there", "listed")
"""States of files that are, or will be, in the tree."""

SOURCE_PROBLEMS = ("missing", "unreadable", "changed")
"""Problems of a file in the archive."""

TO_DO = ("make", "replace")
"""States of files that `execute` makes."""

_CACHE_KIB = 64 << 10
_CHUNK = 5_000
_INTERRUPTIBLE_STEPS = 200_000
_FOLDERS = 1_000
_TWINS = 100
_PLAN = "number, state, label, target, source, size, mtime_ns, hash"
_MADE = "m.target, m.mode, m.size, m.mtime_ns, m.source, m.hash, m.doubted"
_SCHEMA = """
CREATE TABLE record (place INTEGER PRIMARY KEY, key BLOB, source BLOB, label TEXT, target BLOB, size INT,
                     mtime_ns INT, hash TEXT, device INT, problem TEXT, message TEXT);
CREATE TABLE spare (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE plan (number INTEGER PRIMARY KEY, state TEXT, label TEXT, target BLOB, source BLOB,
                   size INT, mtime_ns INT, hash TEXT, device INT, message TEXT);
CREATE TABLE failed (place INTEGER PRIMARY KEY, path BLOB, type TEXT, message TEXT);
CREATE TABLE problem (kind TEXT, path BLOB, message TEXT);
CREATE TABLE made (target BLOB PRIMARY KEY, mode TEXT, size INT, mtime_ns INT, source BLOB, hash TEXT,
                   doubted INT) WITHOUT ROWID;
CREATE TABLE folder (target BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE report (target BLOB, hash TEXT, PRIMARY KEY (target, hash)) WITHOUT ROWID;
CREATE TABLE failed_file (inode BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE doubt (target BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE stale (target BLOB PRIMARY KEY, is_last INT) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """A record of the index that is to be placed.

    `place` is where it stands in the index, `key` the target's collision key, `label` the label's directory.
    Where it was looked for in the archive, `device` says on which device it lies, or `problem` and `message`
    why it is not there as it was indexed.
    """

    place: int
    key: bytes
    source: bytes
    label: str
    target: bytes
    size: int
    mtime_ns: int
    hash: str | None
    device: int | None = None
    problem: Problem | None = None
    message: str | None = None


class Made(NamedTuple):
    """A file that rebuild made, as it was then.

    `source` is absolute; `doubted` says that it could not be read when it was indexed last: its size and time
    then prove nothing.
    """

    target: bytes
    mode: str
    size: int
    mtime_ns: int
    source: bytes
    hash: str | None
    doubted: bool = False


@contextmanager
def working_space() -> Iterator[None]:
    """Turn what SQLite says about a full or failing temporary directory into an `OutputError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
            raise KeyboardInterrupt from error
        raise OutputError(
            f"the plan's table in the temporary directory failed: {error}",
            "If the temporary directory is full or read-only, set TMPDIR to a directory on a larger disk.",
        ) from error


class Store:
    """The tables, with buffered inserts."""

    def __init__(self) -> None:
        # A plan may be made in one thread and executed or closed in another, as in a service; never at once.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(_SCHEMA)
        # Sorting ten million rows is one call, and a signal is only handled where Python code runs.
        self._db.set_progress_handler(lambda: 0, _INTERRUPTIBLE_STEPS)
        self._db.execute("BEGIN")
        self._buffers: dict[str, list[Sequence[Any]]] = {}
        self._is_claimed = False

    def claim(self) -> bool:
        """Note that the plan is being executed; tell whether this is the first time."""
        first, self._is_claimed = not self._is_claimed, True
        return first

    def add(self, table: str, row: Sequence[Any]) -> None:
        """Insert a row, soon; an equal primary key is replaced. `flush` before reading."""
        buffer = self._buffers.setdefault(table, [])
        buffer.append(row)
        if len(buffer) >= _CHUNK:
            self.add_all(table, buffer)
            buffer.clear()

    def add_all(self, table: str, rows: list[Any]) -> None:
        """Insert rows now."""
        if rows:
            places = ",".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)

    def flush(self) -> None:
        """Insert what is buffered."""
        for table, buffer in self._buffers.items():
            self.add_all(table, buffer)
            buffer.clear()

    def _rows(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Return the rows of a query."""
        return self._db.execute(query, values)

    def _row(self, query: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row of a query, None when there is none."""
        return self._db.execute(query, values).fetchone()

    def _change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement; return how many rows it changed."""
        return self._db.execute(statement, values).rowcount

    def note_made(self, made: Made) -> None:
        """Note a file that the log announces."""
        self.add("made", made)

    def note_folder(self, target: bytes) -> None:
        """Note a directory that the log announces."""
        self.add("folder", (target,))

    def note_report(self, target: bytes, digest: str) -> None:
        """Note a report that the log announces."""
        self.add("report", (target, digest))

    def note_removed(self, target: bytes) -> None:
        """Note that what stood at `target` is gone."""
        self.flush()
        for table in ("made", "folder", "report"):
            self._change(f"DELETE FROM {table} WHERE target = ?", (target,))

    def note_problem(self, kind: Problem, path: bytes, message: str = "") -> None:
        """Note what stands against a file."""
        self.add("problem", (kind, path, message))

    def made_files(self) -> Iterator[Made]:
        """Iterate over what was made earlier, sorted."""
        return map(_made, self._rows(f"SELECT {_MADE} FROM made m ORDER BY m.target"))

    def has_made(self) -> bool:
        """Tell whether anything was made earlier."""
        return self._row("SELECT 1 FROM made LIMIT 1") is not None

    def made_count(self) -> int:
        """Return how many files were made earlier."""
        return int(self._row("SELECT COUNT(*) FROM made")[0])

    def made_at(self, target: bytes) -> Made | None:
        """Return what was made at `target` earlier."""
        row = self._row(f"SELECT {_MADE} FROM made m WHERE m.target = ?", (target,))
        return None if row is None else _made(row)

    def has_made_at(self, target: bytes) -> bool:
        """Tell whether anything was made at `target` earlier."""
        return self._row("SELECT 1 FROM made WHERE target = ?", (target,)) is not None

    def has_made_below(self, directory: bytes) -> bool:
        """Tell whether anything was made in a directory, or below."""
        query = "SELECT 1 FROM made WHERE target > ? AND target < ? LIMIT 1"
        return self._row(query, _below(directory)) is not None

    def is_our_folder(self, target: bytes) -> bool:
        """Tell whether rebuild made a directory."""
        return self._row("SELECT 1 FROM folder WHERE target = ?", (target,)) is not None

    def is_our_own(self, target: bytes) -> bool:
        """Tell whether rebuild made what stands at `target`, whatever that is."""
        return self.is_our_folder(target) or self.made_at(target) is not None or self.has_report(target)

    def folder_count(self) -> int:
        """Return how many directories rebuild made."""
        return int(self._row("SELECT COUNT(*) FROM folder")[0])

    def folders_within(self, directory: bytes) -> list[bytes]:
        """Return a directory that rebuild made, and those that it made below, each before its parent."""
        query = "SELECT target FROM folder WHERE target = ? OR target > ? AND target < ? ORDER BY target DESC"
        return [target for (target,) in self._rows(query, (directory, *_below(directory)))]

    def folders_bottom_up(self) -> Iterator[bytes]:
        """Iterate over the directories that rebuild made, each before its parent; they may go meanwhile."""
        page = self._rows("SELECT target FROM folder ORDER BY target DESC LIMIT ?", (_FOLDERS,)).fetchall()
        while page:
            yield from (target for (target,) in page)
            query = "SELECT target FROM folder WHERE target < ? ORDER BY target DESC LIMIT ?"
            page = self._rows(query, (*page[-1], _FOLDERS)).fetchall()

    def reports(self) -> list[bytes]:
        """Return where reports were written, sorted."""
        rows = self._rows("SELECT DISTINCT target FROM report ORDER BY target")
        return [target for (target,) in rows]

    def has_report(self, target: bytes) -> bool:
        """Tell whether rebuild wrote a report at `target`."""
        return self._row("SELECT 1 FROM report WHERE target = ? LIMIT 1", (target,)) is not None

    def is_our_report(self, target: bytes, digest: str) -> bool:
        """Tell whether rebuild wrote a report of this content at `target`."""
        query = "SELECT 1 FROM report WHERE target = ? AND hash = ?"
        return self._row(query, (target, digest)) is not None

    def drop_superseded(self) -> list[bytes]:
        """Of several records of one file keep the last in the index; return the path of each that goes."""
        gone = self._rows(
            "WITH named AS (SELECT source, place FROM record"
            " UNION ALL SELECT path, place FROM failed WHERE path <> x'')"
            " SELECT source, place FROM (SELECT source, place,"
            " lead(place) OVER (PARTITION BY source ORDER BY place) AS later FROM named"
            " WHERE source IN (SELECT source FROM named GROUP BY source HAVING COUNT(*) > 1))"
            " WHERE later IS NOT NULL"
        ).fetchall()
        for _, place in gone:
            for table in ("record", "failed"):
                self._change(f"DELETE FROM {table} WHERE place = ?", (place,))
        return [source for source, _ in gone]

    def labels(self) -> list[str]:
        """Return the labels' directories, sorted."""
        return [label for (label,) in self._rows("SELECT DISTINCT label FROM record ORDER BY label")]

    def rename_label(self, label: str, other: str) -> None:
        """Put a label's files into the directory of another."""
        self._change(
            "UPDATE record SET label = ?1, target = CAST(?2 || substr(target, ?3) AS BLOB) WHERE label = ?4",
            (other, other.encode(), len(label.encode()) + 1, label),
        )

    def keep_one_of_each_content(self, can_be_placed: Callable[[Row], bool]) -> int:
        """Of files with the same content keep the first by path that can be placed; return how many went."""
        self._change(
            "CREATE TABLE content (hash TEXT, size INT, first INT, kept INT, PRIMARY KEY (hash, size))"
        )
        self._change(
            "INSERT INTO content SELECT hash, size, NULL, NULL FROM record WHERE hash IS NOT NULL"
            " GROUP BY hash, size HAVING COUNT(*) > 1"
        )
        same = "WHERE hash = ? AND size = ?"
        shared = self._rows("SELECT r.* FROM record r JOIN content USING (hash, size) ORDER BY r.source")
        for row in map(Row._make, shared):
            content = (row.hash, row.size)
            if self._row(f"SELECT kept FROM content {same}", content)[0] is None:
                self._change(f"UPDATE content SET first = ifnull(first, ?) {same}", (row.place, *content))
                if can_be_placed(row):
                    self._change(f"UPDATE content SET kept = ? {same}", (row.place, *content))
        return self._change(
            "DELETE FROM record WHERE place IN (SELECT r.place FROM record r"
            " JOIN content c USING (hash, size) WHERE r.place <> ifnull(c.kept, c.first))"
        )

    def reserve_marked(self) -> None:
        """Note the keys, of files and directories, that a spare name could clash with."""
        for (key,) in self._rows("SELECT key FROM record WHERE instr(key, x'7e')"):
            while b"~" in key:
                self.add("spare", (key,))
                key = key.rpartition(b"\0")[0]
        self.flush()

    def reserve(self, key: bytes) -> bool:
        """Note that a key is taken; tell whether it was free."""
        return self._change("INSERT OR IGNORE INTO spare VALUES (?)", (key,)) > 0

    def record_count(self) -> int:
        """Return how many files there are to be placed."""
        return int(self._row("SELECT COUNT(*) FROM record")[0])

    def without_their_name(self) -> Iterator[Row]:
        """Iterate over files that need a spare name; they may be renamed meanwhile.

        Of files with one key the first keeps its name, unless it is a directory's. Keys sort depth first:
        what is in a directory follows right after a file that would take its name.
        """
        first, before = -1, None
        for place, key in self._rows("SELECT place, key FROM record ORDER BY key, source"):
            if key == before:
                yield self._record(place)
                continue
            if before is not None and key.startswith(before + b"\0"):
                yield self._record(first)
            first, before = place, key

    def _record(self, place: int) -> Row:
        return Row._make(self._row("SELECT * FROM record WHERE place = ?", (place,)))

    def rename(self, row: Row, target: bytes) -> None:
        """Give a file another name in the tree."""
        self._change("UPDATE record SET target = ? WHERE place = ?", (target, row.place))

    def plan_records(self, state: State) -> None:
        """Make the plan of the records, in their order in the tree; with nothing against them, in `state`."""
        columns = "label, target, source, size, mtime_ns, hash, device, message"
        self._change(
            f"INSERT INTO plan (state, {columns}) SELECT ifnull(problem, ?), {columns} FROM record"
            " ORDER BY key, source",
            (state,),
        )
        self._change("DROP TABLE record")

    def failed_files(self) -> Iterator[tuple[bytes, str, str]]:
        """Iterate over (path, error's type, message) of files that have an error, sorted."""
        rows = self._rows("SELECT path, type, message FROM failed ORDER BY path, type, message")
        return cast("Iterator[tuple[bytes, str, str]]", rows)

    def failed_count(self) -> int:
        """Return how many files have an error."""
        return int(self._row("SELECT COUNT(*) FROM failed")[0])

    def failed_paths(self) -> Iterator[bytes]:
        """Iterate over the files that have an error."""
        return (path for (path,) in self._rows("SELECT path FROM failed"))

    def made_from_elsewhere(self, prefix: bytes) -> Iterator[Made]:
        """Iterate over what was made earlier of files whose paths do not begin so."""
        query = f"SELECT {_MADE} FROM made m WHERE NOT m.doubted AND substr(m.source, 1, ?) <> ?"
        return map(_made, self._rows(query, (len(prefix), prefix)))

    def note_failed_file(self, inode: bytes) -> None:
        """Note device and inode of a file that has an error."""
        self.add("failed_file", (inode,))

    def is_failed_file(self, inode: bytes) -> bool:
        """Tell whether a file that has an error has this device and inode."""
        return self._row("SELECT 1 FROM failed_file WHERE inode = ?", (inode,)) is not None

    def doubt_failed(self, prefix: bytes) -> None:
        """Doubt the originals below `prefix` of what was made earlier that have an error now."""
        self._change(
            "INSERT INTO doubt SELECT target FROM made WHERE NOT doubted"
            " AND source IN (SELECT CAST(? || path AS BLOB) FROM failed)",
            (prefix,),
        )
        self._change("UPDATE made SET doubted = 1 WHERE target IN (SELECT target FROM doubt)")

    def doubt(self, made: Made) -> None:
        """Doubt the original of a file that was made earlier."""
        self._change("INSERT OR IGNORE INTO doubt VALUES (?)", (made.target,))
        self._change("UPDATE made SET doubted = 1 WHERE target = ?", (made.target,))

    def newly_doubted(self) -> Iterator[Made]:
        """Iterate over what was made earlier whose originals are doubted for the first time, sorted."""
        query = f"SELECT {_MADE} FROM doubt d JOIN made m ON m.target = d.target ORDER BY m.target"
        return map(_made, self._rows(query))

    def announced_like(
        self, hashes: Sequence[str], size: int, time_ns: int, granularity_ns: int
    ) -> Iterator[Made]:
        """Iterate over what the log announces with one of these hashes, or, without any, of this time."""
        self._change("CREATE INDEX IF NOT EXISTS made_size ON made (size, hash)")
        query = (
            f"SELECT {_MADE} FROM made m WHERE m.size = ? AND (m.hash IN ({_places(hashes)})"
            " OR (m.hash IS NULL AND m.mtime_ns BETWEEN ? AND ?))"
        )
        earliest, latest = time_ns - granularity_ns, time_ns + granularity_ns
        return map(_made, self._rows(query, (size, *hashes, earliest, latest)))

    def note_problems_of_plan(self) -> None:
        """Note what stands against files of the plan."""
        self._change("INSERT INTO problem SELECT state, target, message FROM plan WHERE message IS NOT NULL")

    def devices_to_do(self) -> list[tuple[int, bytes]]:
        """Return the devices that files to be made were found on, each with the source of one of them."""
        to_do = f"state IN ({_places(TO_DO)})"
        query = f"SELECT source FROM plan WHERE device = ? AND {to_do} LIMIT 1"
        devices = self._rows(
            f"SELECT DISTINCT device FROM plan WHERE device IS NOT NULL AND {to_do}", TO_DO
        ).fetchall()
        return [(device, self._row(query, (device, *TO_DO))[0]) for (device,) in devices]

    def state_counts(self) -> dict[str, int]:
        """Return state → files of the plan."""
        return dict(self._rows("SELECT state, COUNT(*) FROM plan GROUP BY state"))

    def label_totals(self) -> Iterator[tuple[str, int, int]]:
        """Iterate over (label, files, bytes) of what is, or will be, in the tree."""
        # In halves, for the sum of a few sparse files can be more than SQLite's integers hold.
        rows = self._rows(
            "SELECT label, COUNT(*), SUM(size >> 32), SUM(size & 0xFFFFFFFF) FROM plan"
            f" WHERE state IN ({_places(PLACED)}) GROUP BY label",
            PLACED,
        )
        return ((label, files, (high << 32) + low) for label, files, high, low in rows)

    def action_count(self) -> int:
        """Return how many files are in the plan."""
        return int(self._row("SELECT COUNT(*) FROM plan")[0])

    def actions(self) -> Iterator[Action]:
        """Iterate over the plan, in order."""
        return map(Action._make, self._rows(f"SELECT {_PLAN} FROM plan ORDER BY number"))

    def actions_after(self, number: int, states: Sequence[str], most: int) -> list[Action]:
        """Return the next files of the plan that are in one of these states."""
        query = (
            f"SELECT {_PLAN} FROM plan WHERE number > ? AND state IN ({_places(states)})"
            " ORDER BY number LIMIT ?"
        )
        return list(map(Action._make, self._rows(query, (number, *states, most))))

    def to_do(self) -> tuple[int, int]:
        """Return (files, bytes) of what there is to be done."""
        query = f"SELECT COUNT(*), TOTAL(size) FROM plan WHERE state IN ({_places(TO_DO)})"
        files, size = self._row(query, TO_DO)
        return files, int(size)

    def set_state(self, action: Action, state: State, message: str | None = None) -> None:
        """Change how an action stands in the plan; `message` says what stands against it."""
        self._change(
            "UPDATE plan SET state = ?, message = ? WHERE number = ?", (state, message, action.number)
        )

    def spans(self) -> list[tuple[str, int, int]]:
        """Return (label, its first number in the plan, its last)."""
        rows = self._rows("SELECT label, MIN(number), MAX(number) FROM plan GROUP BY label")
        return cast("list[tuple[str, int, int]]", rows.fetchall())

    def placed_targets(self, label: str, first: int, last: int) -> sqlite3.Cursor:
        """Return (target,) of the files of a label that are in the tree, in order."""
        return self._rows(
            "SELECT target FROM plan WHERE number BETWEEN ? AND ? AND label = ?"
            f" AND state IN ({_places(PLACED)}) ORDER BY number",
            (first, last, label, *PLACED),
        )

    def index_plan(self) -> None:
        """Make look-ups by target and content quick."""
        self._change("CREATE INDEX plan_target ON plan (target)")
        self._change("CREATE INDEX plan_hash ON plan (hash)")

    def twins(self, made: Made) -> list[Action]:
        """Return files of the plan that have the content of one made earlier; of very many, some."""
        if made.hash is None:
            return []
        query = (
            f"SELECT {_PLAN} FROM plan WHERE hash = ? AND size = ? AND state IN ({_places(PLACED)}) LIMIT ?"
        )
        return list(map(Action._make, self._rows(query, (made.hash, made.size, *PLACED, _TWINS))))

    def made_but_not_planned(self) -> Iterator[Made]:
        """Iterate over what was made earlier and is not in the plan, sorted."""
        query = (
            f"SELECT {_MADE} FROM made m LEFT JOIN plan p ON p.target = m.target"
            " WHERE p.target IS NULL ORDER BY m.target"
        )
        return map(_made, self._rows(query))

    def blocked_by(self, target: bytes) -> list[Action]:
        """Return what is to be made below a file, or at a directory above it."""
        above = _parents(target)
        query = (
            f"SELECT {_PLAN} FROM plan WHERE state IN ({_places(TO_DO)})"
            f" AND (target > ? AND target < ? OR target IN ({_places(above)}))"
        )
        return list(map(Action._make, self._rows(query, (*TO_DO, *_below(target), *above)).fetchall()))

    def last_copies_blocking(self, target: bytes) -> list[Made]:
        """Return what is to be removed, as a last copy, at a directory above a target, or below it."""
        above = _parents(target)
        query = (
            f"SELECT {_MADE} FROM stale s JOIN made m ON m.target = s.target WHERE s.is_last"
            f" AND (s.target > ? AND s.target < ? OR s.target IN ({_places(above)}))"
        )
        return list(map(_made, self._rows(query, (*_below(target), *above)).fetchall()))

    def drop_stale(self, made: Made) -> None:
        """Note that what was to be removed is."""
        self._change("DELETE FROM stale WHERE target = ?", (made.target,))

    def note_stale(self, made: Made, *, is_last: bool) -> None:
        """Note what is to be removed; `is_last`: only when what the plan places elsewhere stands there."""
        self.add("stale", (made.target, is_last))

    def stale(self, *, is_last: bool) -> Iterator[Made]:
        """Iterate over what is to be removed, sorted."""
        query = (
            f"SELECT {_MADE} FROM stale s JOIN made m ON m.target = s.target WHERE s.is_last = ?"
            " ORDER BY m.target"
        )
        return map(_made, self._rows(query, (is_last,)))

    def problems(self) -> Iterator[tuple[Problem, bytes, str]]:
        """Iterate over (problem, path, message), sorted."""
        rows = self._rows("SELECT kind, path, message FROM problem ORDER BY kind, path, message")
        return cast("Iterator[tuple[Problem, bytes, str]]", rows)

    def close(self) -> None:
        """Drop everything."""
        self._db.close()


def _made(row: Sequence[Any]) -> Made:
    return Made._make((*row[:-1], bool(row[-1])))


def _parents(target: bytes) -> list[bytes]:
    parts = target.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _below(directory: bytes) -> tuple[bytes, bytes]:
    """Return bounds of all paths in a directory: ``0`` is the character after ``/``."""
    return directory + b"/", directory + b"0"


def _places(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
