"""One training: every optional part, resuming, freezing, transfer, Model 2, members and teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drumline.errors import BundleError, ConfigError
from drumline.frontend import FrontEnd
from drumline_convert.architecture import Architecture
from drumline_convert.batches import SamplingSettings, TrainingData, batches, targets
from drumline_convert.fitting import EpochDone, FitSettings, read_history
from drumline_convert.layers import SpectralSettings
from drumline_convert.losses import LossSettings, classification_loss
from drumline_convert.training import TrainingSettings

pytest.importorskip("tensorflow", reason="tensorflow is not installed: pip install 'drumline[train]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FRONT_END = FrontEnd(samples=8_000, n_mels=24, n_mfcc=12)
COLLAPSE = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
SMALL = Architecture(bands=12, stem=4, widths=(6,), code=8)
SETTINGS = TrainingSettings(epochs=2, members=1, sampling=SamplingSettings(batch_size=16))


def data(recordings: int = 64, seed: int = 0, front_end: FrontEnd = FRONT_END) -> TrainingData:
    """Four labels that differ in which coefficients are large, in eight families."""
    rng = np.random.default_rng(seed)
    fine = np.arange(recordings) % len(COLLAPSE)
    features = rng.normal(0, 5, (recordings, 2, *front_end.shape)).astype(np.float32)
    features[np.arange(recordings), :, 1 + 2 * fine] += 25
    weight = np.ones(recordings, np.float32)
    return TrainingData(features, np.arange(recordings), fine, weight, COLLAPSE, np.arange(recordings) // 8)


def trained(settings: TrainingSettings = SETTINGS, architecture: Architecture = SMALL, **more: Any) -> Any:
    from drumline_convert.training import train

    return train(data(), FRONT_END, architecture, settings, **more)


def last_accuracy(directory: Path) -> float:
    """Share of right decisions in the last epoch of the network itself."""
    (first, *_) = sorted(directory.glob("member*"))
    return read_history(first / "whole")[-1]["accuracy"]


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        (replace(SMALL, squeeze=2, pooling="attention+max"), SETTINGS),
        (replace(SMALL, heads="fine+canonical"), replace(SETTINGS, loss=LossSettings(focal=2.0))),
        (SMALL, replace(SETTINGS, spectral=SpectralSettings(3.0, 1, 1, mask_bands=2, mask_frames=3))),
        (
            SMALL,
            replace(SETTINGS, sampling=SamplingSettings(16, balance="family", class_weight=0.5, mixup=0.1)),
        ),
        (replace(SMALL, kind="autoencoder"), replace(SETTINGS, pretrain_epochs=2, frozen_epochs=1)),
        (SMALL, replace(SETTINGS, members=2, teachers=1, epochs=1)),
    ],
    ids=["squeeze+attention", "heads+focal", "spectral", "sampling", "model 2", "members+teachers"],
)
def test_every_optional_part_learns_what_is_easy(
    architecture: Architecture, settings: TrainingSettings, tmp_path: Path
) -> None:
    settings = replace(settings, epochs=12, fit=FitSettings(learning_rate=0.03))
    model = trained(settings, architecture, directory=tmp_path)
    assert model.output_shape == (None, len(COLLAPSE))
    assert last_accuracy(tmp_path) > 0.8


def test_a_stopped_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=4, spectral=SpectralSettings(mask_bands=3))
    undisturbed = trained(settings, directory=tmp_path / "undisturbed")

    def stop(done: EpochDone) -> None:
        if done.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(settings, directory=tmp_path / "stopped", on_epoch=stop)
    epochs: list[int] = []
    resumed = trained(
        settings, directory=tmp_path / "stopped", on_epoch=lambda done: epochs.append(done.number)
    )
    assert epochs == [3, 4]
    for ours, theirs in zip(resumed.get_weights(), undisturbed.get_weights(), strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)
    assert read_history(tmp_path / "stopped" / "member0" / "whole") == read_history(
        tmp_path / "undisturbed" / "member0" / "whole"
    )


def test_a_finished_training_is_only_loaded(tmp_path: Path) -> None:
    first = trained(directory=tmp_path)

    def forbidden(*_: object) -> None:
        raise AssertionError("trained again")

    again = trained(directory=tmp_path, on_epoch=forbidden)
    assert np.array_equal(first.get_weights()[-1], again.get_weights()[-1])


def test_history_and_plot_are_kept(tmp_path: Path) -> None:
    trained(directory=tmp_path)
    place = tmp_path / "member0" / "whole"
    history = read_history(place)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert set(history[0]) == {"epoch", "loss", "accuracy", "learning_rate"}
    assert (place / "history.png").read_bytes().startswith(b"\x89PNG")
    assert not (place / "backup").exists()


def test_early_stopping_ends_before_the_last_epoch_with_the_best_weights(tmp_path: Path) -> None:
    fit = FitSettings(learning_rate=0.2, schedule="plateau", patience=2, average=0.9)
    settings = replace(SETTINGS, epochs=40, validation=0.25, fit=fit)
    model = trained(settings, directory=tmp_path)
    history = read_history(tmp_path / "member0" / "whole")
    assert len(history) < 40
    best = min(range(len(history)), key=lambda epoch: history[epoch]["val_loss"])
    assert len(history) - 1 - best == 2
    watched = data().only(np.flatnonzero(np.isin(data().family, held_out_families(settings))))
    loss = classification_loss(COLLAPSE, settings.loss)(targets(watched), model(watched.clean()))
    assert float(np.mean(loss)) == pytest.approx(history[best]["val_loss"], rel=1e-4)


def held_out_families(settings: TrainingSettings) -> list[int]:
    from drumline_convert.training import _split

    watched = _split(data(), settings)[1]
    assert watched is not None
    assert watched.family is not None
    return sorted(set(watched.family.tolist()))


def test_validation_families_are_whole_and_not_trained_on() -> None:
    from drumline_convert.training import _split

    shown, watched = _split(data(), replace(SETTINGS, validation=0.25))
    assert watched is not None
    assert len(watched.rows) == 16
    assert len(shown.rows) == 48
    assert not set(shown.family.tolist()) & set(watched.family.tolist())  # type: ignore[union-attr]


def test_a_plateau_lowers_the_learning_rate(tmp_path: Path) -> None:
    # Nothing can be learnt at a rate of nothing, so the loss stays where it is.
    fit = FitSettings(learning_rate=1e-12, schedule="plateau", average=0.0)
    trained(replace(SETTINGS, epochs=7, fit=fit), replace(SMALL, dropout=0.0), directory=tmp_path)
    rates = [entry["learning_rate"] for entry in read_history(tmp_path / "member0" / "whole")]
    assert rates[-1] < rates[0]


def test_only_the_head_moves_while_the_body_is_frozen(tmp_path: Path) -> None:
    import keras

    first = trained(directory=tmp_path / "first")
    first.save(tmp_path / "first.keras")
    again = started(
        tmp_path / "first.keras", replace(SETTINGS, frozen_epochs=3, epochs=1), tmp_path / "again"
    )
    head = keras.models.clone_model(first)
    head.load_weights(tmp_path / "again" / "member0" / "head" / "weights.weights.h5")
    same = {
        layer.name: all(
            np.array_equal(a, b)
            for a, b in zip(layer.get_weights(), first.get_layer(layer.name).get_weights(), strict=True)
        )
        for layer in head.layers
        if layer.get_weights()
    }
    assert [name for name, unmoved in same.items() if not unmoved] == ["head_logits"]
    assert not np.array_equal(
        again.get_layer("stem_convolution").kernel, first.get_layer("stem_convolution").kernel
    )


def started(
    path: Path, settings: TrainingSettings, directory: Path, architecture: Architecture = SMALL
) -> Any:
    from drumline_convert.transfer import load_earlier, take_over

    earlier = load_earlier(path)
    return trained(
        settings,
        architecture,
        directory=directory,
        start=lambda model, number: take_over(model, earlier, ("a", "b", "c", "d"), number),
    )


def test_labels_that_both_models_know_keep_their_outputs(tmp_path: Path) -> None:
    from drumline_convert.architecture import Standardisation, build_model
    from drumline_convert.transfer import Earlier, take_over

    standardisation = Standardisation.of(data().clean(), SMALL.bands, FRONT_END)
    old = build_model(SMALL, FRONT_END, COLLAPSE, standardisation)
    old.save(tmp_path / "old.keras")
    new = build_model(SMALL, FRONT_END, np.eye(3, dtype=np.float32), standardisation)
    untouched = new.get_layer("head_logits").get_weights()[0][:, 1].copy()
    take_over(new, Earlier(tmp_path / "old.keras", ("a", "b", "c", "d")), ("d", "new", "a"))
    kernel, known = (model.get_layer("head_logits").get_weights()[0] for model in (new, old))
    assert np.array_equal(kernel[:, 0], known[:, 3])
    assert np.array_equal(kernel[:, 2], known[:, 0])
    assert np.array_equal(kernel[:, 1], untouched)


def test_an_earlier_model_of_other_sizes_is_refused_by_name(tmp_path: Path) -> None:
    from drumline_convert.architecture import Standardisation, build_model

    standardisation = Standardisation.of(data().clean(), SMALL.bands, FRONT_END)
    build_model(replace(SMALL, stem=5), FRONT_END, COLLAPSE, standardisation).save(tmp_path / "old.keras")
    with pytest.raises(ConfigError, match="layer stem_convolution"):
        started(tmp_path / "old.keras", SETTINGS, tmp_path / "new")
    (tmp_path / "broken.keras").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"cannot load the Keras model .*broken"):
        started(tmp_path / "broken.keras", SETTINGS, tmp_path / "new")


def test_the_mean_of_members_is_that_of_their_logits(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    together = trained(replace(settings, members=2))
    alone = [trained(replace(settings, seed=seed)) for seed in (0, 1)]
    features = data(seed=2).clean()
    mean = np.mean([np.asarray(model(features)) for model in alone], axis=0)
    assert np.allclose(together(features), mean, atol=1e-4)


def test_a_student_learns_from_the_very_networks_whose_mean_would_be_the_ensemble(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    trained(replace(settings, members=2), directory=tmp_path / "ensemble")
    trained(replace(settings, teachers=2), directory=tmp_path / "student")
    weights = "whole/weights.weights.h5"
    for number in (0, 1):
        teacher, member = (
            h5_values(tmp_path / directory / weights)
            for directory in (f"student/teacher{number}", f"ensemble/member{number}")
        )
        assert all(np.array_equal(a, b) for a, b in zip(teacher, member, strict=True))
    assert (tmp_path / "student" / "member2" / weights).exists()


def h5_values(path: Path) -> list[Any]:
    import h5py

    found: list[Any] = []
    with h5py.File(path) as stored:
        stored.visititems(lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


def test_each_network_takes_over_a_member_of_an_earlier_mean(tmp_path: Path) -> None:
    from drumline_convert.architecture import Standardisation, build_model
    from drumline_convert.transfer import Earlier, take_over

    settings = replace(SETTINGS, epochs=1, members=2)
    mean = trained(settings)
    mean.save(tmp_path / "mean.keras")
    standardisation = Standardisation.of(data().clean(), SMALL.bands, FRONT_END)
    kernels = []
    for number in range(3):
        model = build_model(SMALL, FRONT_END, COLLAPSE, standardisation)
        take_over(model, Earlier(tmp_path / "mean.keras", None), ("a", "b", "c", "d"), number)
        kernels.append(np.asarray(model.get_layer("stem_convolution").kernel))
    members = [np.asarray(mean.get_layer(f"member{n}").get_layer("stem_convolution").kernel) for n in (0, 1)]
    assert np.array_equal(kernels[0], members[0])
    assert np.array_equal(kernels[1], members[1])
    assert np.array_equal(kernels[2], members[0])


def test_deltas_are_channels_of_the_image() -> None:
    from drumline_convert.architecture import Standardisation, build_model

    front_end = replace(FRONT_END, deltas=1)
    features = data(front_end=front_end).clean()
    standardisation = Standardisation.of(features, SMALL.bands, front_end)
    assert standardisation.mean.shape == (2, SMALL.bands)
    model = build_model(SMALL, front_end, COLLAPSE, standardisation)
    assert model.get_layer("stem_convolution").kernel.shape[2] == 2
    assert model(features).shape == (64, 4)


@pytest.mark.parametrize("kind", ["cnn", "autoencoder"])
def test_a_waveform_is_heard_beside_the_image(kind: str) -> None:
    from drumline_convert.architecture import Standardisation, build_model

    front_end = replace(FRONT_END, waveform=8)
    features = data(front_end=front_end).clean()
    standardisation = Standardisation.of(features, SMALL.bands, front_end)
    model = build_model(replace(SMALL, kind=kind), front_end, COLLAPSE, standardisation)  # type: ignore[arg-type]
    other = features.copy()
    other[:, -8:] = 0
    assert not np.allclose(model(features), model(other))


def test_two_heads_sum_to_the_canonical_one() -> None:
    import keras

    from drumline_convert.layers import joint_logits
    from drumline_convert.metrics import softmax

    rng = np.random.default_rng(0)
    fine, canonical = (rng.normal(0, 3, (5, size)).astype(np.float32) for size in COLLAPSE.shape)
    joint = np.asarray(joint_logits(keras.ops.convert_to_tensor(fine), canonical, COLLAPSE))
    assert np.allclose(softmax(joint) @ COLLAPSE, softmax(canonical), atol=1e-5)


def shown(settings: SamplingSettings, recordings: TrainingData | None = None, epoch: int = 0) -> Any:
    made = batches(recordings or data(), settings, seed=0)
    made.draw(epoch)
    return [np.concatenate(parts) for parts in zip(*(made[i] for i in range(len(made))), strict=True)]


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    sampling = SamplingSettings(16, mixup=0.2)
    first, again, other = (shown(sampling, epoch=epoch) for epoch in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_balanced_sampling_draws_rare_labels_more_often() -> None:
    rare = data(128).only(np.array([0, *range(1, 128, 4)]))
    drawn: Callable[[SamplingSettings], float] = lambda settings: float(  # noqa: E731
        np.mean([shown(settings, rare, epoch)[1][:, 0].mean() for epoch in range(40)])
    )
    assert drawn(SamplingSettings(11, balance="class", balance_power=1.0)) == pytest.approx(0.5, abs=0.1)
    assert drawn(SamplingSettings(11)) == pytest.approx(1 / 33, abs=0.02)


def test_class_weights_make_rare_labels_weigh_as_much_as_others() -> None:
    rare = data(128).only(np.array([0, *range(1, 128, 4)]))
    _, target, weight = shown(SamplingSettings(33, class_weight=1.0), rare)
    assert weight[target[:, 0] == 1].sum() == pytest.approx(weight[target[:, 1] == 1].sum(), rel=1e-5)
    assert weight.mean() == pytest.approx(1.0, rel=1e-5)


def test_mixup_mixes_features_and_targets_alike() -> None:
    _, target, _ = shown(SamplingSettings(16, mixup=0.4))
    assert np.allclose(target.sum(axis=1), 1, atol=1e-6)
    assert (target.max(axis=1) >= 0.5).all()
    assert (target.max(axis=1) < 0.99).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Architecture(kind="transformer"), "architecture.kind"),  # type: ignore[arg-type]
        (lambda: Architecture(dropout=1.0), "dropout"),
        (lambda: SamplingSettings(balance="kit"), "sampling.balance"),  # type: ignore[arg-type]
        (lambda: FitSettings(schedule="step"), "fit.schedule"),  # type: ignore[arg-type]
        (lambda: TrainingSettings(epochs=0), "epochs"),
        (lambda: TrainingSettings(fit=FitSettings(patience=3)), "validation families"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
