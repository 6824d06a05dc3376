"""What a person sees at the end of a run."""

from __future__ import annotations

from typing import Any

from drumline.cli.common import misc_note, safe_text, shell_word, short_path, stdout_console
from drumline.progress import duration_text, withheld_text
from drumline.wording import counted

__all__ = ["memory_text", "show_summary"]


def show_summary(summary: dict[str, Any], misc: str) -> None:
    """Print a summary to stdout.

    Parameters
    ----------
    summary
        The content of ``summary.json``.
    misc
        What misc is called in it.
    """
    from rich.text import Text

    console, counts = stdout_console(), summary["counts"]
    files, seconds = counted(counts["discovered"], "file"), duration_text(summary["elapsed_sec"])
    parts = [
        f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("classified", "carried_over", "failed")
    ]
    console.print(Text.assemble((files, "bold"), f" in {seconds}: ", ", ".join(parts)))
    if counts["resumed"]:
        console.print(f"  {counts['resumed']:,} of these were done before the run was interrupted")
    console.print(_labels(summary))
    if misc in summary["labels"]:
        console.print(Text(f"  {misc_note(misc)}", "dim"))
    lines = [f"{count:,} {kind}" for kind, count in summary["errors"].items()]
    if unreadable := counts["unreadable_directories"]:
        lines.append(f"{counted(unreadable, 'directory', 'directories')} could not be read")
    for line in lines:
        console.print(Text(f"  {line}", "red"))
    if short := memory_text(summary["memory"]):
        console.print(Text(f"  {short}", "yellow"))
    run = shell_word(short_path(summary["run_directory"]))
    if counts["failed"]:
        console.print(Text(f"  Which: drumline stats {run} --failures", "dim"), soft_wrap=True)
    console.print(Text(f"\nIndex: {safe_text(short_path(summary['index']))}"), soft_wrap=True)
    console.print(Text(f"Next:  drumline rebuild {run} --out organised"), soft_wrap=True)


def memory_text(memory: dict[str, Any]) -> str:
    """Say how a run made do with little memory; empty where there was enough."""
    if not memory:
        return ""
    slots, workers = memory["fewest_slots"], memory["workers"]
    withheld = withheld_text((slots, memory["slots_wanted"]), (workers, memory["workers_wanted"]))
    return f"Memory was short for {duration_text(memory['short_sec'])}: {withheld}" if withheld else ""


def _labels(summary: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from drumline.charts import Bar

    table = Table.grid(padding=(0, 2), expand=True)
    for settings in ({}, {"justify": "right"}, {"ratio": 1}, {"style": "dim"}):
        table.add_column(**settings)
    labels, confidences = summary["labels"], summary["mean_confidence"]
    for label, count in labels.items():
        bar = Bar(count / max(labels.values()), "green")
        table.add_row(
            Text(f"  {safe_text(label)}"), f"{count:,}", bar, f"mean confidence {confidences[label]:.2f}"
        )
    return table
