"""`callscope export`: a trace in the form another tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.options import open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output
from callscope.errors import UsageError
from callscope.exporters.registry import FORMATS
from callscope.reports.selection import Selection

LISTED = "\n".join(f"  {entry.name:<12}{entry.summary}" for entry in FORMATS.values())


@click.command(epilog=f"\b\nFormats:\n{LISTED}")
@trace_argument
@click.option("--to", "target", type=click.Choice(tuple(FORMATS)), required=True, help="The format: see below.")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), metavar="FILE", required=True,
    help="Write to a new file, readable only by you; - is standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@selection_options("thread", "process")
def export(trace: Path, target: str, file: Path, force: bool, **selection: Any) -> None:
    """Write a trace in the form that another tool reads.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    chosen = FORMATS[target]
    if str(file) == "-":
        if chosen.is_binary and Output().terminal:
            raise UsageError(f"{target} is not for terminals: give a file with -o")
        if chosen.has_companions:
            raise UsageError(f"{target} is several files: give the name of the first with -o")
        outputs = {"": Output()}
    else:
        outputs = {"": Output(file=file, force=force)}
    with open_trace_database(trace) as database:
        companions = chosen.companions(database)
        outputs |= {end: Output(file=file.with_name(file.stem + end), force=force) for end in companions}
        if chosen.is_binary:
            outputs[""].write_bytes(chosen.chunks(database, Selection(**selection)))
        else:
            outputs[""].write_lines(chosen.lines(database, Selection(**selection)))
        for end, lines in companions.items():
            outputs[end].write_lines(lines)
