"""A directory of recordings → a manifest, and a list of what was left out of it and why.

Three kinds of directory are known; unless one is asked for, it is the first of them that fits:

- ``metadata``: there is a ``manifest.jsonl`` with at least ``path`` and ``label`` in every line, as the
  corpus has it. ``kit``, ``family``, ``source``, ``licence``, ``split`` and ``weight`` (or ``label_conf``)
  are taken over, and a stated ``hash`` or ``xxh64`` has to be that of the file.
- ``folders``: ``TrainingData/<Label>/…``, where every folder at the top is called exactly as a label of the
  taxonomy. A person has sorted these files: their names are not asked.
- ``names``: anything else. Labels are read off the names of files and folders by `drumline_convert.rules`.

Kits are folders: the path of those that name no label. A file that lies in none belongs to the kit that its
name begins with (``808_Kick_01``), and where there is nothing, it is a kit of its own; such files are
counted, since a split cannot keep together what nobody said belongs together. Families are kits, or the first
folders of kits, and kits that share a file are one family. Content that comes again is left out; content that
has two labels is left out altogether.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
import xxhash

from drumline.durable import write_bytes
from drumline.errors import ConfigError
from drumline.inputs import open_regular
from drumline.outputs import check_output
from drumline.records import path_fields
from drumline.settings import FFMPEG_FORMATS, SOUNDFILE_FORMATS
from drumline.walk import Walk, WalkSettings
from drumline_convert.content import hash_file, hash_files
from drumline_convert.examine import examine
from drumline_convert.manifest import Manifest, Row, has_fields
from drumline_convert.progress import Progress
from drumline_convert.rules import LabelRules, read_rules
from drumline_convert.split import family_groups
from drumline_convert.taxonomy import TrainingTaxonomy, read_taxonomy

__all__ = [
    "By",
    "LeftOut",
    "Reason",
    "Scan",
    "ScanSettings",
    "scan_directory",
    "without_undecodable",
    "write_left_out",
]

By = Literal["metadata", "folders", "names"]
Reason = Literal[
    "unlabelled",
    "ambiguous",
    "unknown_label",
    "contradiction",
    "duplicate",
    "changed",
    "unreadable",
    "undecodable",
    "incomplete",
]

METADATA_NAME = "manifest.jsonl"
_LONGEST_LINE = 1 << 20
_TRAINING_DATA = "TrainingData"
_FORMATS = frozenset(name.encode() for name in SOUNDFILE_FORMATS + FFMPEG_FORMATS)
_COUNTER = re.compile(r"[\W_]*(0\d*|\d{0,2})[\W_]*")


class LeftOut(NamedTuple):
    """A file that is not in the manifest, and why; `detail` is for people."""

    path: Path
    reason: Reason
    detail: str


@dataclass(frozen=True)
class ScanSettings:
    """How a directory is read.

    Parameters
    ----------
    by
        The kind of directory; None: the first that fits.
    taxonomy
        Labels that there are.
    rules
        What names say.
    source, licence
        Of recordings whose metadata state none; None: the directory's name.
    family_level
        How many folders of a kit's path make a family; 0: all of them, so that every kit is one.
    """

    by: By | None = None
    taxonomy: TrainingTaxonomy = field(default_factory=read_taxonomy)
    rules: LabelRules = field(default_factory=read_rules)
    source: str | None = None
    licence: str = "unknown"
    family_level: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found.

    Parameters
    ----------
    rows
        The manifest's rows, sorted by path.
    left_out
        Files that are not in it, sorted by path.
    by
        How the directory was read.
    kitless
        Paths of the rows that are a kit of their own because nothing says which one they belong to.
    """

    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    by: By
    kitless: tuple[Path, ...]

    @property
    def manifest(self) -> Manifest:
        """The rows as a manifest.

        Raises
        ------
        ConfigError
            When there are none.
        """
        if not self.rows:
            raise ConfigError(
                f"no recording has a label ({len(self.left_out)} files were left out)",
                "The list of what was left out says why; labels come from label_rules.yml (--rules).",
            )
        return Manifest(self.rows)


def scan_directory(
    root: Path, settings: ScanSettings | None = None, progress: Progress | None = None
) -> Scan:
    """Read a directory of recordings; nothing in it is changed.

    Parameters
    ----------
    root
        The directory.
    settings
        How it is read.
    progress
        Called with (files hashed, files in all).

    Raises
    ------
    ConfigError
        When the directory cannot be read, or its metadata cannot be understood.
    """
    settings = settings or ScanSettings()
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise ConfigError(f"no directory at {str(root)!r}", "Give the directory with the recordings.")
    tree = _Tree(root, settings)
    by = settings.by or tree.kind
    found = list({"metadata": tree.by_metadata, "folders": tree.by_folders, "names": tree.by_names}[by]())
    left_out = [entry for entry in found if isinstance(entry, LeftOut)]
    rows = _hashed([entry for entry in found if isinstance(entry, _Found)], left_out, progress)
    rows = _without_doubles(_with_joined_families(rows), left_out)
    kitless = {entry.path for entry in found if isinstance(entry, _Found) and entry.kitless}
    rows.sort(key=lambda row: os.fsencode(row.path))
    left_out.sort(key=lambda entry: os.fsencode(entry.path))
    lonely = tuple(row.path for row in rows if row.path in kitless)
    return Scan(tuple(rows), tuple(left_out), by, lonely)


