"""Bundles: a directory that says everything needed to use a model. The engine knows no model by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from drumline.bundle_files import BUNDLE_SCHEMA, MANIFEST_NAME, PARTS
from drumline.calibration import Calibrator, TemperatureScaling, read_calibrator
from drumline.ensemble import Mean
from drumline.errors import BundleError
from drumline.frontend import FrontEnd, row_shape
from drumline.inputs import read_json_object
from drumline.labels import Taxonomy, read_canonical_map, read_labels
from drumline.thresholds import OperatingPoints, read_operating_points

__all__ = [
    "DEFAULT_BUNDLE",
    "Bundle",
    "Gate",
    "bundle_roots",
    "find_bundle",
    "load_bundle",
    "shipped_bundles",
]

DEFAULT_BUNDLE = "mfcc-cnn"
_IS_NAME = re.compile(r"[\w][\w .-]*").fullmatch


@dataclass(frozen=True, slots=True)
class Gate:
    """A second opinion of the model, on whether this is a kit drum at all.

    Parameters
    ----------
    output
        Output of the graph that gives the probability of a kit drum, (batch,) or (batch, 1).
    threshold
        Smallest probability that passes, 0..1, unless the user wants another.
    """

    output: str
    threshold: float


@dataclass(frozen=True)
class Bundle:
    """A model with its front end, labels, mapping and calibration.

    Parameters
    ----------
    path
        The bundle's directory.
    name, version
        As its author calls it.
    front_end
        Waveform → feature tensor, as workers compute it; of an ensemble, that of its first member.
    taxonomy
        Fine labels in output order and the canonical label of each.
    calibrator
        Turns logits into probabilities.
    calibration
        What ``calibration.json`` says about how that was fitted.
    operating_points
        Names of operating points and their thresholds; none where another mapping replaces the bundle's own.
    gate
        Tells kit drums from other sounds; None where the model has no gate.
    model_path
        The ONNX file; of an ensemble, that of its first member.
    fingerprint
        Hexadecimal digest over model, front end, labels and calibration: what changes probabilities.
    members, mean
        Of an ensemble: its bundles, and the mean of their probabilities, whose logits `calibrator` takes.
    front_end_in_graph
        What the graph computes of the waveform itself; None where workers compute all features.
    """

    path: Path
    name: str
    version: str
    front_end: FrontEnd
    taxonomy: Taxonomy
    calibrator: Calibrator
    model_path: Path
    fingerprint: str
    input_name: str = "features"
    logits_name: str = "logits"
    probabilities_name: str = "probabilities"
    description: str = ""
    calibration: dict[str, Any] = field(default_factory=dict, compare=False)
    operating_points: OperatingPoints = field(default_factory=dict, compare=False)
    gate: Gate | None = None
    members: tuple[Bundle, ...] = ()
    mean: Mean | None = None
    front_end_in_graph: FrontEnd | None = None

    @property
    def front_ends(self) -> tuple[FrontEnd, ...]:
        """All front ends that are needed, each once."""
        wanted = [member.front_end for member in self.members] or [self.front_end]
        return tuple(dict.fromkeys(wanted))

    @property
    def front_end_name(self) -> str:
        """What people call the front ends: ``"mfcc"``, ``"mfcc in the graph"``, ``"mfcc and log-mel"`` …."""
        bundles = self.members or (self,)
        names = [
            bundle.front_end.name
            if bundle.front_end_in_graph is None
            else f"{bundle.front_end_in_graph.name} in the graph"
            for bundle in bundles
        ]
        return " and ".join(dict.fromkeys(names))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sound's features; see `drumline.frontend.row_shape`."""
        return row_shape(self.front_ends)

    @property
    def model_bytes(self) -> int:
        """Size of all ONNX files."""
        paths = [member.model_path for member in self.members] or [self.model_path]
        return sum(path.stat().st_size for path in paths)

    @property
    def labels(self) -> tuple[str, ...]:
        """Fine labels in output order."""
        return self.taxonomy.fine

    @property
    def temperature(self) -> float | None:
        """What the logits are divided by; None where another method calibrates."""
        return self.calibrator.temperature if isinstance(self.calibrator, TemperatureScaling) else None

    @property
    def calibration_version(self) -> Any:
        """Version of the calibration, None when there is none."""
        return self.calibration.get("version")


