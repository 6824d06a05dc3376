"""Find a manifest's recordings in an archive by their content, and copy them out of it.

So a data set can be passed on as a manifest alone: who has the archive has the recordings, whatever they are
called there and wherever they lie. `plan_copies` says what is going to be done, and `copy_recordings` does
exactly that. The archive is only read; nothing that is in the way is replaced.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from drumline.durable import output_errors
from drumline.errors import ArchiveError, IndexFormatError, OutputError
from drumline.index import read_index, record_errors
from drumline.inputs import open_regular
from drumline.outputs import check_apart
from drumline.records import absolute_path
from drumline.runs import Run
from drumline.settings import FFMPEG_FORMATS, SOUNDFILE_FORMATS
from drumline.tensors import audio_files
from drumline_convert.content import MANIFEST_HASH, hash_file, hash_files
from drumline_convert.manifest import Manifest, Row, check_manifest_output, write_manifest
from drumline_convert.progress import Progress

__all__ = [
    "Copy",
    "CopyPlan",
    "check_place",
    "copy_recordings",
    "hashed_archive",
    "hashed_run",
    "plan_copies",
]


_LONGEST_NAME = 200
_UNSAFE = re.compile(r"[^\w .+()\[\]-]")


class Copy(NamedTuple):
    """A file of the archive, and the manifest's row as it reads for the copy."""

    source: Path
    row: Row

    @property
    def is_there(self) -> bool:
        """Whether the copy has been made already."""
        return self.row.path.is_file() and hash_file(self.row.path) == self.row.hash


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What is going to be done.

    Parameters
    ----------
    out
        Directory of the copies; ``manifest.jsonl`` in it names them.
    copies
        Files that were found, in the manifest's order.
    missing
        Rows whose content the archive does not have.
    """

    out: Path
    copies: tuple[Copy, ...]
    missing: tuple[Row, ...]


def check_place(out: Path, archive: bytes | Path | None) -> None:
    """Raise `OutputError` when `out` and the archive lie in one another, or `out` holds another manifest."""
    if archive is not None:
        check_apart(out, archive)
    check_manifest_output(out / "manifest.jsonl")


def hashed_archive(archive: Path, progress: Progress | None = None) -> Iterator[tuple[Path, str]]:
    """Iterate over (audio file, content hash) of an archive; files that cannot be read are passed over.

    Raises
    ------
    ArchiveError
        When there is no such directory.
    """
    if not archive.is_dir():
        raise ArchiveError(f"no archive at {str(archive)!r}", "Give the directory with the audio files.")
    formats = SOUNDFILE_FORMATS + FFMPEG_FORMATS
    root = os.path.abspath(os.fsencode(archive))
    paths = [Path(os.fsdecode(path)) for path in audio_files([root], formats)]
    for done, (path, digest) in enumerate(zip(paths, hash_files(paths), strict=True), start=1):
        if isinstance(digest, str):
            yield path, digest
        if progress:
            progress(done, len(paths))


def hashed_run(run: Run) -> Iterator[tuple[Path, str]]:
    """Iterate over (file, content hash) as an index has them; nothing is read but the index.

    Raises
    ------
    IndexFormatError
        When the index has hashes of another algorithm than manifests, or cannot be understood.
    """
    algorithm = run.info.get("settings", {}).get("hash_algorithm", MANIFEST_HASH)
    if algorithm != MANIFEST_HASH:
        raise IndexFormatError(
            f"{run.name} has hashes by {algorithm}, manifests by {MANIFEST_HASH}",
            "Give the archive itself with --archive: its files are then hashed.",
        )
    with record_errors(run.index_path):
        for record in read_index(run.index_path):
            if record["hash"] is not None:
                yield Path(os.fsdecode(absolute_path(record))), record["hash"]


def plan_copies(manifest: Manifest, found: Iterable[tuple[Path, str]], out: Path) -> CopyPlan:
    """Say which file becomes which recording below `out`: ``audio/<kit>/<label>__<name>``."""
    wanted = {row.hash for row in manifest}
    source_of: dict[str, Path] = {}
    for path, digest in found:
        if digest in wanted:
            source_of.setdefault(digest, path)
    there = [row for row in manifest if row.hash in source_of]
    out = Path(os.path.abspath(out))
    taken: set[bytes] = set()
    copies = tuple(_copy(row, source_of[row.hash], out, taken) for row in there)
    return CopyPlan(out, copies, tuple(row for row in manifest if row.hash not in source_of))


def _copy(row: Row, source: Path, out: Path, taken: set[bytes]) -> Copy:
    folder = out / "audio" / _safe(row.kit)
    name = f"{row.label}__{row.path.name.removeprefix(f'{row.label}__')}"
    # Case is nothing to some file systems.
    if len(os.fsencode(name)) > _LONGEST_NAME or os.fsencode(folder / name).lower() in taken:
        name = f"{row.label}__{row.hash}{row.path.suffix}"
    taken.add(os.fsencode(folder / name).lower())
    return Copy(source, replace(row, path=folder / name))


def _safe(kit: str) -> str:
    """Return a kit's name as one folder's."""
    name = _UNSAFE.sub("_", kit).encode()[:_LONGEST_NAME].decode("utf-8", "ignore").strip(" .")
    return name or "kit"


def copy_recordings(plan: CopyPlan, progress: Progress | None = None) -> int:
    """Make the copies that are not there yet, and write their manifest; return how many were made.

    Raises
    ------
    OutputError
        When a copy cannot be written, or another file is in its way.
    ArchiveError
        When a file of the archive is not what it was when its hash was taken.
    """
    made = 0
    for done, copy in enumerate(plan.copies, start=1):
        made += _place(copy)
        if progress:
            progress(done, len(plan.copies))
    with output_errors(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
    write_manifest(plan.out / "manifest.jsonl", [copy.row for copy in plan.copies])
    return made


def _place(copy: Copy) -> bool:
    target = copy.row.path
    if copy.is_there:
        return False
    if os.path.lexists(target):
        raise OutputError(f"another file is at {str(target)!r}", "Choose an empty directory for --out.")
    temporary = target.with_name(f".{target.name[:_LONGEST_NAME]}.{os.getpid()}.tmp")
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy_checked(copy, temporary)
            os.rename(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return True


def _copy_checked(copy: Copy, temporary: Path) -> None:
    try:
        source = open_regular(copy.source)
    except OSError as error:
        raise ArchiveError(f"cannot read {str(copy.source)!r}: {error.strerror}") from error
    with source, open(temporary, "wb") as target:
        shutil.copyfileobj(source, target)
    if hash_file(temporary) != copy.row.hash:
        raise ArchiveError(
            f"{str(copy.source)!r} is not what it was when its hash was taken",
            "Give the archive with --archive instead of an index, so that it is read anew.",
        )
