"""Skimming: the kernel reads of every line what Python reads, and refuses what Python refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.errors import IndexFormatError
from drumline.index import MAX_LINE_BYTES, parse_record
from drumline.records import Brief, Record, encode_record
from drumline.skim import skim_records, skimming_kernel
from tests.making import make_record, records

INDEX = Path("index.jsonl")
KICK = make_record(
    b"Kits/kick.wav", {"Kick": 0.9, "Snare": 0.1}, mtime_ns=1_795_971_346_793_853_203, duration_sec=0.25
)
LINE = encode_record(KICK)


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    found = skimming_kernel()
    if found is None:
        pytest.skip("there is no kernel")
    return found


def brief(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name in Brief.__annotations__}


def with_types(record: dict[str, Any] | Brief | None) -> Any:
    """Return what tells 1 from 1.0, too."""
    return record and {name: (type(value), value) for name, value in record.items()}


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except IndexFormatError as error:
        return str(error)


@given(record=records, gate=st.none() | st.floats(0, 1))
def test_the_kernel_reads_every_line_that_drumline_writes(
    kernel: ModuleType, record: Record, gate: float | None
) -> None:
    for whole in (record, _with_gate(record, gate)):
        line = encode_record(whole)
        (skimmed,) = kernel.skimmed(line, MAX_LINE_BYTES)
        # drumline rounds, so no number of its own is as small as that.
        is_plain = not re.search(rb"\\|:[\d.]+e-\d\d\d[,}]", line)
        assert with_types(skimmed) == (with_types(brief(whole)) if is_plain else None)


def _with_gate(record: Record, gate: float | None) -> Record:
    items = list(record.items())
    place = [name for name, _ in items].index("probs") + 1
    return dict([*items[:place], ("gate", gate), *items[place:]])  # type: ignore[return-value]


changes = st.lists(
    st.tuples(
        st.integers(0, len(LINE)), st.integers(0, 3), st.sampled_from(b'"\\{}[]:,.-+eE019ntx \r\n\0\xc3\xa9')
    ),
    min_size=1,
    max_size=3,
)


@given(changes=changes)
def test_of_a_changed_line_the_kernel_says_what_python_says(
    kernel: ModuleType, changes: list[tuple[int, int, int]]
) -> None:
    line = bytearray(LINE)
    for place, removed, added in changes:
        line[place : place + removed] = bytes([added])
    data = bytes(line)
    ours = outcome(lambda: [with_types(record) for record in skim_records(data, INDEX, kernel)])
    theirs = outcome(lambda: [with_types(brief(record)) for record in map(_parsed, _lines(data))])
    assert _briefly(ours) == theirs


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.removesuffix(b"\n").split(b"\n")] if data else []


def _parsed(line: bytes) -> Record:
    return parse_record(line, INDEX)


def _briefly(read: Any) -> Any:
    """Return what was read without the fields that only lines have which Python looked at."""
    if isinstance(read, str):
        return read
    return [
        {name: value for name, value in record.items() if name in Brief.__annotations__} for record in read
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"size":', b'"size": '),
        (b'"size":', b'"size":-'),
        (b'"size":', b'"size":1e1'),
        (b'"mtime_ns":', b'"mtime_ns":9'),
        (b"1795971346793853203", b"9223372036854775807"),
        (b"1795971346793853203", b"9223372036854775808"),
        (b"1795971346793853203", b"-9223372036854775807"),
        (b"1795971346793853203", b"-9223372036854775808"),
        (b"1795971346793853203", b"01"),
        (b"1795971346793853203", b"-0"),
        (b'"duration_sec":0.25', b'"duration_sec":1e99'),
        (b'"duration_sec":0.25', b'"duration_sec":1e999'),
        (b'"duration_sec":0.25', b'"duration_sec":-1'),
        (b'"duration_sec":0.25', b'"duration_sec":0.1000000000000000055511151231257827'),
        (b'"duration_sec":0.25', b'"duration_sec":.25'),
        (b'"duration_sec":0.25', b'"duration_sec":0.'),
        (b'"conf_top1":0.9', b'"conf_top1":1.5'),
        (b'"conf_top1":0.9', b'"conf_top1":-0.0'),
        (b'"conf_top1":0.9', b'"conf_top1":1'),
        (b'"assigned_conf":0.9', b'"assigned_conf":9e1'),
        (b'"misc_routed":false', b'"misc_routed":0'),
        (b'"misc_routed":false', b'"misc_routed":truefalse'),
        (b'"errors":null', b'"errors":{"type":"timeout","message":"slow"}'),
        (b'"errors":null', b'"errors":{"type":"timeout"}'),
        (b'"errors":null', b'"errors":{"message":"slow","type":"timeout"}'),
        (b'"probs":{', b'"probs":{,'),
        (b'"probs":{', b'"probs":{"Clap":"0.5",'),
        (b'"topk":[', b'"topk":[,'),
        (b'"topk":[', b'"topk":[{"label":"Clap","prob":0.5}],"more":['),
        (b"kick.wav", b"k\\u00efck.wav"),
        (b"kick.wav", "kïck.wav".encode()),
        (b"kick.wav", b"k\xefck.wav"),
        (b"kick.wav", b"k\xed\xa0\x80ck.wav"),
        (b"kick.wav", b"k\x1fck.wav"),
        (b"kick.wav", b"k\x00ck.wav"),
        (b'"schema_version":1', b'"schema_version":2'),
        (b'"schema_version":1', b'"schema_version":1.0'),
        (b"}\n", b"}"),
        (b"}\n", b"} \n"),
        (b"}\n", b"}}\n"),
        (b"}\n", b"}\n\n"),
    ],
)
def test_what_is_unusual_is_read_as_python_reads_it(kernel: ModuleType, before: bytes, after: bytes) -> None:
    assert before in LINE
    data = LINE + LINE.replace(before, after) + LINE
    ours = outcome(lambda: _briefly([with_types(record) for record in skim_records(data, INDEX, kernel)]))
    theirs = outcome(lambda: [with_types(brief(_parsed(line))) for line in _lines(data)])
    assert ours == theirs


def test_lines_are_read_in_their_order_whoever_reads_them(kernel: ModuleType) -> None:
    odd = orjson.dumps(KICK, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    sizes = range(1, 6)
    lines = [
        line.replace(b'"size":%d' % KICK["size"], b'"size":%d' % size)
        for size, line in zip(sizes, (LINE, odd, odd, LINE, odd), strict=True)
    ]
    assert kernel.skimmed(b"".join(lines), MAX_LINE_BYTES)[1] is None
    for way in (kernel, None):
        assert [record["size"] for record in skim_records(b"".join(lines), INDEX, way)] == list(sizes)
    assert skim_records(b"", INDEX, kernel) == []


def test_a_line_is_skimmed_up_to_its_longest_with_or_without_its_newline(kernel: ModuleType) -> None:
    for data in (LINE, LINE[:-1]):
        assert [with_types(record) for record in kernel.skimmed(data, len(LINE))] == [with_types(brief(KICK))]
        assert kernel.skimmed(data, len(LINE) - 1) == [None]


def test_only_bytes_are_skimmed(kernel: ModuleType) -> None:
    """They alone are sure to have a NUL behind them, at which every line ends."""
    for data in (bytearray(LINE), memoryview(LINE), LINE.decode()):
        with pytest.raises(TypeError):
            kernel.skimmed(data, MAX_LINE_BYTES)


def test_every_beginning_of_a_line_is_refused(kernel: ModuleType) -> None:
    assert [kernel.skimmed(LINE[:size], MAX_LINE_BYTES) for size in range(1, len(LINE) - 1)] == [[None]] * (
        len(LINE) - 2
    )
