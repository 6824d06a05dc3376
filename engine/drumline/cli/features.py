"""`drumline features`: the tensors that a model is fed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, safe_text
from drumline.wording import counted

if TYPE_CHECKING:
    from drumline.tensors import TensorReport

__all__ = ["features_command"]


@click.command(
    "features",
    cls=Command,
    short_help="Write the feature tensors that a model is fed.",
    examples=(
        "drumline features kick.wav snare.flac --out tensors.npz",
        "drumline features ~/Samples --out tensors.npz --model mfcc-cnn",
        "python -c \"import numpy; print(numpy.load('tensors.npz')['features'].shape)\"",
    ),
)
@click.argument("files", type=path_type(), nargs=-1, required=True)
@click.option("--out", type=path_type(), required=True, metavar="X.npz", help="Where to write them.")
@click.option("--model", metavar="BUNDLE", help="Bundle whose front end is used [default: mfcc-cnn].")
@json_option
def features_command(files: tuple[Path, ...], out: Path, model: str | None, as_json: bool) -> int:
    """Write the feature tensors of FILES, the very ones that a model is fed.

    The .npz holds `features` (n × coefficients × frames, float32) and `paths` (n). A directory stands for all
    audio files below it. Files that cannot be read are listed and left out; then the exit code is 6.
    """
    from drumline.bundle import load_bundle
    from drumline.errors import ArchiveError, BundleError, UsageError
    from drumline.outputs import check_output, check_outside
    from drumline.records import display_path
    from drumline.settings import FFMPEG_FORMATS, SOUNDFILE_FORMATS
    from drumline.tensors import audio_files, is_tensors, write_tensors

    if out.suffix != ".npz":
        raise UsageError(f"--out must end with .npz, not {out.name!r}", "So that no sample is overwritten.")
    front_end, *others = load_bundle(model).front_ends
    if others:
        raise BundleError(
            f"{model} is an ensemble whose members have {1 + len(others)} front ends",
            "Name one of its members: the directories inside of it.",
        )
    check_output(out, ".npz of features", is_tensors)
    for directory in filter(Path.is_dir, files):
        check_outside(out, directory)
    found = audio_files(map(os.fsencode, files), SOUNDFILE_FORMATS + FFMPEG_FORMATS)
    report = write_tensors(found, out, front_end)
    if as_json:
        failures = [{"path": display_path(path), **error} for path, error in report.failures]
        echo_json({"out": display_path(out), "shape": report.shape, "failed": failures})
    else:
        _print(report, out)
    if not report.shape[0] and not report.failures:
        raise ArchiveError("there is no audio file there", "Name files, or a directory that holds some.")
    return ArchiveError.exit_code if report.failures else 0


def _print(report: TensorReport, out: Path) -> None:
    for path, error in report.failures:
        # What was never there has not vanished, as the kind of error is called in records.
        kind = "" if error["type"] == "vanished" else f"{error['type']}: "
        click.echo(f"{safe_text(path)}: {kind}{safe_text(error['message'])}", err=True)
    if report.shape[0]:
        click.echo(f"{safe_text(str(out))}: features {' × '.join(map(str, report.shape))} float32, paths")
    if report.failures:
        click.echo(f"{counted(len(report.failures), 'file')} could not be read", err=True)
