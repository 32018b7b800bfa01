"""`callscope stacks`: the call stacks that were captured."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import limit_option, trace_argument
from callscope.cli.output import Output, output_options_of
from callscope.errors import TraceError
from callscope.reports import stacks as report
from callscope.reports.stacks_text import groups_text, snapshot_text
from callscope.trace.open import open_trace


@click.command()
@trace_argument
@click.option("--each", is_flag=True, help="Every stack by itself, in each thread's order, instead of groups.")
@click.option(
    "--symbols", "directories", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR", help="Look for binaries and debug files here, too; may be repeated.",
)  # fmt: skip
@limit_option("stacks or groups")
@output_options_of("text", "json", "folded")
def stacks(trace: Path, each: bool, directories: tuple[Path, ...], limit: int, output: Output) -> None:
    """Show the call stacks that were captured, with module, function, file, line and inlined calls.

    Equal stacks are one group, with their count, and when the first and the last was captured. Which module an address
    belongs to is decided by what was loaded at that time.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    opened = open_trace(trace)
    found = report.Stacks(opened, directories)
    clock = opened.clock
    if each and output.format != "folded":
        pairs = [pair for pair, _ in zip(found.each(), range(limit or 1 << 62), strict=False)]
        if not pairs:
            raise no_stacks(trace)
        if output.json:
            output.write_json([report.snapshot_json(one, group, clock.ns(one.tsc)) for one, group in pairs])
        else:
            lines = (line for one, group in pairs for line in snapshot_text(one, group, clock, output.style))
            output.write_lines(lines)
    else:
        groups = found.groups()
        if not groups:
            raise no_stacks(trace)
        groups = groups[: limit or None]
        if output.json:
            output.write_json([report.group_json(group) for group in groups])
        elif output.format == "folded":
            output.write_lines(report.folded(groups))
        else:
            output.write_lines(groups_text(groups, output.style))
    for warning in opened.warnings:
        click.echo(f"callscope: {warning}", err=True)


def no_stacks(trace: Path) -> TraceError:
    """Why there is nothing to show."""
    return TraceError(
        f"{trace} has no call stacks: record with --stacks-at, --stacks-every or --stacks-on, "
        "or call callscope_capture in the program"
    )
