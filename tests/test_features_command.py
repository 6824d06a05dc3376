"""`drumline features`: the very tensors that a model is fed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drumline.audio import Decoder
from drumline.errors import ArchiveError, BundleError, OutputError, UsageError
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.tensors import write_tensors
from tests.making import CommandLine, make_bundle, write_tone


def load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    directory = tmp_path / "sounds"
    (directory / "b").mkdir(parents=True)
    for number, name in enumerate(("b/two.wav", "a.wav", "c.WAV")):
        write_tone(directory / name, hertz=110.0 * (number + 1))
    (directory / "notes.txt").write_text("no sound")
    return directory


def test_the_tensors_are_those_that_the_engine_computes(command: CommandLine, sounds: Path) -> None:
    out = sounds.parent / "x.npz"
    outcome = command("features", sounds / "a.wav", sounds / "b/two.wav", "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    data = load(out)
    assert (data["features"].shape, data["features"].dtype) == ((2, 40, 98), np.float32)
    assert data["paths"].tolist() == [str(sounds / "a.wav"), str(sounds / "b/two.wav")]
    front_end = FrontEnd()
    for path, features in zip(data["paths"].tolist(), data["features"], strict=True):
        waveform = Decoder(front_end).decode(Path(path).read_bytes(), os.fsencode(path))
        np.testing.assert_array_equal(features, FeatureExtractor(front_end).features(waveform.samples))


def test_a_directory_stands_for_the_audio_files_below_it_sorted(command: CommandLine, sounds: Path) -> None:
    out = sounds.parent / "x.npz"
    outcome = command("features", sounds, "--out", out, "--json")
    assert outcome.json() == {"out": str(out), "shape": [3, 40, 98], "failed": []}
    names = [os.path.relpath(path, sounds) for path in load(out)["paths"].tolist()]
    assert names == ["a.wav", "c.WAV", "b/two.wav"]


def test_files_that_cannot_be_read_are_listed_and_the_others_written(
    command: CommandLine, sounds: Path
) -> None:
    (sounds / "bad.wav").write_bytes(b"RIFF")
    (sounds / "empty.wav").write_bytes(b"")
    os.mkfifo(sounds / "pipe.wav")
    given = [sounds / name for name in ("bad.wav", "a.wav", "empty.wav", "none.wav", "pipe.wav")]
    out = sounds.parent / "x.npz"
    outcome = command("features", *given, "--out", out, "--json")
    assert outcome.code == ArchiveError.exit_code
    assert outcome.json()["shape"] == [1, 40, 98]
    failed = {Path(entry["path"]).name: entry["type"] for entry in outcome.json()["failed"]}
    assert failed.keys() == {"bad.wav", "empty.wav", "none.wav", "pipe.wav"}
    assert (failed["empty.wav"], failed["none.wav"], failed["pipe.wav"]) == (
        "empty_audio",
        "vanished",
        "unreadable",
    )
    assert "none.wav: there is no such file" in command("features", *given, "--out", out).err


def test_names_that_are_no_utf_8_come_back_by_fsencode(sounds: Path) -> None:
    name = os.fsencode(sounds) + b"/\xff\xfe.wav"
    write_tone(name)
    report = write_tensors([name], sounds / "x.npz", FrontEnd())
    assert report.shape == (1, 40, 98)
    assert os.fsencode(load(sounds / "x.npz")["paths"].tolist()[0]) == name


def test_another_bundle_gives_its_own_front_end(command: CommandLine, sounds: Path) -> None:
    front_end = FrontEnd(kind="log-mel", n_mels=64, samples=20_000)
    bundle = make_bundle(sounds.parent / "b", front_end=front_end.to_json())
    out = sounds.parent / "x.npz"
    assert command("features", sounds, "--out", out, "--model", bundle.path).code == 0
    assert load(out)["features"].shape == (3, *front_end.shape)


def test_nothing_is_written_when_nothing_can_be_read(command: CommandLine, sounds: Path) -> None:
    out = sounds.parent / "x.npz"
    for given in (sounds / "none.wav", sounds / "notes.txt", sounds.parent / "empty"):
        (sounds.parent / "empty").mkdir(exist_ok=True)
        assert command("features", given, "--out", out).code == ArchiveError.exit_code
        assert not out.exists()


def test_output_must_be_an_npz_so_that_no_sample_is_overwritten(command: CommandLine, sounds: Path) -> None:
    before = (sounds / "a.wav").read_bytes()
    assert command("features", sounds, "--out", sounds / "a.wav").code == UsageError.exit_code
    assert (sounds / "a.wav").read_bytes() == before


def test_only_features_are_replaced_by_features(command: CommandLine, sounds: Path) -> None:
    out = sounds.parent / "x.npz"
    np.savez(out, logits=np.zeros(3))
    before = out.read_bytes()
    outcome = command("features", sounds, "--out", out)
    assert outcome.code == OutputError.exit_code
    assert "exists already and is not replaced" in outcome.err
    assert out.read_bytes() == before
    out.unlink()
    assert [command("features", sounds, "--out", out).code for _ in range(2)] == [0, 0]


def test_features_never_go_into_a_directory_that_they_are_of(command: CommandLine, sounds: Path) -> None:
    outcome = command("features", sounds, "--out", sounds / "b" / "x.npz")
    assert outcome.code == OutputError.exit_code
    assert not (sounds / "b" / "x.npz").exists()


def test_output_that_cannot_be_written_is_an_error_that_names_it(command: CommandLine, sounds: Path) -> None:
    outcome = command("features", sounds, "--out", sounds / "none/x.npz")
    assert outcome.code == OutputError.exit_code
    assert "none/x.npz" in outcome.err


def test_a_bundle_that_is_not_there_is_named(command: CommandLine, sounds: Path) -> None:
    outcome = command("features", sounds, "--out", sounds / "x.npz", "--model", "no-such")
    assert outcome.code == BundleError.exit_code


def test_no_temporary_file_stays(sounds: Path) -> None:
    write_tensors([os.fsencode(sounds / "a.wav")], sounds / "x.npz", FrontEnd())
    assert sorted(path.name for path in sounds.iterdir()) == ["a.wav", "b", "c.WAV", "notes.txt", "x.npz"]


def test_one_file_that_cannot_be_read_is_one_file(command: CommandLine, sounds: Path) -> None:
    (sounds / "bad.wav").write_bytes(b"RIFF")
    outcome = command("features", sounds, "--out", sounds.parent / "x.npz")
    assert outcome.err.endswith("\n1 file could not be read\n")
