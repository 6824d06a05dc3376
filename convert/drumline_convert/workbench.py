"""What all trainings of one model share: recordings, folds, features, and where results are kept.

The directory of a training is named by all that decides its result (settings, recordings, folds), so changed
settings never meet old results, and a stopped run goes on with the folds that are still missing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.durable import output_errors, write_bytes
from drumline.errors import ConfigError
from drumline.frontend import FrontEnd
from drumline.records import display_path
from drumline_convert.architecture import Architecture
from drumline_convert.augment import AugmentSettings
from drumline_convert.corpus import Recording, read_corpus
from drumline_convert.dataset import FeatureStore
from drumline_convert.doubting import DoubtSettings, doubtful
from drumline_convert.fitting import EpochDone
from drumline_convert.split import family_folds, family_groups, manifest_folds
from drumline_convert.taxonomy import DEFAULT_TAXONOMY, TrainingTaxonomy, read_taxonomy
from drumline_convert.training import (
    Start,
    TrainingData,
    TrainingSettings,
    predict_logits,
    prepare_tensorflow,
    train,
)
from drumline_convert.transfer import load_earlier, take_over

__all__ = ["ModelSettings", "Report", "Workbench", "load_model", "prepare", "save_array", "save_model"]

DOUBTED_NAME = "doubted.npy"
"""Where a training keeps which labels it doubts."""

Report = Callable[[str], None]
"""Takes a line of text as work proceeds."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All that makes a bundle.

    Parameters
    ----------
    corpus
        Manifest, or a directory with ``manifest.jsonl``; its side ``test`` is not learnt from.
    out
        Directory of the bundle; its name is the bundle's.
    build
        Directory of what may be deleted: feature store, folds, ``model/metrics.json``.
    version
        Semantic version of the bundle.
    taxonomy
        Taxonomy file.
    folds
        Folds by family, where the manifest states none.
    fold_seed
        Seed of these folds; apart from that of the training, so that seeds can be compared on the same folds.
    threads
        Cores used.
    start
        Bundle or ``.keras`` file whose weights training starts from.
    front_end, augment, architecture, training
        What the network hears, in which variants, what it is, and how it is trained: what a recipe says.
    """

    corpus: Path
    out: Path
    build: Path = Path("build")
    version: str = "0.1.0"
    taxonomy: Path = DEFAULT_TAXONOMY
    folds: int = 5
    fold_seed: int = 0
    threads: int = 2
    start: Path | None = None
    front_end: FrontEnd = field(default_factory=FrontEnd)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    architecture: Architecture = field(default_factory=Architecture)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if self.front_end.kind == "waveform":
            raise ConfigError(
                "front_end.kind cannot be 'waveform' in training: the networks here see spectra",
                "Train on mfcc or log-mel, and move that: 'drumline convert --front-end-in-graph'.",
            )


@dataclass(frozen=True)
class Workbench:
    """Everything that a training needs, loaded.

    Parameters
    ----------
    settings, taxonomy
        What is made, and its labels.
    recordings
        What is learnt from, n of them.
    fold_of
        Fold of every recording, (n,).
    features
        (blocks, variants, coefficients, frames), memory-mapped.
    rows
        Block of every recording, (n,).
    directory
        Where the results of trainings are kept.
    report
        Called with a line of text as work proceeds.
    """

    settings: ModelSettings
    taxonomy: TrainingTaxonomy
    recordings: list[Recording]
    fold_of: NDArray[np.intp]
    features: NDArray[np.float32]
    rows: NDArray[np.intp]
    directory: Path
    report: Report

    @cached_property
    def fine(self) -> NDArray[np.intp]:
        """True fine label index of every recording, (n,)."""
        return np.array([recording.fine for recording in self.recordings], np.intp)

    @cached_property
    def canonical(self) -> NDArray[np.intp]:
        """True canonical label index of every recording, (n,)."""
        return np.array([recording.canonical for recording in self.recordings], np.intp)

    @property
    def families(self) -> int:
        """How many families there are."""
        return len({recording.family for recording in self.recordings})

    def held_out_logits(self, folds: Iterable[int] | None = None) -> NDArray[np.float32]:
        """Return the logits (n, fine) of every recording by the network that did not see its fold.

        Rows of recordings outside `folds` (None: all) are NaN.
        """
        logits = np.full((len(self.recordings), len(self.taxonomy.fine)), np.nan, np.float32)
        for fold in range(self.settings.folds) if folds is None else folds:
            logits[self.fold_of == fold] = self._fold_logits(fold)
        return logits

    def result(self, fold: int | None) -> Path:
        """Return the file that a training leaves: held-out logits, or without a fold the final network."""
        return self.directory / ("final.keras" if fold is None else f"fold{fold}.npy")

    def name_of(self, fold: int | None) -> str:
        """Return what the training without `fold` is called in reports; None: that on all recordings."""
        return "all recordings" if fold is None else f"fold {fold + 1}"

    def complete(self, fold: int | None) -> None:
        """Do the training that holds `fold` out, None: that on all recordings, unless it is done."""
        if fold is None:
            self.final_model()
        else:
            self._fold_logits(fold)

    def _fold_logits(self, fold: int) -> NDArray[np.float32]:
        path = self.result(fold)
        if not path.exists():
            logits = predict_logits(self.fold_network(fold), self.features, self.rows[self.fold_of == fold])
            save_array(logits, path)
        return np.asarray(np.load(path), np.float32)

    def fold_network(self, fold: int) -> Any:
        """Return the Keras model that does not know `fold`; once trained, it is only put together again."""
        return self.trained(np.flatnonzero(self.fold_of != fold), self.name_of(fold), f"fold{fold}")

    def final_model(self) -> Path:
        """Return the Keras model, as a file, that is trained on all recordings."""
        path = self.result(None)
        if not path.exists():
            save_model(self.trained(np.arange(len(self.recordings)), self.name_of(None), "final"), path)
        return path

    def doubted(self) -> list[str] | None:
        """Return the paths of recordings whose labels the final training doubts; None: it asks nobody."""
        path = self.directory / "final" / DOUBTED_NAME
        if not self.settings.training.doubt.folds or not path.exists():
            return None
        return [display_path(self.recordings[place].path) for place in np.flatnonzero(np.load(path))]

    def trained(self, chosen: NDArray[np.intp], what: str, name: str) -> Any:
        """Return the Keras model that is trained on the recordings numbered `chosen`.

        Parameters
        ----------
        what
            What it is called in reports.
        name
            Directory below this training's where it goes on from when it was stopped.
        """
        prepare_tensorflow(self.settings.threads)
        weight = np.array([recording.weight for recording in self.recordings], np.float32)
        data = TrainingData(
            self.features,
            self.rows[chosen],
            self.fine[chosen],
            weight[chosen],
            self.taxonomy.collapse,
            family_groups(self.recordings)[chosen],
        )
        doubt = self.settings.training.doubt
        if doubt.folds:
            path = self.directory / name / DOUBTED_NAME
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_array(self._doubted(data, chosen, what, name), path)
            data = replace(data, weight=np.where(np.load(path), data.weight * doubt.weight, data.weight))
        return self._network(data, self.settings.training, what, name)

    def _doubted(
        self, data: TrainingData, chosen: NDArray[np.intp], what: str, name: str
    ) -> NDArray[np.bool_]:
        """Tell which labels are doubted by networks that did not hear their families, (m,)."""
        training = self.settings.training
        assert data.family is not None
        folds = min(training.doubt.folds, len(np.unique(data.family)))
        if folds < 2:
            return np.zeros(len(chosen), bool)
        one = replace(training, members=1, teachers=0, doubt=DoubtSettings(0))
        # With their splits, the folds would be the manifest's own, of which some are held out.
        unsplit = [replace(self.recordings[place], split=None) for place in chosen]
        fold_of = family_folds(unsplit, folds, self.settings.fold_seed)
        logits = np.empty((len(chosen), len(data.collapse)), np.float32)
        for fold in range(folds):
            shown, judged = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            part = f"doubt{fold}"
            network = self._network(data.only(shown), one, f"{what}, {part}", f"{name}/{part}")
            logits[judged] = predict_logits(network, data.features, data.rows[judged])
        result = doubtful(logits, data.fine, data.collapse, training.doubt.probability)
        self.report(f"{what}: {np.count_nonzero(result):,} of {len(result):,} labels are doubted")
        return result

    def _network(self, data: TrainingData, training: TrainingSettings, what: str, name: str) -> Any:
        settings = self.settings

        def on_epoch(done: EpochDone) -> None:
            if done.number % 10 == 0 or done.number == done.epochs:
                self.report(
                    f"{what}, {done.step}: epoch {done.number} of {done.epochs}, loss {done.loss:.3f}"
                )

        return train(
            data,
            settings.front_end,
            settings.architecture,
            training,
            start=self._start(),
            directory=self.directory / name,
            on_epoch=on_epoch,
        )

    def _start(self) -> Start | None:
        if self.settings.start is None:
            return None
        earlier, labels = load_earlier(self.settings.start), self.taxonomy.fine
        return lambda model, number: take_over(model, earlier, labels, number)


def save_model(model: Any, path: Path) -> None:
    """Write a Keras model, whole or not at all, also where power is lost."""
    partial = path.with_name(f"partial-{path.name}")
    model.save(partial)
    write_bytes(path, partial.read_bytes())
    partial.unlink()


def save_array(values: NDArray[Any], path: Path) -> None:
    """Write an array, whole or not at all, also where power is lost."""
    data = io.BytesIO()
    np.save(data, values)
    write_bytes(path, data.getvalue())


def load_model(path: Path, threads: int) -> Any:
    """Load a Keras model, to work with it on so many cores."""
    prepare_tensorflow(threads)
    import keras

    return keras.models.load_model(path)


def prepare(settings: ModelSettings, report: Report) -> Workbench:
    """Read the corpus, and compute the features that are missing.

    Raises
    ------
    ConfigError
        When the corpus or the taxonomy cannot be used.
    OutputError
        When the build directory cannot be written.
    """
    taxonomy = read_taxonomy(settings.taxonomy)
    recordings = read_corpus(settings.corpus, taxonomy)
    settings, fold_of = _folds(settings, recordings)

    def progress(done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            report(f"features: {done:,} of {total:,} recordings")

    store = FeatureStore(settings.build / "features", settings.front_end, settings.augment)
    features, rows = store.load(recordings, settings.threads, progress)
    name = _fingerprint(settings, store.directory.name, taxonomy, recordings, fold_of)
    directory = settings.build / "model" / name
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return Workbench(settings, taxonomy, recordings, fold_of, features, rows, directory, report)


def _folds(settings: ModelSettings, recordings: list[Recording]) -> tuple[ModelSettings, NDArray[np.intp]]:
    """Return the folds that the manifest states, or else those that the settings ask for."""
    stated = manifest_folds(recordings)
    if stated is not None:
        return replace(settings, folds=int(stated.max()) + 1), stated
    return settings, family_folds(recordings, settings.folds, settings.fold_seed)


def _fingerprint(
    settings: ModelSettings,
    store: str,
    taxonomy: TrainingTaxonomy,
    recordings: list[Recording],
    fold_of: NDArray[np.intp],
) -> str:
    earlier = load_earlier(settings.start).path.read_bytes() if settings.start else b""
    decisive = [
        store,
        hashlib.sha256(earlier).hexdigest(),
        asdict(settings.architecture),
        asdict(settings.training),
        taxonomy.labels.checksum,
        taxonomy.collapse.tolist(),
        [(recording.hash, recording.fine, recording.weight, recording.family) for recording in recordings],
        fold_of.tolist(),
        settings.fold_seed if settings.training.doubt.folds else None,
    ]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
