"""What is wrong with a data set is found, and what it holds is counted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from drumline_convert.check import CheckSettings, Finding, check_manifest
from drumline_convert.corpus import recordings_of
from drumline_convert.dataset_stats import dataset_statistics, effective_number, plot_statistics
from drumline_convert.examine import clipped_share
from drumline_convert.manifest import Manifest, Row
from drumline_convert.taxonomy import TrainingTaxonomy
from tests.convert.drums import LABELS, RATE, manifest_row
from tests.making import write_tone


@pytest.fixture
def sound_rows(tmp_path: Path) -> list[Row]:
    """Three families of four labels; nothing is wrong with them."""
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.wav"
        write_tone(path, 0.02, 200 + number)
        rows.append(manifest_row(path, LABELS[number % 4], f"family{number % 3}"))
    return rows


def findings_of(rows: Iterable[Row], taxonomy: TrainingTaxonomy, minimum: int = 1) -> list[Finding]:
    report = check_manifest(Manifest(tuple(rows)), CheckSettings(taxonomy, minimum, workers=1))
    return [finding for finding in report.findings if finding.kind != "absent"]


def write(path: Path, samples: np.ndarray) -> Row:
    soundfile.write(path, samples.astype(np.float32), RATE * 2)
    return manifest_row(path, "Kick", "other")


def test_a_sound_data_set_has_no_findings(sound_rows: list[Row], taxonomy: TrainingTaxonomy) -> None:
    assert findings_of(sound_rows, taxonomy) == []


def test_labels_that_no_recording_has_are_warnings(sound_rows: list[Row], taxonomy: TrainingTaxonomy) -> None:
    report = check_manifest(Manifest(tuple(sound_rows)), CheckSettings(taxonomy, 1, 1))
    assert {finding.what for finding in report.findings} == set(taxonomy.fine) - set(LABELS)
    assert report.errors == 0


def test_files_that_cannot_be_used_are_errors(
    sound_rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    sound_rows[0].path.unlink()
    sound_rows[1].path.write_bytes(b"RIFF")
    sound_rows[2].path.write_bytes(sound_rows[3].path.read_bytes())
    silent = write(tmp_path / "silent.wav", np.zeros(500))
    kinds = {finding.what: finding.kind for finding in findings_of([*sound_rows, silent], taxonomy)}
    expected = ("missing", "unreadable", "changed")
    assert kinds == {str(silent.path): "silent"} | {
        str(row.path): kind for row, kind in zip(sound_rows, expected, strict=False)
    }


def test_a_recording_that_is_a_pipe_is_not_waited_for(
    sound_rows: list[Row], taxonomy: TrainingTaxonomy
) -> None:
    sound_rows[0].path.unlink()
    os.mkfifo(sound_rows[0].path)
    (finding,) = findings_of(sound_rows, taxonomy)
    assert (finding.kind, finding.what) == ("unreadable", str(sound_rows[0].path))


def test_a_clipped_file_is_a_warning(
    sound_rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    wave = np.clip(2 * np.sin(np.arange(2_000) / 20), -1, 1)
    (finding,) = findings_of([*sound_rows, write(tmp_path / "loud.wav", wave)], taxonomy)
    assert finding.kind == "clipped"
    assert finding.is_warning


@pytest.mark.parametrize("hertz", [40, 220, 5_000])
def test_a_loud_sine_is_not_clipped(hertz: float) -> None:
    sine = np.sin(2 * np.pi * hertz * np.arange(44_100) / 44_100)
    assert clipped_share(np.asarray(np.round(sine * 32_767) / 32_768, np.float32)) < 0.005


def test_flat_tops_are_counted_by_their_samples() -> None:
    samples = np.array([0, 1, 1, 1, 1, 0, -1, -1, -1, 0, -1, -1, -1, -1, -1, 0.5], np.float32)
    assert clipped_share(samples) == 9 / 16
    assert clipped_share(np.zeros(0, np.float32)) == 0.0


def test_labels_outside_the_taxonomy_and_thin_ones_are_errors(
    sound_rows: list[Row], taxonomy: TrainingTaxonomy
) -> None:
    rows = [replace(sound_rows[0], label="Theremin"), *sound_rows[1:]]
    found = {(finding.kind, finding.what) for finding in findings_of(rows, taxonomy, minimum=3)}
    assert found == {("unknown_label", str(rows[0].path)), ("few", "Kick")}


def test_a_label_with_one_recording_is_told_in_the_singular(
    sound_rows: list[Row], taxonomy: TrainingTaxonomy
) -> None:
    kick, *more = [row for row in sound_rows if row.label == "Kick"]
    rows = [kick, *(row for row in sound_rows if row not in (kick, *more))]
    (few,) = [found for found in findings_of(rows, taxonomy, minimum=2) if found.kind == "few"]
    assert few.message == "1 recording, fewer than 2"


def test_a_label_of_one_family_alone_is_a_warning(sound_rows: list[Row], taxonomy: TrainingTaxonomy) -> None:
    rows = [row for row in sound_rows if row.label != "Kick" or row.family == "family0"]
    (finding,) = findings_of(rows, taxonomy)
    assert (finding.kind, finding.what, finding.is_warning) == ("few_families", "Kick", True)


def test_contents_that_come_twice_are_found(
    sound_rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path
) -> None:
    copies = []
    for number, label in enumerate(("Kick", "Cowbell")):
        path = tmp_path / f"copy{number}.wav"
        path.write_bytes(sound_rows[number * 4].path.read_bytes())
        copies.append(manifest_row(path, label, sound_rows[number * 4].family))
    kinds = sorted(finding.kind for finding in findings_of([*sound_rows, *copies], taxonomy))
    assert kinds == ["contradiction", "duplicate"]


def test_a_leak_is_an_error(sound_rows: list[Row], taxonomy: TrainingTaxonomy) -> None:
    rows = [replace(row, split="test" if row.family == "family1" else "train") for row in sound_rows]
    assert findings_of(rows, taxonomy) == []
    rows[0] = replace(rows[0], split="test")
    (finding,) = findings_of(rows, taxonomy)
    assert (finding.kind, finding.what, finding.is_warning) == ("leak", "family0", False)


def test_an_unknown_licence_is_a_warning(sound_rows: list[Row], taxonomy: TrainingTaxonomy) -> None:
    (finding,) = findings_of([replace(row, licence="unknown") for row in sound_rows], taxonomy)
    assert (finding.kind, finding.what, finding.is_warning) == ("licence", "synthesised", True)


@pytest.mark.parametrize(
    ("weights", "worth"), [([1, 1, 1], 3), ([5, 5], 2), ([1, 0.5], 1.8), ([100, 1], 1.02), ([], 0)]
)
def test_the_effective_number_is_that_of_equal_weights(weights: list[float], worth: float) -> None:
    assert effective_number(weights) == pytest.approx(worth, rel=1e-3)


def test_statistics_count_every_recording_once(sound_rows: list[Row], taxonomy: TrainingTaxonomy) -> None:
    rows = [replace(sound_rows[0], label="Castanet", weight=0.5), *sound_rows[1:]]
    rows = [replace(row, split="test" if row.family == "family1" else "train") for row in rows]
    durations = [0.02] * 10 + [7.0, float("nan")]
    found = dataset_statistics(recordings_of(rows, taxonomy), durations, taxonomy)
    assert (found["recordings"], found["families"], found["effective_families"]) == (12, 3, 3.0)
    assert found["effective_recordings"] == round(11.5**2 / 11.25, 1)
    assert found["labels"]["Perc"]["recordings"] == 1
    assert sum(entry["recordings"] for entry in found["canonical"].values()) == 12
    assert found["split"] == {"train": 8, "test": 4}
    assert sum(found["sides"]["test"].values()) == 4
    assert found["durations"]["known"] == 11
    assert found["durations"]["counts"][0] == 10
    assert found["durations"]["counts"][-1] == 1
    assert found["durations"]["longest_sec"] == 7.0


def test_statistics_are_drawn(sound_rows: list[Row], taxonomy: TrainingTaxonomy, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'drumline[train]'")
    found = dataset_statistics(recordings_of(sound_rows, taxonomy), [0.02] * 12, taxonomy)
    drawn = plot_statistics(found, tmp_path / "plots")
    assert [path.name for path in drawn] == ["labels.png", "families.png", "durations.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
