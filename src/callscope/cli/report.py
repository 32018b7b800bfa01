"""`callscope report`: functions by total time, own time, calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.options import limit_option, open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import functions
from callscope.reports.selection import Selection


@click.command()
@trace_argument
@click.option(
    "-s", "--sort", type=click.Choice(functions.ORDERS), default="total", show_default=True, help="What comes first."
)
@limit_option("functions")
@selection_options("function", "thread", "process", "min-duration")
@output_options
def report(trace: Path, sort: str, limit: int, output: Output, **selection: Any) -> None:
    """Show which functions took the time.

    Total is the time within a function, the calls it made included; self is without them. Average, min, max and p99 are
    of single calls. A recursive function's total counts its outermost calls.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with open_trace_database(trace) as database:
        times = functions.function_times(database, Selection(**selection), sort)
        if output.json:
            output.write_json_array(functions.as_json(times[:limit] if limit else times))
        else:
            output.write_lines(functions.text(database, times, output.style, limit))
