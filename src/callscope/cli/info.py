"""`callscope info`: what was recorded, and how completely."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import open_trace_database, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import info as report
from callscope.reports.crash import count_crashes


@click.command()
@trace_argument
@output_options
def info(trace: Path, output: Output) -> None:
    """Show what was recorded: command, host, time, processes, calls, coverage, losses.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with open_trace_database(trace) as database:
        facts = report.info(database, count_crashes(trace))
        if output.json:
            output.write_json(facts)
        else:
            output.write_lines(report.text(facts, output.style))
