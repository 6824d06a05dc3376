"""Other ways to do what ``drumline infer`` does, each written as its users would write it.

Every one is a program: ``python -m bench.peers.NAME ARCHIVE INDEX`` reads every audio file of ARCHIVE, hashes
it, computes MFCC and statistics, runs the same model, and writes one JSON line per file into INDEX. The
benchmark checks that they give the same labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another way to classify an archive.

    Parameters
    ----------
    name
        ``"plain"``, ``"pool"`` …
    label, title
        What it is, in short and in full.
    needs
        The module without which it is left out.
    bar
        How many times as fast drumline is to be; None where nothing was promised.
    """

    name: str
    label: str
    title: str
    needs: str
    bar: float | None = None

    @property
    def module(self) -> str:
        """The program's module."""
        return "bench.plain" if self.name == "plain" else f"bench.peers.{self.name}"

    @property
    def available(self) -> bool:
        """Whether it can run here."""
        return find_spec(self.needs) is not None


PEERS = (
    Peer("plain", "plain way", "the plain way (one process, librosa, md5, batches of 32)", "librosa", 15.0),
    Peer("pool", "good pool", "a good pool (processes, librosa, soundfile, xxhash)", "librosa", 6.0),
    Peer("tfdata", "tf.data", "tf.data (parallel map, prefetch, TensorFlow's transforms)", "tensorflow"),
    Peer("audioflux", "audioFlux", "audioFlux in a pool of processes", "audioflux"),
    Peer("spdl", "SPDL", "SPDL (threads, its WAV loader, SciPy)", "spdl"),
    Peer("floor", "floor", "the floor (drumline's own steps on one core, no pipeline)", "drumline"),
)
"""In the order of the report."""
