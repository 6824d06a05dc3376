"""What one file costs, step by step.

    python -m pytest bench --benchmark-enable
    python -m bench.compare

Sounds are a synthesised snare and crash. Without the option each step runs once, to see that it works.
`bench.compare` runs all of them and says what has become slower since the last time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest

from bench.formats import available, encode
from bench.sounds import render
from drumline.audio import Decoder
from drumline.bundle import load_bundle
from drumline.cache import Cache, FileRow
from drumline.coefficients import CompiledCoefficients, PlainCoefficients
from drumline.content import hasher
from drumline.decide import DecisionSettings, decide
from drumline.features import FeatureExtractor, mel_filterbank
from drumline.frontend import FrontEnd
from drumline.index import FRAME_LINES, Codec, Written
from drumline.inference import open_session
from drumline.pipeline.queues import Lifeline, SlotQueue
from drumline.pipeline.slots import SlotTable, State
from drumline.records import Record, encode_record
from drumline.spectra import CompiledSpectra, PlainSpectra, Spectra, compiled_kernel
from drumline.staging import Staging
from drumline.tally import Tally
from drumline.walk import Walk, WalkSettings

Benchmark = Callable[..., Any]
Samples = np.ndarray[Any, np.dtype[np.float32]]

FRONT_END = FrontEnd()
PROBABILITIES = {f"label {number:02d}": 1 / 40 for number in range(40)}
NAMES = [b"%05d.wav" % number for number in range(500)]


def sound(label: str, seconds: float, rate: int = 44_100) -> Samples:
    """Return a mono sound of at most `seconds`, always the same."""
    return render(label, np.random.default_rng(7), rate, seconds)


def some_record(number: int = 1) -> Record:
    """Return what is encoded as a record: as many fields, as long as real ones."""
    record: Any = dict.fromkeys(Record.__annotations__, 0.123456 + number)
    record |= {"relative_path": f"Pack/Kicks/Kick {number:03d}.wav", "probs": PROBABILITIES}
    return cast(Record, record)


@pytest.fixture
def table() -> SlotTable:
    """A slot table as large as with the defaults on two CPUs."""
    return SlotTable.create(320, 2, FRONT_END.shape, 40, 7)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """A cache that knows one directory of 500 files."""
    cache = Cache(tmp_path / "cache.sqlite3")
    with cache.transaction():
        scope = cache.scope(b"/archive", "key")
        run = cache.add_run(scope, "run", "key")
        rows = [FileRow(b"pack", name, 1000, n, f"{n:016x}", 0, n) for n, name in enumerate(NAMES)]
        cache.add_frame(scope, run, Written(0, 1, b""), 0, Tally(), rows)
    yield cache
    cache.close()


def test_yardstick(benchmark: Benchmark) -> None:
    """Do work that is none of drumline's: how fast the machine is right now."""
    values = np.arange(100_000, dtype=np.float32)
    assert benchmark(lambda: sum(float(np.sqrt(values).sum()) for _ in range(4))) > 0.0


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


@pytest.mark.parametrize("kind", [None, 0, 1, 2], ids=["plain", "compiled", "AVX2", "AVX-512"])
def test_transform(benchmark: Benchmark, kind: int | None) -> None:
    """Transform 98 frames, and find mel bands, centroid and rolloff of each."""
    mel = mel_filterbank(FRONT_END.sample_rate, FRONT_END.n_fft, FRONT_END.n_mels)
    spectra: Spectra = PlainSpectra(FRONT_END.n_fft, FRONT_END.hop_length, mel)
    if kind is not None:
        kernel = compiled_kernel()
        if kernel is None or kind >= kernel.KINDS:
            pytest.skip("installed without a C compiler, or this processor has no such instructions")
        spectra = CompiledSpectra(FRONT_END.n_fft, FRONT_END.hop_length, mel, kernel, kind)
    samples = np.random.default_rng(7).standard_normal(52_224).astype(np.float32)
    assert benchmark(spectra.figures, samples, 98, statistics=True).mel.max() > 0.0


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_coefficients(benchmark: Benchmark, compiled: bool) -> None:
    """Write the MFCC of 98 frames from their mel bands."""
    mel = mel_filterbank(FRONT_END.sample_rate, FRONT_END.n_fft, FRONT_END.n_mels)
    way = PlainCoefficients(FRONT_END, mel)
    if compiled:
        kernel = compiled_kernel()
        if kernel is None:
            pytest.skip("drumline was installed without a C compiler")
        way = CompiledCoefficients(FRONT_END, mel, kernel)
    samples = np.random.default_rng(7).standard_normal(52_224).astype(np.float32)
    spectra = PlainSpectra(FRONT_END.n_fft, FRONT_END.hop_length, mel)
    figures, out = spectra.figures(samples, 98, statistics=True), np.empty(FRONT_END.shape, np.float32)
    assert not benchmark(lambda: way.write(figures._replace(mel=figures.mel.copy()), out)).noisy.any()


