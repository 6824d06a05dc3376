"""Settings by name, and sweeps over them: what is read, what is refused, what is tried and in which order."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from drumline.errors import ConfigError
from drumline_convert import cli_train, recipe
from drumline_convert.metrics import Metrics
from drumline_convert.recipe import as_yaml, known_values, parse_assignments, read_recipe, with_values
from drumline_convert.sweep import Trial, ranking, read_sweep
from drumline_convert.workbench import ModelSettings

SETTINGS = ModelSettings(Path("corpus"), Path("bundle"))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    text = "architecture: {widths: [8, 8]}\ntraining:\n  fit: {learning_rate: 1e-3}\n  epochs: 3\n"
    changed = with_values(SETTINGS, read_recipe(written(tmp_path / "recipe.yml", text)))
    assert changed.architecture.widths == (8, 8)
    assert changed.training.fit.learning_rate == 1e-3
    assert changed.training.epochs == 3
    before, after = known_values(SETTINGS), known_values(changed)
    assert {name for name in before if before[name] != after[name]} == {
        "architecture.widths",
        "training.fit.learning_rate",
        "training.epochs",
    }


def test_what_is_printed_is_a_recipe_that_changes_nothing(tmp_path: Path) -> None:
    printed = CliRunner().invoke(cli_train.train, ["recipe"])
    assert printed.output == as_yaml(SETTINGS)
    file = written(tmp_path / "recipe.yml", printed.output)
    assert with_values(SETTINGS, read_recipe(file)) == SETTINGS


def test_assignments_are_read_as_yaml() -> None:
    assert parse_assignments(["training.epochs=3", "architecture.widths=[4, 8]", "a.b=text"]) == {
        "training.epochs": 3,
        "architecture.widths": [4, 8],
        "a.b": "text",
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.epochs", "NAME=VALUE"),
        ("training.epochs=[", "--set"),
        ("training.epoch=3", "no setting 'training.epoch'"),
        ("training.learning_rate=1", r"training\.fit\.learning_rate"),
        ("training.epochs=many", "cannot be 'many'"),
        ("training.epochs=true", "cannot be True"),
        ("training.epochs=0", "epochs"),
        ("front_end.kind=waveform", "see spectra"),
        ("training.fit.patience=2", "validation"),
    ],
)
def test_a_wrong_assignment_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_values(SETTINGS, parse_assignments([assignment]))


def test_values_that_only_make_sense_together_are_taken_together() -> None:
    values = {
        "training.fit.patience": 3,
        "training.validation": 0.2,
        "front_end.n_mfcc": 200,
        "front_end.n_mels": 256,
    }
    assert known_values(with_values(SETTINGS, values)) == {**known_values(SETTINGS), **values}


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    text = "space:\n  training.epochs: [1, 2]\n  training.seed: [0, 1, 2]\nfolds: [0, 3]\n"
    sweep = read_sweep(written(tmp_path / "sweep.yml", text))
    assert len(sweep.trials) == 6
    assert sweep.trials[1] == {"training.epochs": 1, "training.seed": 1}
    assert sweep.folds == (0, 3)


@pytest.mark.parametrize("name", ["parts.yml", "parts_of_features.yml"])
def test_the_shipped_sweeps_try_settings_that_there_are(name: str) -> None:
    path = Path(recipe.__file__).with_name(name)
    sweep = read_sweep(path)
    text = path.read_text()
    (named,) = re.findall(r"--recipe \S+/(\S+)", text)
    plain = with_values(SETTINGS, read_recipe(path.with_name(named)))
    base = with_values(plain, parse_assignments(re.findall(r"--set '?([^\s']+)", text)))
    assert base.architecture.bands == 48
    assert sweep.trials[0] == {}
    made = [with_values(base, values) for values in sweep.trials]
    assert all(settings != base for settings in made[1:])


def test_a_random_sweep_is_seeded_and_within_its_ranges(tmp_path: Path) -> None:
    space = {
        "training.fit.learning_rate": {"from": 1e-4, "to": 1e-2, "log": True},
        "training.sampling.mixup": {"from": 0, "to": 0.4},
        "training.epochs": [5, 7],
    }
    text = yaml.safe_dump({"kind": "random", "trials": 30, "seed": 3, "space": space})
    first, again = (read_sweep(written(tmp_path / "sweep.yml", text)) for _ in range(2))
    assert first == again
    assert len(first.trials) == 30
    rates = [trial["training.fit.learning_rate"] for trial in first.trials]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) > 8
    assert {trial["training.epochs"] for trial in first.trials} == {5, 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: grid", "no space"),
        ("kind: annealing\nspace: {a: [1]}", "none of grid"),
        ("space: {a: {from: 0, to: 1}}", "a grid needs a list"),
        ("kind: random\nspace: {a: {from: 2, to: 1}}", "range of a"),
        ("kind: random\nspace: {a: {from: 0, to: 1, log: true}}", "range of a"),
        ("space: {a: [1]}\ntrails: 3", "'trails'"),
        ("kind: list\nspace: {a: [1]}", "no trials"),
        ("- 1", "no mapping"),
        ("a: [", "cannot read the sweep"),
    ],
)
def test_a_wrong_sweep_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(written(tmp_path / "sweep.yml", text))


def figures(accuracy: float) -> Metrics:
    return Metrics(**{field.name: accuracy for field in dataclasses.fields(Metrics)})


def test_the_ranking_says_the_mean_and_how_far_folds_differ() -> None:
    trial = Trial(2, {"training.epochs": 3}, {0: figures(0.5), 1: figures(0.7)})
    report = ranking([trial], planned=4)
    assert "1 of 4 trials" in report
    assert "| 1 | training.epochs = 3 | 0.6000 |" in report
    assert "| 0.1000 | – |" in report
    first = Trial(1, {}, {0: figures(0.4), 1: figures(0.7)})
    lines = ranking([trial, first], planned=4).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[-2:]] == ["+0.0500", "+0.0000"]
