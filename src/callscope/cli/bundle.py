"""`callscope bundle`: make a trace self-contained."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import trace_argument
from callscope.reports.bundle import bundle as copy_binaries
from callscope.reports.text import size
from callscope.trace.open import open_trace


@click.command()
@trace_argument
@click.option(
    "--symbols", "directories", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR", help="Look for binaries and debug files here, too; may be repeated.",
)  # fmt: skip
def bundle(trace: Path, directories: tuple[Path, ...]) -> None:
    """Copy the binaries that a trace speaks of, and their debug files, into it.

    It can then be looked at on another machine, or when they have changed.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    done = copy_binaries(open_trace(trace), directories)
    click.echo(f"callscope: {done.files} files, {size(done.bytes)}, are in {trace} now", err=True)
    for path in done.missing:
        click.echo(f"callscope: {path} is not here as it was loaded: it is left out", err=True)
