"""Commands of the training side; the engine's command line mounts `commands` lazily.

Nothing here imports TensorFlow: a command does, when it runs, and says how to install it where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from drumline.cli.common import Command, echo_json, json_option, path_type
from drumline.errors import RuntimeMissingError
from drumline_convert.cli_convert import convert

__all__ = ["commands", "convert", "train"]

F = TypeVar("F", bound=Callable[..., Any])

_NEEDED = ("tensorflow", "keras", "tf2onnx", "onnx")


def _require_training() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise RuntimeMissingError(
            f"training needs {', '.join(missing)}", "Install it with: pip install 'drumline[train,cpu]'"
        )


def _training_options(function: F) -> F:
    options = [
        click.option(
            "--corpus",
            type=path_type(),
            help="Directory with manifest.jsonl (default: DRUMLINE_CORPUS, or else ../shared/corpus).",
        ),
        click.option(
            "--build",
            type=path_type(),
            default=Path("build"),
            show_default=True,
            help="Where results are kept.",
        ),
        click.option(
            "--taxonomy", type=path_type(), help="Taxonomy file (default: the one that is shipped)."
        ),
        click.option(
            "--folds", type=click.IntRange(2), default=5, show_default=True, help="Folds by family."
        ),
        click.option(
            "--epochs",
            type=click.IntRange(1),
            help="Epochs of every training (default: as the shipped model).",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of folds and trainings."),
        click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Cores used."),
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.group()
def train() -> None:
    """Train models from labelled recordings."""


@train.command(
    cls=Command,
    name="model",
    examples=("drumline train model --corpus ../shared/corpus --out models/mfcc-cnn",),
)
@click.option(
    "--out", type=path_type(), default=Path("models/mfcc-cnn"), show_default=True, help="Bundle to write."
)
@click.option("--version", "version", default="0.1.0", show_default=True, help="Version of the bundle.")
@_training_options
def model_command(out: Path, version: str, as_json: bool, **options: Any) -> None:
    """Cross-validate, train on everything, calibrate, convert, and write a bundle.

    A stopped run goes on where it was: features, every fold and the final network are kept below --build.
    """
    _run(out, version, as_json, make_bundle=True, **options)


@train.command(cls=Command, name="crossval", examples=("drumline train crossval --folds 5 --json",))
@_training_options
def crossval_command(as_json: bool, **options: Any) -> None:
    """Train and measure the folds by family, without writing a bundle."""
    _run(Path("models/mfcc-cnn"), "0.0.0", as_json, make_bundle=False, **options)


def _run(
    out: Path, version: str, as_json: bool, *, make_bundle: bool, corpus: Path | None, **options: Any
) -> None:
    _require_training()
    from drumline_convert.corpus import default_corpus
    from drumline_convert.crossval import metrics_table
    from drumline_convert.make_model import cross_validate, make_model

    settings = _settings(corpus or default_corpus(), out, version, **options)
    metrics = (make_model if make_bundle else cross_validate)(settings, _to_stderr)
    if as_json:
        echo_json(metrics)
    else:
        click.echo(metrics_table(metrics))


def _settings(
    corpus: Path,
    out: Path,
    version: str,
    *,
    build: Path,
    taxonomy: Path | None,
    folds: int,
    epochs: int | None,
    seed: int,
    threads: int,
) -> Any:
    from drumline_convert.workbench import ModelSettings

    settings = ModelSettings(corpus, out, build, version, folds=folds, threads=threads)
    training = replace(settings.training, seed=seed, epochs=epochs or settings.training.epochs)
    return replace(settings, taxonomy=taxonomy or settings.taxonomy, training=training)


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


commands: tuple[click.Command, ...] = (train, convert)
"""What the engine's command line mounts, by name."""
