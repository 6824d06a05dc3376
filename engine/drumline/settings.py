"""The settings of a run: made once at the edge, checked on construction, passed down unchanged.

`check_setting` is the one place that knows what each key may hold; config.yml and the Python API are
checked by the same rules and complain in the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from drumline.decide import DecisionSettings
from drumline.errors import ConfigError
from drumline.index import Compression
from drumline.labels import MISC, Taxonomy, is_label
from drumline.machine import usable_cpus
from drumline.records import display_path
from drumline.storage import Io, Storage, storage_of
from drumline.thresholds import OperatingPoints, Threshold, is_threshold, resolve_gate, resolve_threshold
from drumline.walk import FollowLinks

__all__ = [
    "CPU_FILES",
    "FFMPEG_FORMATS",
    "SOUNDFILE_FORMATS",
    "Device",
    "HashAlgorithm",
    "InferSettings",
    "MiscSettings",
    "allowed_values",
    "check_setting",
]

CPU_FILES: Final = 16
"""Files of one call on the CPU: with more, layers leave the caches (12 % slower at 64), and memory
would follow the size of each batch."""

_CPUS_PER_THREAD: Final = 4
"""One thread of the model keeps up with about this many CPUs' worth of extract workers."""

Device = Literal["auto", "cpu", "cuda"]
HashAlgorithm = Literal["xxh3_64", "xxh64", "md5", "sha256"]

SOUNDFILE_FORMATS = (
    *("wav", "wave", "bwf", "rf64", "w64", "aif", "aiff", "aifc", "caf", "au", "snd"),
    *("flac", "ogg", "oga", "opus", "mp3", "mp2", "mp1"),
    *("8svx", "avr", "htk", "iff", "nist", "paf", "pvf", "sd2"),
    *("sds", "sf", "sph", "svx", "voc", "wve", "xi"),
)
"""Extensions of what libsndfile reads; `.raw` and `.mat` are left out, as they say nothing about sound."""

FFMPEG_FORMATS = (
    *("m4a", "m4b", "aac", "alac", "wma", "ac3", "amr"),
    *("ape", "dsf", "mka", "mpc", "tta", "wv", "webm"),
)
"""Extensions of what is read through ffmpeg, where it is installed."""


_WORKERS_PER_CPU_ON_A_NETWORK, _MOST_WORKERS = 4, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MiscSettings:
    """When a file is not believed to be a kit drum, and what it is called then.

    Parameters
    ----------
    threshold
        Smallest probability (summed over one canonical label) that is believed, 0..1; or the name of one of
        the bundle's operating points, ``"precision=0.95"``, which has a threshold for each label.
    label
        Label of what is not believed, not wanted, or no kit drum.
    gate
        Whether the model's gate, where it has one, sends what it takes for no kit drum to misc.
    gate_threshold
        Smallest probability of being a kit drum that passes the gate, 0..1. None: as the gate was fitted.
    """

    threshold: Threshold = 0.5
    label: str = MISC
    gate: bool = True
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        _check_fields(self, "misc.")


