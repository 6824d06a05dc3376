from __future__ import annotations

import orjson
import pytest

from drumline.rebuild.manifests import SUMMARY, Reports
from drumline.rebuild.tree import Tree
from tests.rebuild.archives import KICK, Archive


def test_manifests_list_what_stands_in_the_tree(drums: Archive) -> None:
    drums.rebuild()
    manifests = {path.name: path.read_text() for path in (drums.out / "_manifests").iterdir()}
    assert manifests == {
        "Kick.txt": "Kick/Vendor A/Kicks/kick 01.wav\nKick/Vendor A/Kicks/kick 02.wav\n",
        "Snare.txt": "Snare/Vendor A/snare.wav\n",
        "Hihat.txt": "Hihat/Vendor B/hat.wav\n",
        "misc.txt": "misc/Vendor B/clap.wav\n",
        "errors.txt": "Vendor B/broken.wav\tdecode_error\twhy\n",
    }


def test_errors_with_odd_names_and_messages_stay_one_line(archive: Archive) -> None:
    message = {"type": "decode_error", "message": "two\nlines\tand \x1b[31mred"}
    archive.index(b"a\nb\t\xff.wav", error="decode_error", errors=message)
    archive.rebuild()
    line = (archive.out / "_manifests" / "errors.txt").read_bytes()
    assert line == rb"a\x0ab\x09\xff.wav" + b"\tdecode_error\t" + rb"two\x0alines\x09and \x1b[31mred" + b"\n"


def test_statistics_count_the_index_as_decided_now_and_the_tree(drums: Archive) -> None:
    drums.rebuild(threshold=0.85)
    stats = orjson.loads((drums.out / "_stats.json").read_bytes())
    assert stats["labels"] == {"misc": 3, "Kick": 2}
    assert stats["mean_duration_sec"] == {"misc": 0.5, "Kick": 0.5}
    assert sum(stats["confidence_histogram"]["Kick"]) == 2
    assert stats["errors"] == {"decode_error": 1}
    assert stats["tree"] == {"Kick": {"files": 2, "bytes": 400}, "misc": {"files": 3, "bytes": 600}}


def test_the_summary_says_what_was_asked_and_done_and_adds_up(drums: Archive) -> None:
    drums.add(b"gone.wav", mtime_ns=1)
    run = drums.run()
    drums.rebuild(run, layout="flat")
    summary = orjson.loads((drums.out / "_rebuild_summary.json").read_bytes())
    counts = summary["counts"]
    assert counts["planned"] == counts["made"] + counts["changed"] == 6
    assert summary["not_placed"] == 1
    assert summary["run"] == run.name
    assert summary["settings"]["layout"] == "flat"
    assert summary["seconds"] >= 0


def test_a_report_that_somebody_edited_stays(drums: Archive) -> None:
    run = drums.run()
    drums.rebuild(run)
    edited = drums.out / "_manifests" / "Kick.txt"
    edited.write_text("my favourites\n")
    summary = drums.rebuild(run, labels=("Snare",))
    assert edited.read_text() == "my favourites\n"
    assert summary.counts["reports_left"] == 1


def test_reports_are_the_same_for_the_same_tree(archive: Archive) -> None:
    for number in range(20):
        archive.add(b"%d.wav" % number, KICK)
    run, reverse = archive.run(), archive.run(reversed(archive.records))
    archive.rebuild(run)
    before = {path.name: path.read_bytes() for path in (archive.out / "_manifests").iterdir()}
    archive.rebuild(reverse)
    assert {path.name: path.read_bytes() for path in (archive.out / "_manifests").iterdir()} == before


def test_a_summary_that_somebody_wrote_is_counted_as_left(drums: Archive) -> None:
    drums.rebuild()
    place = drums.out / "_rebuild_summary.json"
    place.write_text("mine")
    assert drums.rebuild().counts["reports_left"] == 1
    assert place.read_text() == "mine"


def test_reports_of_a_rebuild_that_only_removes_are_on_disk_before_it_is_called_done(
    drums: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"one.wav", b"two.wav"):
        drums.add(name, content=b"the same")
    run, events = drums.run(), list[bytes]()
    drums.rebuild(run)
    rename, sync = Reports._rename, Tree.sync
    monkeypatch.setattr(
        Reports, "_rename", lambda reports, target: (events.append(target), rename(reports, target))
    )
    monkeypatch.setattr(Tree, "sync", lambda tree: (events.append(b"sync"), sync(tree)))
    counts = drums.rebuild(run, dedup="first").counts
    assert (counts["made"], counts["removed"]) == (0, 1)
    written = max(place for place, event in enumerate(events) if event not in (b"sync", SUMMARY))
    done = events.index(SUMMARY)
    assert b"sync" in events[written:done]
