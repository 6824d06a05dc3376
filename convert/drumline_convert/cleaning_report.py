"""The report of a cleaning: one HTML file to listen by, and its values as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import orjson

from drumline.durable import output_errors, write_bytes, write_json
from drumline.outputs import check_output
from drumline_convert.html_parts import Raw, short_path, table, template, text, uri

__all__ = ["check_cleaning_output", "write_cleaning_report"]

_HTML = "cleaning.html"
_JSON = "cleaning.json"


def check_cleaning_output(out: Path) -> None:
    """Raise `OutputError` when something other than an older report is in the way."""
    kind, option = "report of a cleaning", "--report"
    check_output(out / _JSON, kind, _is_report, option)
    check_output(out / _HTML, kind, lambda stream: b"Doubtful labels" in stream.read(), option)


def _is_report(stream: BinaryIO) -> bool:
    try:
        value = orjson.loads(stream.read())
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.keys() >= {"settings", "thresholds", "recordings"}


def write_cleaning_report(report: dict[str, Any], out: Path) -> None:
    """Write ``cleaning.html`` and ``cleaning.json`` into a directory; it is made.

    Parameters
    ----------
    report
        What `drumline_convert.cleaning.Cleaning.to_json` returned, and ``manifest`` and ``held_out``.

    Raises
    ------
    OutputError
        When something cannot be written, or is in the way.
    """
    check_cleaning_output(out)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / _JSON, report)
    write_bytes(out / _HTML, _html(report).encode())


def _html(report: dict[str, Any]) -> str:
    return template("cleaning.html").substitute(
        about=text(_about(report)),
        thresholds=table(
            ["label", "threshold"],
            [[label, f"{value:.2f}"] for label, value in report["thresholds"].items()],
        ),
        pairs=table(
            ["stated", "heard", "recordings"],
            [[pair["stated"], pair["heard"], f"{pair['recordings']:,}"] for pair in report["pairs"]],
        ),
        families=table(
            ["family", "doubtful recordings"],
            [[family, f"{count:,}"] for family, count in report["families"].items()],
        ),
        recordings=table(
            ["recording", "family", "label", "heard", "what happens", "why", ""],
            [_recording(each) for each in report["recordings"]],
        ),
    )


def _about(report: dict[str, Any]) -> str:
    actions = ", ".join(f"{count:,} {action}" for action, count in report["actions"].items())
    said = (
        f"{report['manifest']}, judged by {report['held_out']}: of {report['judged']:,} recordings, the "
        f"networks call {report['disagreements']:,} something else than their label says, and surely so "
        f"{report['doubtful']:,}"
    )
    return f"{said}: {actions}." if actions else f"{said}."


def _recording(each: dict[str, Any]) -> list[object]:
    place = text(uri(each["path"]))
    name = text(short_path(each["path"]))
    return [
        Raw(f'<a href="{place}"><code>{name}</code></a>'),
        each["family"],
        each["label"],
        f"{each['heard']} ({each['heard_fine']})",
        each["action"],
        each["why"],
        Raw(f'<audio controls preload="none" src="{place}"></audio>'),
    ]
