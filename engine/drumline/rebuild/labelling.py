"""Which label a record gets: the stored or renewed decision, then a person's override."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson

from drumline.decide import DecisionSettings
from drumline.errors import ConfigError, IndexFormatError
from drumline.index import garbled
from drumline.inputs import open_regular
from drumline.labels import MISC
from drumline.rebuild.settings import RebuildSettings
from drumline.records import Brief, Record, redecide
from drumline.runs import Run
from drumline.thresholds import resolve_gate, resolve_threshold

if TYPE_CHECKING:
    from drumline.bundle import Bundle

__all__ = ["Labeller", "Override", "deciding", "labeller_for", "read_overrides"]

_MAX_LINE = 1 << 20


class Override(NamedTuple):
    """A person's word on a content: the canonical label, and the line that says so."""

    label: str
    line: int


@dataclass
class Labeller:
    """Gives records their label.

    Parameters
    ----------
    settings
        How to decide anew; None keeps the decisions of the index.
    overrides
        Content hash → override.
    targets
        Labels that are wanted; None: all. Binds overrides too.
    misc
        Label of what is not wanted.
    """

    settings: DecisionSettings | None
    overrides: Mapping[str, Override]
    targets: frozenset[str] | None
    misc: str

    def label(self, record: Brief) -> tuple[Brief, bool]:
        """Return (the record as it reads now, whether there is an override for its content).

        With `settings`, it has to be a whole `Record`.
        """
        if self.settings is not None:
            record = _redecide(cast(Record, record), self.settings)
        if not self.overrides or record["hash"] not in self.overrides:
            return record, False
        return record if record["errors"] is not None else self._overridden(record), True

    def _overridden(self, record: Brief) -> Brief:
        """Return a record with a person's label; `assigned_conf` stays the model's, of its own best label."""
        label = self.overrides[cast(str, record["hash"])].label
        outside = self.targets is not None and label not in self.targets and label != self.misc
        assigned = self.misc if outside else label
        return {**record, "assigned_label": assigned, "assigned_reason": "override"}

    def check_used(self, used: set[str], path: Path | None) -> None:
        """Raise `ConfigError` when the hash of an override is not among the `used` ones."""
        unused = sorted((entry.line, key) for key, entry in self.overrides.items() if key not in used)
        if unused:
            line, key = unused[0]
            more = f" ({len(unused) - 1} more lines like it)" if len(unused) > 1 else ""
            raise ConfigError(
                f"{str(path)!r}, line {line}: no file of the index has the hash {key!r}{more}",
                "Take the hashes from the index's field 'hash', or remove the line.",
            )


def _redecide(record: Record, settings: DecisionSettings) -> Record:
    try:
        return redecide(record, settings)
    except KeyError as error:
        raise IndexFormatError(
            f"the index holds the label {error.args[0]!r}, which the canonical mapping lacks",
            "Rebuild from the run's directory: its run.json holds the mapping that belongs to it.",
        ) from error


def labeller_for(run: Run, decisions: DecisionSettings | None, settings: RebuildSettings) -> Labeller:
    """Return the labeller that `settings` ask for.

    Parameters
    ----------
    decisions
        From `deciding`.

    Raises
    ------
    ConfigError
        For an overrides file that is wrong.
    """
    if decisions is None:
        return Labeller(None, {}, None, run.misc_label())
    overrides = read_overrides(settings.overrides, decisions) if settings.overrides else {}
    return Labeller(
        decisions if settings.redecides else None, overrides, decisions.target_labels, decisions.misc
    )


def deciding(run: Run, settings: RebuildSettings) -> DecisionSettings | None:
    """Return what decides the labels; None where the index alone holds the decisions, and they are kept.

    Notes
    -----
    The canonical mapping is the run's own. An index without a run.json is decided anew, where that is asked
    for, by the default bundle's mapping, its operating points and its gate, and a threshold of 0.5 unless one
    is given.

    Raises
    ------
    ConfigError
        For an unknown label or operating point, or a gate that the model does not have.
    """
    if not (run.info or settings.redecides or settings.overrides):
        return None
    return _asked(run, _made_with(run), settings)


def _made_with(run: Run) -> DecisionSettings:
    try:
        stored = run.decision_settings()
    except (KeyError, TypeError, AttributeError) as error:
        raise IndexFormatError(
            f"run.json of {run.display_name} lacks its settings: {garbled(error)}",
            "It was changed after drumline wrote it: restore it, or rebuild from the index file alone.",
        ) from error
    if stored is not None:
        return stored
    taxonomy = _default_bundle().taxonomy
    return DecisionSettings(taxonomy.canonical_of, misc=taxonomy.misc)


