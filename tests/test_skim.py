"""Skimming: the kernel reads of every line what Python reads, and refuses what Python refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.synth import write_archive
from drumline.bundle import load_bundle
from drumline.errors import IndexFormatError
from drumline.index import MAX_LINE_BYTES, parse_record, read_frames, split_lines
from drumline.records import Brief, Record, encode_record
from drumline.runs import open_run
from drumline.skim import skim_records, skimming_kernel
from tests.making import CommandLine, gated_model, linear_model, make_bundle, make_record, records

INDEX = Path("index.jsonl")
KICK = make_record(
    b"Kits/kick.wav", {"Kick": 0.9, "Snare": 0.1}, mtime_ns=1_795_971_346_793_853_203, duration_sec=0.25
)
LINE = encode_record(KICK)
CLASSES = len(load_bundle().labels)

SPELLINGS = (
    *("null", "true", "false", "0", "-0", "1", "-1", "01", "1.0", "0.5", "-0.5", "1.5", ".5", "1.", "1e0"),
    *("1E+2", "1e", "1e-99", "1e-100", "1e99", "1e100", "1e400", "0.1000000000000000055511151231257827"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775807", "-9223372036854775808"),
    *("18446744073709551616", '"n"', '""', '"null"', '"\\u00e9"', '"é"', '"\\ud800"', '"a\tb"', '"open'),
    *("[]", "[1]", "[,]", "[{}]", '[{"label":"Kick","prob":0.5}]', '[{"label":"Kick","prob":0.5},]'),
    *('[{"label":"Kick","prob":0.5},{"label":"Clap","prob":1}]', '[{"prob":0.5,"label":"Kick"}]'),
    *("{}", "{,}", '{"Kick":0.5}', '{"Kick":0.5,}', '{"Kick":"0.5"}', '{"Kick":0.5,"Clap":1e-6}', "[]]"),
    *('{"type":"timeout","message":"slow"}', '{"message":"slow","type":"timeout"}', '{"type":"timeout"}'),
    *(
        '{"type":"timeout","message":"slow","more":1}',
        '{"type":1,"message":"slow"}',
        "nul",
        "truefalse",
        " 1",
    ),
)


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    found = skimming_kernel()
    if found is None:
        pytest.skip("there is no kernel")
    return found


def seen(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what skimming is to see of records, with what tells 1 from 1.0."""
    names = Brief.__annotations__
    return [{name: (type(record[name]), record[name]) for name in names} for record in found]


def outcome(read: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]] | str:
    try:
        return read()
    except IndexFormatError as error:
        return str(error)


def skimmed(data: bytes, kernel: ModuleType) -> list[dict[str, Any]] | str:
    return outcome(lambda: seen(skim_records(data, INDEX, kernel)))


def parsed(data: bytes) -> list[dict[str, Any]] | str:
    return outcome(lambda: seen(parse_record(line, INDEX) for line in split_lines(data)))


@pytest.mark.parametrize("has_gate", [False, True])
def test_every_line_that_infer_writes_is_skimmed(
    kernel: ModuleType, command: CommandLine, tmp_path: Path, has_gate: bool
) -> None:
    write_archive(tmp_path / "archive", 20, seed=3)
    (tmp_path / "archive" / "broken.wav").write_bytes(b"RIFF")
    model, more = linear_model(CLASSES), dict[str, Any]()
    if has_gate:
        model, more = gated_model(CLASSES), {"gate": {"output": "gate", "threshold": 0.5}}
    bundle = make_bundle(tmp_path / "bundle", model, **more)
    runs = tmp_path / "runs"
    options = ("--model", bundle.path, "--runs-root", runs, "--workers", "1", "--quiet")
    assert command("infer", tmp_path / "archive", *options).code == 0
    frames = [frame.data for frame in read_frames(open_run(runs).index_path)]
    briefs = [record for data in frames for record in kernel.skimmed(data, MAX_LINE_BYTES)]
    assert None not in briefs
    assert seen(briefs) == parsed(b"".join(frames))
    assert {record["errors"] is None for record in briefs} == {True, False}


@given(record=records, gate=st.none() | st.floats(0, 1))
def test_any_record_is_skimmed_where_nothing_in_it_is_escaped(
    kernel: ModuleType, record: Record, gate: float | None
) -> None:
    for whole in (record, {**record, "gate": gate}):
        line = encode_record(whole)  # type: ignore[arg-type]
        # drumline rounds, so no number of its own is as small as that.
        if re.search(rb"\\|:[\d.]+e-\d\d\d[,}]", line):
            assert kernel.skimmed(line, MAX_LINE_BYTES) == [None]
        else:
            assert seen(kernel.skimmed(line, MAX_LINE_BYTES)) == seen([whole])


@pytest.mark.parametrize("name", [*KICK, "gate"])
def test_a_value_of_any_kind_is_what_it_is_for_python(kernel: ModuleType, name: str) -> None:
    fields = {key: orjson.dumps(value) for key, value in {**KICK, "gate": 0.5}.items()}
    for spelling in SPELLINGS:
        values = {**fields, name: spelling.encode()}
        line = b"{" + b",".join(b'"%s":%s' % (key.encode(), value) for key, value in values.items()) + b"}\n"
        data = LINE + line + LINE
        assert skimmed(data, kernel) == parsed(data), spelling


changes = st.lists(
    st.tuples(
        st.integers(0, len(LINE)),
        st.integers(0, 3),
        st.sampled_from(b'"\\{}[]:,.-+eE019ntx \r\n\0\xc3\xa9\xed'),
    ),
    min_size=1,
    max_size=3,
)


@given(changes=changes)
def test_a_changed_line_is_what_it_is_for_python(
    kernel: ModuleType, changes: list[tuple[int, int, int]]
) -> None:
    line = bytearray(LINE)
    for place, removed, added in changes:
        line[place : place + removed] = bytes([added])
    assert skimmed(bytes(line), kernel) == parsed(bytes(line))


def test_lines_are_read_in_their_order_whoever_reads_them(kernel: ModuleType) -> None:
    odd = orjson.dumps(KICK, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    sizes = range(1, 6)
    data = b"".join(
        line.replace(b'"size":%d' % KICK["size"], b'"size":%d' % size)
        for size, line in zip(sizes, (LINE, odd, odd, LINE, odd), strict=True)
    )
    assert [record is None for record in kernel.skimmed(data, MAX_LINE_BYTES)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    for way in (kernel, None):
        assert [record["size"] for record in skim_records(data, INDEX, way)] == list(sizes)
    assert skim_records(b"", INDEX, kernel) == []


def test_a_line_is_skimmed_up_to_its_longest_with_or_without_its_newline(kernel: ModuleType) -> None:
    for data in (LINE, LINE[:-1]):
        assert seen(kernel.skimmed(data, len(LINE))) == seen([KICK])
        assert kernel.skimmed(data, len(LINE) - 1) == [None]


def test_only_bytes_are_skimmed(kernel: ModuleType) -> None:
    """They alone are sure to have a NUL behind them, at which every line ends."""
    for data in (bytearray(LINE), memoryview(LINE), LINE.decode()):
        with pytest.raises(TypeError):
            kernel.skimmed(data, MAX_LINE_BYTES)


def test_every_beginning_of_a_line_is_refused(kernel: ModuleType) -> None:
    for size in range(1, len(LINE) - 1):
        assert kernel.skimmed(LINE[:size], MAX_LINE_BYTES) == [None]