def bundle_roots() -> Iterator[Path]:
    """Directories that are searched for bundles by name, nearest first."""
    package = Path(__file__).resolve().parent
    yield Path("models")
    yield package / "bundles"
    yield package.parents[1] / "models"


def shipped_bundles() -> list[Path]:
    """Return all bundle directories below `bundle_roots`, first of each name."""
    found: dict[str, Path] = {}
    for root in bundle_roots():
        for manifest in sorted(root.glob(f"*/{MANIFEST_NAME}")):
            if not manifest.parent.name.startswith("."):  # what is being put in place
                found.setdefault(manifest.parent.name, manifest.parent)
    return list(found.values())


def find_bundle(name: str | Path | None) -> Path:
    """Return the directory of a bundle given by path or by name (None: the default)."""
    wanted = Path(name or DEFAULT_BUNDLE)
    if wanted.suffix == ".onnx":
        return _bundle_of_model(wanted)
    if wanted.name == MANIFEST_NAME:
        wanted = wanted.parent
    for candidate in (wanted, *(root / wanted for root in bundle_roots())):
        if (candidate / MANIFEST_NAME).is_file():
            return candidate
    known = ", ".join(sorted(path.name for path in shipped_bundles())) or "none"
    raise BundleError(
        f"no model bundle {str(wanted)!r} (a directory with bundle.json)",
        f"Bundles here: {known}. See 'drumline models', or make one with 'drumline create-stub'.",
    )


def _bundle_of_model(model: Path) -> Path:
    manifest = model.parent / MANIFEST_NAME
    named = read_json_object(manifest, BundleError).get("model") if manifest.is_file() else None
    if not model.is_file() or named != model.name:
        raise BundleError(
            f"{str(model)!r} is no bundle's model; a bundle is a directory with model, labels and settings",
            "Give the bundle's directory or name; 'drumline models' lists them.",
        )
    return model.parent


def load_bundle(
    name: str | Path | None = None, *, label_map: Path | None = None, canonical_map: Path | None = None
) -> Bundle:
    """Read and check a bundle; the ONNX graph itself is opened later, by `drumline.inference`.

    Parameters
    ----------
    name
        Path or name of the bundle; None for the default.
    label_map, canonical_map
        Files used in place of the bundle's own.

    Raises
    ------
    BundleError
        When anything is missing, unreadable or contradicts something else.
    """
    path = find_bundle(name)
    manifest = _read_manifest(path)
    members, mean = _ensemble(path, manifest)
    model_path = members[0].model_path if members else _member(path, manifest, "model")
    taxonomy = _taxonomy(path, manifest, label_map, canonical_map)
    calibration = _read_calibration(path, manifest)
    front_end = members[0].front_end if members else FrontEnd.from_json(manifest["front_end"])
    calibrator = read_calibrator(calibration, len(taxonomy.fine))
    gate = _gate(path, manifest)
    return Bundle(
        path=path,
        name=str(manifest["name"]),
        version=str(manifest["version"]),
        front_end=front_end,
        taxonomy=taxonomy,
        calibrator=calibrator,
        model_path=model_path,
        fingerprint=_fingerprint(model_path, front_end, taxonomy.fine, calibrator, gate, members, mean),
        input_name=str(manifest.get("input", {}).get("name", "features")),
        logits_name=str(manifest.get("outputs", {}).get("logits", "logits")),
        probabilities_name=str(manifest.get("outputs", {}).get("probabilities", "probabilities")),
        description=str(manifest.get("description", "")),
        calibration=calibration,
        operating_points=_operating_points(path, manifest, taxonomy, calibration),
        gate=gate,
        members=members,
        mean=mean,
        front_end_in_graph=_front_end_in_graph(path, manifest),
    )


def _ensemble(path: Path, manifest: dict[str, Any]) -> tuple[tuple[Bundle, ...], Mean | None]:
    """Read the members of an ensemble: directories inside of its own, each a bundle."""
    if manifest.get("kind") != "ensemble":
        return (), None
    try:
        listed = list(manifest["members"])
        weights = tuple(float(member["weight"]) for member in listed)
        mean, names = Mean(manifest["mean"], weights), [member["bundle"] for member in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"bundle {path.name} is an ensemble without mean, or members with bundle and weight: {error!r}"
        ) from error
    members = tuple(_ensemble_member(path, name) for name in names)
    own = read_labels(_member(path, manifest, "labels"))
    for member in members:
        if member.labels != own:
            raise BundleError(f"bundle {path.name}: the labels of member {member.path.name} are not its own")
    return members, mean


