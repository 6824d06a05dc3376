"""What a person sees at the end of a run."""

from __future__ import annotations

from typing import Any

from drumline.cli.common import safe_text
from drumline.progress import duration_text

__all__ = ["show_summary"]

_BAR = 30


def show_summary(summary: dict[str, Any]) -> None:
    """Print a summary to stdout."""
    from rich.console import Console
    from rich.table import Table

    console, counts = Console(highlight=False, soft_wrap=True), summary["counts"]
    files, seconds = f"{counts['discovered']:,} files", duration_text(summary["elapsed_sec"])
    console.print(f"[bold]{files}[/bold] in {seconds}: {_parts(counts)}")
    table = Table.grid(padding=(0, 2))
    largest = max(summary["labels"].values(), default=1)
    for label, count in summary["labels"].items():
        bar = "█" * max(1, round(_BAR * count / largest))
        confidence = f"[dim]mean confidence {summary['mean_confidence'][label]:.2f}[/dim]"
        table.add_row(f"  {safe_text(label)}", f"{count:,}", f"[green]{bar}[/green]", confidence)
    console.print(table)
    for kind, count in summary["errors"].items():
        console.print(f"  [red]{count:,} {kind}[/red]")
    if counts["unreadable_directories"]:
        console.print(f"  [red]{counts['unreadable_directories']:,} directories could not be read[/red]")
    run = safe_text(summary["run_directory"])
    console.print(f"\nIndex: {safe_text(summary['index'])}", markup=False)
    console.print(f"Next:  drumline rebuild {run} --out organised", markup=False)


def _parts(counts: dict[str, int]) -> str:
    parts = [
        f"{counts['classified']:,} classified",
        f"{counts['carried_over']:,} carried over",
        f"{counts['failed']:,} failed",
    ]
    return ", ".join(parts)
