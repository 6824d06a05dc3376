"""Settings: what each may hold, and what is said when it does not."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import soundfile

from drumline import machine
from drumline.errors import ConfigError
from drumline.labels import Taxonomy
from drumline.settings import (
    FFMPEG_FORMATS,
    SOUNDFILE_FORMATS,
    InferSettings,
    MiscSettings,
    allowed_values,
    check_setting,
)


def test_an_archive_is_all_that_must_be_given() -> None:
    settings = InferSettings(archive=Path("archive"))
    assert (settings.batch_size, settings.device, settings.misc.threshold) == (64, "auto", 0.5)
    assert settings.target_labels is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        InferSettings(archive=Path("archive")).batch_size = 3  # type: ignore[misc]


def test_paths_may_be_given_as_text_and_the_current_directory_is_an_archive() -> None:
    settings = InferSettings(archive=".", runs_root="runs")  # type: ignore[arg-type]
    assert (settings.archive, settings.runs_root) == (Path("."), Path("runs"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("archive", None),
        ("archive", 3),
        ("archive", "a\0b"),
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", 64.0),
        ("batch_size", 5000),
        ("workers", 0),
        ("workers", "2"),
        ("device", "gpu"),
        ("device", None),
        ("target_labels", ()),
        ("target_labels", "Kick"),
        ("target_labels", ("Kick", "a/b")),
        ("misc", {"threshold": 0.5}),
        ("top_k", -1),
        ("dedup_hash", 1),
        ("hash_algorithm", "sha1"),
        ("compress_index", "zip"),
        ("include_audio_stats", "yes"),
        ("supported_formats", ()),
        ("supported_formats", (".wav",)),
        ("supported_formats", ("WAV",)),
        ("file_timeout_sec", 0),
        ("file_timeout_sec", float("inf")),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        InferSettings(**{"archive": Path("archive"), name: value})
    assert error.value.what.startswith(f"{name} cannot be ")
    assert error.value.way_out == f"Allowed: {allowed_values(name)}."


@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", 1.01), ("threshold", float("nan")), ("threshold", "0.5"), ("label", ""), ("label", "..")],
)
def test_misc_is_checked_under_its_dotted_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^misc\.{name} cannot be "):
        MiscSettings(**{name: value})


def test_whole_numbers_are_thresholds_too() -> None:
    assert (MiscSettings(threshold=0).threshold, MiscSettings(threshold=1).threshold) == (0, 1)


def test_every_setting_has_a_rule() -> None:
    for name in (field.name for field in fields(InferSettings)):
        assert allowed_values(name)
    with pytest.raises(ConfigError):
        check_setting("misc.label", 3)


def test_every_format_of_libsndfile_has_an_extension() -> None:
    known = {
        "pvf",
        "caf",
        "avr",
        "mp3",
        "flac",
        "voc",
        "w64",
        "ogg",
        "wav",
        "rf64",
        "htk",
        "paf",
        "xi",
        "sds",
    }
    assert known <= set(SOUNDFILE_FORMATS)
    assert known <= {name.lower() for name in soundfile.available_formats()}
    assert not set(SOUNDFILE_FORMATS) & set(FFMPEG_FORMATS)


def test_without_a_number_there_is_one_worker_for_each_usable_cpu() -> None:
    settings = InferSettings(archive=Path("archive"))
    assert settings.worker_count == machine.usable_cpus() >= 1
    assert InferSettings(archive=Path("archive"), workers=7).worker_count == 7


def test_settings_are_plain_values_for_run_json() -> None:
    settings = InferSettings(archive=Path("archive"), target_labels=("Kick",), model_path=Path("models/x"))
    values = json.loads(json.dumps(settings.to_json()))
    assert set(values) == {field.name for field in fields(InferSettings)}
    assert values["misc"] == {"threshold": 0.5, "label": "misc", "gate": True, "gate_threshold": None}
    assert (values["target_labels"], values["model_path"]) == (["Kick"], "models/x")


def test_decision_settings_rename_the_mappings_misc() -> None:
    taxonomy = Taxonomy(("Kick", "Clap"), {"Kick": "Kick", "Clap": "other"}, misc="other")
    settings = InferSettings(
        archive=Path("archive"), misc=MiscSettings(label="rest"), target_labels=("Kick",)
    )
    decisions = settings.decision_settings(taxonomy)
    assert decisions.canonical_of == {"Kick": "Kick", "Clap": "rest"}
    assert (decisions.misc, decisions.target_labels) == ("rest", {"Kick"})


def test_a_containers_quota_limits_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_CPU_QUOTA_V1", (tmp_path / "none", tmp_path / "none"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    assert machine.usable_cpus() == 16
    for content, cpus in [("max 100000", 16), ("250000 100000", 2), ("5000 100000", 1), ("rubbish", 16)]:
        (tmp_path / "cpu.max").write_text(content)
        assert machine.usable_cpus() == cpus
