"""drumline: classify very large archives of drum one-shots and rebuild them as organised trees.

The names below are the public interface; each is imported when it is first used, so ``import drumline``
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from drumline.bundle import Bundle as Bundle
    from drumline.bundle import load_bundle as load_bundle
    from drumline.classify import Classifier as Classifier
    from drumline.classify import Prediction as Prediction
    from drumline.decide import Decision as Decision
    from drumline.decide import DecisionSettings as DecisionSettings
    from drumline.errors import DrumlineError as DrumlineError
    from drumline.index import read_index as read_index
    from drumline.pipeline.infer import infer as infer
    from drumline.pipeline.run import preview as preview
    from drumline.rebuild import RebuildSettings as RebuildSettings
    from drumline.rebuild import execute as execute
    from drumline.rebuild import plan_rebuild as plan_rebuild
    from drumline.rebuild import undo as undo
    from drumline.records import Record as Record
    from drumline.records import redecide as redecide
    from drumline.runs import Run as Run
    from drumline.runs import open_run as open_run
    from drumline.settings import InferSettings as InferSettings
    from drumline.settings import MiscSettings as MiscSettings

_HOME = {
    "Bundle": "bundle",
    "Classifier": "classify",
    "Decision": "decide",
    "DecisionSettings": "decide",
    "DrumlineError": "errors",
    "InferSettings": "settings",
    "MiscSettings": "settings",
    "Prediction": "classify",
    "RebuildSettings": "rebuild",
    "Record": "records",
    "Run": "runs",
    "execute": "rebuild",
    "infer": "pipeline.infer",
    "load_bundle": "bundle",
    "open_run": "runs",
    "plan_rebuild": "rebuild",
    "preview": "pipeline.run",
    "read_index": "index",
    "redecide": "records",
    "undo": "rebuild",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'drumline' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"drumline.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
