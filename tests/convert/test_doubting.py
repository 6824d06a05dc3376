"""A training doubts labels by networks that heard neither their families nor what it is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.errors import ConfigError
from drumline_convert.architecture import Architecture
from drumline_convert.augment import AugmentSettings
from drumline_convert.batches import SamplingSettings, TrainingData
from drumline_convert.doubting import DoubtSettings, doubtful
from drumline_convert.taxonomy import TrainingTaxonomy
from drumline_convert.training import TrainingSettings
from drumline_convert.workbench import ModelSettings, Workbench, prepare

FOLDS = 3
TRAINING = TrainingSettings(
    epochs=1, members=2, sampling=SamplingSettings(batch_size=8), doubt=DoubtSettings(folds=2)
)


@pytest.fixture(scope="module")
def bench(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    build = tmp_path_factory.mktemp("doubting")
    settings = ModelSettings(
        tiny_corpus,
        build / "tiny",
        build,
        folds=FOLDS,
        augment=AugmentSettings(variants=2),
        architecture=Architecture(bands=16, stem=4, widths=(8,)),
        training=TRAINING,
    )
    return prepare(settings, lambda _: None)


def logits_of(fine: np.ndarray, labels: int, sure: float = 9.0) -> np.ndarray:
    return sure * np.eye(labels, dtype=np.float32)[fine]


def test_a_label_is_doubted_where_another_is_heard_surely(taxonomy: TrainingTaxonomy) -> None:
    labels, rng = len(taxonomy.fine), np.random.default_rng(0)
    heard = rng.integers(0, labels, 400)
    stated = heard.copy()
    canonical = taxonomy.collapse.argmax(axis=1)
    wrong = rng.choice(400, 20, replace=False)
    stated[wrong] = [rng.choice(np.flatnonzero(canonical != canonical[heard[at]])) for at in wrong]
    doubted = doubtful(logits_of(heard, labels), stated, taxonomy.collapse, 0.9)
    assert sorted(np.flatnonzero(doubted)) == sorted(wrong)


def test_what_is_not_heard_surely_or_is_another_fine_label_of_the_same_drum_is_not_doubted(
    taxonomy: TrainingTaxonomy,
) -> None:
    closed, open_, kick = (taxonomy.fine.index(name) for name in ("HihatClosed", "HihatOpen", "Kick"))
    stated = np.array([closed, kick] * 50)
    hats = logits_of(np.array([open_, kick] * 50), len(taxonomy.fine))
    assert not doubtful(hats, stated, taxonomy.collapse, 0.9).any()
    unsure = np.zeros_like(hats)
    assert not doubtful(unsure, stated, taxonomy.collapse, 0.9).any()


@pytest.mark.parametrize(
    "values", [{"folds": 1}, {"folds": -2}, {"probability": 0.0}, {"probability": 1.1}, {"weight": -0.1}]
)
def test_doubts_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"doubt\."):
        DoubtSettings(**values)


class Trainings:
    """Stands in for training; hears what the recordings are stated as, but for the first of fold 1 or 2."""

    def __init__(self, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, TrainingData, TrainingSettings]] = []
        self._heard = bench.fine.copy()
        self.wrong = np.flatnonzero(bench.fold_of != 0)[:1]
        canonical = bench.taxonomy.collapse.argmax(axis=1)
        for at in self.wrong:
            self._heard[at] = np.flatnonzero(canonical != canonical[bench.fine[at]])[0]
        self._place = {int(row): place for place, row in enumerate(bench.rows)}
        monkeypatch.setattr(Workbench, "_network", self._network)
        monkeypatch.setattr("drumline_convert.workbench.predict_logits", self._predict)
        monkeypatch.setattr("drumline_convert.workbench.prepare_tensorflow", lambda _threads: None)
        self._labels = len(bench.taxonomy.fine)

    def _network(self, data: TrainingData, training: TrainingSettings, what: str, name: str) -> str:
        self.done.append((name, data, training))
        return what

    def _predict(self, _network: str, _features: np.ndarray, rows: np.ndarray) -> np.ndarray:
        places = [self._place[int(row)] for row in rows]
        # What is heard more surely than others of its kind reaches the threshold of their mean.
        surer = 1 + 0.5 * np.isin(places, self.wrong)
        return logits_of(self._heard[places], self._labels) * surer[:, None]


@pytest.fixture
def fresh(bench: Workbench, tmp_path: Path) -> Workbench:
    """The bench with a directory of its own."""
    return replace(bench, directory=tmp_path)


def test_doubted_recordings_weigh_less_in_the_training_and_what_is_held_out_has_no_say(
    fresh: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(fresh, monkeypatch)
    fresh.fold_network(0)
    names = [name for name, _, _ in trainings.done]
    assert names == ["fold0/doubt0", "fold0/doubt1", "fold0"]
    shown = [set(data.rows.tolist()) for _, data, _ in trainings.done]
    held_out = set(fresh.rows[fresh.fold_of == 0].tolist())
    assert not any(rows & held_out for rows in shown)
    assert shown[0] | shown[1] == shown[2]
    assert [training.members for _, _, training in trainings.done] == [1, 1, 2]
    _, data, _ = trainings.done[2]
    lighter = {int(row) for row, weight in zip(data.rows, data.weight, strict=True) if weight < 0.5}
    assert lighter == set(fresh.rows[trainings.wrong].tolist())


def test_no_family_is_judged_by_a_network_that_heard_it(
    fresh: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(fresh, monkeypatch)
    fresh.fold_network(0)
    family = {int(row): recording.family for row, recording in zip(fresh.rows, fresh.recordings, strict=True)}
    learnt = set(trainings.done[2][1].rows.tolist())
    for _, data, _ in trainings.done[:2]:
        heard = {family[row] for row in data.rows.tolist()}
        judged = {family[row] for row in learnt - set(data.rows.tolist())}
        assert judged
        assert not heard & judged


def test_a_training_that_goes_on_keeps_its_doubts(fresh: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings(fresh, monkeypatch)
    fresh.fold_network(0)
    weights = trainings.done[2][1].weight
    trainings.done.clear()
    fresh.fold_network(0)
    assert [name for name, _, _ in trainings.done] == ["fold0"]
    assert np.array_equal(trainings.done[0][1].weight, weights)


@pytest.mark.parametrize(("families", "networks"), [(1, 0), (2, 2), (5, 4)])
def test_there_are_no_more_doubting_networks_than_families(
    fresh: Workbench, monkeypatch: pytest.MonkeyPatch, families: int, networks: int
) -> None:
    trainings = Trainings(fresh, monkeypatch)
    names = sorted({recording.family for recording in fresh.recordings})[:families]
    some = [place for place, recording in enumerate(fresh.recordings) if recording.family in names]
    training = replace(fresh.settings.training, doubt=DoubtSettings(folds=4))
    bench = replace(fresh, settings=replace(fresh.settings, training=training))
    bench.trained(np.array(some), "some", "some")
    assert len(trainings.done) == networks + 1
