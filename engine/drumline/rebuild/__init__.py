"""Rebuild: an organised tree from an index, as often as you like, and back again.

    plan_rebuild(settings) ─► Plan ─► execute(plan) ─► RebuildSummary        undo(out) ─► UndoSummary

A dry run prints the very plan that a real run executes. Nothing outside the output directory is ever written,
nothing in it is overwritten that rebuild did not make, and `undo` takes away exactly what rebuild made.

============  ======================================================================
settings      what is asked
labelling     decision, then a person's override
planner       index → `plan`: `collect` reads, `survey` looks; `store` is the plan's table
guard         what is refused before anything is written
names         safe names, flat names, collisions
execution     plan → tree; `place` has a placer for each copy mode
site          the tree and its log while they are worked at; `clearing` removes what is not wanted
helpers       processes that read and place beside the main one
standing      what became of a file that rebuild made; `originals`: whether the archive still has it
tree          every path by directory descriptors, so that no link leads out
log           the mapping log: what is ours, and where it came from
manifests     manifests, statistics, summary
undoing       the way back
============  ======================================================================
"""

from drumline.rebuild.actions import Action, Problem, Progress, State
from drumline.rebuild.execution import RebuildSummary, execute
from drumline.rebuild.plan import LabelTotal, Plan
from drumline.rebuild.planner import plan_rebuild
from drumline.rebuild.settings import CopyMode, Dedup, Layout, RebuildSettings
from drumline.rebuild.undoing import UndoSummary, undo

__all__ = [
    "Action",
    "CopyMode",
    "Dedup",
    "LabelTotal",
    "Layout",
    "Plan",
    "Problem",
    "Progress",
    "RebuildSettings",
    "RebuildSummary",
    "State",
    "UndoSummary",
    "execute",
    "plan_rebuild",
    "undo",
]
