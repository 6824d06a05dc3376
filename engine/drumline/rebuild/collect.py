"""Reading the index: label, target and collision key of every file that is to be placed."""

from __future__ import annotations

from collections.abc import Callable

from drumline.errors import IndexFormatError
from drumline.index import read_index
from drumline.rebuild.actions import Problem, Progress
from drumline.rebuild.labelling import Labeller
from drumline.rebuild.names import collision_key, flat_name, is_safe, label_directory
from drumline.rebuild.plan import LabelTotal, Plan
from drumline.records import Record, relative_path

__all__ = ["BAD_FIELDS", "Collector"]

BAD_FIELDS = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError)
"""What using a record raises that is no record of ours."""

_INT64 = 1 << 63
_REPORT_EVERY = 5_000


class Collector:
    """Fills the plan's table of records."""

    def __init__(self, plan: Plan, labeller: Labeller, progress: Callable[[Progress], None]) -> None:
        self._plan, self._store, self._labeller = plan, plan.store, labeller
        self._progress = progress
        self._flat = plan.settings.layout == "flat"
        self._directories: dict[str, tuple[int, bytes] | None] = {}

    def collect(self) -> None:
        """Read the whole index."""
        path = self._plan.run.index_path
        number = 0
        try:
            for number, record in enumerate(read_index(path), 1):
                self._take(record)
                if number % _REPORT_EVERY == 0:
                    self._progress(Progress("reading", number, None))
            self._plan.tally.report()
        except BAD_FIELDS as error:
            raise IndexFormatError(f"record {number} of {str(path)!r} makes no sense: {error!r}") from error
        except OSError as error:
            raise IndexFormatError(f"cannot read {str(path)!r}: {error.strerror}") from error
        self._labeller.check_used(self._plan.settings.overrides)
        self._store.flush()

    def _take(self, record: Record) -> None:
        record, overridden = self._labeller.label(record)
        self._plan.tally.add(record)
        source = _source_of(record)
        if record["errors"] is not None:
            failure = record["errors"]
            self._store.add("failed", (source or b"", str(failure["type"]), str(failure["message"])))
            self._plan.counts["failed"] += 1
            return
        if source is None or not is_safe(source):
            self._refuse("unsafe_path", source or record["relative_path"].encode())
            return
        self._place(record, source, overridden)

    def _place(self, record: Record, source: bytes, overridden: bool) -> None:
        label = record["assigned_label"]
        known = self._directories[label] if label in self._directories else self._new_label(label)
        if known is None:
            self._refuse("unsafe_label", source)
            return
        number, directory = known
        target = directory + b"/" + (flat_name(source) if self._flat else source)
        key = collision_key(target)
        size, mtime_ns, digest = _checked(record)
        self._store.add("record", (key, source, number, target, size, mtime_ns, digest))
        self._plan.counts["overridden"] += overridden
        if b"~" in key:
            self._reserve(key)

    def _reserve(self, key: bytes) -> None:
        while b"~" in key:
            self._store.add("spare", (key,))
            key = key.rpartition(b"\0")[0]

    def _new_label(self, label: str) -> tuple[int, bytes] | None:
        directory = label_directory(label)
        if directory is not None:
            name = directory.decode()
            if name not in self._plan.labels:
                self._plan.labels[name] = LabelTotal()
                self._plan.label_names.append(name)
            self._directories[label] = self._plan.label_names.index(name), directory
        else:
            self._directories[label] = None
        return self._directories[label]

    def _refuse(self, problem: Problem, path: bytes) -> None:
        self._store.problem(problem, path, "")
        self._plan.counts[problem] += 1


def _source_of(record: Record) -> bytes | None:
    try:
        return relative_path(record)
    except ValueError:
        return None


def _checked(record: Record) -> tuple[int, int, str | None]:
    size, mtime_ns, digest = record["size"], record["mtime_ns"], record["hash"]
    whole = (
        type(size) is int and type(mtime_ns) is int and 0 <= size < _INT64 and -_INT64 <= mtime_ns < _INT64
    )
    if not whole or not (digest is None or isinstance(digest, str)):
        raise ValueError("size, mtime_ns or hash")
    return size, mtime_ns, digest
