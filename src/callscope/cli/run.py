"""`callscope run`: record a program, then show which functions took the time."""

from __future__ import annotations

import sys
from typing import Any

import click

from callscope.cli.options import limit_option, open_trace_database
from callscope.cli.output import Output
from callscope.cli.progress import progress_bar
from callscope.cli.record import PASS_ON, options_of, record_options, show_summary
from callscope.recording.record import record as record_program
from callscope.reports import functions
from callscope.reports.selection import Selection

SHOWN = 20
"""Functions listed unless --limit says otherwise."""


@click.command(context_settings=PASS_ON)
@record_options
@click.option(
    "-s", "--sort", type=click.Choice(functions.ORDERS), default="total", show_default=True, help="What comes first."
)
@limit_option("functions", SHOWN)
def run(quiet: bool, sort: str, limit: int, **options: Any) -> None:
    """Run PROGRAM, record its calls, and show which functions took the time.

    The short form of `record` and `report`; the trace stays for a closer look. The exit status is the program's.
    """
    result = record_program(options_of(**options), progress_bar)
    if not quiet:
        show_summary(result, reported=True)
    with open_trace_database(result.trace) as database:
        output = Output()
        times = functions.function_times(database, Selection(), sort)
        output.write_lines(functions.text(database, times, output.style, limit))
    sys.exit(result.exit_status)
