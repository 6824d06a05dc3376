"""``drumline tune``."""

from __future__ import annotations

import codecs
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drumline.cli.common import (
    Command,
    echo_json,
    json_option,
    path_type,
    quiet_option,
    safe_text,
    shell_word,
)
from drumline.errors import Interrupted, OutputError

if TYPE_CHECKING:
    from drumline.tuning import Tuned

__all__ = ["tune_command"]


@click.command(
    "tune",
    cls=Command,
    short_help="Find the fastest settings for this machine.",
    examples=(
        "drumline tune ~/Samples",
        "drumline tune ~/Samples --dry-run",
        "drumline tune --config studio.yml --json",
    ),
)
@click.argument("archive", required=False, type=path_type())
@click.option(
    "--config",
    "config_file",
    type=path_type(),
    default=Path("config.yml"),
    show_default=True,
    help="Where the settings are written; what else stands there is used and stays.",
)
@click.option(
    "--model", "model_path", type=path_type(), help="Bundle, by directory or name. [default: mfcc-cnn]"
)
@click.option("--device", help="auto, cpu or cuda. [default: auto]")
@click.option(
    "--files", type=click.IntRange(min=1), default=1000, show_default=True, help="Files that are tried."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=2, show_default=True, help="Runs of each value."
)
@click.option("--dry-run", is_flag=True, help="Measure and say what would be written; write nothing.")
@quiet_option
@json_option
def tune_command(
    archive: Path | None,
    config_file: Path,
    model_path: Path | None,
    device: str | None,
    files: int,
    repeats: int,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the fastest workers, batch sizes and model threads for this machine, by trying them.

    Classifies a sample of ARCHIVE, which is only read, or synthesised sounds when none is named, about 35
    times: a minute or two. Values that are clearly faster than the automatic ones are written into the
    configuration, and those that were there before are named; the rest is set to automatic. Where runs with
    the same settings lie as far apart as what won and the automatic ones, nothing is written.

    Exit codes: as those of infer.
    """
    from drumline.config import infer_settings, load_config
    from drumline.tuning import AUTOMATIC, sampled, synthesised, tune

    config = load_config(config_file) if config_file.exists() else None
    known = archive or (config.values.get("archive") if config else None)
    settings = infer_settings(
        config, {"archive": known or Path(), "model_path": model_path, "device": device}
    )
    _check_place(config_file, known)
    if not dry_run:
        _check_writable(config_file)
    try:
        with (sampled if known else synthesised)(settings, files) as sample:
            tuned = tune(sample, repeats, lambda text: None if quiet else click.echo(f"· {text}", err=True))
    except Interrupted as error:
        raise Interrupted("stopped", "Nothing was written.") from error
    values = {**AUTOMATIC, **tuned.settings}
    written = not (dry_run or tuned.too_noisy)
    if written:
        _write(config_file, values)
    before = config.values if config else {}
    if as_json:
        echo_json(_as_json(tuned, values, config_file, written=written))
    elif not quiet:
        _print(tuned, values, before, config_file, dry_run)
        if written:
            click.echo(f"Use it: {_command(archive, before, config_file, model_path, device)}")


def _write(path: Path, values: Mapping[str, int | None]) -> None:
    """Change the values; behind a link, in the file that it leads to. Mode, line ends and BOM stay."""
    from drumline.durable import write_bytes

    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    write_bytes(path, _changed(path, values), mode)


def _changed(path: Path, values: Mapping[str, int | None]) -> bytes:
    from drumline.config_edit import with_values

    data = path.read_bytes() if path.exists() else b"# Found by 'drumline tune'.\n"
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    return mark + with_values(path, data.decode("utf-8-sig"), values).encode()


def _check_place(path: Path, archive: Path | None) -> None:
    """Raise `OutputError` when the configuration would be written into the archive."""
    from drumline.outputs import lies_in

    if archive is not None and lies_in(os.fsencode(path), os.fsencode(archive)):
        raise OutputError(
            f"{str(path)!r} lies in the archive {str(archive)!r}, which is never written to",
            "Name a file outside of the archive with --config.",
        )


def _check_writable(path: Path) -> None:
    """See before all measuring that its result can be written."""
    from drumline.durable import output_errors
    from drumline.tuning import AUTOMATIC

    path = Path(os.path.realpath(path))
    with output_errors(path), tempfile.TemporaryFile(dir=path.parent):
        pass  # permissions, a missing directory and a full disk are told apart only by trying
    _changed(path, AUTOMATIC)


def _as_json(tuned: Tuned, values: Mapping[str, int | None], path: Path, *, written: bool) -> dict[str, Any]:
    return {
        "settings": dict(values),
        "auto_files_per_sec": tuned.auto_files_per_sec,
        "best_files_per_sec": tuned.best_files_per_sec,
        "auto_share": round(tuned.auto_share, 4),
        "scatter": round(tuned.scatter, 4),
        "too_noisy": tuned.too_noisy,
        "trials": [trial._asdict() for trial in tuned.trials],
        "config": safe_text(bytes(path)),
        "written": written,
    }


def _print(
    tuned: Tuned, values: Mapping[str, int | None], before: Mapping[str, Any], path: Path, dry_run: bool
) -> None:
    for trial in tuned.trials:
        tried = "auto" if trial.value is None else trial.value
        click.echo(f"{trial.setting:<15} {tried!s:>5} {trial.files_per_sec:>10,.0f} files/s")
    if tuned.too_noisy:
        click.echo(
            f"Too noisy: nothing {'would be ' if dry_run else ''}written. What won before reached"
            f" {tuned.best_files_per_sec:,.0f} files/s in the end, the automatic settings"
            f" {tuned.auto_files_per_sec:,.0f}, and their own runs lie {tuned.scatter - 1:.0%} apart.\n"
            "Try again when the machine has nothing else to do, or with more --files."
        )
        return
    click.echo(
        f"Best: {tuned.best_files_per_sec:,.0f} files/s; the automatic settings reach {tuned.auto_share:.0%}."
    )
    click.echo(f"{'Would write' if dry_run else 'Wrote'} into {safe_text(str(path))}:")
    for name, value in values.items():
        was = f"  # was {_shown(before[name])}" if before.get(name, value) != value else ""
        click.echo(f"  {name}: {_shown(value)}{was}")


def _command(
    archive: Path | None, before: Mapping[str, Any], config_file: Path, model: Path | None, device: str | None
) -> str:
    """Return the command that uses what was written, with what else was asked for."""
    named = "" if before.get("archive") else " ARCHIVE"
    words = ["drumline infer" + (f" {shell_word(str(archive))}" if archive else named)]
    options = {"--config": config_file, "--model": model, "--device": device}
    words += [f"{name} {shell_word(str(value))}" for name, value in options.items() if value is not None]
    return " ".join(words)


def _shown(value: int | None) -> str:
    return "null" if value is None else str(value)
