"""Records: exact paths, schema, and decisions made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest
from hypothesis import given

from drumline.decide import DecisionSettings
from drumline.index import parse_record
from drumline.records import (
    ErrorType,
    Record,
    absolute_path,
    display_path,
    encode_record,
    json_schema,
    path_fields,
    redecide,
    relative_path,
)
from tests.making import ARCHIVE, CANONICAL_OF, DECISIONS, make_record, paths, records

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
DOCUMENT = Path(__file__).parents[1] / "docs/index-format.md"


@given(records)
def test_a_record_survives_its_line(record: Record) -> None:
    line = encode_record(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_record(line, Path("index.jsonl")) == record


@given(paths)
def test_a_path_of_any_bytes_survives_its_record(path: bytes) -> None:
    record = parse_record(encode_record(make_record(path)), Path("index.jsonl"))
    assert relative_path(record) == path
    assert absolute_path(record) == ARCHIVE + b"/" + path
    assert absolute_path(record, b"/elsewhere") == b"/elsewhere/" + path


@given(paths)
def test_only_names_that_are_no_utf_8_are_kept_twice(path: bytes) -> None:
    text, encoded = path_fields(path)
    assert (encoded is None) == (text.encode() == path)
    assert text == display_path(path)


@given(records)
def test_every_record_fits_the_json_schema(record: Record) -> None:
    VALIDATOR.validate(record)


def test_the_json_schema_is_itself_valid_and_names_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert set(json_schema()["properties"]) == set(get_type_hints(Record))
    assert set(json_schema()["required"]) == set(get_type_hints(Record)) - {"gate"}


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"size": -1},
        {"conf_top1": 1.5},
        {"assigned_reason": "guessed"},
        {"errors": {"type": "gremlins", "message": ""}},
        {"relative_path": None},
        {"surplus": 1},
        {"gate": 1.5},
    ],
)
def test_the_json_schema_refuses_what_is_no_record(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid({**make_record(), **change})


@given(records)
def test_deciding_again_with_the_same_settings_changes_nothing(record: Record) -> None:
    assert redecide(record, DECISIONS) == record


def test_deciding_again_changes_only_the_decision() -> None:
    record = make_record(probs={"Kick": 0.6, "Snare": 0.4})
    again = redecide(record, DecisionSettings(CANONICAL_OF, threshold=0.7))
    assert (again["assigned_label"], again["assigned_reason"]) == ("misc", "below_threshold")
    changed = {name for name in record if record[name] != again[name]}  # type: ignore[literal-required]
    assert changed == {"assigned_label", "assigned_reason", "misc_routed", "below_misc_threshold"}


def test_the_document_names_every_field_and_every_error_type() -> None:
    text = DOCUMENT.read_text()
    missing = [name for name in get_type_hints(Record) if f"| `{name}` |" not in text]
    assert not missing
    assert not [name for name in get_args(ErrorType) if f"| `{name}` |" not in text]
