"""`drumline completion`: completion for the user's shell."""

from __future__ import annotations

import click

from drumline.cli.common import Command

__all__ = ["completion_command"]


@click.command(
    "completion",
    cls=Command,
    short_help="Print the script that completes commands.",
    examples=(
        "drumline completion bash >> ~/.bashrc",
        "drumline completion zsh >> ~/.zshrc",
        "drumline completion fish > ~/.config/fish/completions/drumline.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes drumline's commands and options in a shell."""
    from click.shell_completion import get_completion_class

    from drumline.cli import cli

    completion = get_completion_class(shell)
    assert completion is not None, shell
    click.echo(completion(cli, {}, "drumline", "_DRUMLINE_COMPLETE").source())
