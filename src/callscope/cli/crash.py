"""`callscope crash`: what happened when a program crashed."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import CountType, open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import crash as report
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
    if not report.crash_count(opened):
        raise report.no_crash(opened)
    with open_trace_database(trace) as database:
        facts = report.facts(opened, database, last, process)
    if facts is None:
        raise report.no_crash(opened)
    if output.json:
        output.write_json({"crash": facts})
    else:
        output.write_lines(text(facts, output.style))
