"""The front end's settings: what turns a waveform into the tensor that a model is fed.

A model whose graph holds the spectral steps itself is fed the waveform: then the front end only scales and
pads.

Only values live here, so that a bundle can be read without importing NumPy. The computation is
`drumline.features.FeatureExtractor`; training and inference share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from drumline.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FEATURES_VERSION", "FrontEnd", "row_parts", "row_shape"]

FEATURES_VERSION = 1
"""Raised when the same file gives other features than before: what is known is then classified again."""

_LARGEST = {
    "sample_rate": 1_000_000,
    "samples": 1 << 24,
    "n_fft": 1 << 16,
    "hop_length": 1 << 24,
    "n_mels": 4_096,
    "n_mfcc": 4_096,
    "delta_width": 1 << 16,
}
_OF_WAVEFORMS = ("kind", "sample_rate", "samples", "n_fft", "hop_length", "normalise")
_LARGEST_SPECTROGRAM = 1 << 26
"""Values of one file's spectrogram, and of its features: 256 MiB in float32."""


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Waveform → feature tensor.

    Parameters
    ----------
    kind
        ``"mfcc"``, ``"log-mel"``, or ``"waveform"``: the samples themselves.
    sample_rate
        Hz; other rates are resampled with soxr HQ.
    samples
        Samples analysed from the start of the file at `sample_rate`; shorter files are zero padded.
    n_fft, hop_length
        Frame length and step in samples; frames are centred, Hann window, zero padding at the edges. Of
        ``"waveform"``, only the spectral statistics are computed with them; what follows but `normalise` is
        not for it.
    n_mels
        Mel bands (Slaney scale and norm, 0 Hz to Nyquist).
    n_mfcc
        Cepstral coefficients (orthonormal DCT-II); ignored by ``"log-mel"``.
    top_db
        Dynamic range below the loudest mel bin, in dB.
    normalise
        ``"peak"`` scales the analysed samples to a largest magnitude of 1; ``"none"`` leaves them.
    deltas
        How many derivatives over time (0, 1 or 2) stand below the coefficients, as rows of the same tensor.
    delta_width
        Frames that a derivative is estimated from: an odd number, at least 3.
    waveform
        Values of the waveform itself that stand below all that, for each frame: the means of so many equal
        parts of the `hop_length` samples that begin with the frame's centre. 0 leaves them out.
    """

    kind: Literal["mfcc", "log-mel", "waveform"] = "mfcc"
    sample_rate: int = 44_100
    samples: int = 50_000
    n_fft: int = 2048
    hop_length: int = 512
    n_mels: int = 128
    n_mfcc: int = 40
    top_db: float = 80.0
    normalise: Literal["peak", "none"] = "peak"
    deltas: int = 0
    delta_width: int = 9
    waveform: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("mfcc", "log-mel", "waveform"):
            raise BundleError(f"front end kind {self.kind!r} is unknown", "Use mfcc, log-mel or waveform.")
        if self.normalise not in ("peak", "none"):
            raise BundleError(f"front end normalise {self.normalise!r} is unknown", "Use peak or none.")
        for name in ("sample_rate", "samples", "n_fft", "hop_length", "n_mels", "n_mfcc"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BundleError(f"front end {name} must be a positive whole number, not {value!r}")
        if self.kind == "mfcc" and self.n_mfcc > self.n_mels:
            raise BundleError(f"front end has n_mfcc {self.n_mfcc} > n_mels {self.n_mels}")
        self._check_deltas()
        self._check_waveform()
        self._check_sizes()

    def _check_sizes(self) -> None:
        # A mistyped or crafted bundle is to be refused here, not when its arrays do not fit the memory.
        for name, largest in _LARGEST.items():
            if getattr(self, name) > largest:
                raise BundleError(
                    f"front end {name} is {getattr(self, name):,}, more than {largest:,}",
                    f"Correct {name} in the bundle's bundle.json.",
                )
        rows = max(self.n_fft // 2 + 1, self.n_mels, 0 if self.kind == "waveform" else self.shape[0])
        if self.frames * rows > _LARGEST_SPECTROGRAM:
            raise BundleError(
                f"front end makes {self.frames:,} frames of up to {rows:,} values, more than memory is for",
                "Use a larger hop_length, a smaller n_fft, fewer bands or fewer samples.",
            )

    def _check_deltas(self) -> None:
        if self.deltas not in (0, 1, 2) or isinstance(self.deltas, bool):
            raise BundleError(f"front end deltas must be 0, 1 or 2, not {self.deltas!r}")
        width = self.delta_width
        if not isinstance(width, int) or isinstance(width, bool) or width < 3 or width % 2 == 0:
            raise BundleError(f"front end delta_width must be an odd number from 3 on, not {width!r}")
        if self.kind == "waveform" and (self.deltas or self.waveform):
            raise BundleError("a front end of kind waveform has neither deltas nor further rows of waveform")
        if self.deltas and width > self.frames:
            raise BundleError(
                f"front end has {self.frames} frames, and its deltas need {width}",
                "Use a smaller delta_width or hop_length, or more samples.",
            )

    def _check_waveform(self) -> None:
        values = self.waveform
        if not isinstance(values, int) or isinstance(values, bool) or values < 0:
            raise BundleError(f"front end waveform must be a whole number from 0 on, not {values!r}")
        if values and self.hop_length % values:
            raise BundleError(
                f"front end waveform {values} does not divide the hop_length {self.hop_length}",
                "Each value is the mean of equally many samples.",
            )

    @property
    def frames(self) -> int:
        """Frames of a full-length input."""
        return 1 + self.samples // self.hop_length

    @property
    def coefficients(self) -> int:
        """Cepstral coefficients or mel bands of one frame, without their deltas."""
        return self.n_mfcc if self.kind == "mfcc" else self.n_mels

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the feature tensor: (coefficients, their deltas and values of the waveform; frames).

        Of ``"waveform"``: (samples,).
        """
        if self.kind == "waveform":
            return (self.samples,)
        return (self.coefficients * (1 + self.deltas) + self.waveform, self.frames)

    @property
    def layout(self) -> str:
        """Axes of a batch of features, in words."""
        return "batch, samples" if self.kind == "waveform" else "batch, coefficients, frames"

    @property
    def name(self) -> str:
        """What people call it: ``"mfcc"``, ``"log-mel + deltas"`` …."""
        deltas = ("", " + deltas", " + deltas + double deltas")[self.deltas]
        return self.kind + deltas + (" + waveform" if self.waveform else "")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values; those of deltas and waveform only where there are any.

        So front ends without them keep the fingerprint that they had before there were any.
        """
        values = asdict(self)
        if self.kind == "waveform":
            return {name: values[name] for name in _OF_WAVEFORMS}
        if not self.deltas:
            del values["deltas"], values["delta_width"]
        if not self.waveform:
            del values["waveform"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FrontEnd:
        """Build from a bundle's ``front_end`` object; an unknown key is an error."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BundleError(f"front end has unknown settings: {', '.join(unknown)}")
        return cls(**values)


def row_shape(front_ends: Sequence[FrontEnd]) -> tuple[int, ...]:
    """Return the shape of one sound's features: the front end's, or flat where there are several."""
    shapes = [front_end.shape for front_end in front_ends]
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def row_parts(rows: NDArray[np.float32], front_ends: Sequence[FrontEnd]) -> Iterator[NDArray[np.float32]]:
    """Iterate over the features of each front end, (n, coefficients, frames), as views of `rows`.

    Parameters
    ----------
    rows
        Shape (n, *row_shape(front_ends)).
    """
    flat, start = rows.reshape(len(rows), -1), 0
    for front_end in front_ends:
        end = start + math.prod(front_end.shape)
        yield flat[:, start:end].reshape(len(rows), *front_end.shape)
        start = end
