"""The front end as ONNX nodes: a graph that takes the waveform, so that workers only decode.

The Fourier transform is two matrix products, since ONNX Runtime has no CUDA kernels for ``DFT`` and ``STFT``,
and slow ones on the CPU. With n_fft = N1 · N2, sample n = N2 · n1 + n2 and bin k = k1 + N1 · k2,

    X[k] = Σ_n2 e^(-2πi n2 k2 / N2) · Σ_n1 x[n] · w[n] · e^(-2πi n1 k1 / N1) · e^(-2πi n2 k1 / n_fft)

(J. Cooley, J. Tukey, *An Algorithm for the Machine Calculation of Complex Fourier Series*, 1965). The inner
sum is one matrix for each n2, which holds the window and the twiddle factors as well; the outer one is the
same matrix for each k1. A real signal's spectrum is symmetric, so k1 up to N1 / 2 gives every bin.

From the frames to the spectrum, numbers have 64 bits: float32 spreads its rounding errors as white noise, and
a band 80 dB below the loudest one would be off by up to 0.004 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drumline.coefficients import dct_matrix
from drumline.errors import BundleError
from drumline.features import delta_matrix, mel_filterbank
from drumline.frontend import FrontEnd
from drumline.spectra import hann_window
from drumline_convert.canvas import Canvas, put_together
from drumline_convert.graph import BATCH, INPUT, opset_of, placement_of

__all__ = ["Factors", "front_end_graph", "waveform_front_end", "with_front_end"]

_FLOAT, _DOUBLE = 1, 11
_OPSET = 17
_OLDEST_OPSET = 13
_REDUCTIONS_TAKE_AXES = 18
"""Opset from which on a reduction's axes are an input."""
_LARGEST_MATRIX_BYTES = 1 << 26
_SMALLEST_POWER = np.float32(1e-10)
_NETWORK = "network/"


