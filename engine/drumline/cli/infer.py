"""``drumline infer``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import (
    THRESHOLD,
    Command,
    comma_separated,
    echo_json,
    json_option,
    path_type,
    quiet_option,
    safe_text,
    short_path,
)
from drumline.errors import FilesGoneError
from drumline.wording import counted, size_text

if TYPE_CHECKING:
    from drumline.pipeline.profile import Profile
    from drumline.settings import InferSettings

__all__ = ["infer_command"]


@click.command(
    "infer",
    cls=Command,
    short_help="Classify an archive and write an index.",
    examples=(
        "drumline infer ~/Samples",
        "drumline infer ~/Samples --threshold 0.7 --labels Kick,Snare",
        "drumline infer --config config.yml --json > summary.json",
        "drumline infer ~/Samples --dry-run",
    ),
)
@click.argument("archive", required=False, type=path_type())
@click.option(
    "--config", "config_file", type=path_type(), help="Read settings from this file; options here win."
)
@click.option(
    "--runs-root", type=path_type(), help="Directory for runs and cache. [default: ClassifiedArchive]"
)
@click.option(
    "--model", "model_path", type=path_type(), help="Bundle, by directory or name. [default: mfcc-cnn]"
)
@click.option("--label-map", type=path_type(), help="Label file in place of the bundle's own.")
@click.option("--canonical-map", type=path_type(), help="Canonical mapping in place of the bundle's own.")
@click.option("--device", help="auto, cpu or cuda. [default: auto]")
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=None,
    help="On a GPU: replay batches as CUDA graphs. [default: off]",
)
@click.option(
    "--cuda-memory-mb", type=int, help="On a GPU: most memory for the model's arena. [default: all of it]"
)
@click.option("--workers", type=int, help="Extract processes. [default: one for each CPU, four on a network]")
@click.option("--batch-size", type=int, help="Most files that the model is given at once. [default: 64]")
@click.option("--cpu-batch-size", type=int, help="Files in one call of the model on the CPU. [default: 16]")
@click.option(
    "--model-threads", type=int, help="CPU threads of the model. [default: one for every four CPUs]"
)
@click.option(
    "--threshold",
    type=THRESHOLD,
    help="Below this probability a file is misc; or an operating point of the model: precision=0.95."
    " [default: 0.5]",
)
@click.option(
    "--gate/--no-gate",
    default=None,
    help="Whether the model's gate, if it has one, may say misc. [default: on]",
)
@click.option(
    "--gate-threshold",
    type=float,
    help="Below this probability of being a kit drum a file is misc. [default: as the gate was fitted]",
)
@click.option("--misc-label", help="What misc is called. [default: misc]")
@click.option(
    "--labels", "target_labels", callback=comma_separated, help="Wanted canonical labels: A,B. [default: all]"
)
@click.option("--top-k", type=int, help="Fine labels listed in a record. [default: 3]")
@click.option("--hash-algorithm", help="xxh3_64, xxh64, md5 or sha256. [default: xxh3_64]")
@click.option(
    "--dedup-hash/--no-dedup-hash", default=None, help="Take over predictions of known content. [default: on]"
)
@click.option(
    "--audio-stats/--no-audio-stats",
    "include_audio_stats",
    default=None,
    help="Level, centroid, rolloff. [default: on]",
)
@click.option("--compress-index", help="zstd, gzip or none. [default: zstd]")
@click.option(
    "--formats", "supported_formats", callback=comma_separated, help="Extensions that count: wav,flac."
)
@click.option(
    "--file-timeout",
    "file_timeout_sec",
    type=float,
    help="Seconds without progress until a file is given up. [default: 30]",
)
@click.option("--max-file-mb", type=int, help="Larger files are not read. [default: 4000]")
@click.option("--worker-memory-mb", type=int, help="Memory that a file may cost a worker. [default: 1000]")
@click.option(
    "--follow-links", help="Links to files that are read: all, inside (the archive) or none. [default: all]"
)
@click.option(
    "--one-file-system", is_flag=True, default=None, help="Pass over what is mounted below ARCHIVE."
)
@click.option("--io", help="What ARCHIVE lies on: auto, ssd, hdd or network. [default: auto]")
@click.option("--nice", is_flag=True, default=None, help="Let everything else on the machine go first.")
@click.option("--fresh", is_flag=True, default=None, help="Ignore earlier runs and the cache.")
@click.option("--retry-failed", is_flag=True, default=None, help="Try files again that failed before.")
@click.option(
    "--yes", is_flag=True, default=None, help="Go on although more than 5 % of known files are gone."
)
@click.option(
    "--accept-missing", is_flag=True, default=None, help="Go on although most known files are gone."
)
@click.option("--dry-run", is_flag=True, help="Say what would be read and what carried over; write nothing.")
@click.option(
    "--profile",
    is_flag=True,
    help="Say where the time went; profile.json and a timeline go beside the index.",
)
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Say which settings, model and cache are used.")
@json_option
def infer_command(
    config_file: Path | None,
    dry_run: bool,
    profile: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Classify every audio file of ARCHIVE and write an index. ARCHIVE is only read.

    Makes RUNS_ROOT/run_<time>/ with index.jsonl.zst, run.json and summary.json. The same command again goes
    on with an unfinished run; after a finished one, it reads only what is new or changed.

    Exit codes: 0 done, 1 a fault in drumline, 2 wrong command line, 3 wrong settings, 4 wrong model, 5 no
    ONNX Runtime or not the device asked for, 6 archive cannot be read, 7 an earlier index is damaged, 8
    nothing can be written, 9 another run holds the runs root, 10 a stage died, 130 stopped.
    """
    from drumline.config import infer_settings, load_config

    config = load_config(config_file) if config_file else None
    names = {
        "threshold": "threshold",
        "misc_label": "label",
        "gate": "gate",
        "gate_threshold": "gate_threshold",
    }
    misc = {f"misc.{name}": options.pop(option) for option, name in names.items()}
    settings = infer_settings(config, {**options, **misc})
    if dry_run:
        _show_preview(settings, quiet, as_json)
        return
    _infer(settings, profile=profile, quiet=quiet, verbose=verbose, as_json=as_json)