@dataclass(frozen=True, slots=True, kw_only=True)
class InferSettings:
    """Everything that `infer` is told.

    Parameters
    ----------
    archive
        Directory tree to classify; it is never written to.
    runs_root
        Directory that holds the run directories and the cache.
    model_path
        Bundle, by directory or by name. None: the default bundle.
    label_map, canonical_map
        Files used in place of the bundle's own.
    batch_size
        Most files that the model is given at once.
    cpu_batch_size
        Files in one call of the model on the CPU, which takes a batch in so many parts. None: `CPU_FILES`.
    model_threads
        CPU threads of one call. None: one for every four CPUs that this process may use.
    workers
        Extract processes. None: one for each CPU that this process may use, four on a network.
    device
        ``"auto"`` takes CUDA where it really works; ``"cuda"`` fails where it does not.
    cuda_graphs
        Whether a GPU's batches are captured as CUDA graphs.
    cuda_memory_mb
        Most GPU memory for the model's own arena, in MB of 10^6 bytes. None: all there is.
    target_labels
        Canonical labels that are wanted; the others go to misc. None: all.
    misc
        Threshold and label of misc.
    top_k
        How many of the most probable fine labels a record lists.
    dedup_hash
        A file whose content is known takes over its twin's prediction without being decoded.
    hash_algorithm
        Of the content hash in each record.
    compress_index
        Compression of the index.
    include_audio_stats
        Whether records hold level, centroid and rolloff.
    supported_formats
        Extensions that are read as audio, lower case without the dot.
    fresh
        Ignore earlier runs and the cache.
    nice
        Let everything else on the machine go first.
    retry_failed
        Try files again that failed in an earlier run, although they did not change.
    yes
        Go on although more than 5 % of the known files are gone.
    accept_missing
        Go on although most of the known files are gone (an archive that is not mounted looks like that).
    file_timeout_sec
        Seconds without progress after which a file is given up.
    max_file_mb
        Larger files are not read, in MB of 10^6 bytes.
    worker_memory_mb
        Memory that one file may cost a worker, in MB of 10^6 bytes; address space, held by the kernel.
    follow_links
        Which links to files are read: all, those that lead to a place inside of the archive, or none.
    one_file_system
        Stay on the file system of the archive's root, and pass over what is mounted below it.
    io
        What the archive lies on: ``"ssd"``, ``"hdd"``, ``"network"``; ``"auto"`` asks the system.
    """

    archive: Path
    runs_root: Path = Path("ClassifiedArchive")
    model_path: Path | None = None
    label_map: Path | None = None
    canonical_map: Path | None = None
    batch_size: int = 64
    cpu_batch_size: int | None = None
    model_threads: int | None = None
    workers: int | None = None
    device: Device = "auto"
    cuda_graphs: bool = False
    cuda_memory_mb: int | None = None
    target_labels: tuple[str, ...] | None = None
    misc: MiscSettings = field(default_factory=MiscSettings)
    top_k: int = 3
    dedup_hash: bool = True
    hash_algorithm: HashAlgorithm = "xxh3_64"
    compress_index: Compression = "zstd"
    include_audio_stats: bool = True
    supported_formats: tuple[str, ...] = SOUNDFILE_FORMATS + FFMPEG_FORMATS
    fresh: bool = False
    nice: bool = False
    retry_failed: bool = False
    yes: bool = False
    accept_missing: bool = False
    file_timeout_sec: float = 30.0
    max_file_mb: int = 4_000
    worker_memory_mb: int = 1_000
    follow_links: FollowLinks = "all"
    one_file_system: bool = False
    io: Io = "auto"

    def __post_init__(self) -> None:
        for name in ("archive", "runs_root", "model_path", "label_map", "canonical_map"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        _check_fields(self)

    @property
    def worker_count(self) -> int:
        """Extract processes to start."""
        per_cpu = _WORKERS_PER_CPU_ON_A_NETWORK if self.storage == "network" else 1
        return self.workers or min(_MOST_WORKERS, per_cpu * usable_cpus())

    @property
    def thread_count(self) -> int:
        """CPU threads of one call of the model."""
        return self.model_threads or max(1, usable_cpus() // _CPUS_PER_THREAD)

    @property
    def storage(self) -> Storage:
        """What the archive lies on; asks the system each time, unless `settled`."""
        return storage_of(bytes(self.archive)) if self.io == "auto" else self.io

    def settled(self) -> InferSettings:
        """Return the same with `io` decided, so that a mount that comes or goes later changes nothing."""
        return replace(self, io=self.storage)

    def decision_settings(
        self,
        taxonomy: Taxonomy,
        points: OperatingPoints | None = None,
        whose: str = "the bundle",
        gate: float | None = None,
    ) -> DecisionSettings:
        """Return what turns a model's probabilities into assigned labels.

        Parameters
        ----------
        taxonomy, points
            The model's labels and its operating points.
        whose
            Who has those, for messages.
        gate
            Threshold that the model's gate was fitted for; None where it has none.

        Raises
        ------
        ConfigError
            When labels, threshold or gate are none that the model has.
        """
        targets = None if self.target_labels is None else frozenset(self.target_labels)
        if self.misc.label in set(taxonomy.canonical) - {taxonomy.misc}:
            raise ConfigError(
                f"misc.label cannot be {self.misc.label!r}: that is a canonical label of the model",
                "Choose a name that no label has.",
            )
        threshold, by_label = resolve_threshold(self.misc.threshold, points or {}, whose)
        passes = resolve_gate(self.misc.gate, self.misc.gate_threshold, gate, whose)
        settings = DecisionSettings(
            taxonomy.canonical_of, threshold, self.misc.label, targets, by_label, passes
        )
        return settings.with_misc(taxonomy.misc)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values, paths as text for people."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return display_path(value)
    return list(value) if isinstance(value, tuple) else value


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    allowed: str
    null: str = ""
    """What null stands for, where a file may say that."""


def check_setting(key: str, value: object, *, in_file: bool = True) -> None:
    """Check one setting.

    Parameters
    ----------
    key
        As in config.yml, with a dot between levels: ``"misc.threshold"``.
    value
        What it is to be.
    in_file
        Whether it can be null; on a command line it is then left out.

    Raises
    ------
    ConfigError
        Naming the key, the value and what is allowed.
    """
    rule = _RULES[key]
    if not rule.holds(value):
        allowed = allowed_values(key) if in_file else rule.allowed
        raise ConfigError(f"{key} cannot be {_shown(value)}", f"Allowed: {allowed}.")


def allowed_values(key: str) -> str:
    """Say in words what a setting may hold."""
    rule = _RULES[key]
    return f"{rule.allowed}, or null for {rule.null}" if rule.null else rule.allowed


def _check_fields(settings: MiscSettings | InferSettings, prefix: str = "") -> None:
    for setting in fields(settings):
        check_setting(prefix + setting.name, getattr(settings, setting.name))


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    text = repr(plain)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _whole(low: int, high: int) -> _Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _Rule(holds, f"a whole number from {low} to {high}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _one_of(kind: Any) -> _Rule:
    values = get_args(kind)
    return _Rule(lambda value: isinstance(value, str) and value in values, ", ".join(values))


def _optional(rule: _Rule, meaning: str) -> _Rule:
    return _Rule(lambda value: value is None or rule.holds(value), rule.allowed, meaning)


def _is_path(value: Any) -> bool:
    return isinstance(value, Path) and "\0" not in str(value)


def _is_label(value: Any) -> bool:
    return is_label(value) and value == value.strip()


def _is_format(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isalnum() and value == value.lower()


def _some(holds: Callable[[Any], bool], allowed: str) -> _Rule:
    def all_hold(value: Any) -> bool:
        return isinstance(value, tuple) and bool(value) and all(map(holds, value))

    return _Rule(all_hold, allowed)


_FLAG = _Rule(lambda value: isinstance(value, bool), "true or false")
_PATH = _Rule(_is_path, "a path")
_LABELS = _some(_is_label, "a list of canonical labels")

_RULES: dict[str, _Rule] = {
    "archive": _PATH,
    "runs_root": _PATH,
    "model_path": _optional(_Rule(_is_path, "a bundle's directory or name"), "the default bundle"),
    "label_map": _optional(_PATH, "the bundle's own"),
    "canonical_map": _optional(_PATH, "the bundle's own"),
    "batch_size": _whole(1, 4096),
    "cpu_batch_size": _optional(_whole(1, 4096), f"{CPU_FILES}"),
    "model_threads": _optional(_whole(1, 1024), "one for every four CPUs"),
    "workers": _optional(_whole(1, 1024), "one for each CPU"),
    "device": _one_of(Device),
    "cuda_graphs": _FLAG,
    "cuda_memory_mb": _optional(_whole(100, 1_000_000), "all of it"),
    "target_labels": _optional(_LABELS, "all"),
    "misc": _Rule(lambda value: isinstance(value, MiscSettings), "threshold, label and gate"),
    "misc.threshold": _Rule(
        is_threshold, "a number from 0 to 1, or an operating point of the bundle: precision=0.95"
    ),
    "misc.label": _Rule(
        _is_label, "a printable name without '/' that does not begin with '.', of at most 251 bytes"
    ),
    "misc.gate": _FLAG,
    "misc.gate_threshold": _optional(
        _Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
        "what the gate was fitted for",
    ),
    "top_k": _whole(1, 1000),
    "dedup_hash": _FLAG,
    "hash_algorithm": _one_of(HashAlgorithm),
    "compress_index": _one_of(Compression),
    "include_audio_stats": _FLAG,
    "supported_formats": _some(_is_format, "a list of extensions, lower case without the dot: [wav, flac]"),
    "fresh": _FLAG,
    "nice": _FLAG,
    "retry_failed": _FLAG,
    "yes": _FLAG,
    "accept_missing": _FLAG,
    "file_timeout_sec": _Rule(
        lambda value: _is_number(value) and 0 < value <= 86_400, "seconds, more than 0, at most 86400"
    ),
    "max_file_mb": _whole(1, 1_000_000_000),
    "worker_memory_mb": _whole(100, 1_000_000),
    "follow_links": _one_of(FollowLinks),
    "one_file_system": _FLAG,
    "io": _one_of(Io),
}
