"""`callscope tree`: the call tree as nested braces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.options import CountType, limit_option, open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import tree as report
from callscope.reports.selection import Selection
from callscope.reports.tree_text import Shape


@click.command()
@trace_argument
@click.option("-d", "--depth", type=CountType(), default=0, metavar="N", help="Only the first N levels.")
@selection_options("subtree", "thread", "process", "last", "min-duration")
@limit_option("calls")
@click.option(
    "--fold", is_flag=True, help="One line for calls of one function that follow each other and call nothing."
)
@output_options
def tree(trace: Path, depth: int, limit: int, fold: bool, output: Output, **selection: Any) -> None:
    """Show who called whom, nested, thread by thread.

    Each line has a call's duration, its thread and its name. What did not end by returning says how it ended. Calls
    made through a function that was not traced stand inside [untraced NAME].

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with open_trace_database(trace) as database:
        shape = Shape(depth, limit, fold)
        if output.json:
            output.write_json_array(report.json(database, Selection(**selection), shape))
        else:
            output.write_lines(report.text(database, Selection(**selection), shape, output.style))
