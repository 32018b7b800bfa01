"""The `callscope` command: finds the subcommand, and turns every error into one line and an exit status."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

import callscope
from callscope.cli.commands import COMMANDS, SECTIONS
from callscope.errors import CallscopeError

DEBUG_VARIABLE = "CALLSCOPE_DEBUG"
INTERRUPTED = 130

EPILOG = """\b
Record, then look:
  callscope record git log         writes git.trace
  callscope report                 which functions took the time
  callscope tree --depth 3         who called whom
"""


class CommandTable(click.Group):
    """Subcommands that are imported when they are used: `callscope --help` loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"callscope.cli.{entry.module}")
        command = getattr(module, entry.name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which was perhaps meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, 1)
            advice = f"did you mean {close[0]!r}?" if close else "see callscope --help"
            raise click.UsageError(f"there is no command {name!r}: {advice}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name, command.summary) for command in commands])


@click.command(
    "callscope",
    cls=CommandTable,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(callscope.__version__, message="callscope %(version)s")
def callscope_command() -> None:
    """Record what calls what, and when, in programs you cannot or will not rebuild."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status. What a command passes to sys.exit goes on to the caller."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return int(callscope_command.main(arguments or ["--help"], "callscope", standalone_mode=False) or 0)
    except CallscopeError as error:
        return fail(error, str(error), error.exit_status)
    except click.exceptions.Abort as error:
        return fail(error, "", INTERRUPTED)
    except KeyboardInterrupt as error:
        return fail(error, "", INTERRUPTED)
    except click.ClickException as error:
        return fail(error, usage_message(error), error.exit_code)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        advice = f"set {DEBUG_VARIABLE}=1 to see where, and please report it"
        return fail(error, f"unexpected {reason} (a bug in callscope: {advice})", 1)


def fail(error: BaseException, message: str, status: int) -> int:
    """Say what went wrong in one line, where `CALLSCOPE_DEBUG` asks for it with a traceback; `status`."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if message:
        line = " ".join(message.split())
        printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        click.echo(f"callscope: error: {printable}", err=True)
    return status


def usage_message(error: click.ClickException) -> str:
    """Click's message in the form of ours."""
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and context is not None and "--help" not in message:
        message += f"; see {context.command_path} --help"
    return message


if __name__ == "__main__":
    sys.exit(main())