@pytest.mark.parametrize("algorithm", ["xxh3_64", "md5"])
def test_content_hash(benchmark: Benchmark, algorithm: str) -> None:
    """Hash 170 kB."""
    data = bytes(170_000)

    def hashed() -> str:
        digest = hasher(algorithm)()
        digest.update(data)
        return str(digest.hexdigest())

    assert benchmark(hashed)


def test_batch_gather(benchmark: Benchmark, table: SlotTable) -> None:
    """Gather the features of 64 slots that lie anywhere in the table into one input."""
    slots = Random(1).sample(range(len(table.slots)), 64)
    staging = Staging(np.zeros((64, *FRONT_END.shape), np.float32))
    reach = np.full(len(table.slots), math.prod(FRONT_END.shape))
    rows = benchmark(staging.gather, table.view("features"), slots, reach)
    assert rows.shape[0] == 64


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
    assert benchmark(encode_record, some_record()).endswith(b"\n")


def test_frame_compression(benchmark: Benchmark) -> None:
    """Compress a whole frame of records."""
    lines = b"".join(encode_record(some_record(number)) for number in range(FRAME_LINES))
    assert len(benchmark(Codec("zstd").compress, lines)) < len(lines)


def test_listed_directory(benchmark: Benchmark, tmp_path: Path) -> None:
    """List a directory of 500 files with their sizes and times."""
    for name in NAMES:
        (tmp_path / os.fsdecode(name)).touch()
    (found,) = benchmark(lambda: list(Walk(WalkSettings(bytes(tmp_path), frozenset({b"wav"})))))
    assert len(found.files) == len(NAMES)


def test_cached_directory(benchmark: Benchmark, cache: Cache) -> None:
    """Look up what is known of a directory of 500 files."""
    directory = cache.directories(1)[b"pack"]
    assert len(benchmark(cache.files, directory)) == len(NAMES)


def test_sealed_directory(benchmark: Benchmark, cache: Cache) -> None:
    """Look up the seal of a directory of 500 files."""
    directory = cache.directories(1)[b"pack"]
    with cache.transaction():
        cache.seal_directories(1)
    seal = benchmark(cache.seal, directory)
    assert seal == cache.make_seal(directory)


def test_known_content(benchmark: Benchmark, cache: Cache) -> None:
    """Look for the record of a file by its content hash."""
    twin = benchmark(cache.twin, f"{7:016x}", "key")
    assert (twin.run, twin.line) == ("run", 7)


def test_queue_hand_over(benchmark: Benchmark) -> None:
    """Put 64 slot numbers on a queue and take them off again."""
    lifeline = Lifeline()
    queue, slots = SlotQueue(lifeline), np.arange(64)

    def hand_over() -> list[int] | None:
        queue.put(slots)
        return queue.get(64, 1.0)

    assert benchmark(hand_over) == slots.tolist()
    queue.use()
    lifeline.close()


def test_slot_hand_over(benchmark: Benchmark, table: SlotTable) -> None:
    """Take 64 slots over from the stage before."""
    slots, states = list(range(64)), table.view("state")

    def take_over() -> list[int]:
        states[:64] = State.DONE
        return table.take(slots, State.DONE, State.WRITING)

    assert benchmark(take_over) == slots
