"""config.yml: read into plain values whose every complaint names file, line and key.

Only what stands in the file is kept, so that the command line can override it and the defaults of
`InferSettings` fill the rest. Relative paths are relative to the file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drumline.errors import ConfigError, UsageError
from drumline.inputs import read_regular
from drumline.settings import FFMPEG_FORMATS, SOUNDFILE_FORMATS, InferSettings, MiscSettings, check_setting

if TYPE_CHECKING:
    from drumline.config_entries import ConfigEntry

__all__ = [
    "CONFIG_KEYS",
    "CONFIG_TEMPLATE",
    "SECTIONS",
    "Config",
    "error_at",
    "infer_settings",
    "load_config",
    "parse_config",
]

LARGEST_CONFIG_BYTES = 1 << 20

_SETTING_OF = {
    "model_path": "model_path",
    "label_map": "label_map",
    "canonical_map": "canonical_map",
    "batch_size": "batch_size",
    "cpu_batch_size": "cpu_batch_size",
    "model_threads": "model_threads",
    "workers": "workers",
    "device": "device",
    "cuda_graphs": "cuda_graphs",
    "cuda_memory_mb": "cuda_memory_mb",
    "target_labels": "target_labels",
    "misc.threshold": "misc.threshold",
    "misc.label": "misc.label",
    "misc.gate": "misc.gate",
    "misc.gate_threshold": "misc.gate_threshold",
    "top_k": "top_k",
    "dedup_hash": "dedup_hash",
    "hash_algorithm": "hash_algorithm",
    "compress_index": "compress_index",
    "include_audio_stats": "include_audio_stats",
    "supported_formats": "supported_formats",
    "follow_links": "follow_links",
    "one_file_system": "one_file_system",
    "io": "io",
    "file_timeout_sec": "file_timeout_sec",
    "max_file_mb": "max_file_mb",
    "worker_memory_mb": "worker_memory_mb",
    "paths.archive_root": "archive",
    "paths.runs_root": "runs_root",
    "paths.regenerated_root": "regenerated_root",
}
"""Key in config.yml → the setting that it gives; both with a dot between levels."""

CONFIG_KEYS = tuple(_SETTING_OF)
"""Every key of config.yml."""

SECTIONS = ("misc", "paths")
"""Keys that hold other keys."""

_FILE_KEYS = ("label_map", "canonical_map", "paths.archive_root", "paths.runs_root", "paths.regenerated_root")
_MAY_BE_NULL = ("paths.archive_root", "paths.regenerated_root")


@dataclass(frozen=True, slots=True)
class Config:
    """What a config.yml says.

    Parameters
    ----------
    path
        The file.
    values
        Setting (``"batch_size"``, ``"misc.threshold"``, ``"archive"``) → value, for those that stand in the
        file; paths are joined to the file's directory.
    """

    path: Path
    values: Mapping[str, Any]

    @property
    def regenerated_root(self) -> Path | None:
        """Where `rebuild` puts its tree, when the file says so."""
        return self.values.get("regenerated_root")


def load_config(path: Path) -> Config:
    """Read config.yml.

    Raises
    ------
    ConfigError
        When it cannot be read, or anything in it is unknown or wrong; file, line and key are named.
    """
    return parse_config(path, _read_text(path))


def parse_config(path: Path, text: str) -> Config:
    """Read the text of a config.yml that stands, or is going to stand, at `path`; raises as `load_config`."""
    from drumline.config_entries import config_entries  # yaml takes a tenth of the start of a rescan

    values: dict[str, Any] = {}
    for entry in config_entries(path, text):
        try:
            values[_SETTING_OF[entry.key]] = _setting_value(entry, path.parent)
        except ConfigError as error:
            raise error_at(path, entry.line, error.what, error.way_out) from error
    return Config(path, values)


def error_at(path: Path, line: int, what: str, way_out: str = "") -> ConfigError:
    """Return an error that names file and line."""
    return ConfigError(f"{str(path)!r}, line {line}: {what}", way_out)


def _read_text(path: Path) -> str:
    try:
        data = read_regular(path, LARGEST_CONFIG_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {str(path)!r}: {error.strerror}",
            "'drumline init' writes a commented one.",
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise error_at(path, line, "this is no UTF-8", "Save the file as UTF-8.") from error


def _setting_value(entry: ConfigEntry, directory: Path) -> Any:
    """Check one entry's value and return it as the setting's type."""
    setting, value = _SETTING_OF[entry.key], entry.value
    if value is None and entry.key in _MAY_BE_NULL:
        return None
    if entry.key in (*_FILE_KEYS, "model_path") and value is not None:
        return _path_value(entry.key, value, directory)
    if isinstance(value, list):
        value = tuple(value)
    try:
        check_setting(setting, value)
    except ConfigError as error:
        raise ConfigError(error.what.replace(setting, entry.key, 1), error.way_out) from error
    return value


def _path_value(key: str, value: Any, directory: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{key} cannot be {value!r}", "Allowed: a path; relative ones start at this file.")
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{key}: there is no such home directory: {value!r}", "Write it in full."
        ) from error
    if key == "model_path" and len(path.parts) == 1 and not (directory / path).exists():
        return path  # a bundle's name
    return directory / path


def infer_settings(config: Config | None, overrides: Mapping[str, Any]) -> InferSettings:
    """Join the file's values and the command line's, which win.

    Parameters
    ----------
    config
        What was read from config.yml; None: nothing.
    overrides
        Setting → value: the fields of `InferSettings`, and those of `MiscSettings` with ``misc.`` before
        them. None means not given.

    Raises
    ------
    UsageError
        When neither names the archive.
    ConfigError
        When a value is not allowed.
    """
    values = {key: value for key, value in (config.values if config else {}).items() if value is not None}
    given = {key: value for key, value in overrides.items() if value is not None}
    for key, value in given.items():
        check_setting(key, value, in_file=False)
    values.update(given)
    values.pop("regenerated_root", None)
    if "archive" not in values:
        raise UsageError(
            "no archive was named", "Give it on the command line, or as paths: archive_root: in config.yml."
        )
    misc = {key.removeprefix("misc."): values.pop(key) for key in list(values) if key.startswith("misc.")}
    return InferSettings(**values, misc=MiscSettings(**misc))


def _format_lines(formats: tuple[str, ...]) -> str:
    return textwrap.indent(textwrap.fill(", ".join(formats), 96), "  ")


CONFIG_TEMPLATE = f"""\
# drumline's configuration. Every key may be left out, and every one has an option on the command line,
# which wins. Relative paths start at this file. docs/config.md says more about each.

