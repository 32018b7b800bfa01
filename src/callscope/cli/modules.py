"""`callscope modules`: programs and libraries as they were loaded and unloaded."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options
from callscope.reports import modules as report


@click.command()
@trace_argument
@selection_options("process")
@output_options
def modules(trace: Path, process: int | None, output: Output) -> None:
    """List programs and libraries in the order they were loaded.

    Addresses mean something only with a module and a time: another library may follow at the same place.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    with open_trace_database(trace) as database:
        rows = report.modules(database, process)
        if output.json:
            output.write_json_array(rows)
        else:
            output.write_lines(report.text(rows, output.style))
