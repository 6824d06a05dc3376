"""The words that plan and execution share: an action, what can stand against it, and how far it got."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal, NamedTuple

__all__ = ["Action", "Failure", "Problem", "Progress", "Refused", "State", "refusal", "report_to"]

Problem = Literal[
    "missing",  # the source is not there
    "changed",  # the source is not what was indexed
    "unreadable",  # the source cannot be read
    "occupied",  # something that rebuild did not make is in the way
    "edited",  # rebuild made it, somebody changed it since: it stays
    "kept",  # no longer in the plan, but changed since it was made (or the last copy): it stays
    "bad_name",  # the file system of the tree does not take the name
    "refused",  # the file system of the tree does not allow it
    "unsafe_path",  # the index names a path that could lead out of the tree
    "unsafe_label",  # the index names a label that can be no directory
    "duplicate_record",  # the index names the file twice
]

State = Literal["make", "replace", "adopt", "there", "listed"] | Problem
"""make: not there yet; there: nothing to do; listed: only for manifests;
replace: there, but made otherwise, or in its way stands the last copy of what the plan places elsewhere;
adopt: stands as planned, only the log is behind: the archive was moved, or its file was edited in place and
its hard link with it."""


class Action(NamedTuple):
    """One file of the plan.

    `label` is the name of its directory at the top of the tree; `target` is relative to the tree, `source` to
    the archive, both exact bytes.
    """

    number: int
    state: State
    label: str
    target: bytes
    source: bytes
    size: int
    mtime_ns: int
    hash: str | None


class Failure(NamedTuple):
    """An action that could not be done, and why."""

    action: Action
    problem: Problem
    message: str


class Progress(NamedTuple):
    """How far a phase got, in files."""

    phase: Literal["reading", "planning", "removing", "placing", "writing"]
    done: int
    total: int | None


class Refused(Exception):  # noqa: N818  (says why one file is left out; leaves no rebuild)
    """One file cannot be placed."""

    def __init__(self, problem: Problem, message: str = "") -> None:
        super().__init__(problem, message)
        self.problem, self.message = problem, message


_BY_ERROR: dict[int, Problem] = {
    errno.EEXIST: "occupied",
    errno.ENOTDIR: "occupied",
    errno.EISDIR: "occupied",
    errno.ELOOP: "occupied",
    errno.ENAMETOOLONG: "bad_name",
    errno.EINVAL: "bad_name",
    errno.EILSEQ: "bad_name",
    errno.EACCES: "refused",
    errno.EPERM: "refused",
    errno.EMLINK: "refused",
    errno.EXDEV: "refused",
    errno.ENOTSUP: "refused",
    errno.EOPNOTSUPP: "refused",
}


def refusal(error: OSError) -> Refused:
    """Return what an `OSError` says about one target; raise again what stops everything."""
    problem = _BY_ERROR.get(error.errno or 0)
    if problem is None:
        raise error
    return Refused(problem, error.strerror or str(error))


def report_to(progress: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Return `progress`, or something that ignores what it is told."""
    return progress or (lambda _: None)