def without_undecodable(scan: Scan, workers: int = 1, progress: Progress | None = None) -> Scan:
    """Decode every recording of a scan as the engine does, and leave out those of which nothing can be used.

    Parameters
    ----------
    scan
        What was found.
    workers
        Processes that decode.
    progress
        Called with (recordings decoded, recordings in all).
    """
    rows, left_out = [], list(scan.left_out)
    for done, (row, found) in enumerate(examine(scan.rows, workers), start=1):
        if found.fault:
            left_out.append(LeftOut(row.path, "undecodable", found.message))
        else:
            rows.append(row)
        if progress:
            progress(done, len(scan.rows))
    left_out.sort(key=lambda entry: os.fsencode(entry.path))
    kept = {row.path for row in rows}
    lonely = tuple(path for path in scan.kitless if path in kept)
    return replace(scan, rows=tuple(rows), left_out=tuple(left_out), kitless=lonely)


def check_left_out_output(path: Path) -> None:
    """Raise `OutputError` when something else stands where a list of what was left out is to be written."""
    check_output(path, "list of what was left out", lambda stream: has_fields(stream, LeftOut._fields))


def write_left_out(path: Path, entries: Iterable[LeftOut]) -> None:
    """Write what was left out as JSON Lines: ``path`` (``path_b64``), ``reason``, ``detail``.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    lines = []
    for entry in entries:
        text, encoded = path_fields(os.fsencode(entry.path))
        exact = {} if encoded is None else {"path_b64": encoded}
        value = {"path": text, **exact, "reason": entry.reason, "detail": entry.detail}
        lines.append(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    write_bytes(path, b"".join(lines))


class _Found(NamedTuple):
    """A labelled file whose content has not been read yet; `stated` is (algorithm, hash) of its metadata."""

    path: Path
    label: str
    kit: str
    family: str
    source: str
    licence: str
    split: str | None = None
    weight: float = 1.0
    stated: tuple[str, str] | None = None
    kitless: bool = False


class _Tree:
    """The directory at hand, and the ways to read it."""

    def __init__(self, root: Path, settings: ScanSettings) -> None:
        self.root, self.settings = root, settings

    @property
    def kind(self) -> By:
        """The first kind that fits."""
        if (self.root / METADATA_NAME).exists():
            return "metadata"
        return "folders" if self._label_folders() else "names"

    @cached_property
    def _label_root(self) -> Path:
        below = self.root / _TRAINING_DATA
        return below if below.is_dir() else self.root

    def _label_folders(self) -> list[str]:
        """Names of the folders at the top, when there are two or more and each is a label; else nothing."""
        names = [entry.name for entry in os.scandir(self._label_root) if entry.is_dir()]
        visible = [name for name in names if not name.startswith(".")]
        known = all(self.settings.taxonomy.manifest_label(name) is not None for name in visible)
        return visible if known and len(visible) > 1 else []

    def by_folders(self) -> Iterator[_Found | LeftOut]:
        """Take the label from the folder at the top."""
        for path, folders in self._files(self._label_root):
            label = self.settings.taxonomy.manifest_label(folders[0]) if folders else None
            if label is None:
                yield LeftOut(path, "unlabelled", "it lies in no folder that is called as a label")
            else:
                yield self._found(path, label, folders[1:])

    def by_names(self) -> Iterator[_Found | LeftOut]:
        """Read the label off the names."""
        rules = self.settings.rules
        for path, folders in self._files(self.root):
            said = sorted(rules.decide(path.stem, folders))
            if doubt := rules.doubt(path.stem):
                yield LeftOut(path, "ambiguous", f"its name has the word {doubt}")
            elif len(said) == 1:
                kit = [name for name in folders if not rules.said_by(name)]
                unsaid = [name for name in folders if not rules.said_by_folder(name)]
                yield self._labelled(path, said[0], kit or unsaid)
            elif said:
                yield LeftOut(path, "ambiguous", f"its names say {' and '.join(said)}")
            else:
                yield LeftOut(path, "unlabelled", "its names say no label")

    def by_metadata(self) -> Iterator[_Found | LeftOut]:
        """Take everything from the directory's own manifest.jsonl."""
        place = self.root / METADATA_NAME
        try:
            with open_regular(place) as stream:
                lines = iter(lambda: stream.readline(_LONGEST_LINE), b"")
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield self._from_metadata(line, f"{str(place)!r}, line {number}")
        except OSError as error:
            raise ConfigError(f"cannot read the metadata {str(place)!r}: {error.strerror}") from error

    def _files(self, root: Path) -> Iterator[tuple[Path, list[str]]]:
        """Iterate over (audio file, the folders between `root` and it)."""
        for directory in Walk(WalkSettings(os.fsencode(root), _FORMATS)):
            folders = [os.fsdecode(name) for name in directory.path.split(b"/") if name]
            for entry in directory.files:
                yield Path(root, *folders, os.fsdecode(entry.name)), folders

    def _labelled(self, path: Path, label: str, kit: Sequence[str]) -> _Found | LeftOut:
        if label not in self.settings.taxonomy.known:
            return LeftOut(path, "unknown_label", f"{label} is no label of the taxonomy")
        return self._found(path, label, kit)

    def _found(self, path: Path, label: str, folders: Sequence[str]) -> _Found:
        rules, level = self.settings.rules, self.settings.family_level
        kit = [_text(name) for name in folders if not rules.is_plain(name)]
        start = [] if kit else [_text(rules.text_before_label(path.stem))]
        kitless = not kit and bool(_COUNTER.fullmatch(start[0]))
        if not kit:
            kit = [_text(str(path.relative_to(self.root)))] if kitless else start
        family = kit if kitless or not level else kit[:level]
        source = self.settings.source or _text(self.root.name) or "/"
        licence = self.settings.licence
        return _Found(path, label, "/".join(kit), "/".join(family), source, licence, kitless=kitless)

    def _from_metadata(self, line: bytes, where: str) -> _Found | LeftOut:
        try:
            value: dict[str, Any] = orjson.loads(line)
            path, label = self.root / value["path"], value["label"]
            if self.settings.taxonomy.manifest_label(label) is None:
                return LeftOut(path, "unknown_label", f"{label!r} is no label of the taxonomy")
            return self._stated(path, label, value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where}: not a row with path and label ({error!r})") from error

    def _stated(self, path: Path, label: str, value: dict[str, Any]) -> _Found:
        plain = self._found(path, label, path.relative_to(self.root).parent.parts)
        kit = value.get("kit", value.get("family", plain.kit))
        algorithm = next((name for name in ("hash", "xxh64") if name in value), None)
        certainty = self.settings.rules.confidence.get(value.get("label_conf", ""), 1.0)
        return plain._replace(
            label=str(self.settings.taxonomy.manifest_label(label)),
            kit=kit,
            family=value.get("family", kit),
            source=value.get("source", plain.source),
            licence=value.get("licence", plain.licence),
            split=value.get("split"),
            weight=value.get("weight", certainty),
            stated=(algorithm, value[algorithm]) if algorithm else None,
            kitless=plain.kitless and not {"kit", "family"} & set(value),
        )


