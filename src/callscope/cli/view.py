"""`callscope view`: a trace as a local web page, or as one file."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from callscope.cli.options import open_trace_database, trace_argument
from callscope.cli.output import Output
from callscope.cli.progress import progress_bar
from callscope.errors import UsageError
from callscope.reports.selection import check_calls
from callscope.trace.open import open_trace

if TYPE_CHECKING:
    from callscope.viewer.answers import Answers


@click.command()
@trace_argument
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Listen there; any free port else.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@click.option(
    "--export", "export_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the page with its most important data to one file instead, to be opened without callscope.",
)  # fmt: skip
@click.option("--tui", is_flag=True, help="Look at it in the terminal instead (pip install 'callscope[tui]').")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def view(trace: Path, port: int, no_browser: bool, export_file: Path | None, tui: bool, force: bool) -> None:
    """Look at a trace in a browser: timeline, flame graph, functions, call graph, source, modules, stacks, crash.

    The page is served to this machine only, under an address that holds a secret, until Ctrl-C. Nothing comes from the
    internet.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    from callscope.viewer.answers import Answers

    if tui and (export_file is not None or port or no_browser):
        raise UsageError("--tui is for the terminal: leave --export, --port and --no-browser out")
    output = Output("html", export_file, force)
    opened = open_trace(trace)
    with open_trace_database(trace) as database:
        check_calls(database)
        with progress_bar(f"preparing the timeline of {trace.name}") as progress:
            answers = Answers(database, opened, progress, with_timeline=not tui)
        with closing(answers):
            if tui:
                run_in_terminal(answers)
            elif export_file is None:
                serve(answers, port, not no_browser)
            else:
                from callscope.viewer.export import export_page

                output.write_bytes([export_page(answers)])


def run_in_terminal(answers: Answers) -> None:
    """Until `q`. Raises UsageError when there is no terminal, or no Textual."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--tui needs a terminal: callscope report, tree and graph write text")
    try:
        from callscope.viewer.terminal.app import ViewApp
    except ModuleNotFoundError as error:
        raise UsageError(f"--tui needs the package {error.name}: pip install 'callscope[tui]'") from None
    ViewApp(answers).run()


def serve(answers: Answers, port: int, browser: bool) -> None:
    """Serve until Ctrl-C. Raises UsageError when the port cannot be had."""
    from callscope.viewer.server import ViewServer

    try:
        server = ViewServer(answers, port)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror}; choose another, or none") from None
    try:
        click.echo(server.url)
        click.echo("callscope: open this address in a browser here; Ctrl-C ends it", err=True)
        if browser:
            webbrowser.open(server.url)
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("", err=True)
    finally:
        server.server_close()
