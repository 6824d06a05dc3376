"""The command line: commands are shells over the library and are imported when they are called."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import click

from drumline.cli.stopping import GO_ON, stoppable
from drumline.errors import DrumlineError, Interrupted, OutputError, RuntimeMissingError

__all__ = ["COMMANDS", "READER_GONE", "TRAINING_COMMANDS", "main"]

COMMANDS = {
    "infer": "drumline.cli.infer:infer_command",
    "rebuild": "drumline.cli.rebuild:rebuild_command",
    "undo": "drumline.cli.rebuild:undo_command",
    "stats": "drumline.cli.stats:stats_command",
    "diff": "drumline.cli.diff:diff_command",
    "verify": "drumline.cli.verify:verify_command",
    "repair": "drumline.cli.verify:repair_command",
    "features": "drumline.cli.features:features_command",
    "init": "drumline.cli.init:init_command",
    "tune": "drumline.cli.tune:tune_command",
    "models": "drumline.cli.models:models_command",
    "validate-mapping": "drumline.cli.models:validate_mapping_command",
    "create-stub": "drumline.cli.models:create_stub_command",
    "doctor": "drumline.cli.doctor:doctor_command",
    "completion": "drumline.cli.completion:completion_command",
}
"""Command name → where it is defined, in the order of the help page."""

TRAINING_COMMANDS = {
    "dataset": "drumline_convert.cli_dataset:dataset",
    "train": "drumline_convert.cli_train:train",
    "convert": "drumline_convert.cli_convert:convert",
    "evaluate": "drumline_convert.cli_evaluate:evaluate",
    "ensemble": "drumline_convert.cli_convert:ensemble",
    "gate": "drumline_convert.cli_convert:gate",
    "calibrate": "drumline_convert.cli_calibrate:calibrate",
}
"""Commands of `drumline_convert`, shown when it is installed."""

READER_GONE = 141
"""Exit code when nobody reads the output any more, as shells give it to a command that SIGPIPE has ended."""


class _ReaderGoneError(Exception):
    """Nobody reads the output any more; click itself would end with the code of a fault."""


@contextmanager
def _reader_may_go() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGoneError from error


class LazyGroup(click.Group):
    """A group that imports a command only when it is called or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        training = TRAINING_COMMANDS if find_spec("drumline_convert") else {}
        return [*COMMANDS, *training]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        place = {**COMMANDS, **TRAINING_COMMANDS}.get(cmd_name)
        if place is None:
            return None
        if cmd_name in TRAINING_COMMANDS and not find_spec("drumline_convert"):
            raise RuntimeMissingError(
                f"'drumline {cmd_name}' is part of the training side, which is not installed",
                "Install it with: pip install 'path/to/drumline[train,cpu]'",
            )
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; one that is misspelt gets the name that comes nearest."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"No such command {name!r}." + "".join(f" Did you mean {other!r}?" for other in near))
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line, which may print help."""
        with _reader_may_go():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command; click's own answer to Ctrl-C prints, which a closed terminal does not take."""
        try:
            with _reader_may_go():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("stopped", GO_ON) from error


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from drumline import __version__

        click.echo(f"drumline {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Classify archives of drum one-shots and rebuild them as organised trees.

    `drumline infer ARCHIVE` reads every audio file, never changes one, and writes an index.
    `drumline rebuild RUN --out DIR` makes an organised tree from it, as often as you like.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that `drumline.errors` gives."""
    # One-shots are small: more BLAS threads than the pool has workers only get in one another's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_closed_streams()
    sys.exit(_run(arguments))


def _open_closed_streams() -> None:
    # Started with a closed stdout or stderr, Python has None there, and files opened later get its number.
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  (for the whole process)


def _run(arguments: list[str] | None) -> int:
    try:
        with stoppable():
            _arm_failpoints()
            result: Any = cli.main(args=arguments, prog_name="drumline", standalone_mode=False)
    except DrumlineError as error:
        _report(error.what, error.way_out)
        return error.exit_code
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _report("stopped", GO_ON)
        return Interrupted.exit_code
    except (_ReaderGoneError, BrokenPipeError):
        # The reader of our output has gone (… | head): not an error, but nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        from drumline.durable import way_out_of

        if error.filename is None and _stdout_fails_with(error):
            error.filename = "stdout"
        _report(_cause(error), way_out_of(error))
        if error.filename == "stdout":  # what could not be printed must not be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OutputError.exit_code
    return result if isinstance(result, int) else 0


def _arm_failpoints() -> None:
    from drumline.failpoints import VARIABLE, arm

    if text := os.environ.get(VARIABLE):
        arm(text)


def _show(error: click.ClickException) -> None:
    from drumline.cli.common import safe_text

    # The message repeats what was typed, which a shell may have made of the names of files.
    shown = io.StringIO()
    error.show(shown)
    for line in shown.getvalue().split("\n")[:-1]:
        click.echo(safe_text(line.expandtabs(2)), err=True)


def _stdout_fails_with(error: OSError) -> bool:
    """Tell whether what waits to be printed meets this very error."""
    try:
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _cause(error: OSError) -> str:
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current directory is no longer there: change to another one"
    what = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
    return f"{what}{error.strerror or error}"


def _report(what: str, way_out: str = "") -> None:
    from drumline.cli.common import safe_text

    head, *more = what.splitlines() or [""]
    with suppress(OSError):  # a closed terminal: the exit code still says it
        click.echo(f"drumline: {safe_text(head)}", err=True)
        for line in filter(None, [*more, *way_out.splitlines()]):
            click.echo(f"  {safe_text(line)}", err=True)