def _text(name: str) -> str:
    """Return a name as printable text: bytes that are no UTF-8, and control characters, are escaped."""
    decoded = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in decoded)


def _hashed(found: Sequence[_Found], left_out: list[LeftOut], progress: Progress | None) -> list[Row]:
    rows = []
    digests = hash_files(entry.path for entry in found)
    for done, (entry, digest) in enumerate(zip(found, digests, strict=True), start=1):
        if isinstance(digest, OSError):
            left_out.append(LeftOut(entry.path, "unreadable", digest.strerror or str(digest)))
        elif not _is_as_stated(entry, digest):
            left_out.append(LeftOut(entry.path, "changed", "its content is not what its metadata state"))
        else:
            rows += _row(entry, digest, left_out)
        if progress:
            progress(done, len(found))
    return rows


def _is_as_stated(entry: _Found, digest: str) -> bool:
    if entry.stated is None:
        return True
    algorithm, value = entry.stated
    return value == (digest if algorithm == "hash" else hash_file(entry.path, xxhash.xxh64))


def _row(entry: _Found, digest: str, left_out: list[LeftOut]) -> list[Row]:
    try:
        values = (entry.path, entry.label, entry.kit, entry.family, entry.source, entry.licence)
        return [Row(*values, digest, entry.split, entry.weight)]
    except ValueError as error:
        left_out.append(LeftOut(entry.path, "incomplete", str(error)))
        return []


def _with_joined_families(rows: list[Row]) -> list[Row]:
    """Give families that share a content one name: the first of theirs."""
    if not rows:
        return []
    groups = family_groups(rows).tolist()
    name_of: dict[int, str] = {}
    for group, row in zip(groups, rows, strict=True):
        name_of[group] = min(name_of.get(group, row.family), row.family)
    return [replace(row, family=name_of[group]) for group, row in zip(groups, rows, strict=True)]


def _without_doubles(rows: Sequence[Row], left_out: list[LeftOut]) -> list[Row]:
    """Keep one file of each content, and none of a content that has two labels."""
    twins: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        twins[row.hash].append(row)
    kept = []
    for same in twins.values():
        first, *others = sorted(same, key=lambda row: os.fsencode(row.path))
        labels = sorted({row.label for row in same})
        if len(labels) > 1:
            detail = f"the same content is labelled {' and '.join(labels)}"
            left_out += [LeftOut(row.path, "contradiction", detail) for row in same]
        else:
            kept.append(first)
            detail = f"the same content as {_text(str(first.path))}"
            left_out += [LeftOut(row.path, "duplicate", detail) for row in others]
    return kept
