"""`callscope diff`: two traces side by side."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.bytecode import diff as instructions
from callscope.cli.options import limit_option, open_trace_database
from callscope.cli.output import Output, output_options
from callscope.reports import diff as report

SHOWN = 20
"""Rows of a table unless --limit says otherwise."""


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "-s", "--sort", type=click.Choice(report.ORDERS), default="self", show_default=True,
    help="Functions with the largest change first, of this.",
)  # fmt: skip
@limit_option("rows of a table", SHOWN)
@output_options
def diff(before: Path, after: Path, sort: str, limit: int, output: Output) -> None:
    """Show what AFTER does otherwise than BEFORE: where the runs part, functions, calls between functions.

    Changes are signed: AFTER less BEFORE. Functions are matched by module and name. Threads are compared in order of
    their start. Two files that `callscope bytecode` wrote are compared by instruction: the first that differs is shown.
    """
    if before.is_file() and after.is_file():
        parting = instructions.first_difference(before, after)
        if output.json:
            output.write_json(instructions.as_json(parting))
        else:
            output.write_lines(instructions.text(parting, before, after))
        return
    with open_trace_database(before) as first, open_trace_database(after) as second:
        found = report.differences(first, second, sort)
        if output.json:
            output.write_json(report.as_json(found))
        else:
            output.write_lines(report.text(first, second, found, output.style, limit))
