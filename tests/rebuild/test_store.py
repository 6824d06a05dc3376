"""The working table of a plan."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.rebuild.store import Row, Store, working_space


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


def rows_of(keys: list[bytes]) -> list[Row]:
    return [
        Row(place, key, b"%d" % place, "Kick", b"Kick/%d" % place, 1, 2, None)
        for place, key in enumerate(keys)
    ]


@given(
    st.lists(st.lists(st.sampled_from([b"a", b"b", b"a-", b"a~"]), min_size=1, max_size=3).map(b"\0".join))
)
def test_clashes_are_all_files_of_one_key_and_those_whose_key_a_directory_has(keys: list[bytes]) -> None:
    with closing(Store()) as store:
        store.add_all("record", rows_of(keys))
        found = {rows[0].key: ([row.place for row in rows], taken) for rows, taken in store.clashes()}
    expected = {}
    for key in set(keys):
        places = [place for place, other in enumerate(keys) if other == key]
        taken = any(other.startswith(key + b"\0") for other in keys)
        if taken or len(places) > 1:
            expected[key] = (sorted(places, key=lambda place: b"%d" % place), taken)
    assert found == expected