# Model bundle: a directory, or the name of a bundle that 'drumline models' lists. null: the default one.
model_path: null

# Files used in place of the bundle's own label file and canonical mapping.
label_map: null
canonical_map: null

# Most files that the model is given at once, and extract processes (null: one for each CPU, four on a
# network).
batch_size: 64
workers: null

# Files in one call of the model on the CPU (null: 16), and its threads (null: one for every four CPUs).
# 'drumline tune' finds out what is the fastest here.
cpu_batch_size: null
model_threads: null

# auto: the GPU where it really works, else the CPU; cpu; cuda: the GPU or an error.
device: auto

# On a GPU (docs/gpu.md): whether batches are replayed as CUDA graphs, and the most memory for the model's
# arena, in MB of 10^6 bytes (null: all of it).
cuda_graphs: false
cuda_memory_mb: null

# Labels that are wanted, as [Kick, Snare]; the others go to misc. null: all.
target_labels: null

misc:
  # A label is believed from this probability on; 0 believes everything. Or one of the model's operating
  # points, with a probability for each label: precision=0.95.
  threshold: 0.50
  # What everything else is called.
  label: misc
  # Whether the model's gate, where it has one, sends what it takes for no kit drum to misc; and the smallest
  # probability that passes it. null: what the gate was fitted for.
  gate: true
  gate_threshold: null

# How many of the most probable fine labels each record lists.
top_k: 3

# A file whose content is known already takes over that prediction without being decoded.
dedup_hash: true

# Of the content hash: xxh3_64, xxh64, md5 or sha256.
hash_algorithm: xxh3_64

# Of the index: zstd, gzip or none.
compress_index: zstd

# Level, spectral centroid and rolloff in each record.
include_audio_stats: true

# Extensions that are read as audio. The last lines need ffmpeg.
supported_formats: [
{_format_lines(SOUNDFILE_FORMATS)},
{_format_lines(FFMPEG_FORMATS)},
]

# Links to files that are read: all; inside: those that lead to a place in the archive; none. Links to
# directories are never followed.
follow_links: all

# Pass over what is mounted below the archive's root.
one_file_system: false

# What the archive lies on, which says how it is read best: ssd, hdd or network. auto: ask the system.
io: auto

# A file is given up, as a failed record, when it makes no progress for so many seconds, is larger, or costs
# a worker more memory. MB are 10^6 bytes.
file_timeout_sec: 30.0
max_file_mb: 4000
worker_memory_mb: 1000

paths:
  # What is classified; it is never written to. null: given on the command line.
  archive_root: null
  # Where runs, indexes and the cache are kept.
  runs_root: ClassifiedArchive
  # Where 'drumline rebuild' makes its tree. null: given on the command line.
  regenerated_root: null
"""
"""What `drumline init` writes: every key with its default."""
