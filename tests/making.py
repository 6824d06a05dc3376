"""Records, indexes, runs, bundles and command calls for tests."""

from __future__ import annotations

import json
import math
import struct
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import pytest
from hypothesis import strategies as st

from drumline.bundle import Bundle, load_bundle
from drumline.cli import main
from drumline.decide import DecisionSettings, decide, failed_decision
from drumline.index import Codec, Compression
from drumline.onnxfile import encode_model, encode_node
from drumline.records import (
    SCHEMA_VERSION,
    ErrorType,
    FileError,
    Record,
    encode_record,
    path_fields,
    topk_of,
)
from drumline.runs import Run, create_run
from drumline.stub import create_stub

CANONICAL_OF = {"Kick": "Kick", "Rim": "Snare", "Snare": "Snare", "HihatOpen": "Hihat", "Clap": "misc"}
DECISIONS = DecisionSettings(CANONICAL_OF)
ARCHIVE = b"/archive"


def make_record(
    path: bytes = b"Kicks/kick.wav",
    probs: dict[str, float] | None = None,
    *,
    error: str | None = None,
    decisions: DecisionSettings = DECISIONS,
    **changes: Any,
) -> Record:
    """Return a record; `error` makes it a failed one, `changes` replace fields."""
    probs = {} if error else probs or {"Kick": 0.9, "Snare": 0.06, "Clap": 0.04}
    decision = failed_decision(decisions) if error else decide(probs, decisions)
    relative, relative_b64 = path_fields(path)
    absolute, absolute_b64 = path_fields(ARCHIVE + b"/" + path)
    known = None if error else 1
    record = {
        "schema_version": SCHEMA_VERSION,
        "relative_path": relative,
        "relative_path_b64": relative_b64,
        "abs_path": absolute,
        "abs_path_b64": absolute_b64,
        "hash": None if error else "0123456789abcdef",
        "size": 88_244,
        "mtime": 1.7e9,
        "mtime_ns": 1_700_000_000_000_000_000,
        "format": "wav",
        "sample_rate": known and 44_100,
        "channels": known,
        "duration_sec": known and 0.5,
        "rms_db": known and -18.5,
        "spectral_centroid": known and 2500.25,
        "spectral_rolloff": known and 5000.5,
        "label_top1": decision.label_top1,
        "conf_top1": decision.conf_top1,
        "topk": topk_of(probs, 3),
        "probs": probs or None,
        **decision._asdict(),
        "errors": FileError(type=cast(ErrorType, error), message="why") if error else None,
    }
    return cast(Record, {**record, **changes})


def write_index(path: Path, records: Iterable[Record], frame_lines: int = 3) -> list[int]:
    """Write an index as its suffix says, in small frames; return where each frame ends."""
    kinds: dict[str, Compression] = {".zst": "zstd", ".gz": "gzip"}
    codec = Codec(kinds.get(path.suffix, "none"))
    lines = [encode_record(record) for record in records]
    frames = [
        codec.compress(b"".join(lines[place : place + frame_lines]))
        for place in range(0, len(lines), frame_lines)
    ]
    path.write_bytes(b"".join(frames))
    return [sum(map(len, frames[: place + 1])) for place in range(len(frames))]


def make_run(runs_root: Path, records: Iterable[Record] = (), **info: Any) -> Run:
    """Make a run directory with run.json and an index; no summary."""
    defaults = {
        "index": "index.jsonl.zst",
        "canonical_map": CANONICAL_OF,
        "settings": {"target_labels": None, "misc": {"threshold": 0.5, "label": "misc"}},
        "model": {"name": "stub", "version": "0.0.0"},
    }
    run = create_run(runs_root, {**defaults, **info}, ARCHIVE)
    write_index(run.index_path, records)
    return run


