"""What one file costs, step by step.

    python -m pytest bench --benchmark-enable

Sounds are a synthesised snare and crash. Without the option each step runs once, to see that it works.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from bench.formats import available, encode
from bench.sounds import render
from drumline.audio import Decoder
from drumline.bundle import load_bundle
from drumline.cache import Cache, FileRow
from drumline.decide import DecisionSettings, decide
from drumline.features import FeatureExtractor
from drumline.frontend import FrontEnd
from drumline.inference import open_session
from drumline.pipeline.queues import Lifeline, SlotQueue
from drumline.records import Record, encode_record
from drumline.tally import Tally

Benchmark = Callable[..., Any]
Samples = np.ndarray[Any, np.dtype[np.float32]]

FRONT_END = FrontEnd()
PROBABILITIES = {f"label {number:02d}": 1 / 40 for number in range(40)}
NAMES = [b"%05d.wav" % number for number in range(500)]


def sound(label: str, seconds: float, rate: int = 44_100) -> Samples:
    """Return a mono sound of at most `seconds`, always the same."""
    return render(label, np.random.default_rng(7), rate, seconds)


@pytest.mark.parametrize("name", ["wav-16", "wav-24", "aiff-16", "flac", "ogg", "mp3"])
def test_decode_half_a_second(benchmark: Benchmark, name: str) -> None:
    """Decode a mono file at the front end's own rate, from memory."""
    if name not in available():
        pytest.skip(f"libsndfile cannot write {name}")
    data = encode(sound("Snare", 0.5)[:, None], 44_100, name)
    assert benchmark(Decoder(FRONT_END).decode, data, b"").sample_rate == 44_100


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_decode_a_second_of_stereo(benchmark: Benchmark, rate: int) -> None:
    """Decode a 24-bit stereo WAV, mix it to mono and resample it."""
    stereo = np.repeat(sound("Crash", 1.0, rate)[:, None], 2, axis=1)
    assert benchmark(Decoder(FRONT_END).decode, encode(stereo, rate, "wav-24"), b"").channels == 2


@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.2])
@pytest.mark.parametrize("statistics", [False, True], ids=["mfcc", "mfcc+statistics"])
def test_features(benchmark: Benchmark, seconds: float, statistics: bool) -> None:
    """Compute the MFCC tensor of a mono sound, without and with its spectral statistics."""
    out = np.empty(FRONT_END.shape, np.float32)
    benchmark(FeatureExtractor(FRONT_END).extract, sound("Crash", seconds), out, audio_stats=statistics)
    assert np.all(np.isfinite(out))


def test_content_hash(benchmark: Benchmark) -> None:
    """Hash 170 kB."""
    assert benchmark(lambda data: xxhash.xxh3_64(data).hexdigest(), bytes(170_000))


def test_model(benchmark: Benchmark) -> None:
    """Run the default model on a batch of 64."""
    session = open_session(load_bundle(), "cpu")
    features = np.zeros((64, *session.bundle.front_end.shape), np.float32)
    assert benchmark(session.probabilities, features).shape[0] == 64


def test_decision(benchmark: Benchmark) -> None:
    """Decide from 40 stored probabilities."""
    settings = DecisionSettings({label: label[-1] for label in PROBABILITIES})
    assert benchmark(decide, PROBABILITIES, settings).assigned_reason


def test_record_encoding(benchmark: Benchmark) -> None:
    """Encode a record as a line of the index."""
    record: dict[str, Any] = dict.fromkeys(Record.__annotations__, 0.123456)
    record |= {"relative_path": "Pack/Kicks/Kick 01.wav", "probs": PROBABILITIES}
    assert benchmark(encode_record, record).endswith(b"\n")


def test_cached_directory(benchmark: Benchmark, tmp_path: Path) -> None:
    """Look up what is known of a directory of 500 files."""
    cache = Cache(tmp_path / "cache.sqlite3")
    with cache.transaction():
        scope = cache.scope(b"/archive", "key")
        run = cache.add_run(scope, "run", "key")
        rows = [
            FileRow(b"pack", name, 1000, line, f"{line:016x}", 0, line) for line, name in enumerate(NAMES)
        ]
        cache.add_frame(scope, run, 0, 1, 0, Tally(), rows)
    directory = cache.directories(scope)[b"pack"]
    assert len(benchmark(cache.files, directory)) == len(NAMES)
    cache.close()


def test_slot_hand_over(benchmark: Benchmark) -> None:
    """Put 64 slot numbers on a queue and take them off again."""
    lifeline = Lifeline()
    queue, slots = SlotQueue(lifeline), np.arange(64)

    def hand_over() -> list[int] | None:
        queue.put(slots)
        return queue.get(64, 1.0)

    assert benchmark(hand_over) == slots.tolist()
    queue.use()
    lifeline.close()
