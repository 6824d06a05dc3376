"""Planning: from an index to a plan.

The index is read once, by helpers that look for each file in the archive too; then the files get their order:

    records ─ label, look at the archive ─► targets ─ order, collisions ─► names ─ look at the tree ─► states

Where something stands in the tree already, only files that do not are looked for, one by one. Nothing is
written but a temporary table (see `drumline.rebuild.store`), and but for records of one file, of which the
last counts, the plan does not depend on their order. The output directory stays locked from planning to the
end of the execution.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from drumline.decide import DecisionSettings
from drumline.errors import IndexFormatError
from drumline.index import GARBLED, garbled, read_index
from drumline.rebuild import guard
from drumline.rebuild.actions import Progress, report_to
from drumline.rebuild.collect import collect
from drumline.rebuild.labelling import deciding, labeller_for
from drumline.rebuild.plan import Plan
from drumline.rebuild.settings import RebuildSettings
from drumline.rebuild.store import Store, working_space
from drumline.rebuild.survey import Surveyor
from drumline.records import absolute_path, display_path, relative_path
from drumline.runs import Run, open_run

__all__ = ["plan_rebuild"]


def plan_rebuild(settings: RebuildSettings, progress: Callable[[Progress], None] | None = None) -> Plan:
    """Plan a rebuild; nothing is written.

    Parameters
    ----------
    settings
        What to rebuild, where, and how.
    progress
        Called now and then with how far it got.

    Returns
    -------
    Plan
        To be given to `execute`, and to be closed.

    Raises
    ------
    ConfigError
        For overrides, labels or a threshold that make no sense.
    IndexFormatError
        When there is no such run or index, or it is damaged.
    ArchiveError
        When the archive is not there.
    OutputError, BusyError
        When the output directory is somebody's, too small, on the wrong file system, or in use.
    """
    run = open_run(settings.source)
    decisions = deciding(run, settings)
    labeller = labeller_for(run, decisions, settings)
    with ExitStack() as on_error, working_space(), guard.looking_at(settings.out):
        plan = _open_places(run, settings, decisions, on_error)
        collect(plan, labeller, report_to(progress))
        if run.info:
            run.check_count(plan.tally.records)
        Surveyor(plan, report_to(progress)).survey()
        guard.check_room(settings.out, settings.copy_mode, *plan.store.to_do())
        plan.warnings.extend(_warnings(plan))
        on_error.pop_all()
    return plan


def _open_places(
    run: Run, settings: RebuildSettings, decisions: DecisionSettings | None, on_error: ExitStack
) -> Plan:
    """Return an empty plan with tree, archive and table opened; `on_error` closes them."""
    root, store = _archive_root(run, settings), Store()
    on_error.callback(store.close)
    guard.check_places(settings.out, root, run.directory if run.info else None)
    tree, log = guard.open_tree(settings.out, store) or (None, None)
    if tree is not None:
        on_error.callback(tree.close)
    sources = None
    if settings.copy_mode != "none" and root is not None:
        sources = guard.open_archive(root)
        on_error.callback(sources.close)
        guard.check_device(settings.out, settings.copy_mode, os.fstat(sources.root).st_dev, root)
    return Plan(settings, run, root, store, decisions, tree, log, sources)


def _archive_root(run: Run, settings: RebuildSettings) -> bytes | None:
    if settings.archive_root is not None:
        return os.path.abspath(os.fsencode(settings.archive_root))
    try:
        root = run.archive_root
        if root is None:
            root = _root_in_index(run.index_path)
    except GARBLED as error:
        raise IndexFormatError(
            f"{run.display_name} does not say where its archive is: {garbled(error)}",
            "Say with --archive-root where it is.",
        ) from error
    return None if root is None else os.path.abspath(root)


def _root_in_index(index_path: Path) -> bytes | None:
    record = next(iter(read_index(index_path)), None)
    if record is None:
        return None
    inner, whole = relative_path(record), absolute_path(record)
    if not whole.startswith(b"/") or not whole.endswith(b"/" + inner):
        raise IndexFormatError(
            f"the paths in {str(index_path)!r} contradict each other: {display_path(whole)!r}",
            "Say with --archive-root where the archive is.",
        )
    return whole[: -len(inner) - 1] or b"/"


def _warnings(plan: Plan) -> Iterator[str]:
    if plan.run.info and not plan.run.complete:
        records = f"{plan.tally.records:,} files indexed so far"
        yield f"{plan.run.display_name} is not complete: planned are the {records}"
    if plan.settings.copy_mode == "symlink":
        yield "symbolic links break when the archive is moved or its volume is not mounted"
    before = plan.log.settings.get("overrides") if plan.log else None
    if before and plan.settings.overrides is None:
        yield f"the tree was made with --overrides {before}: without it, those corrections are taken back"
    if plan.settings.archive_root is None and not plan.run.info and plan.archive_root is not None:
        yield f"no run.json beside the index: the archive is taken to be {display_path(plan.archive_root)!r}"
