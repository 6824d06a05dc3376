"""`drumline doctor`: what this machine has and lacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from drumline.cli.common import Command, echo_json, json_option, path_type, safe_text, stdout_console

if TYPE_CHECKING:
    from drumline.doctor import Finding

__all__ = ["doctor_command"]

_STYLES = {"ok": "green", "note": "yellow", "missing": "bold red"}


@click.command(
    "doctor",
    cls=Command,
    short_help="Show what this machine has and lacks.",
    examples=("drumline doctor", "drumline doctor --model models/mine", "drumline doctor --json | jq .ready"),
)
@click.option(
    "--runs-root",
    type=path_type(),
    default=Path("ClassifiedArchive"),
    show_default=True,
    help="Where runs would be kept.",
)
@click.option("--model", metavar="BUNDLE", help="Bundle to try [default: mfcc-cnn].")
@json_option
def doctor_command(runs_root: Path, model: str | None, as_json: bool) -> int:
    """Show what this machine has, what `infer` lacks, and how to get it.

    Looks at versions, ONNX Runtime and its providers, CPU features, cores, memory, decoders, limits and
    space, and runs one batch of the model. Exits with 5 when `infer` cannot run.
    """
    from drumline.doctor import examine
    from drumline.errors import RuntimeMissingError

    findings = examine(runs_root, model)
    ready = all(finding.status != "missing" for finding in findings)
    if as_json:
        echo_json({"ready": ready, "findings": [finding.to_json() for finding in findings]})
    else:
        _print(findings, ready)
    return 0 if ready else RuntimeMissingError.exit_code


def _print(findings: list[Finding], ready: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        value = safe_text(finding.value)
        way_out = "".join(f"\n→ {safe_text(line)}" for line in finding.way_out.splitlines())
        status = Text(finding.status, _STYLES[finding.status])
        table.add_row(status, Text(finding.topic), Text(value + way_out))
    console.print(table)
    verdict = (
        "[green]infer can run here.[/green]" if ready else "[bold red]infer cannot run here yet.[/bold red]"
    )
    console.print(f"\n{verdict}")
