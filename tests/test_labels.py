"""Label files and canonical mappings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.errors import BundleError
from drumline.labels import Taxonomy, is_label, label_checksum, read_canonical_map, read_labels

LABELS = ["Kick", "Snare", "Hihat offen", "Öl-Fass"]


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    "value",
    [
        LABELS,
        {"labels": LABELS},
        {"labels": LABELS, "sha256": label_checksum(LABELS)},
        {label: place for place, label in enumerate(LABELS)},
        {str(place): label for place, label in reversed(list(enumerate(LABELS)))},
    ],
)
def test_every_kind_of_label_file_gives_the_labels_in_output_order(tmp_path: Path, value: object) -> None:
    assert read_labels(write(tmp_path / "labels.json", value)) == tuple(LABELS)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "Kick",
        None,
        ["Kick", 3],
        ["Kick", ""],
        ["Kick", "a/b"],
        ["Kick", ".."],
        ["Kick", "a\nb"],
        {"labels": "Kick"},
        {"Kick": 0, "Snare": 2},
        {"0": "Kick", "0x1": "Snare"},
    ],
)
def test_what_is_no_label_list_is_refused_with_the_files_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(BundleError, match=r"labels\.json"):
        read_labels(write(tmp_path / "labels.json", value))


def test_a_label_file_that_was_edited_does_not_match_its_checksum(tmp_path: Path) -> None:
    value = {"labels": LABELS[::-1], "sha256": label_checksum(LABELS)}
    with pytest.raises(BundleError, match="checksum"):
        read_labels(write(tmp_path / "labels.json", value))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_label_file_is_an_error_without_a_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(BundleError, match="JSON"):
        read_labels(tmp_path / "labels.json")


def test_a_missing_label_file_is_named() -> None:
    with pytest.raises(BundleError, match="nowhere") as caught:
        read_labels(Path("nowhere/labels.json"))
    assert caught.value.way_out == "Check the path."


def test_the_canonical_map_is_read_plain_or_with_its_own_misc(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.json", {"Kick": "Kick", "Clap": "misc"})
    named = write(tmp_path / "named.json", {"misc": "other", "map": {"Kick": "Kick", "Clap": "other"}})
    assert read_canonical_map(plain) == ({"Kick": "Kick", "Clap": "misc"}, "misc")
    assert read_canonical_map(named) == ({"Kick": "Kick", "Clap": "other"}, "other")


@pytest.mark.parametrize(
    "value", [[], {"Kick": 1}, {"Kick": "../x"}, {"Kick": ".."}, {"map": {}, "misc": ""}]
)
def test_a_canonical_label_that_is_no_directory_name_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(BundleError, match="canonical"):
        read_canonical_map(write(tmp_path / "canonical.json", value))


def test_a_taxonomy_needs_a_canonical_label_for_each_fine_one() -> None:
    with pytest.raises(BundleError, match="Snare"):
        Taxonomy(("Kick", "Snare"), {"Kick": "Kick"})


def test_a_taxonomy_refuses_labels_that_stand_twice() -> None:
    with pytest.raises(BundleError, match=r"twice.*Kick"):
        Taxonomy(("Kick", "Snare", "Kick"), {"Kick": "Kick", "Snare": "Snare"})


def test_canonical_labels_are_those_in_use_with_misc_last() -> None:
    taxonomy = Taxonomy(("Rim", "Kick"), {"Rim": "Snare", "Kick": "Kick", "Ride": "Ride"})
    assert taxonomy.canonical == ("Kick", "Snare", "misc")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=2, unique=True))
def test_the_checksum_depends_on_the_order(labels: list[str]) -> None:
    assert label_checksum(labels) == label_checksum(list(labels))
    assert label_checksum(labels) != label_checksum(labels[::-1])


def test_a_label_must_fit_into_a_name_with_txt_behind_it() -> None:
    assert is_label("ä" * 125)
    assert not is_label("ä" * 126)