def make_bundle(path: Path, model: bytes | None = None, **changes: Any) -> Bundle:
    """Make a stub bundle with other keys in bundle.json, and perhaps another model."""
    create_stub(path)
    if model is not None:
        (path / "model.onnx").write_bytes(model)
    manifest = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").write_text(json.dumps({**manifest, **changes}))
    return load_bundle(path)


def linear_model(
    classes: int,
    input_shape: Sequence[int | str] = ("batch", 40, 98),
    outputs: Sequence[str] = ("logits", "probabilities"),
    **encoding: Any,
) -> bytes:
    """Return a model: flatten, one linear layer, softmax; only `outputs` are given away."""
    size = math.prod(dimension for dimension in input_shape[1:] if isinstance(dimension, int))
    weights = np.random.default_rng(0).normal(0, 0.01, (size, classes)).astype(np.float32)
    logits, probabilities = (
        outputs
        if len(outputs) == 2
        else ("logits", outputs[0])
        if "logits" not in outputs
        else ("logits", "p")
    )
    return encode_model(
        nodes=[
            encode_node("Flatten", ["features"], "flat", axis=1),
            encode_node("MatMul", ["flat", "weights"], logits),
            encode_node("Softmax", [logits], probabilities, axis=1),
        ],
        weights={"weights": weights},
        inputs={"features": input_shape},
        outputs=dict.fromkeys(outputs, (input_shape[0], classes)),
        **encoding,
    )


def gated_model(classes: int, rows: int = 40, frames: int = 98) -> bytes:
    """Return a linear model with a gate: the louder the first coefficient, the likelier a kit drum."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.01, (rows * frames, classes)).astype(np.float32)
    listening = np.zeros((rows * frames, 1), np.float32)
    listening[:frames] = 1e-3
    return encode_model(
        nodes=[
            encode_node("Flatten", ["features"], "flat", axis=1),
            encode_node("MatMul", ["flat", "weights"], "logits"),
            encode_node("MatMul", ["flat", "listening"], "evidence"),
            encode_node("Add", ["evidence", "offset"], "shifted"),
            encode_node("Sigmoid", ["shifted"], "gate"),
        ],
        weights={"weights": weights, "listening": listening, "offset": np.full(1, 40.0, np.float32)},
        inputs={"features": ("batch", rows, frames)},
        outputs={"logits": ("batch", classes), "gate": ("batch", 1)},
    )


def write_tone(path: Path | bytes, seconds: float = 0.1, hertz: float = 220.0) -> None:
    """Write a mono 16-bit WAV file."""
    frames = range(round(seconds * 44_100))
    samples = (round(20_000 * math.sin(2 * math.pi * hertz * frame / 44_100)) for frame in frames)
    with open(path, "wb") as stream, wave.open(stream, "wb") as sound:
        sound.setparams((1, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


class Outcome(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Parse stdout."""
        return json.loads(self.out)


class CommandLine:
    """Calls drumline's command line in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._capture.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = self._capture.readouterr()
        return Outcome(int(end.value.code or 0), out, err)


paths = st.lists(
    st.binary(min_size=1, max_size=12).filter(
        lambda part: not {0, ord("/")} & set(part) and part not in (b".", b"..")
    ),
    min_size=1,
    max_size=4,
).map(b"/".join)
"""Paths inside an archive: any bytes that a POSIX file name may have."""

probabilities = st.dictionaries(
    st.sampled_from(sorted(CANONICAL_OF)),
    st.floats(0, 1).map(lambda value: round(value, 6)),
    min_size=1,
)

records = st.one_of(
    st.builds(
        make_record,
        paths,
        probabilities,
        size=st.integers(0, 2**60),
        mtime_ns=st.integers(-(2**62), 2**62),
        format=st.text(max_size=8),
        duration_sec=st.floats(0, 1e6),
        rms_db=st.floats(-120, 10),
    ),
    st.builds(make_record, paths, error=st.sampled_from(get_args(ErrorType))),
)
"""Records as `infer` writes them."""
