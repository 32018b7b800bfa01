"""`callscope map`: the calls a binary can make, and those it made."""

from __future__ import annotations

from pathlib import Path

import click

from callscope.cli.options import open_trace_database
from callscope.cli.output import Output, output_options_of, progress_bar
from callscope.cli.plan import find_image
from callscope.errors import UsageError
from callscope.reports import callmap, mapdiff


@click.command("map")
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "-t",
    "--trace",
    "traces",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="TRACE",
    help="Add what TRACE saw at every site; may be repeated.",
)
@click.option(
    "-f",
    "--function",
    "functions",
    multiple=True,
    metavar="GLOB",
    help="Only functions that match NAME; may be repeated.",
)
@click.option(
    "--diff",
    "other",
    type=click.Path(path_type=Path),
    metavar="NEWER",
    help="Compare with another version: functions that came, went, changed, and what they call.",
)
@click.option("--never", is_flag=True, help="Only sites that no trace saw.")
@output_options_of("text", "json", "dot")
def map(image: Path, traces: tuple[Path, ...], functions: tuple[str, ...], other: Path | None, never: bool,
        output: Output) -> None:  # fmt: skip
    """Show every call site of IMAGE: what calls what, imports, tail calls, indirect calls.

    With --trace, what was really called from each and how often, and which were never reached.

    IMAGE is a program or a shared library, or the name of a program on the PATH.
    """
    if never and not traces:
        raise UsageError("--never needs a trace to ask: give one with --trace")
    if other is not None and (traces or functions or output.format == "dot"):
        raise UsageError("--diff compares whole images, as text or json: leave the other options out")
    found = _read(image)
    if other is not None:
        differences = mapdiff.map_differences(found, _read(other))
        if output.json:
            output.write_json(mapdiff.as_json(differences))
        else:
            output.write_lines(mapdiff.text(differences, output.style))
        return
    for trace in traces:
        with open_trace_database(trace) as database:
            callmap.add_trace(found, database)
    found = callmap.chosen(found, functions, never)
    if output.json:
        output.write_json(callmap.as_json(found))
    elif output.format == "dot":
        output.write_lines(callmap.dot(found))
    else:
        output.write_lines(callmap.text(found, output.style))


def _read(image: Path) -> callmap.CallMap:
    path = find_image(image).resolve()
    with progress_bar(f"reading {path.name}") as progress:
        return callmap.read_map(path, progress)
