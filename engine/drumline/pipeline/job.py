"""The job: everything that the stages of one run need to know, worked out before they start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from drumline.bundle import Bundle
from drumline.decide import DecisionSettings
from drumline.frontend import FEATURES_VERSION
from drumline.index import Codec
from drumline.records import SCHEMA_VERSION, display_path
from drumline.runs import CACHE_NAME, Run
from drumline.settings import InferSettings

__all__ = ["Job", "Request", "decision_key", "inference_key", "model_facts"]


def inference_key(settings: InferSettings, bundle: Bundle) -> str:
    """Digest of all that changes what is read from a file or inferred from it."""
    versions = [SCHEMA_VERSION, FEATURES_VERSION]
    return _digest([versions, bundle.fingerprint, settings.hash_algorithm, settings.include_audio_stats])


def decision_key(settings: InferSettings, decisions: DecisionSettings) -> str:
    """Digest of all else that changes a record's bytes: decisions, and how the index is written."""
    targets = None if decisions.target_labels is None else sorted(decisions.target_labels)
    values = [decisions.canonical_of, decisions.threshold, decisions.misc, targets]
    # Without thresholds by label, the key is that of runs that were made when there were none.
    by_label = [decisions.thresholds] if decisions.thresholds else []
    gate = [] if decisions.gate_threshold is None else [{"gate": decisions.gate_threshold}]
    return _digest([*values, settings.top_k, settings.compress_index, *by_label, *gate])


def _digest(values: list[object]) -> str:
    return xxhash.xxh3_128_hexdigest(orjson.dumps(values, option=orjson.OPT_SORT_KEYS, default=dict))


def model_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what run.json and summary.json say of the model."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "path": display_path(bundle.path),
        "fingerprint": bundle.fingerprint,
        "label_checksum": bundle.taxonomy.checksum,
        "labels": list(bundle.labels),
        "temperature": bundle.temperature,
        "calibration_version": bundle.calibration_version,
        "gate": None if bundle.gate is None else {"threshold": bundle.gate.threshold},
        "calibration": {key: value for key, value in bundle.calibration.items() if key != "operating_points"},
        "operating_points": {name: dict(point) for name, point in bundle.operating_points.items()},
    }


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, checked; nothing is written yet.

    Parameters
    ----------
    settings
        What was asked for; `runs_root` is absolute.
    bundle, decisions
        The model, and how its probabilities become labels.
    archive, archive_identity
        Absolute path of the archive, and device and inode of its root.
    inference_key, decision_key
        Digests of what changes probabilities, and of what else changes records.
    """

    settings: InferSettings
    bundle: Bundle
    decisions: DecisionSettings
    archive: bytes
    archive_identity: tuple[int, int]
    inference_key: str
    decision_key: str

    @property
    def cache_path(self) -> Path:
        """Where the cache of the runs root is."""
        return self.settings.runs_root / CACHE_NAME

    @property
    def codec(self) -> Codec:
        """How the index is compressed."""
        return Codec(self.settings.compress_index)


@dataclass(frozen=True, kw_only=True)
class Job(Request):
    """A request with its run: everything that the stages need to know.

    Parameters
    ----------
    run
        The run that is written.
    run_id, scope
        Its ids in the cache.
    carriable
        Runs in the cache whose frames can be carried over byte for byte.
    valid
        Length up to which the run's index is complete (more than 0 when a run goes on), in bytes.
    earlier_device
        Device of the archive's root at the last run; None when there was none.
    known_before
        Files that the archive's newest complete run found, by whatever model and settings; 0 without one.
    answered_before
        Whether the cache knows a prediction by the same inference key: then the model is not at fault.
    """

    run: Run
    run_id: int
    scope: int
    carriable: frozenset[int]
    valid: int
    earlier_device: int | None
    known_before: int = 0
    answered_before: bool = False
