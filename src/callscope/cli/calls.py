"""`callscope calls`: every call, one a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.options import limit_option, open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import calls as report
from callscope.reports.selection import Selection


@click.command()
@trace_argument
@selection_options("function", "thread", "process", "last", "min-duration")
@click.option(
    "-s", "--sort", type=click.Choice(tuple(report.ORDERS)), default="start", show_default=True,
    help="'start' is thread by thread; 'duration' and 'self' have the longest first.",
)  # fmt: skip
@limit_option("calls")
@output_options
def calls(trace: Path, sort: str, limit: int, output: Output, **selection: Any) -> None:
    """List every call, one a line.

    A parent is given by its call's number. A call site is where the call returns to: module and offset. With --format
    json, each line is an object, times in nanoseconds since the recording began.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with open_trace_database(trace) as database:
        if output.json:
            output.write_json_lines(report.json(database, Selection(**selection), sort, limit))
        else:
            output.write_lines(report.text(database, Selection(**selection), output.style, sort, limit))
