"""Many settings, tried on the same folds and ranked.

A sweep is a YAML file::

    kind: grid                # every combination; or "random": `trials` of them, drawn by `seed`
    folds: [3, 4]             # which folds are trained, from 0; left out: all of them
    space:
      training.loss.label_smoothing: [0.0, 0.05, 0.1]
      training.fit.learning_rate: {from: 5.0e-4, to: 4.0e-3, log: true}    # random only

or names its trials one by one::

    kind: list
    trials: [{}, {training.sampling.mixup: 0.2}, {front_end.kind: log-mel, front_end.n_mels: 64}]

Each trial is an ordinary training, kept under its own settings' name, so a sweep that is stopped goes on, two
sweeps share what they have in common, and the report is written anew after every trial. The folds of all
trials are trained side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drumline.durable import output_errors, write_bytes, write_json
from drumline.errors import ConfigError
from drumline_convert.metrics import FIGURES, Metrics, evaluate, softmax
from drumline_convert.recipe import read_yaml, with_values
from drumline_convert.side_by_side import Training, train_side_by_side
from drumline_convert.workbench import ModelSettings, Report, Workbench, prepare

__all__ = ["Sweep", "Trial", "ranking", "read_sweep", "run_sweep", "sweep_json"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is tried.

    Parameters
    ----------
    trials
        Values by dotted name, one mapping for each trial.
    folds
        Folds that every trial is trained on, from 0; None for all.
    """

    trials: tuple[dict[str, Any], ...]
    folds: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one trial.

    Parameters
    ----------
    number
        Its place in the sweep, from 1.
    values
        The settings that it has, by dotted name.
    folds
        Figures of each fold, by fold number.
    """

    number: int
    values: dict[str, Any]
    folds: dict[int, Metrics]

    def mean(self, name: str) -> float:
        """Mean of one figure over the folds."""
        return float(np.mean([getattr(figures, name) for figures in self.folds.values()]))

    def less(self, other: Trial) -> dict[str, float]:
        """Return the mean of each figure, less that of another trial on the same folds."""
        return {name: round(self.mean(name) - other.mean(name), 4) for name in FIGURES}

    def to_json(self) -> dict[str, Any]:
        """Return values, the mean of each figure, and the figures of each fold."""
        return {
            "number": self.number,
            "values": self.values,
            "mean": {name: round(self.mean(name), 4) for name in FIGURES},
            "folds": {str(fold): figures.to_json() for fold, figures in self.folds.items()},
        }


def sweep_json(trials: list[Trial]) -> dict[str, Any]:
    """Return all trials, each with its ``difference`` to the sweep's first one; None until that is done."""
    first = _first(trials)
    return {
        "trials": [
            {**trial.to_json(), "difference": None if first is None else trial.less(first)}
            for trial in trials
        ]
    }