def _default_bundle() -> Bundle:
    from drumline.bundle import load_bundle  # NumPy with it: 0.1 s that a rebuild of a run does not need

    return load_bundle()


def _asked(run: Run, made_with: DecisionSettings, settings: RebuildSettings) -> DecisionSettings:
    targets = made_with.target_labels
    if settings.labels is not None:
        targets = frozenset(settings.labels)
    if settings.allow_all:
        targets = None
    decision = replace(made_with, target_labels=targets, gate_threshold=_gate(run, made_with, settings))
    if settings.threshold is None:
        return decision
    points = run.operating_points() if run.info else _default_bundle().operating_points
    threshold, by_label = resolve_threshold(settings.threshold, points, _model_of(run))
    return replace(decision, threshold=threshold, thresholds=by_label)


def _gate(run: Run, made_with: DecisionSettings, settings: RebuildSettings) -> float | None:
    """Return the gate's threshold; asked to use a gate, a model that has none is an error."""
    if settings.gate is None and settings.gate_threshold is None:
        return made_with.gate_threshold
    if settings.gate is False:
        return None
    # Records tell themselves what the gate said, so an index without a run.json may have had one.
    fitted = _fitted_gate(run) if run.info or settings.gate_threshold is None else settings.gate_threshold
    if fitted is None and settings.gate_threshold is None:
        raise ConfigError(f"{_model_of(run)} has no gate", "Leave --gate out, or give --gate-threshold.")
    return resolve_gate(True, settings.gate_threshold, fitted, _model_of(run))


def _fitted_gate(run: Run) -> float | None:
    if run.info:
        return run.gate_threshold()
    gate = _default_bundle().gate
    return None if gate is None else gate.threshold


def _model_of(run: Run) -> str:
    return f"the model of {run.display_name}" if run.info else "the default bundle"


def read_overrides(path: Path, settings: DecisionSettings) -> dict[str, Override]:
    """Read overrides: content hash → canonical label.

    Raises
    ------
    ConfigError
        Naming file and line: no JSON object, a missing key, an unknown label, a second, different label for
        one hash, or a line that is longer than an override can be.
    """
    overrides: dict[str, Override] = {}
    try:
        with open_regular(path) as stream:
            lines = enumerate(iter(lambda: stream.readline(_MAX_LINE), b""), 1)
            for number, line in lines:
                where = f"{str(path)!r}, line {number}"
                if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                    raise ConfigError(
                        f"{where}: longer than {_MAX_LINE:,} bytes", "Give each override a line of its own."
                    )
                line = line.removeprefix(BOM_UTF8) if number == 1 else line
                if line.strip():
                    _add_override(overrides, where, number, line, settings)
    except OSError as error:
        raise ConfigError(
            f"cannot read the overrides {str(path)!r}: {error.strerror}",
            "Give a regular file that can be read; save what a pipe holds to one first.",
        ) from error
    return overrides


def _add_override(
    overrides: dict[str, Override], where: str, number: int, line: bytes, settings: DecisionSettings
) -> None:
    digest, named = _fields(where, line)
    label = _canonical(where, named, settings)
    earlier = overrides.setdefault(digest, Override(label, number))
    if earlier.label != label:
        raise ConfigError(
            f"{where}: {digest} is to be {label!r} here and {earlier.label!r} in line {earlier.line}",
            "Keep one of the two lines.",
        )


def _fields(where: str, line: bytes) -> tuple[str, str]:
    try:
        value: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{where}: no JSON: {error}") from error
    for key in ("hash", "correct_label"):
        if not isinstance(value, dict) or not isinstance(value.get(key), str):
            raise ConfigError(
                f"{where}: {key} is missing or no text",
                'A line looks like {"hash": "…", "correct_label": "Kick", "note": "…"}.',
            )
    return value["hash"].strip().lower(), value["correct_label"].strip()


def _canonical(where: str, named: str, settings: DecisionSettings) -> str:
    canonical = {*settings.canonical_of.values(), settings.misc}
    if named in canonical:
        return named
    if named == MISC:
        return settings.misc
    if named in settings.canonical_of:
        return settings.canonical_of[named]
    known = sorted(canonical)
    near = get_close_matches(named.casefold(), map(str.casefold, known), n=1)
    guess = "".join(f"Did you mean {label}? " for label in known if label.casefold() in near)
    raise ConfigError(f"{where}: unknown label {named!r}", f"{guess}Labels are: {', '.join(known)}.")
