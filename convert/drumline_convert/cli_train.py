"""``drumline train``: thin, and light to import; TensorFlow is imported by a command when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from drumline.cli.common import Command, echo_json, json_option, path_type
from drumline_convert.cli_common import (
    build_option,
    bundle_option,
    out_option,
    require,
    run_option,
    taxonomy_option,
    version_option,
)

__all__ = ["train"]

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx")

_TRAINING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--corpus",
        type=path_type(),
        help="Directory with manifest.jsonl. [default: DRUMLINE_CORPUS, or else ../shared/corpus]",
    ),
    build_option("--build", "Directory to keep features and results in."),
    taxonomy_option,
    click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Folds by family."),
    click.option(
        "--epochs", type=click.IntRange(1), help="Epochs of every training. [default: as the shipped model]"
    ),
    click.option("--seed", type=int, help="Seed of the trainings; the folds stay. [default: 0]"),
    click.option(
        "--threads",
        type=click.IntRange(1),
        default=2,
        show_default=True,
        help="Cores used: so many trainings run at once, each on one; a single training uses all.",
    ),
    click.option(
        "--recipe", type=path_type(), help="YAML file with settings; 'drumline train recipe' prints all."
    ),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="One setting, as training.sampling.mixup=0.2; may be given again.",
    ),
    click.option(
        "--start", type=path_type(), help="Bundle or .keras file whose weights training starts from."
    ),
    json_option,
)


def _training_options(function: F) -> F:
    """Add what all trainings are told."""
    for option in reversed(_TRAINING_OPTIONS):
        function = option(function)
    return function


@click.group()
def train() -> None:
    """Train models from labelled recordings."""


@train.command(
    cls=Command,
    name="model",
    short_help="Train a model, and write a bundle.",
    examples=("drumline train model --corpus ../shared/corpus --out models/mfcc-cnn",),
)
@bundle_option("models/mfcc-cnn")
@version_option
@_training_options
def model_command(out: Path, version: str, as_json: bool, **options: Any) -> None:
    """Cross-validate, train on everything, calibrate, convert, and write a bundle.

    A stopped run goes on where it was: features, every fold and the final network are kept below --build.
    """
    _run(out, version, as_json, make_bundle=True, **options)


@train.command(
    cls=Command,
    name="crossval",
    examples=("drumline train crossval --folds 5 --json", "drumline train crossval --precision int8"),
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16"]),
    help="Measure the folds' networks in smaller numbers. [default: float32]",
)
@_training_options
def crossval_command(as_json: bool, precision: Any, **options: Any) -> None:
    """Train and measure the folds by family, without writing a bundle.

    Figures and held-out logits lie in model/metrics.json and model/held_out.npz below --build; with
    --precision in metrics.int8.json and held_out.int8.npz, from the same trainings.
    """
    _run(Path("models/mfcc-cnn"), "0.0.0", as_json, make_bundle=False, precision=precision, **options)


def _run(
    out: Path,
    version: str,
    as_json: bool,
    *,
    make_bundle: bool,
    corpus: Path | None,
    precision: Any = None,
    **options: Any,
) -> None:
    require(*_PACKAGES)
    from drumline_convert.crossval import metrics_table
    from drumline_convert.make_model import cross_validate, make_model

    settings = _settings(corpus, out, version, **options)
    if make_bundle:
        metrics = make_model(settings, _to_stderr)
    else:
        metrics = cross_validate(settings, _to_stderr, precision)
    if as_json:
        echo_json(metrics)
    else:
        click.echo(metrics_table(metrics))


@train.command(
    cls=Command,
    name="sweep",
    examples=(
        "drumline train sweep sweep.yml --out build/sweep",
        "drumline train sweep sweep.yml --set training.epochs=20 --json",
    ),
)
@click.argument("sweep", type=path_type(exists=True, dir_okay=False))
@out_option("Directory of sweep.json and sweep.md.", "build/sweep")
@_training_options
def sweep_command(sweep: Path, out: Path, as_json: bool, corpus: Path | None, **options: Any) -> None:
    """Try many settings on the same folds, and rank them.

    SWEEP is a YAML file: kind (grid, random or list), space (setting names and values), folds, trials, seed.
    A stopped sweep goes on where it was; sweep.json and sweep.md are written anew after every trial.
    """
    require(*_PACKAGES)
    from drumline_convert.sweep import ranking, read_sweep, run_sweep, sweep_json

    planned = read_sweep(sweep)
    settings = _settings(corpus, Path("models/sweep"), "0.0.0", **options)
    trials = run_sweep(settings, planned, out, _to_stderr)
    if as_json:
        echo_json(sweep_json(trials))
    else:
        click.echo(ranking(trials, len(trials)), nl=False)


@train.command(
    cls=Command,
    name="retrain",
    short_help="Train again with corrections.",
    examples=(
        "drumline train retrain --corpus manifest.jsonl --overrides fixes.jsonl --run ClassifiedArchive",
        "drumline train retrain --corpus next.jsonl --old mfcc-cnn --out models/mine --start mfcc-cnn",
    ),
)
@click.option("--old", type=path_type(), help="Bundle to compare with. [default: mfcc-cnn]")
@bundle_option("models/retrained")
@version_option
@click.option("--overrides", type=path_type(), help="Corrections: lines of hash and correct_label.")
@run_option
@click.option("--even-if-worse", is_flag=True, help="Put the new bundle in place in any case.")
@_training_options
def retrain_command(
    old: Path | None,
    out: Path,
    version: str,
    overrides: Path | None,
    run: Path,
    even_if_worse: bool,
    as_json: bool,
    corpus: Path | None,
    **options: Any,
) -> None:
    """Train again with corrections, and replace a bundle only by one that is not worse.

    Both are asked about the same test families, which the new one has not learnt from. What stood at --out is
    kept beside it as NAME.before.
    """
    require(*_PACKAGES)
    from drumline.bundle import DEFAULT_BUNDLE
    from drumline_convert.retrain import Corrections, retrain

    settings = _settings(corpus, out, version, **options)
    corrections = None if overrides is None else Corrections(overrides, run)
    result = retrain(
        settings, old or Path(DEFAULT_BUNDLE), corrections, even_if_worse=even_if_worse, report=_to_stderr
    )
    if as_json:
        echo_json(result)
        return
    before, after, less = (result[part]["accuracy"] for part in ("old", "new", "difference"))
    low, high = less["interval"]
    click.echo(
        f"accuracy {after['value']:.4f}, before {before['value']:.4f}: {less['value']:+.4f} "
        f"({low:+.4f} to {high:+.4f}, 95 % over families)"
    )


@train.command(
    cls=Command,
    name="recipe",
    short_help="Print every setting of a training.",
    examples=("drumline train recipe > recipe.yml",),
)
@json_option
def recipe_command(as_json: bool) -> None:
    """Print every setting of a training, with the values of the shipped model."""
    from drumline_convert.recipe import as_yaml, known_values
    from drumline_convert.workbench import ModelSettings

    settings = ModelSettings(Path("corpus"), Path("bundle"))
    if as_json:
        echo_json(known_values(settings))
    else:
        click.echo(as_yaml(settings), nl=False)


def _settings(
    corpus: Path | None,
    out: Path,
    version: str,
    *,
    build: Path,
    taxonomy: Path | None,
    folds: int,
    epochs: int | None,
    seed: int | None,
    threads: int,
    recipe: Path | None,
    assignments: tuple[str, ...],
    start: Path | None,
) -> Any:
    from drumline_convert.corpus import default_corpus
    from drumline_convert.recipe import parse_assignments, read_recipe, with_values
    from drumline_convert.workbench import ModelSettings

    settings = ModelSettings(
        corpus or default_corpus(), out, build, version, folds=folds, threads=threads, start=start
    )
    given = {"training.seed": seed, "training.epochs": epochs}
    values = read_recipe(recipe) if recipe else {}
    values |= {name: value for name, value in given.items() if value is not None}
    values |= parse_assignments(assignments)
    return with_values(replace(settings, taxonomy=taxonomy or settings.taxonomy), values)


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)