def _first(trials: list[Trial]) -> Trial | None:
    return next((trial for trial in trials if trial.number == 1), None)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises
    ------
    ConfigError
        When it cannot be read or says something that makes no sense.
    """
    value = read_yaml(path, "sweep")
    unknown = sorted(set(value) - {"kind", "trials", "seed", "folds", "space"})
    if unknown:
        raise ConfigError(f"the sweep {str(path)!r} says {unknown[0]!r}, which means nothing")
    folds = value.get("folds")
    return Sweep(tuple(_trials(value, path)), None if folds is None else tuple(int(fold) for fold in folds))


def _trials(value: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    kind, space, trials = value.get("kind", "grid"), value.get("space"), value.get("trials")
    if kind == "list":
        if not isinstance(trials, list) or not trials or not all(isinstance(one, dict) for one in trials):
            raise ConfigError(f"the sweep {str(path)!r} has no trials: a list of settings and their values")
        return iter(trials)
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"the sweep {str(path)!r} has no space: setting names and their values")
    if kind == "random":
        return _random(space, int(trials or 10), int(value.get("seed", 0)))
    if kind != "grid":
        raise ConfigError(f"the sweep's kind {kind!r} is none of grid, random and list")
    return _grid(space)


def _grid(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, choices in space.items():
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"a grid needs a list of values for {name}", "Ranges are for kind: random.")
    for combination in itertools.product(*space.values()):
        yield dict(zip(space, combination, strict=True))


def _random(space: Mapping[str, Any], trials: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        yield {name: _drawn(name, choices, rng) for name, choices in space.items()}


def _drawn(name: str, choices: Any, rng: np.random.Generator) -> Any:
    if isinstance(choices, list) and choices:
        return choices[int(rng.integers(len(choices)))]
    try:
        low, high, log = float(choices["from"]), float(choices["to"]), bool(choices.get("log", False))
        if not low < high or (log and low <= 0):
            raise ValueError("it is empty")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"the range of {name} cannot be used: {error}", "Write {from: LOW, to: HIGH}."
        ) from error
    value = np.exp(rng.uniform(np.log(low), np.log(high))) if log else rng.uniform(low, high)
    return float(f"{value:.4g}")


def run_sweep(settings: ModelSettings, sweep: Sweep, out: Path, report: Report = print) -> list[Trial]:
    """Train and measure every trial, and write ``sweep.json`` and ``sweep.md`` into `out` after each.

    Returns
    -------
    list
        All trials, best mean accuracy first.

    Raises
    ------
    ConfigError
        When a trial has a setting that does not exist, or a fold that does not; before anything is trained.
    OutputError
        When the report cannot be written.
    """
    planned = [with_values(settings, values) for values in sweep.trials]
    folds = tuple(range(settings.folds) if sweep.folds is None else sweep.folds)
    if not folds or not set(folds) <= set(range(settings.folds)):
        raise ConfigError(f"the sweep's folds {sorted(folds)} are not among 0 to {settings.folds - 1}")
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    benches = [
        _prepared(trial, values, f"trial {number} of {len(planned)}", report)
        for number, (values, trial) in enumerate(zip(sweep.trials, planned, strict=True), start=1)
    ]
    done: dict[int, Trial] = {}

    def write_ranking() -> None:
        for number, (values, bench) in enumerate(zip(sweep.trials, benches, strict=True), start=1):
            if number not in done and all(bench.result(fold).exists() for fold in folds):
                done[number] = Trial(number, values, fold_figures(bench, folds))
                _write(out, _ranked(done.values()), len(planned))

    write_ranking()
    trainings = [Training(bench, fold) for bench in benches for fold in folds]
    train_side_by_side(trainings, settings.threads, write_ranking)
    return _ranked(done.values())


def _prepared(trial: ModelSettings, values: Mapping[str, Any], name: str, report: Report) -> Workbench:
    report(f"{name}: {values}")
    return prepare(trial, lambda line: report(f"{name}, {line}"))


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials by their mean accuracy, equal ones in the sweep's order."""
    return sorted(trials, key=lambda trial: (-trial.mean("accuracy"), trial.number))


def _write(out: Path, trials: list[Trial], planned: int) -> None:
    write_json(out / "sweep.json", sweep_json(trials))
    write_bytes(out / "sweep.md", ranking(trials, planned).encode())


def fold_figures(bench: Workbench, folds: tuple[int, ...]) -> dict[int, Metrics]:
    """Measure each of the folds, training those that are missing."""
    logits = bench.held_out_logits(folds)
    return {
        fold: evaluate(softmax(logits[inside]), bench.fine[inside], bench.taxonomy.collapse)
        for fold in folds
        for inside in (bench.fold_of == fold,)
    }


def ranking(trials: list[Trial], planned: int) -> str:
    """Return the report: a line for each trial, best first, and how sure the order is."""
    first = _first(trials)
    header = ["", "settings", *FIGURES, "spread", "difference"]
    lines = [header, ["---"] * len(header)]
    for place, trial in enumerate(trials, start=1):
        spread = np.std([fold.accuracy for fold in trial.folds.values()])
        values = ", ".join(f"{name} = {value}" for name, value in trial.values.items()) or "as given"
        figures = [f"{trial.mean(name):.4f}" for name in FIGURES]
        less = "–" if first is None else f"{trial.less(first)['accuracy']:+.4f}"
        lines.append([str(place), values, *figures, f"{spread:.4f}", less])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    folds = ", ".join(map(str, trials[0].folds))
    return (
        f"# Sweep\n\n{len(trials)} of {planned} trials, mean of the folds {folds} (from 0); `spread` is the "
        "standard deviation of the\naccuracy over the folds, `difference` the accuracy less that of the "
        "sweep's first trial. What differs by less than two seeds do is no "
        f"difference: put `training.seed` into the space.\n\n{table}\n"
    )
