"""`callscope export`: a trace in the form another tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.options import open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, new_directory
from callscope.cli.stacks import no_stacks
from callscope.errors import UsageError
from callscope.exporters.registry import FORMATS
from callscope.exporters.stacks import STACK_FORMATS
from callscope.exporters.stacks import lines as stack_lines
from callscope.reports.selection import Selection
from callscope.reports.stacks import Stacks
from callscope.trace.open import open_trace
from callscope.trace.stacks import read_snapshots

LISTED = "\n".join(f"  {entry.name:<12}{entry.summary}" for entry in FORMATS.values())


@click.command(epilog=f"\b\nFormats:\n{LISTED}")
@trace_argument
@click.option("--to", "target", type=click.Choice(tuple(FORMATS)), required=True, help="The format: see below.")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), metavar="FILE", required=True,
    help="Write to a new file (uftrace: directory), readable only by you, compressed if its name ends in .gz; "
    "- is standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--stacks", is_flag=True, help="The call stacks that were captured in place of calls; folded, speedscope."
)
@selection_options("thread", "process")
def export(trace: Path, target: str, file: Path, force: bool, stacks: bool, **selection: Any) -> None:
    """Write a trace in the form that another tool reads.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    if stacks:
        _export_stacks(trace, target, Output() if str(file) == "-" else _new(file, force), Selection(**selection))
        return
    chosen = FORMATS[target]
    if chosen.is_directory:
        if str(file) == "-":
            raise UsageError(f"{target} is a directory: give its name with -o")
        with open_trace_database(trace) as database, new_directory(file, force) as directory:
            chosen.write(database, Selection(**selection), directory)
        return
    if str(file) == "-":
        if chosen.is_binary and Output().terminal:
            raise UsageError(f"{target} is not for terminals: give a file with -o")
        if chosen.has_companions:
            raise UsageError(f"{target} is several files: give the name of the first with -o")
        outputs = {"": Output()}
    else:
        outputs = {"": _new(file, force)}
    with open_trace_database(trace) as database:
        companions = chosen.companions(database)
        plain = file.with_suffix("") if file.suffix == ".gz" else file
        outputs |= {end: Output(file=plain.with_name(plain.stem + end), force=force) for end in companions}
        if chosen.is_binary:
            outputs[""].write_bytes(chosen.chunks(database, Selection(**selection)))
        else:
            outputs[""].write_lines(chosen.lines(database, Selection(**selection)))
        for end, lines in companions.items():
            outputs[end].write_lines(lines)


def _new(file: Path, force: bool) -> Output:
    return Output(file=file, force=force, compressed=file.suffix == ".gz")


def _export_stacks(trace: Path, target: str, output: Output, selection: Selection) -> None:
    if target not in STACK_FORMATS:
        raise UsageError(f"captured stacks cannot be exported to {target}: choose one of {', '.join(STACK_FORMATS)}")
    opened = open_trace(trace)
    if next(read_snapshots(opened), None) is None:
        raise no_stacks(trace)
    output.write_lines(stack_lines(target, Stacks(opened, ()), selection))
    for warning in opened.warnings:
        click.echo(f"callscope: {warning}", err=True)
