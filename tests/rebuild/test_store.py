"""The working table of a plan."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.rebuild import Plan, RebuildSettings
from drumline.rebuild.store import Row, Store, working_space
from drumline.runs import Run


def test_ctrl_c_ends_a_long_statement_within_a_second() -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with closing(Store()) as store:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt), working_space():
                store._row(endless)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 1.1


KEYS = st.lists(st.sampled_from([b"a", b"b", b"a-", b"a~"]), min_size=1, max_size=3).map(b"\0".join)


def rows_of(keys: list[bytes], sizes: list[int]) -> list[Row]:
    """Return rows with these keys, every third of which the archive does not have any more."""
    return [
        Row(place, key, b"%d" % place, key[:1].decode(), key, size, 2, None, 7)
        if place % 3
        else Row(place, key, b"%d" % place, key[:1].decode(), key, size, 2, None, None, "missing", "gone")
        for place, (key, size) in enumerate(zip(keys, sizes, strict=True))
    ]


@given(st.lists(KEYS))
def test_the_first_of_several_files_keeps_its_name_and_none_keeps_that_of_a_directory(
    keys: list[bytes],
) -> None:
    rows = rows_of(keys, [1] * len(keys))
    with closing(Store()) as store:
        store.add_all("record", rows)
        renamed = {row.place for row in store.without_their_name()}
    expected, taken = set(), set[bytes]()
    for row in sorted(rows, key=lambda row: (row.key, row.source)):
        is_directory = any(key.startswith(row.key + b"\0") for key in keys)
        if row.key in taken or is_directory:
            expected.add(row.place)
        taken.add(row.key)
    assert renamed == expected


@given(st.lists(st.tuples(KEYS, st.integers(0, 2**63 - 1))))
def test_a_plan_has_every_record_once_in_the_order_of_the_tree_and_counts_are_exact(
    files: list[tuple[bytes, int]],
) -> None:
    rows = rows_of([key for key, _ in files], [size for _, size in files])
    with closing(Store()) as store:
        store.add_all("record", rows)
        store.plan_records("make")
        actions, states = list(store.actions()), store.state_counts()
        totals = {label: (count, size) for label, count, size in store.label_totals()}
        store.note_problems_of_plan()
        problems = Counter(store.problems())
        devices = store.devices_to_do()
    ordered = sorted(rows, key=lambda row: (row.key, row.source))
    assert [action.source for action in actions] == [row.source for row in ordered]
    assert [action.state for action in actions] == [row.problem or "make" for row in ordered]
    assert states == Counter(action.state for action in actions)
    for label, (count, size) in totals.items():
        held = [row.size for row in rows if row.label == label and row.problem is None]
        assert (count, size) == (len(held), sum(held))
    assert problems == Counter(("missing", row.target, "gone") for row in rows if row.problem)
    assert [device for device, _ in devices] == [7] * any(row.device == 7 for row in rows)


def test_ctrl_c_while_a_plan_is_read_is_no_error_of_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        error = sqlite3.OperationalError("interrupted")
        error.sqlite_errorname = "SQLITE_INTERRUPT"
        raise error

    run = Run(Path("run"), Path("run") / "index.jsonl.zst", {})
    plan = Plan(RebuildSettings(run.directory, Path("out")), run, None, Store())
    monkeypatch.setattr(Store, "_rows", interrupted)
    for read in (plan.actions, plan.problems, lambda: plan.batches(1, 1)):
        with pytest.raises(KeyboardInterrupt):
            next(iter(read()))
    plan.close()
