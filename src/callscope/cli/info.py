"""`callscope info`: what was recorded, and how completely."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import open_trace_database, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import info as report
from callscope.reports import threads as thread_report
from callscope.reports.crash import count_crashes
from callscope.trace.open import open_trace


@click.command()
@trace_argument
@click.option("--threads", is_flag=True, help="The threads: names, times, and which call of which thread made them.")
@output_options
def info(trace: Path, threads: bool, output: Output) -> None:
    """Show what was recorded: command, host, time, processes, calls, coverage, losses.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with open_trace_database(trace) as database:
        if threads:
            rows = thread_report.threads(database, open_trace(trace))
            if output.json:
                output.write_json_array(rows)
            else:
                output.write_lines(thread_report.text(rows, output.style))
            return
        facts = report.info(database, count_crashes(trace))
        if output.json:
            output.write_json(facts)
        else:
            output.write_lines(report.text(facts, output.style))