def _ensemble_member(path: Path, name: object) -> Bundle:
    if not isinstance(name, str) or not _IS_NAME(name):
        raise BundleError(f"bundle {path.name}: a member must be a directory inside of it, not {name!r}")
    if read_json_object(path / name / MANIFEST_NAME, BundleError).get("kind") == "ensemble":
        raise BundleError(f"bundle {path.name}: its member {name} is an ensemble itself")
    return load_bundle(path / name)


def _front_end_in_graph(path: Path, manifest: dict[str, Any]) -> FrontEnd | None:
    value = manifest.get("front_end_in_graph")
    if value is None:
        return None
    if not isinstance(value, dict) or manifest.get("front_end", {}).get("kind") != "waveform":
        raise BundleError(
            f"bundle {path.name}: a front end in the graph needs a front_end of kind waveform before it"
        )
    return FrontEnd.from_json(value)


def _gate(path: Path, manifest: dict[str, Any]) -> Gate | None:
    value = manifest.get("gate")
    if value is None:
        return None
    try:
        gate = Gate(str(value["output"]), float(value["threshold"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"bundle {path.name}: gate must name an output and a threshold, not {value!r}"
        ) from error
    if not 0.0 <= gate.threshold <= 1.0:
        raise BundleError(f"bundle {path.name}: the gate's threshold {gate.threshold} is not between 0 and 1")
    return gate


def _taxonomy(
    path: Path, manifest: dict[str, Any], label_map: Path | None = None, canonical_map: Path | None = None
) -> Taxonomy:
    labels = read_labels(label_map or _member(path, manifest, "labels"))
    canonical, misc = read_canonical_map(canonical_map or _member(path, manifest, "canonical"))
    return Taxonomy(labels, canonical, misc)


def _operating_points(
    path: Path, manifest: dict[str, Any], taxonomy: Taxonomy, calibration: dict[str, Any]
) -> OperatingPoints:
    own = _taxonomy(path, manifest)
    points = read_operating_points(calibration, frozenset(own.canonical) - {own.misc})
    # Thresholds were measured for sums of certain outputs; with other sums they mean nothing.
    return points if _sums(taxonomy) == _sums(own) else {}


def _sums(taxonomy: Taxonomy) -> list[str]:
    return [taxonomy.canonical_of[label] for label in taxonomy.fine]


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json_object(path / MANIFEST_NAME, BundleError)
    needed = ["name", "version"] + ["front_end"] * (manifest.get("kind") != "ensemble")
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise BundleError(f"{str(path / 'bundle.json')!r} lacks {', '.join(missing)}")
    schema = manifest.get("schema", BUNDLE_SCHEMA)
    if schema != BUNDLE_SCHEMA:
        raise BundleError(
            f"bundle {path.name} has schema {schema}; this drumline reads {BUNDLE_SCHEMA}", "Update drumline."
        )
    return manifest


def _member(path: Path, manifest: dict[str, Any], key: str) -> Path:
    name = manifest.get(key, PARTS[key])
    if not isinstance(name, str) or not _IS_NAME(name):
        raise BundleError(f"bundle {path.name}: {key} must be a file name inside the bundle, not {name!r}")
    member = path / name
    if not member.is_file():
        raise BundleError(
            f"bundle {path.name} has no {name}", "A bundle is complete only with model, labels and mapping."
        )
    return member


def _read_calibration(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    if "calibration" not in manifest and not (path / PARTS["calibration"]).exists():
        return {}
    return read_json_object(_member(path, manifest, "calibration"), BundleError)


def _fingerprint(
    model_path: Path,
    front_end: FrontEnd,
    labels: tuple[str, ...],
    calibrator: Calibrator,
    gate: Gate | None,
    members: tuple[Bundle, ...],
    mean: Mean | None,
) -> str:
    parameters: Any = calibrator.parameters()
    if isinstance(calibrator, TemperatureScaling):
        parameters = calibrator.temperature
    # The threshold of a gate changes decisions, and nothing that is stored.
    facts = [front_end.to_json(), labels, parameters, *([] if gate is None else [gate.output])]
    if mean is not None:
        facts.append([mean.kind, mean.weights, [member.fingerprint for member in members]])
    digest = xxhash.xxh3_128(model_path.read_bytes())
    digest.update(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
    return digest.hexdigest()
