"""Plots as PNG: those of an evaluation, drawn from the plain values of its report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "confusion_plot",
    "new_figure",
    "png_of",
    "reliability_plot",
    "risk_coverage_plot",
    "roc_plot",
]

_DPI = 110
_COLOURS = ("#1f6feb", "#d1570c", "#2da44e", "#8250df", "#bf3989", "#57606a")


def confusion_plot(model: dict[str, Any]) -> bytes:
    """Draw a model's confusion matrix, in recordings and as shares of each true label."""
    labels, counts = model["confusion"]["labels"], np.array(model["confusion"]["counts"], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = new_figure(2, width=5.6, height=4.8)
    _matrix(axes[0], shares, [[f"{cell:.0f}" for cell in row] for row in counts], labels)
    _matrix(axes[1], shares, [[f"{cell:.2f}" for cell in row] for row in shares], labels)
    axes[0].set_title("recordings")
    axes[1].set_title("share of the true label")
    return png_of(figure)


def _matrix(axes: Axes, shares: Any, texts: list[list[str]], labels: Sequence[str]) -> None:
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("called")
    axes.set_ylabel("is")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def reliability_plot(model: dict[str, Any]) -> bytes:
    """Draw accuracy over confidence, before and after calibration, with the number of recordings below."""
    sides = {name: curve for name, curve in model["reliability"].items() if curve is not None}
    figure, axes = new_figure(len(sides), width=4.6, height=4.2)
    errors = {"before": model["figures"].get("ece_before"), "after": model["figures"]["ece"]}
    for place, (name, curve) in zip(axes, sides.items(), strict=True):
        _diagram(place, curve)
        place.set_title(f"{name} calibration: ECE {errors[name]['value']:.3f}")
    return png_of(figure)


def _diagram(axes: Axes, curve: dict[str, list[float | None]]) -> None:
    count = np.array(curve["count"], float)
    confidence, accuracy = (np.array(curve[name], float) for name in ("confidence", "accuracy"))
    width = 1 / len(count)
    centres = (np.arange(len(count)) + 0.5) * width
    axes.bar(centres, count / max(count.max(), 1) * 0.25, width * 0.9, color="#d0d7de", label="recordings")
    axes.plot([0, 1], [0, 1], color="#57606a", linestyle="--", linewidth=1, label="as sure as right")
    some = count > 0
    axes.plot(confidence[some], accuracy[some], "o-", color=_COLOURS[0], markersize=4, label="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.legend(loc="upper left", fontsize=8, frameon=False)


def risk_coverage_plot(models: Sequence[dict[str, Any]]) -> bytes:
    """Draw the share of errors among the most confident recordings, a line for each model."""
    figure, (axes,) = new_figure(1, width=6.2, height=4.2)
    for colour, model in zip(_cycled(len(models)), models, strict=True):
        curve = model["risk_coverage"]
        axes.plot(curve["coverage"], curve["risk"], color=colour, label=model["name"])
    axes.axvline(0.8, color="#57606a", linestyle=":", linewidth=1)
    axes.set(xlim=(0, 1), xlabel="coverage (most confident first)", ylabel="risk (share of errors)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return png_of(figure)


def roc_plot(models: Sequence[dict[str, Any]]) -> bytes:
    """Draw the share of drums that pass over the share of misc that passes, a line for each model."""
    figure, (axes,) = new_figure(1, width=4.8, height=4.6)
    for colour, model in zip(_cycled(len(models)), models, strict=True):
        curve = {name: np.array(values, float) for name, values in model["roc"].items()}
        area = model["figures"]["auroc"]["value"]
        label = model["name"] if area is None else f"{model['name']} ({area:.3f})"
        axes.plot(curve["fpr"], curve["tpr"], color=colour, label=label)
    axes.axhline(0.95, color="#57606a", linestyle=":", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="misc that passes", ylabel="drums that pass")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return png_of(figure)


def _cycled(count: int) -> list[str]:
    return [_COLOURS[place % len(_COLOURS)] for place in range(count)]


def new_figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels side by side, each `width` × `height` inches."""
    # Not pyplot: it keeps every figure, and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    stream = io.BytesIO()
    # Without the software's name and version, equal values give equal bytes.
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()
