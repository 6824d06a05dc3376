"""Classify a few sounds in this process, without a run directory: for scripts, services and notebooks."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from drumline.audio import AudioError, Decoder, Waveform
from drumline.bundle import Bundle, load_bundle
from drumline.cuda import CudaSettings
from drumline.decide import Decision, DecisionSettings, decide, failed_decision
from drumline.inference import open_session
from drumline.records import FileError, rounded_probability, sparse_probs
from drumline.rows import RowReader
from drumline.settings import Device
from drumline.thresholds import Threshold, resolve_gate, resolve_threshold

__all__ = ["Classifier", "Prediction", "Sound"]

Sound: TypeAlias = str | bytes | os.PathLike[str] | tuple[NDArray[np.floating], int]
"""A path, or (samples, sample rate in Hz) with samples of shape (n,) or (n, channels) in -1..1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is said of one sound.

    Parameters
    ----------
    decision
        Assigned label, confidence and reason.
    probs
        Fine label → probability; empty when the sound could not be read.
    error
        Why not, or None.
    gate
        Probability of being a kit drum; None of a bundle without a gate.
    """

    decision: Decision
    probs: dict[str, float]
    error: FileError | None = None
    gate: float | None = None

    @property
    def label(self) -> str:
        """The assigned label: a canonical label or misc."""
        return self.decision.assigned_label

    @property
    def confidence(self) -> float | None:
        """Probability of the most probable canonical label; None when the sound could not be read."""
        return self.decision.assigned_conf


class Classifier:
    """A bundle, opened once and used many times. Not for use by several threads at once.

    Parameters
    ----------
    bundle
        What to use; None for the default bundle.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    threshold
        Below this probability a sound is misc; or the name of one of the bundle's operating points.
    target_labels
        Canonical labels that are wanted; None for all.
    batch_size
        Most sounds in one call of the model.
    gate, gate_threshold
        Whether the bundle's gate, where it has one, may say misc, and below which probability of being a kit
        drum; None: as it was fitted.

    Examples
    --------
    >>> classifier = Classifier(threshold=0.6)
    >>> [prediction.label for prediction in classifier(["kick.wav", "snare.flac"])]
    ['Kick', 'Snare']
    """

    def __init__(
        self,
        bundle: Bundle | None = None,
        *,
        device: Device = "auto",
        threshold: Threshold = 0.5,
        target_labels: Iterable[str] | None = None,
        batch_size: int = 64,
        gate: bool = True,
        gate_threshold: float | None = None,
    ) -> None:
        self.bundle = bundle or load_bundle()
        taxonomy = self.bundle.taxonomy
        targets = None if target_labels is None else frozenset(target_labels)
        points, whose = self.bundle.operating_points, f"bundle {self.bundle.name}"
        believed, by_label = resolve_threshold(threshold, points, whose)
        fitted = None if self.bundle.gate is None else self.bundle.gate.threshold
        passes = resolve_gate(gate, gate_threshold, fitted, whose)
        self.decisions = DecisionSettings(
            taxonomy.canonical_of, believed, taxonomy.misc, targets, by_label, passes
        )
        self._session = open_session(self.bundle, device, cuda=CudaSettings(batch_size))
        self._rows = RowReader(self.bundle.front_ends)
        self._batch_size = batch_size

    def __call__(self, sounds: Iterable[Sound]) -> Iterator[Prediction]:
        """Classify sounds, in order. One that cannot be read gives a prediction with an error."""
        pending = iter(sounds)
        while batch := list(islice(pending, self._batch_size)):
            yield from self._classify(batch)

    def _classify(self, sounds: list[Sound]) -> Iterator[Prediction]:
        read = [self._features(sound) for sound in sounds]
        features = [item for item in read if isinstance(item, np.ndarray)]
        shape = (len(features), *self.bundle.row_shape)
        outputs = self._session.predict(np.reshape(features, shape).astype(np.float32))
        gates = [None] * len(features) if outputs.gate is None else outputs.gate.tolist()
        rows = zip(outputs.probabilities, gates, strict=True)
        for item in read:
            yield self._failed(item) if isinstance(item, AudioError) else self._predicted(*next(rows))

    def _features(self, sound: Sound) -> NDArray[np.float32] | AudioError:
        try:
            return self._rows.row(lambda decoder: _decoded(decoder, sound))
        except AudioError as error:
            return error
        except OSError as error:
            return AudioError("unreadable", error.strerror or str(error))

    def _failed(self, error: AudioError) -> Prediction:
        return Prediction(
            failed_decision(self.decisions), {}, FileError(type=error.type, message=error.message)
        )

    def _predicted(self, row: NDArray[np.float32], gate: float | None) -> Prediction:
        (probs,) = sparse_probs(self.bundle.labels, row[np.newaxis])
        gate = None if gate is None else rounded_probability(gate)
        return Prediction(decide(probs, self.decisions, gate), probs, gate=gate)


def _decoded(decoder: Decoder, sound: Sound) -> Waveform:
    if isinstance(sound, tuple):
        return decoder.decode(_as_wav(*sound), b"")
    return decoder.decode_path(os.fsencode(sound))


def _as_wav(samples: NDArray[np.floating], sample_rate: int) -> bytes:
    """Return samples as a float WAV file: arrays go the very way that files go."""
    stream = io.BytesIO()
    soundfile.write(stream, np.asarray(samples, np.float32), sample_rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()