@dataclass(frozen=True, slots=True)
class Factors:
    """How a transform of n_fft points is split in two.

    Parameters
    ----------
    inner, outer
        N1 and N2, whose product is n_fft.
    """

    inner: int
    outer: int

    @classmethod
    def of(cls, n_fft: int) -> Factors:
        """Return the factors with the fewest multiplications."""
        pairs = (cls(n_fft // outer, outer) for outer in range(1, n_fft + 1) if n_fft % outer == 0)
        return min(pairs, key=lambda factors: factors.multiplications)

    @property
    def kept(self) -> int:
        """Values of k1 that are computed; the others mirror them."""
        return self.inner // 2 + 1

    @property
    def multiplications(self) -> int:
        """Real multiplications of one frame."""
        return 2 * self.inner * self.outer * self.kept + self.kept * (2 * self.outer) ** 2

    @property
    def bins(self) -> NDArray[np.intp]:
        """Bin of each value that the transform gives, (kept · outer,); -1 where one before has the same."""
        n_fft = self.inner * self.outer
        place = np.arange(self.kept)[:, np.newaxis] + self.inner * np.arange(self.outer)
        bins = np.minimum(place, n_fft - place).ravel()
        first = np.zeros(len(bins), bool)
        first[np.unique(bins, return_index=True)[1]] = True
        return np.where(first, bins, -1)

    def inner_matrices(self, window: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the inner sums, (outer, inner, 2 · kept): real parts, then imaginary parts."""
        n1, n2 = np.arange(self.inner)[:, np.newaxis], np.arange(self.outer)[:, np.newaxis, np.newaxis]
        turns = (self.outer * n1 + n2) * np.arange(self.kept) / (self.inner * self.outer)
        weights = window.reshape(self.inner, self.outer).T[:, :, np.newaxis] * np.exp(-2j * np.pi * turns)
        return np.concatenate([weights.real, weights.imag], axis=2)

    def outer_matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the outer sum's matrices to real and to imaginary parts, each (2 · outer, outer)."""
        points = np.arange(self.outer)
        rotation = np.exp(-2j * np.pi * np.outer(points, points) / self.outer)
        real = np.concatenate([rotation.real, -rotation.imag])
        return real, np.concatenate([rotation.imag, rotation.real])


def waveform_front_end(front_end: FrontEnd) -> FrontEnd:
    """Return what is left to do outside of the graph: the samples as they are, padded to one length."""
    return FrontEnd(
        kind="waveform",
        sample_rate=front_end.sample_rate,
        samples=front_end.samples,
        n_fft=front_end.n_fft,
        hop_length=front_end.hop_length,
        normalise="none",
    )


def front_end_graph(front_end: FrontEnd, opset: int = _OPSET) -> Any:
    """Return the front end alone as an ``onnx.ModelProto``.

    ``features`` (batch, samples) float32 → ``computed`` (batch, *front_end.shape) float32.

    Raises
    ------
    BundleError
        When there is nothing to compute, or n_fft has no factors that keep the graph small.
    """
    from onnx import helper

    writer = _Writer(front_end, opset)
    writer.canvas.node("Identity", [writer.features()], "computed")
    given = helper.make_tensor_value_info(INPUT, _FLOAT, [BATCH, front_end.samples])
    made = helper.make_tensor_value_info("computed", _FLOAT, [BATCH, *front_end.shape])
    graph = helper.make_graph(writer.canvas.nodes, "front_end", [given], [made], writer.canvas.weights)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="drumline")


def with_front_end(proto: Any, front_end: FrontEnd) -> Any:
    """Return a network with its front end before it: waveform in, the network's own outputs out.

    Parameters
    ----------
    proto
        An ``onnx.ModelProto`` that takes features of `front_end`, with or without a channel axis.

    Raises
    ------
    BundleError
        When the network takes something else, or as for `front_end_graph`.
    """
    import onnx

    if opset_of(proto) < _OLDEST_OPSET:
        proto = onnx.version_converter.convert_version(proto, _OLDEST_OPSET)
    placement = placement_of(proto, front_end.shape, "coefficients-frames")
    (entry,) = {value.name for value in proto.graph.input} - {
        weight.name for weight in proto.graph.initializer
    }
    outputs = {
        value.name: list(map(_dimension, value.type.tensor_type.shape.dim)) for value in proto.graph.output
    }
    writer = _Writer(front_end, opset_of(proto))
    canvas, computed = writer.canvas, writer.features()
    sizes = canvas.constant("front_end/given", [-1, *placement.given], np.int64)
    canvas.node("Reshape", [computed, sizes], _NETWORK + entry)
    inner = onnx.compose.add_prefix(proto, _NETWORK)
    canvas.nodes.extend(inner.graph.node)
    canvas.weights.extend(inner.graph.initializer)
    for name in outputs:
        canvas.node("Identity", [_NETWORK + name], name)
    made = put_together(canvas, [inner], (front_end.samples,), outputs)
    made.metadata_props.extend(proto.metadata_props)
    return made


def _dimension(dimension: Any) -> int | str:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else str(dimension.dim_param or BATCH)


class _Writer:
    """Writes the nodes of one front end, each step in the order of `drumline.features.FeatureExtractor`."""

    def __init__(self, front_end: FrontEnd, opset: int) -> None:
        if front_end.kind == "waveform":
            raise BundleError(
                "this model is fed the waveform already", "There is no front end to put in the graph."
            )
        self.canvas = Canvas([], [])
        self._front_end, self._opset = front_end, opset
        self._edge = front_end.n_fft // 2
        self._factors = Factors.of(front_end.n_fft)
        matrix_bytes = 16 * front_end.n_fft * self._factors.kept
        if matrix_bytes > _LARGEST_MATRIX_BYTES:
            raise BundleError(
                f"the transform of n_fft {front_end.n_fft:,} would put {matrix_bytes // 1_000_000:,} MB in "
                "the graph",
                "Keep this front end on the workers, or train with an n_fft that is a power of two, "
                "at most 16,384.",
            )

    def features(self) -> str:
        """Write all nodes, and return the name of the features (batch, coefficients …, frames)."""
        padded = self._padded(self._scaled())
        coefficients = self._coefficients(self._decibels(self._power(self._frames(padded))))
        rows = [
            coefficients,
            *(self._delta(coefficients, 1 + order) for order in range(self._front_end.deltas)),
        ]
        if self._front_end.waveform:
            rows.append(self._waveform(padded))
        return rows[0] if len(rows) == 1 else self._node("Concat", rows, "features", axis=1)

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        return self.canvas.node(kind, inputs, f"front_end/{name}", **attributes)

    def _constant(self, name: str, values: Any, kind: Any = np.float32) -> str:
        return self.canvas.constant(f"front_end/{name}", values, kind)

    def _reshaped(self, value: str, sizes: list[int], name: str) -> str:
        return self._node("Reshape", [value, self._constant(f"{name}.shape", sizes, np.int64)], name)

    def _reduced(self, kind: str, value: str, axes: list[int], name: str, *, keepdims: int) -> str:
        if self._opset < _REDUCTIONS_TAKE_AXES:
            return self._node(kind, [value], name, axes=axes, keepdims=keepdims)
        given = self._constant(f"{name}.axes", axes, np.int64)
        return self._node(kind, [value, given], name, keepdims=keepdims)

    def _scaled(self) -> str:
        """Return the samples, divided by the largest magnitude where the front end wants that."""
        if self._front_end.normalise == "none":
            return INPUT
        peak = self._reduced("ReduceMax", self._node("Abs", [INPUT], "magnitudes"), [1], "peak", keepdims=1)
        sounds = self._node("Greater", [peak, self._constant("silence", 0.0)], "sounds")
        scale = self._node("Where", [sounds, peak, self._constant("unscaled", 1.0)], "scale")
        return self._node("Div", [INPUT, scale], "scaled")

    def _padded(self, samples: str) -> str:
        """Return the samples with half a frame of zeros before them, and all that frames reach behind."""
        piece = math.gcd(self._front_end.hop_length, self._front_end.n_fft)
        reach = (self._front_end.frames - 1) * self._front_end.hop_length + self._front_end.n_fft
        steps = self._edge + self._front_end.frames * self._front_end.hop_length
        size = -(-max(reach, steps, self._edge + self._front_end.samples) // piece) * piece
        behind = size - self._edge - self._front_end.samples
        pads = self._constant("pads", [0, self._edge, 0, behind], np.int64)
        return self._reshaped(
            self._node("Pad", [samples, pads], "padded"), [-1, size // piece, piece], "pieces"
        )

    def _frames(self, pieces: str) -> str:
        """Return all frames of all files, (outer, batch · frames, inner): what the inner sums run over."""
        front_end, factors = self._front_end, self._factors
        piece = math.gcd(front_end.hop_length, front_end.n_fft)
        starts = np.arange(front_end.frames)[:, np.newaxis] * (front_end.hop_length // piece)
        places = self._constant("places", starts + np.arange(front_end.n_fft // piece), np.int64)
        gathered = self._node("Gather", [pieces, places], "frames", axis=1)
        split = self._reshaped(gathered, [-1, factors.inner, factors.outer], "split")
        return self._node("Transpose", [split], "by_outer", perm=[2, 0, 1])

    def _power(self, frames: str) -> str:
        """Return the power spectrum, (batch, frames, kept · outer), in the order of `Factors.bins`."""
        factors, window = self._factors, hann_window(self._front_end.n_fft)
        precise = self._node("Cast", [frames], "precise", to=_DOUBLE)
        weights = self._constant("inner", factors.inner_matrices(window), np.float64)
        sums = self._node("MatMul", [precise, weights], "inner_sums")
        parts = self._reshaped(sums, [factors.outer, -1, 2, factors.kept], "parts")
        ordered = self._node("Transpose", [parts], "by_inner", perm=[1, 3, 2, 0])
        points = self._reshaped(ordered, [-1, 2 * factors.outer], "points")
        real, imaginary = (
            self._squared(points, matrix, name)
            for matrix, name in zip(factors.outer_matrices(), ("real", "imaginary"), strict=True)
        )
        power = self._node("Add", [real, imaginary], "power")
        bins = factors.kept * factors.outer
        return self._reshaped(power, [-1, self._front_end.frames, bins], "spectrum")

    def _squared(self, points: str, matrix: NDArray[np.float64], name: str) -> str:
        product = self._node(
            "MatMul", [points, self._constant(f"outer.{name}", matrix, np.float64)], f"{name}.sums"
        )
        part = self._node("Cast", [product], name, to=_FLOAT)
        return self._node("Mul", [part, part], f"{name}.squared")

    def _decibels(self, power: str) -> str:
        """Return the mel spectrogram in dB, (batch, frames, n_mels), cut `top_db` below the file's peak."""
        front_end, bins = self._front_end, self._factors.bins
        filters = mel_filterbank(front_end.sample_rate, front_end.n_fft, front_end.n_mels).T
        weights = self._constant("mel", filters[bins] * (bins >= 0)[:, np.newaxis])
        mel = self._node("MatMul", [power, weights], "mel_power")
        heard = self._node("Max", [mel, self._constant("smallest_power", _SMALLEST_POWER)], "heard")
        per_neper = self._constant("decibels", 10.0 / math.log(10.0))
        decibels = self._node("Mul", [self._node("Log", [heard], "logarithm"), per_neper], "mel_db")
        loudest = self._reduced("ReduceMax", decibels, [1, 2], "loudest", keepdims=1)
        floor = self._node("Sub", [loudest, self._constant("range", front_end.top_db)], "floor")
        return self._node("Max", [decibels, floor], "audible")

    def _coefficients(self, decibels: str) -> str:
        """Return mel bands or cepstral coefficients, (batch, coefficients, frames)."""
        if self._front_end.kind == "mfcc":
            # In float32 the sum over the bands would be off by 0.001 dB.
            precise = self._node("Cast", [decibels], "precise_db", to=_DOUBLE)
            matrix = dct_matrix(self._front_end.n_mfcc, self._front_end.n_mels).T
            product = self._node(
                "MatMul", [precise, self._constant("dct", matrix, np.float64)], "cepstrum.sums"
            )
            decibels = self._node("Cast", [product], "cepstrum", to=_FLOAT)
        return self._node("Transpose", [decibels], "coefficients", perm=[0, 2, 1])

    def _delta(self, coefficients: str, order: int) -> str:
        matrix = delta_matrix(self._front_end.frames, self._front_end.delta_width, order)
        return self._node(
            "MatMul", [coefficients, self._constant(f"delta{order}.matrix", matrix)], f"delta{order}"
        )

    def _waveform(self, pieces: str) -> str:
        """Return the means of equal parts of each hop, (batch, waveform, frames)."""
        front_end = self._front_end
        steps = front_end.frames * front_end.hop_length
        flat = self._node("Flatten", [pieces], "padded.flat", axis=1)
        ends = [
            self._constant(f"steps.{name}", [value], np.int64)
            for name, value in (("start", self._edge), ("end", self._edge + steps), ("axis", 1))
        ]
        cut = self._node("Slice", [flat, *ends], "steps")
        sizes = [-1, front_end.frames, front_end.waveform, front_end.hop_length // front_end.waveform]
        means = self._reduced("ReduceMean", self._reshaped(cut, sizes, "hops"), [3], "means", keepdims=0)
        return self._node("Transpose", [means], "waveform", perm=[0, 2, 1])
