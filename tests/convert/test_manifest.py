"""The manifest: strict when it is read, and the same after it was written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drumline.errors import ConfigError, OutputError
from drumline_convert.manifest import Manifest, Row, read_manifest, write_manifest
from tests.making import paths

GOOD = {
    "path": "kick.wav",
    "label": "Kick",
    "kit": "808",
    "family": "808",
    "source": "own",
    "licence": "CC0-1.0",
    "hash": "0123456789abcdef",
    "split": None,
    "weight": 1.0,
}

texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)
labels = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/."), min_size=1)
rows = st.builds(
    Row,
    path=paths.map(lambda path: Path(os.fsdecode(b"/" + path))),
    label=labels,
    kit=texts,
    family=texts,
    source=st.lists(texts, min_size=1, max_size=3).map(" ".join),
    licence=texts,
    hash=st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"),
    split=st.sampled_from([None, "train", "validation", "test", "fold0", "fold12"]),
    weight=st.floats(1e-6, 1e6),
)


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@given(rows=st.lists(rows, min_size=1, max_size=8, unique_by=lambda row: row.path), below=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_manifest_reads_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], below: bool
) -> None:
    directory = tmp_path_factory.mktemp("manifest")
    if below:
        rows = [replace(row, path=directory / str(row.path)[1:]) for row in rows]
    path = directory / "manifest.jsonl"
    write_manifest(path, rows)
    assert read_manifest(path) == Manifest(tuple(rows))


def test_recordings_below_the_manifest_move_with_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    write_manifest(old / "m.jsonl", [Row(**{**GOOD, "path": old / "a" / "kick.wav"})])
    old.rename(new)
    assert [row.path for row in read_manifest(new / "m.jsonl")] == [new / "a" / "kick.wav"]


def test_a_manifest_can_be_named_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("m.jsonl"), GOOD)
    assert read_manifest(Path("m.jsonl")).rows[0].path == tmp_path / "kick.wav"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "label None"),
        ({"label": "Kick/Low"}, "label 'Kick/Low'"),
        ({"label": "../x"}, r"label '\.\./x'"),
        ({"path": 3}, "expect"),
        ({"path": "a\0b"}, "no absolute path"),
        ({"kit": ""}, "kit ''"),
        ({"family": 7}, "family 7"),
        ({"licence": "a\nb"}, "licence"),
        ({"hash": "xyz"}, "hash 'xyz'"),
        ({"hash": "0123456789ABCDEF"}, "16 hexadecimal digits"),
        ({"split": "dev"}, "split 'dev'"),
        ({"split": "fold01"}, "split 'fold01'"),
        ({"weight": 0}, "weight 0"),
        ({"weight": "1"}, "weight '1'"),
        ({"weight": True}, "weight True"),
        ({"wieght": 2.0}, "wieght is no field"),
        ({"path_b64": "?"}, "not a manifest row"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = written(tmp_path / "m.jsonl", GOOD, {**GOOD, "path": "other.wav", **changes})
    with pytest.raises(ConfigError, match=rf"m\.jsonl', line 2: not a manifest row: .*{message}|{message}"):
        read_manifest(path)


@pytest.mark.parametrize("name", GOOD)
def test_every_field_has_to_be_there(tmp_path: Path, name: str) -> None:
    row = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ConfigError, match=f"line 1: not a manifest row: {name} is missing"):
        read_manifest(written(tmp_path / "m.jsonl", row))


@pytest.mark.parametrize("line", ["no json", "[1]", '"text"'])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="line 2: not a manifest row"):
        read_manifest(written(tmp_path / "m.jsonl", "", line))


def test_a_path_that_stands_twice_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3: .*kick\.wav' stands in line 1, too"):
        read_manifest(written(tmp_path / "m.jsonl", GOOD, {**GOOD, "path": "other.wav"}, GOOD))
    with pytest.raises(ValueError, match="stands twice"):
        Manifest((Row(**{**GOOD, "path": tmp_path}),) * 2)


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="a pipe or a device"):
            read_manifest(path)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no rows"):
        read_manifest(written(tmp_path / "m.jsonl", ""))


def test_a_missing_manifest_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataset scan"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_manifest_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_manifest(tmp_path / "nowhere" / "m.jsonl", [])


def test_sides_and_families_of_a_manifest(tmp_path: Path) -> None:
    def row(name: str, family: str, split: str | None) -> Row:
        return Row(**{**GOOD, "path": tmp_path / name, "family": family, "split": split})

    manifest = Manifest((row("a", "y", "train"), row("b", "x", "fold3"), row("c", "y", None)))
    assert manifest.families == ("x", "y")
    assert manifest.splits == ("fold3", "train")
    assert [row.path.name for row in manifest.side("train", None)] == ["a", "c"]
    assert [row.fold for row in manifest] == [None, 3, None]
