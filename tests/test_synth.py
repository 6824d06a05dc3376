"""Synthesised archives: equal seeds give equal bytes, and what is said about each file is true."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from numpy.typing import NDArray

from bench.broken import BROKEN
from bench.corpus import corpus_directory
from bench.formats import FORMATS, available, encode
from bench.synth import (
    CANONICAL,
    LABELS,
    Entry,
    Mess,
    iter_archive,
    main,
    read_truth,
    render,
    write_archive,
    write_corpus_archive,
    write_truth,
)


def content(root: Path) -> dict[bytes, str]:
    found = {}
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as stream:
                found[os.path.relpath(path, os.fsencode(root))] = hashlib.md5(stream.read()).hexdigest()
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry]]:
    root = tmp_path_factory.mktemp("synth") / "archive"
    return root, write_archive(root, 150, seed=3, broken_fraction=0.08, odd_fraction=0.3)


def read(root: Path, entry: Entry) -> tuple[NDArray[np.float64], int]:
    with open(os.path.join(os.fsencode(root), entry.path), "rb") as stream:
        return soundfile.read(stream, always_2d=True)


@pytest.mark.parametrize("mess", [Mess(), Mess(tiny=True), Mess(tiny=True, flat_per_dir=7)])
def test_equal_seeds_give_equal_archives(tmp_path: Path, mess: Mess) -> None:
    first, second, other = (
        list(iter_archive(tmp_path / name, 40, seed, mess)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert (
        set(content(tmp_path / "a").values()).isdisjoint(set(content(tmp_path / "c").values()))
        or first != other
    )


def test_an_archive_has_as_many_files_as_asked_for(archive: tuple[Path, list[Entry]]) -> None:
    root, entries = archive
    kinds = Counter(entry.kind for entry in entries)
    assert kinds["sound"] + kinds["duplicate"] + kinds["broken"] == 150
    assert kinds["clutter"] > 0
    assert sorted(content(root)) == sorted(entry.path for entry in entries)


def test_every_sound_opens_as_the_truth_says(archive: tuple[Path, list[Entry]]) -> None:
    root, entries = archive
    for entry in entries:
        if entry.kind in ("sound", "duplicate"):
            samples, rate = read(root, entry)
            assert (rate, samples.shape[1]) == (entry.rate, entry.channels)
            assert 0.03 < np.max(np.abs(samples)) <= 1.1
            assert entry.label in LABELS
            assert entry.canonical == CANONICAL[entry.label]


def test_nothing_can_be_read_from_a_broken_file(archive: tuple[Path, list[Entry]]) -> None:
    root, entries = archive
    broken = [entry for entry in entries if entry.kind == "broken"]
    assert {entry.format for entry in broken} == set(BROKEN)
    for entry in broken:
        assert entry.label is None
        try:
            samples, _ = read(root, entry)
        except soundfile.SoundFileError:
            continue
        assert len(samples) == 0


def test_only_duplicates_share_their_content(archive: tuple[Path, list[Entry]]) -> None:
    root, entries = archive
    hashes = content(root)
    sounds = [hashes[entry.path] for entry in entries if entry.kind == "sound"]
    assert len(set(sounds)) == len(sounds)
    duplicates = [entry for entry in entries if entry.kind == "duplicate"]
    assert duplicates
    for entry in duplicates:
        assert entry.duplicate_of is not None
        assert hashes[entry.path] == hashes[entry.duplicate_of]


def test_tiny_sounds_differ_though_they_come_from_a_small_pool(tmp_path: Path) -> None:
    entries = write_archive(tmp_path / "tiny", 1200, tiny=True)
    hashes = content(tmp_path / "tiny")
    sounds = [hashes[entry.path] for entry in entries if entry.kind == "sound"]
    assert len(set(sounds)) == len(sounds) > 1000


def test_odd_names_reach_the_disk(archive: tuple[Path, list[Entry]]) -> None:
    paths = [entry.path for entry in archive[1]]
    names = [os.path.basename(path) for path in paths]
    assert any(b"\n" in name for name in names)
    assert any(name.startswith(b"-") for name in names)
    assert any(len(name) >= 240 for name in names)
    assert any("🥁".encode() in name for name in names)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_keeps_the_sound(name: str) -> None:
    if name not in available():
        pytest.skip(f"libsndfile {soundfile.__libsndfile_version__} cannot write {name}")
    sound = render("TomMid", np.random.default_rng(5), 48_000, 0.5)
    stereo = np.stack([sound, 0.5 * sound], axis=1)
    samples, rate = soundfile.read(io.BytesIO(encode(stereo, 48_000, name)))
    assert (rate, samples.shape[1]) == (48_000, 2)
    assert len(samples) >= 0.9 * len(sound)
    assert abs(np.std(samples) / np.std(stereo[: len(samples)]) - 1) < 0.1
    assert encode(stereo, 48_000, name) == encode(stereo, 48_000, name)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("rate", [22_050, 96_000])
def test_an_instrument_is_finite_and_not_clipped(label: str, rate: int) -> None:
    sound = render(label, np.random.default_rng(0), rate)
    assert sound.dtype == np.float32
    assert np.all(np.isfinite(sound))
    assert 0.1 < np.max(np.abs(sound)) <= 1
    assert 0 < len(sound) <= 1.5 * rate


def test_the_truth_survives_its_file(archive: tuple[Path, list[Entry]], tmp_path: Path) -> None:
    entries = [
        *archive[1],
        Entry(b"Gro\xdfe/\xff.wav", "duplicate", "Kick", "Kick", "wav-16", 1, 1, b"\xfe.wav"),
    ]
    assert write_truth(entries, tmp_path / "truth.jsonl") == len(entries)
    assert read_truth(tmp_path / "truth.jsonl") == entries


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_archive(tmp_path, 3)
    result = CliRunner().invoke(main, [str(tmp_path), "--files", "3"])
    assert result.exit_code == 1
    assert "not empty" in result.output
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_flat_archives_have_full_directories_and_nothing_else(tmp_path: Path) -> None:
    write_archive(tmp_path / "flat", 25, tiny=True, flat_per_dir=10)
    sizes = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "flat").iterdir()}
    assert sizes == {"000000": 10, "000001": 10, "000002": 5}


def test_a_corpus_archive_is_wav_with_the_corpus_labels(tmp_path: Path) -> None:
    corpus = corpus_directory()
    if corpus is None:
        pytest.skip("no corpus: set DRUMLINE_CORPUS")
    entries = write_corpus_archive(corpus, tmp_path / "corpus", 12, seed=1)
    assert entries == write_corpus_archive(corpus, tmp_path / "again", 12, seed=1)
    assert content(tmp_path / "corpus") == content(tmp_path / "again")
    for entry in entries:
        assert read(tmp_path / "corpus", entry)[1] == entry.rate
