"""What a person sees while the pipeline runs."""

from __future__ import annotations

import errno
import io
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.progress import (
    PanelProgress,
    PlainProgress,
    Progress,
    Snapshot,
    duration_text,
    make_progress,
    withheld_text,
)

CALM: dict[str, Any] = {
    "found": 2000,
    "found_all": True,
    "done": 500,
    "carried": 0,
    "failed": 0,
    "written": 500,
    "written_bytes": 10_000_000,
    "labels": {"Kick": 300, "Snare": 200, "Tom": 0},
    "waiting": {"extract": 12, "predict": 3, "write": 1},
    "slots": 320,
    "slots_allowed": 320,
    "workers": 8,
    "workers_wanted": 8,
    "elapsed_sec": 2.0,
}


def snapshot(**changes: Any) -> Snapshot:
    return Snapshot(**{**CALM, **changes})


def plain(*snapshots: Snapshot) -> list[str]:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    for each in snapshots:
        progress.show(each)
    progress.close()
    return stream.getvalue().splitlines()


def panel(
    monkeypatch: pytest.MonkeyPatch, *snapshots: Snapshot, title: str = "drumline", note: str = ""
) -> str:
    """Return what the last of some panels shows."""
    import rich.console

    stream = io.StringIO()
    console = rich.console.Console
    monkeypatch.setattr(
        rich.console, "Console", lambda **_: console(file=stream, force_terminal=True, width=100, height=40)
    )
    progress = PanelProgress(title)
    for each in snapshots:
        progress.show(each)
    if note:
        progress.note(note)
        progress.show(snapshots[-1])
    shown = stream.getvalue()
    progress.close()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown[shown.rindex("╭") :])


def test_a_line_says_files_speed_and_time_left() -> None:
    assert plain(snapshot()) == [
        "drumline: 500 of 2,000 files, 250 files/s, 5.0 MB/s, 6.0 s left",
    ]


def test_a_line_counts_failures_and_marks_a_total_that_is_not_final() -> None:
    assert plain(snapshot(found_all=False, failed=1234)) == [
        "drumline: 500 of 2,000+ files, 250 files/s, 5.0 MB/s, 1,234 failed",
    ]


def test_the_speed_is_that_of_the_last_seconds() -> None:
    slow = [snapshot(done=second, elapsed_sec=float(second), written_bytes=0) for second in range(30)]
    fast = [snapshot(done=29 + 100 * step, elapsed_sec=29.0 + step, written_bytes=0) for step in range(1, 9)]
    assert "100 files/s" in plain(*slow, *fast)[-1]
    assert "1 files/s" in plain(*slow)[-1]


def test_nothing_done_yet_gives_no_time_left() -> None:
    assert plain(snapshot(done=0, written_bytes=0)) == ["drumline: 0 of 2,000 files, 0 files/s, 0.0 MB/s"]
    assert plain(snapshot(done=0, written_bytes=0, elapsed_sec=0.0, found=0, found_all=False))


def test_lines_and_panel_say_while_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    short, text = snapshot(slots_allowed=12), "memory is short: 12 of 320 slots"
    assert [text in line for line in plain(snapshot(), short, snapshot())] == [False, True, False]
    shown = panel(monkeypatch, short)
    assert "(at most 12 files at once)" in shown
    assert text in shown


@pytest.mark.parametrize(
    ("slots", "workers", "text"),
    [
        ((320, 320), (8, 8), ""),
        ((320, 320), (0, 8), ""),
        ((320, 320), (2, 8), "2 of 8 workers"),
        ((1_200, 3_200), (2, 8), "1,200 of 3,200 slots and 2 of 8 workers"),
    ],
)
def test_workers_that_memory_has_no_room_for_are_told_of_once_one_was_needed(
    slots: tuple[int, int], workers: tuple[int, int], text: str
) -> None:
    assert withheld_text(slots, workers) == text
    line = plain(snapshot(slots_allowed=slots[0], slots=slots[1], workers=workers[0]))[0]
    assert ("memory is short" in line) == bool(text)
    assert line.endswith(text)


def test_a_remark_has_a_line_of_its_own() -> None:
    stream = io.StringIO()
    PlainProgress(stream).note("stopping")
    assert stream.getvalue() == "drumline: stopping\n"


def test_the_panel_shows_all_that_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panel(monkeypatch, snapshot(carried=77, failed=5), title="drumline · /samples", note="stopping")
    for text in (
        *("drumline · /samples", "500 of 2,000 files", "6.0 s left", "250 files/s", "5.0 MB/s"),
        *("77 carried over", "5 failed", "Kick", "300", "Snare", "200", "stopping"),
        *("waiting to be  read 12   classified 3   written 1", "at most 320 files at once"),
    ):
        assert text in shown
    assert "Tom" not in shown


def test_the_total_firms_up_while_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panel(monkeypatch, snapshot(found_all=False))
    assert "500 of 2,000+ files" in shown
    assert "finding files" in shown


def test_a_panel_of_many_labels_shows_the_ten_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panel(monkeypatch, snapshot(labels={f"label{number:02d}": number for number in range(30)}))
    assert re.findall(r"label\d\d", shown) == [f"label{number:02d}" for number in range(29, 19, -1)]


def test_what_looks_like_markup_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panel(monkeypatch, snapshot(), title="drumline · /a [bold]b[/bold] [/c]", note="[red]note[/x]")
    assert "/a [bold]b[/bold] [/c]" in shown
    assert "[red]note[/x]" in shown


@given(
    st.builds(
        Snapshot,
        found=st.integers(0, 10**9),
        found_all=st.booleans(),
        done=st.integers(0, 10**9),
        carried=st.integers(0, 10**9),
        failed=st.integers(0, 10**9),
        written=st.integers(0, 10**9),
        written_bytes=st.integers(0, 10**15),
        labels=st.dictionaries(st.sampled_from(["Kick", "misc"]), st.integers(0, 10**9)),
        waiting=st.just({}),
        slots=st.integers(1, 10**4),
        elapsed_sec=st.floats(0, 1e7),
    )
)
def test_any_numbers_can_be_shown(shown: Snapshot) -> None:
    assert len(plain(shown, shown._replace(elapsed_sec=shown.elapsed_sec + 1))) == 2


def test_silence_shows_nothing_and_is_never_due() -> None:
    progress = Progress()
    progress.note("x")
    progress.show(snapshot())
    assert not progress.due()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *(
            (0, "0.0 s"),
            (0.44, "0.4 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
        ),
        *((185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min"), (360_000, "100 h 00 min")),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_what_is_shown_depends_on_where(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert type(make_progress("t", quiet=True)) is Progress
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(make_progress("t"), PlainProgress)
    monkeypatch.setattr("sys.stderr", Terminal())
    shown = make_progress("t")
    assert isinstance(shown, PanelProgress)
    shown.close()


class Gone(io.StringIO):
    """A terminal that was closed, or a log on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_where_nothing_can_be_shown_the_work_goes_on_unseen() -> None:
    progress = PlainProgress(Gone())
    progress.note("stopping")
    progress.show(snapshot())
    progress.close()
