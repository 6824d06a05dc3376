"""Feature tensors of many files in one ``.npz``: the very ones that a model is fed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

from drumline.audio import WHOLE_FILE_BYTES, AudioError, Decoder, Waveform
from drumline.durable import output_errors, sync_directory
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.records import FileError
from drumline.walk import Walk, WalkSettings

__all__ = ["TensorReport", "audio_files", "is_tensors", "write_tensors"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What was written.

    Parameters
    ----------
    shape
        Of ``features``: (files, *front_end.shape).
    failures
        (path, why) of the files that are not in it.
    """

    shape: tuple[int, ...]
    failures: list[tuple[bytes, FileError]] = field(default_factory=list)


def audio_files(paths: Iterable[bytes], formats: Iterable[str]) -> Iterator[bytes]:
    """Iterate over `paths`, with directories replaced by the audio files below them, sorted by name."""
    extensions = frozenset(name.encode() for name in formats)
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for directory in Walk(WalkSettings(path, extensions)):
            yield from (os.path.join(path, directory.path, entry.name) for entry in directory.files)


def write_tensors(
    files: Iterable[bytes], out: Path, front_end: FrontEnd, progress: Callable[[], None] = lambda: None
) -> TensorReport:
    """Write the features of `files` to `out`.

    ``features`` is (n, *front_end.shape) float32, ``paths`` is (n,) text in the same order (where a name is
    no UTF-8, ``os.fsencode`` gives its exact bytes). Memory does not grow with the features: they are
    collected in a file next to `out`. Nothing is written when no file can be read.

    Raises
    ------
    OutputError
        When `out` cannot be written; what stood there is still there.
    """
    paths: list[str] = []
    failures: list[tuple[bytes, FileError]] = []
    with output_errors(out), tempfile.TemporaryFile(dir=out.parent) as rows:
        for path, row in _rows(files, front_end):
            progress()
            if isinstance(row, np.ndarray):
                rows.write(row.tobytes())
                paths.append(os.fsdecode(path))
            else:
                failures.append((path, row))
        shape = (len(paths), *front_end.shape)
        if paths:
            _write_npz(out, rows, shape, paths)
    return TensorReport(shape, failures)


def is_tensors(stream: BinaryIO) -> bool:
    """Tell whether an open file is one that `write_tensors` wrote."""
    try:
        with zipfile.ZipFile(stream) as archive:
            return set(archive.namelist()) == {"features.npy", "paths.npy"}
    except (zipfile.BadZipFile, ValueError):
        return False


def _rows(
    files: Iterable[bytes], front_end: FrontEnd
) -> Iterator[tuple[bytes, NDArray[np.float32] | FileError]]:
    decoder, extractor = Decoder(front_end), FeatureExtractor(front_end)
    for path in files:
        try:
            yield path, extractor.features(_decode(decoder, path).samples)
        except AudioError as error:
            yield path, FileError(type=error.type, message=error.message)
        except FileNotFoundError:
            yield path, FileError(type="vanished", message="there is no such file")
        except OSError as error:
            yield path, FileError(type="unreadable", message=error.strerror or str(error))


def _decode(decoder: Decoder, path: bytes) -> Waveform:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise AudioError("unreadable", "it is no regular file")
    if found.st_size > WHOLE_FILE_BYTES:
        return decoder.decode_path(path)
    with open(path, "rb") as stream:
        return decoder.decode(stream.read(), path)


def _write_npz(out: Path, rows: IO[bytes], shape: tuple[int, ...], paths: list[str]) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                rows.seek(0)
                shutil.copyfileobj(rows, member, 1 << 20)
            with archive.open("paths.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(paths), allow_pickle=False)
        os.replace(temporary, out)
        sync_directory(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
