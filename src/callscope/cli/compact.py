"""`callscope compact`: compress the events of a finished trace."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import trace_argument
from callscope.cli.progress import progress_bar
from callscope.recording.compact import compact as compact_trace
from callscope.recording.summary import size_text


@click.command()
@trace_argument
def compact(trace: Path) -> None:
    """Compress the events of a trace, to a fifth or less. Every command reads it as before.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with progress_bar(f"compressing {trace.name}") as progress:
        done = compact_trace(trace, progress)
    click.echo(f"callscope: {trace}: {size_text(done.after)} of events, {size_text(done.before)} before", err=True)
