"""The report of an evaluation: one self-contained HTML file, its values as JSON, its plots as PNG."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from drumline.durable import output_errors, write_bytes, write_json
from drumline.errors import OutputError
from drumline.outputs import check_output
from drumline_convert.html_parts import Raw, short_path, table, template, text, uri
from drumline_convert.metrics import FIGURES
from drumline_convert.plots import confusion_plot, reliability_plot, risk_coverage_plot, roc_plot

__all__ = ["check_report_output", "render_html", "write_report"]

_LEFT_OUT_SHOWN = 50


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write ``report.html``, ``report.json`` and ``plots/*.png`` into a directory; it is made.

    Parameters
    ----------
    report
        What `drumline_convert.evaluation.evaluate_manifest` returned.
    out
        The directory; an older report in it is replaced, and nothing else.

    Raises
    ------
    OutputError
        When something cannot be written, or is in the way.
    """
    check_report_output(out)
    plots = _plots(report)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    with output_errors(out):
        (out / "plots").mkdir(exist_ok=True)
    for name, image in plots.items():
        write_bytes(out / "plots" / f"{name}.png", image)
    write_bytes(out / "report.html", render_html(report, plots).encode())


def check_report_output(out: Path) -> None:
    """Raise `OutputError` when a directory holds something, and no report that may be replaced."""
    old = out / "report.json"
    check_output(old, "report of an evaluation", _is_report)
    if old.exists() or not os.path.lexists(out):
        return
    with output_errors(out):
        others = os.listdir(out)
    if others:
        raise OutputError(
            f"{str(out)!r} holds {len(others)} entries and no report of an evaluation",
            "Give a new or empty directory with --out.",
        )


def _is_report(stream: BinaryIO) -> bool:
    try:
        value = orjson.loads(stream.read())
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.keys() >= {"models", "differences", "warnings"}


def _plots(report: dict[str, Any]) -> dict[str, bytes]:
    models = report["models"]
    plots = {"risk-coverage": risk_coverage_plot(models), "roc": roc_plot(models)}
    for number, model in enumerate(models):
        anchor = _anchor(number, model)
        plots[f"{anchor}-confusion"] = confusion_plot(model)
        plots[f"{anchor}-reliability"] = reliability_plot(model)
    return plots


def _anchor(number: int, model: dict[str, Any]) -> str:
    return f"model-{number + 1}-{re.sub(r'[^a-z0-9]+', '-', model['name'].lower()).strip('-')}"


def render_html(report: dict[str, Any], plots: dict[str, bytes]) -> str:
    """Return the report as HTML that needs no other file.

    Parameters
    ----------
    report
        As for `write_report`.
    plots
        Name → PNG.
    """
    data, models = report["data"], report["models"]
    anchors = [_anchor(number, model) for number, model in enumerate(models)]
    return template("report.html").substitute(
        title=text(f"Evaluation of {', '.join(model['name'] for model in models)}"),
        warnings="\n".join(
            f'<p class="{text(warning["severity"])}">{text(warning["text"])}</p>'
            for warning in report["warnings"]
        ),
        about=_about(data),
        contents="".join(
            f'<a href="#{anchor}">{text(model["name"])}</a>'
            for anchor, model in zip(anchors, models, strict=True)
        ),
        level=f"{data['level']:.0%}",
        resamples=f"{data['resamples']:,}",
        seed=data["seed"],
        figures=_figures(models),
        differences=_differences(report["differences"]),
        risk_coverage=_image(plots["risk-coverage"], "risk over coverage"),
        roc=_image(plots["roc"], "drums that pass over misc that passes"),
        models="\n".join(_model(anchor, model, plots) for anchor, model in zip(anchors, models, strict=True)),
        left_out=_left_out(data["left_out"]),
        version=text(report["drumline_version"]),
    )


def _about(data: dict[str, Any]) -> str:
    labels = ", ".join(f"{label} {count:,}" for label, count in data["labels"].items())
    return text(
        f"{data['recordings']:,} recordings of {data['families']:,} families, {data['sources']:,} sources; "
        f"manifest {data['manifest']}, side: {', '.join(data['splits'])}. {labels}."
    )


def _figures(models: Sequence[dict[str, Any]]) -> str:
    rows = []
    for name, what in FIGURES.items():
        rows.append([what, *(_with_interval(model["figures"][name]) for model in models)])
        if name == "ece":
            before = [model["figures"].get("ece_before") for model in models]
            rows.append(["ECE before calibration", *map(_with_interval, before)])
    return table(["figure", *(model["name"] for model in models)], rows)


def _with_interval(figure: dict[str, Any] | None) -> Raw:
    if figure is None or figure["value"] is None:
        return Raw("–")
    return Raw(f"{figure['value']:.3f}<br><small>{_interval(figure['interval'])}</small>")