def _infer(settings: InferSettings, *, profile: bool, quiet: bool, verbose: bool, as_json: bool) -> None:
    settings = settings.settled()
    if verbose:
        _show_settings(settings)
    if not quiet:
        _say_where_the_runs_go(settings)
    measured = _profile(settings) if profile else None
    try:
        summary = _run_or_ask(settings, quiet, measured)
        if as_json:
            echo_json({**summary, "profile": measured.report()} if measured else summary)
        elif not quiet:
            from drumline.cli.report import show_summary

            show_summary(summary, settings.misc.label)
    finally:
        if measured and measured.directory:
            _show_profile(measured)


def _profile(settings: InferSettings) -> Profile:
    from drumline.pipeline.profile import Profile

    return Profile(settings.worker_count)


def _say_where_the_runs_go(settings: InferSettings) -> None:
    archive, runs_root = os.path.realpath(settings.archive), os.path.realpath(settings.runs_root)
    if os.path.isdir(archive) and runs_root.startswith(os.path.join(archive, "")):
        click.echo(
            f"drumline: the runs root {safe_text(runs_root)!r} lies inside the archive,"
            " and only it is written there\n  --runs-root puts it elsewhere.",
            err=True,
        )


def _run_or_ask(settings: InferSettings, quiet: bool, profile: Profile | None) -> dict[str, Any]:
    try:
        return _run(settings, quiet, profile)
    except FilesGoneError as error:
        question = f"{safe_text(error.what)}. Go on without them?"
        if not sys.stdin.isatty() or not click.confirm(question, err=True):
            raise
    return _run(replace(settings, yes=True), quiet, profile)


def _run(settings: InferSettings, quiet: bool, profile: Profile | None) -> dict[str, Any]:
    from drumline.pipeline.infer import infer
    from drumline.progress import make_progress

    progress = make_progress(safe_text(f"drumline · {settings.archive}"), quiet=quiet)
    try:
        return infer(settings, progress, profile)
    finally:
        progress.close()


def _show_profile(profile: Profile) -> None:
    from drumline.cli.profile import show_profile

    show_profile(profile.report(), profile.directory)


def _show_settings(settings: InferSettings) -> None:
    import yaml

    from drumline.bundle import load_bundle
    from drumline.runs import CACHE_NAME

    plain = settings.to_json() | {"workers": settings.worker_count}
    written = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    for line in written.splitlines():
        click.echo(safe_text(line), err=True)
    bundle, cache = load_bundle(settings.model_path), settings.runs_root / CACHE_NAME
    size = size_text(cache.stat().st_size) if cache.is_file() else "not there yet"
    path = safe_text(short_path(os.fspath(bundle.path)))
    click.echo(f"model: {safe_text(bundle.name)} {safe_text(bundle.version)}, {path}", err=True)
    click.echo(f"cache: {safe_text(os.fspath(cache))}, {size}", err=True)


def _show_preview(settings: InferSettings, quiet: bool, as_json: bool) -> None:
    from drumline.pipeline.run import preview

    plan = preview(settings)
    if as_json:
        echo_json(plan)
    elif not quiet:
        _print_preview(plan)


def _print_preview(plan: dict[str, Any]) -> None:
    counts = plan["counts"]
    click.echo(f"{counted(counts['discovered'], 'audio file')} in {safe_text(plan['archive_root'])}")
    click.echo(f"  {counts['to_read']:,} would be read ({size_text(counts['to_read_bytes'])})")
    click.echo(f"  {counts['carried_over']:,} would be carried over")
    if counts["gone"]:
        click.echo(f"  {counted(counts['gone'], 'known file')} gone")
    if counts["unreadable_directories"]:
        click.echo(f"  {counted(counts['unreadable_directories'], 'directory', 'directories')} unreadable")
