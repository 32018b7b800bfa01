"""`callscope crash`: what happened when a program crashed."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import CountType, open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import crash as report
from callscope.reports import crash_ending
from callscope.reports.crash_ending import ending_status
from callscope.reports.crash_text import text
from callscope.trace.open import open_trace


@click.command()
@trace_argument
@selection_options("process")
@click.option(
    "--last", type=CountType(0), default=10, metavar="N", help="The N calls of the thread before it. [default: 10]"
)
@output_options
def crash(trace: Path, process: int | None, last: int, output: Output) -> None:
    """Show what happened when the program crashed.

    The signal and its cause, the thread, the registers, the back-trace with files and lines, the calls that were open
    in every thread, and the calls before the crash.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    opened = open_trace(trace)
    chosen = report.chosen_crash(opened, process)
    status = ending_status(opened, process)
    if chosen is None and status is None:
        raise report.no_crash(opened)
    with open_trace_database(trace) as database:
        if chosen is not None:
            facts = report.report(opened, database, chosen, last)
        else:
            assert status is not None
            facts = crash_ending.report(opened, database, status, last)
    if output.json:
        output.write_json({"crash": facts})
    else:
        output.write_lines(text(facts, output.style))
