"""`callscope graph`: who calls whom, added up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.options import DurationType, limit_option, open_trace_database, selection_options, trace_argument
from callscope.cli.output import Output, output_options_of
from callscope.reports import graph as report
from callscope.reports import graph_forms
from callscope.reports.selection import Selection

SHOWN = 20
"""Functions shown as text unless --limit says otherwise."""


@click.command()
@trace_argument
@selection_options("function", "thread", "process", "min-duration")
@click.option(
    "-d",
    "--depth",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Callers and callees up to N calls away from --function; 0 for all.",
)
@click.option("-m", "--module", "modules", multiple=True, metavar="GLOB", help="Only functions of these modules.")
@click.option(
    "--min-share",
    type=click.FloatRange(0, 100),
    default=0.0,
    metavar="PERCENT",
    help="Leave out functions with less than PERCENT of the largest total.",
)
@click.option(
    "--from",
    "begin",
    type=DurationType(),
    default=0,
    metavar="TIME",
    help="Only calls that began TIME after the recording did, or later, such as 1.5s.",
)
@click.option("--until", "end", type=DurationType(), metavar="TIME", help="Only calls that began before TIME.")
@click.option("--by-site", is_flag=True, help="Calls from different places of a function apart.")
@limit_option("functions", SHOWN)
@output_options_of("text", "json", *graph_forms.FORMS)
def graph(trace: Path, depth: int, modules: tuple[str, ...], min_share: float, begin: int, end: int | None,
          by_site: bool, limit: int, output: Output, **selection: Any) -> None:  # fmt: skip
    """Show who calls whom: each function with its callers above and its callees below.

    With --function, that function's; else the most important ones. Recursion is merged: a function stands for all its
    calls. dot, mermaid and graphml draw the whole graph, or what is around --function.

    TRACE is a directory that `callscope record` wrote, the newest *.trace here when left out.
    """
    chosen = Selection(**selection)
    window = report.Window(begin, end) if begin or end is not None else None
    with open_trace_database(trace) as database:
        found = report.call_graph(database, chosen, window, by_site)
        if modules or min_share:
            found = report.narrowed(found, modules, min_share / 100)
        focus = report.focus_of(database, found, chosen.functions) if chosen.functions else list(found.nodes)
        if chosen.functions:
            found = report.around(found, focus, depth)
        if output.json:
            output.write_json(report.as_json(found))
        elif output.format in graph_forms.FORMS:
            output.write_lines(graph_forms.FORMS[output.format](database, found))
        else:
            output.write_lines(graph_forms.butterflies(database, found, focus, depth, output.style, limit))
