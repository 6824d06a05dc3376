"""First runs: ``drumline infer`` against its peers and its floor, warm and cold."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.corpus import corpus_directory, iter_corpus_archive
from bench.measure import Outcome, evict, interleaved, median, run_command, seconds_text, spread_text
from bench.peers import PEERS, Peer
from bench.report import Measure
from bench.synth import iter_archive
from bench.workshop import Sizes, Workshop, say, verdict
from drumline.index import read_index
from drumline.machine import usable_cpus
from drumline.runs import open_run

__all__ = ["agreement", "measure_infer"]


def measure_infer(workshop: Workshop) -> list[Measure]:
    """Compare ``drumline infer`` with its peers and its floor: speed, CPU time, and equal labels."""
    files, corpus = workshop.sizes.infer_files, corpus_directory()
    with workshop.room("infer") as room:
        archive = room / "archive"
        entries = iter_corpus_archive(corpus, archive, files) if corpus else iter_archive(archive, files)
        count = sum(1 for _ in entries)
        say(f"infer: {count:,} files, {'corpus' if corpus else 'synthesised'}")
        contest = _Contest(workshop, room, [peer for peer in PEERS if peer.available])
        contest.warm_up()
        contest.hold(archive)
        what = f"first run, {count:,} {'real recordings' if corpus else 'synthesised files'}"
        measures = [contest.measure(peer, what, count, archive) for peer in contest.peers]
        measures += [contest.efficiency(count), contest.efficiency_at_once(count, archive)]
        return [*measures, _measure_cold(workshop, room, archive, what, contest)]


class _Contest:
    """drumline and its peers, in turn, on one archive."""

    def __init__(self, workshop: Workshop, room: Path, peers: list[Peer]) -> None:
        self._workshop, self._room, self.peers = workshop, room, peers
        self._runs = room / "runs"
        self.ours: list[Outcome] = []
        self.theirs: dict[str, list[Outcome]] = {peer.name: [] for peer in peers}

    def warm_up(self) -> None:
        """Let all sides compile and load what they do once on a machine."""
        archive = self._room / "warm-up"
        for _ in iter_archive(archive, 40):
            pass
        self._workshop.infer(archive, self._room / "warm-up-runs")
        for peer in self.peers:
            self._run(peer, archive, self._room / "warm-up.jsonl")

    def hold(self, archive: Path) -> None:
        """Run A B C … in turn, as often as is wanted."""
        for _ in range(self._workshop.sizes.repeats):
            self.ours.append(self.run_ours(archive))
            for peer in self.peers:
                self.theirs[peer.name].append(self._run(peer, archive, self._index(peer)))

    def run_ours(self, archive: Path) -> Outcome:
        """Classify from nothing."""
        shutil.rmtree(self._runs, ignore_errors=True)
        return self._workshop.infer(archive, self._runs)

    def _index(self, peer: Peer) -> Path:
        return self._room / f"{peer.name}.jsonl"

    @staticmethod
    def _run(peer: Peer, archive: Path, index: Path) -> Outcome:
        # Processes in a pool must not start a BLAS thread per CPU each: it makes them twice as slow.
        env = (
            {} if peer.name in ("plain", "tfdata") else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        )
        return run_command((sys.executable, "-m", peer.module, archive, index), env=env)

    def measure(self, peer: Peer, what: str, files: int, archive: Path) -> Measure:
        """Compare drumline with a peer; with the floor, by CPU time."""
        same = agreement(self._runs, self._index(peer), archive)
        theirs, ours = self.theirs[peer.name], self.ours
        seconds, cpu = _seconds(ours), [outcome.cpu_sec for outcome in ours]
        details: dict[str, Any] = {"files": files, "ours_sec": seconds, "ours_cpu_sec": cpu, **same}
        details |= {"theirs_sec": _seconds(theirs), "theirs_cpu_sec": [one.cpu_sec for one in theirs]}
        if peer.name == "floor":
            details |= {"theirs_sec": self._floor("elapsed_sec"), "theirs_cpu_sec": self._floor("cpu_sec")}
        title = f"{what}, against {peer.title}; same label for {same['same_label']:.2%}"
        if peer.name == "floor":
            return self._against_floor(title, files, details)
        ratio = median(details["theirs_sec"]) / median(seconds)
        return Measure(
            f"infer-{peer.name}",
            title,
            f"{ratio:.1f}× as fast",
            f"{files / median(seconds):,.0f} files/s{spread_text(seconds)}",
            f"{files / median(details['theirs_sec']):,.0f} files/s{spread_text(details['theirs_sec'])}",
            "" if peer.bar is None else f"≥ {peer.bar:g}×",
            None if peer.bar is None else verdict(ratio >= peer.bar, files >= Sizes().infer_files),
            {**details, "ratio": ratio},
            label=peer.label,
        )

    def _against_floor(self, title: str, files: int, details: dict[str, Any]) -> Measure:
        ours, floor = median(details["ours_cpu_sec"]), median(details["theirs_cpu_sec"])
        return Measure(
            "infer-floor",
            f"CPU time: {title}",
            f"{ours / floor:.2f}× its CPU time",
            f"{1000 * ours / files:.2f} ms a file",
            f"{1000 * floor / files:.2f} ms a file",
            "≤ 1.6×",
            verdict(ours / floor <= 1.6, files >= Sizes().infer_files),
            {**details, "ratio": ours / floor},
        )

    def _floor(self, what: str) -> list[float]:
        """Return what the floor says of its work, without the start of the interpreter."""
        return [json.loads(outcome.stdout)[what] for outcome in self.theirs["floor"]]

    def efficiency(self, files: int) -> Measure:
        """Compare files/s with what the floor would do on every core at once."""
        what = f"files/s against {usable_cpus()} times the floor's of one core"
        measure = self._share("efficiency", what, files, median(self._floor("elapsed_sec")))
        met = verdict(measure.details["share"] >= 0.75, files >= Sizes().infer_files)
        return replace(measure, bar="≥ 0.75", met=met)

    def efficiency_at_once(self, files: int, archive: Path) -> Measure:
        """Compare files/s with what floors on all cores at once do: cores share caches, memory and power."""
        say("infer: a floor on every core at once")
        cores = usable_cpus()
        (peer,) = (peer for peer in self.peers if peer.name == "floor")
        indexes = [self._room / f"floor-{number}.jsonl" for number in range(cores)]
        with ThreadPoolExecutor(cores) as pool:
            outcomes = list(pool.map(lambda index: self._run(peer, archive, index), indexes))
        floor = median([json.loads(outcome.stdout)["elapsed_sec"] for outcome in outcomes])
        what = f"files/s against {cores} floors at once, one on each core"
        return self._share("efficiency-at-once", what, files, floor)

    def _share(self, name: str, what: str, files: int, floor: float) -> Measure:
        """Compare files/s with those of a floor on each core, each of which takes `floor` seconds."""
        cores, ours = usable_cpus(), median(_seconds(self.ours))
        share = floor / cores / ours
        return Measure(
            name,
            what,
            f"{share:.2f}",
            f"{files / ours:,.0f} files/s",
            f"{cores} × {files / floor:,.0f} files/s",
            "",
            None,
            {"share": share, "floor_sec": floor},
        )


def _measure_cold(workshop: Workshop, room: Path, archive: Path, what: str, contest: _Contest) -> Measure:
    say("infer: files not in the page cache")

    def cold() -> float:
        evict(archive)
        return contest.run_ours(archive).seconds

    (seconds,) = interleaved(workshop.sizes.repeats, cold)
    ratio = median(seconds) / median(_seconds(contest.ours))
    return Measure(
        "infer-cold",
        f"{what}, files not in the page cache, against in it",
        f"{ratio:.2f}× its time",
        seconds_text(seconds),
        f"{median(_seconds(contest.ours)):.2f} s",
        "",
        None,
        {"cold_sec": seconds, "ratio": ratio},
    )


def _seconds(outcomes: list[Outcome]) -> list[float]:
    return [outcome.seconds for outcome in outcomes]


def agreement(runs: Path, plain_index: Path, archive: Path) -> dict[str, Any]:
    """Return the share of files with equal labels, and the largest difference of confidences."""
    with plain_index.open(encoding="utf-8") as stream:
        plain = {os.path.relpath(line["path"], archive): line for line in map(json.loads, stream)}
    records = list(read_index(open_run(runs).index_path))
    both = [(record, plain.get(record["relative_path"], {})) for record in records]
    told = [(record, other) for record, other in both if record["errors"] is None and "label" in other]
    equal = sum(record["assigned_label"] == other["label"] for record, other in told)
    equal += sum(record["errors"] is not None and "error" in other for record, other in both)
    gaps = [abs((record["assigned_conf"] or 0.0) - other["confidence"]) for record, other in told]
    return {
        "same_label": equal / max(len(records), len(plain), 1),
        "largest_confidence_difference": max(gaps, default=0.0),
        "compared": len(both),
    }