def _interval(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _differences(differences: Sequence[dict[str, Any]]) -> str:
    if not differences:
        return ""
    header = ["figure", *(f"{each['model']} minus {each['minus']}" for each in differences)]
    rows = [
        [what, *(_difference(each["figures"][name]) for each in differences)]
        for name, what in FIGURES.items()
    ]
    return (
        "<h3>Paired differences</h3><p>On the same recordings and resamples. Bold: the interval does not "
        f"hold 0.</p>{table(header, rows)}"
    )


def _difference(figure: dict[str, Any]) -> Raw:
    if figure["value"] is None:
        return Raw("–")
    low, high = figure["interval"]
    sure = ' class="sure"' if low > 0 or high < 0 else ""
    return Raw(f"<span{sure}>{figure['value']:+.3f}</span><br><small>{low:+.3f} to {high:+.3f}</small>")


def _model(anchor: str, model: dict[str, Any], plots: dict[str, bytes]) -> str:
    return template("report_model.html").substitute(
        anchor=anchor,
        name=text(model["name"]),
        about=text(_model_about(model)),
        classes=_classes(model["classes"]),
        confusion=_image(plots[f"{anchor}-confusion"], "confusion matrices"),
        confused=_confused(model["confused"]),
        calibration=text(_calibration(model)),
        reliability=_image(plots[f"{anchor}-reliability"], "reliability diagram"),
        thresholds=_thresholds(model["thresholds"]),
        sources=_groups(model["sources"], "source"),
        families=_groups(model["families"], "family"),
    )


def _model_about(model: dict[str, Any]) -> str:
    shown = ("kind", "version", "description", "run", "folds", "fingerprint")
    return "; ".join(f"{key} {model[key]}" for key in shown if model.get(key))


def _calibration(model: dict[str, Any]) -> str:
    if model["reliability"]["before"] is None:
        return "An index holds calibrated probabilities only: there is no before."
    changes = "" if model.get("keeps_ranking", True) else " It can change the ranking of fine labels."
    return f"Method: {model.get('calibration')}.{changes}"


def _classes(classes: dict[str, Any]) -> str:
    rows = [
        [
            label,
            *(
                _with_interval({"value": scores[part], "interval": scores[f"{part}_interval"]})
                for part in ("precision", "recall", "f1")
            ),
            f"{scores['support']:,}",
        ]
        for label, scores in classes.items()
    ]
    return table(["label", "precision", "recall", "F1", "recordings"], rows)


def _confused(confused: Sequence[dict[str, Any]]) -> str:
    if not confused:
        return "<p>Nothing is called wrongly.</p>"
    rows = [
        [pair["label"], pair["called"], f"{pair['recordings']:,} of {pair['of']:,}", _paths(pair["paths"])]
        for pair in confused
    ]
    return table(["label", "called", "recordings", "to listen to"], rows)


def _paths(paths: Sequence[dict[str, Any]]) -> Raw:
    return Raw(
        "<br>".join(
            f'<a href="{text(uri(each["path"]))}"><code>{text(short_path(each["path"]))}</code></a> '
            f"<small>{each['confidence']:.2f}</small>"
            for each in paths
        )
    )


def _thresholds(thresholds: Sequence[dict[str, Any]]) -> str:
    labels = list(thresholds[0]["labels"])
    rows = [
        [
            point["threshold"],
            *(_share(point[key]) for key in ("precision", "recall", "misc_believed")),
            *(
                Raw(f"{_share(of['precision'])}<br><small>{_share(of['recall'])} kept</small>")
                for of in point["labels"].values()
            ),
        ]
        for point in thresholds
    ]
    return table(["threshold", "right of the believed", "drums kept", "misc believed", *labels], rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _groups(groups: dict[str, dict[str, Any]], what: str) -> str:
    rows = [
        [
            name,
            _with_interval({"value": group["accuracy"], "interval": group.get("interval", (None, None))}),
            _share(group["six_accuracy"]),
            f"{group['recordings']:,}",
            f"{group['families']:,}",
        ]
        for name, group in groups.items()
    ]
    header = [what, "accuracy", "accuracy among drums called drums", "recordings", "families"]
    return table(header, rows)


def _left_out(left_out: Sequence[dict[str, str]]) -> str:
    if not left_out:
        return "<p>Nothing: every recording has a prediction of every model.</p>"
    shown = "".join(
        f"<li>{text(each['model'])}: <code>{text(each['why'])}</code></li>"
        for each in left_out[:_LEFT_OUT_SHOWN]
    )
    more = len(left_out) - _LEFT_OUT_SHOWN
    return f"<ul>{shown}</ul>{f'<p>and {more:,} more, in report.json</p>' if more > 0 else ''}"


def _image(image: bytes, what: str) -> str:
    encoded = base64.b64encode(image).decode("ascii")
    return f'<img alt="{text(what)}" src="data:image/png;base64,{encoded}">'
