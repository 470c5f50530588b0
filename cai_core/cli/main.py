"""``cai``: the group of commands, and how every error reaches the user.

Exit codes: 0 done, 2 the user's input is wrong, 130 stopped by the user, 1 anything else.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import click

from cai_core import __version__
from cai_core.cli.terminal import clean, prepare_streams
from cai_core.errors import CAIError, Cancelled

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("cai_core.cli.run", "Run a recipe; reuse what is there, go on after a crash."),
    "plan": ("cai_core.cli.plan", "Say what a run would do, and why."),
    "report": ("cai_core.cli.report", "Show what a run found."),
    "compare": ("cai_core.cli.compare", "Compare two runs, item by item."),
    "label": ("cai_core.cli.label", "Label pairs of answers from a file, and measure the labeler."),
    "eval": ("cai_core.cli.eval", "Evaluate models with evaluators, without a recipe."),
    "export": ("cai_core.cli.export", "Write a run's data as data sets for others."),
    "plugins": ("cai_core.cli.plugins", "List and show components, check plugins, begin one."),
    "constitution": ("cai_core.cli.constitution", "List, show, check and import constitutions."),
    "schema": ("cai_core.cli.schema", "Print the JSON Schema of recipes, for editors."),
    "models": ("cai_core.cli.models", "List and fetch the models of the catalog."),
    "gc": ("cai_core.cli.gc", "Free what no run refers to."),
}
"""Name -> module that holds ``command``, and the line that ``cai --help`` prints without importing it."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cai")
@click.option("--debug", is_flag=True, help="Print tracebacks (also: CAI_DEBUG=1).")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Constitutional AI from a recipe, every part a plugin."""
    if debug:
        os.environ["CAI_DEBUG"] = "1"  # worker processes inherit it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Nothing is raised; tracebacks only with ``--debug``."""
    prepare_streams()
    try:
        returned = cli.main(
            list(sys.argv[1:] if arguments is None else arguments), prog_name="cai", standalone_mode=False
        )
        sys.stdout.flush()
    except BaseException as error:
        return _report(error)
    return returned if type(returned) is int else 0


def _report(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, BrokenPipeError):
        # The reader has gone (`cai ... | head`). Whatever is still buffered goes nowhere, without a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if os.environ.get("CAI_DEBUG", "") not in ("", "0") and not isinstance(error, click.exceptions.ClickException):
        import traceback

        _say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        _say("Stopped.")
        return 130
    if isinstance(error, click.exceptions.ClickException):
        context = getattr(error, "ctx", None)
        if context is not None:
            _say(context.get_usage())
            _say(f"Try '{context.command_path} --help'.")
        _say(f"Error: {error.format_message()}")
        return error.exit_code
    if isinstance(error, CAIError):
        _say(str(error) if isinstance(error, Cancelled) else f"Error: {error}")
        return error.exit_code
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say(f"Error: no space left on the disk{where}\n  Free some space, then give the same command again.")
        else:
            _say(f"Error: {error.strerror or error}{where}\n  With 'cai --debug ...' a traceback is printed.")
        return 1
    if isinstance(error, MemoryError):
        _say("Error: out of memory")
        return 1
    _say(
        f"Error: {type(error).__name__}: {error}\n"
        "  This is a fault of cai-core or of a plugin; 'cai --debug ...' prints the traceback."
    )
    return 1


def _say(text: str) -> None:
    try:
        print(clean(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return  # standard error is closed: there is nobody left to tell


if __name__ == "__main__":
    sys.exit(main())
