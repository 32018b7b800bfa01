"""`callscope collect` and `callscope query`: many traces as one data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from callscope.cli.options import CountType
from callscope.cli.output import Output, output_options
from callscope.dataset.collect import collect as collect_traces
from callscope.dataset.collect import find_traces
from callscope.dataset.engines import ENGINES, ask
from callscope.dataset.reports import REPORTS, text_of
from callscope.reports.table import Column, fit, header, line, widest
from callscope.reports.text import Style, duration, printable

_PATH = click.Path(path_type=Path)
LISTED = "\n".join(f"  {report.name:<12}{report.summary}" for report in REPORTS.values())
MOST_ROWS = (1 << 31) - 1
"""what Spark takes as a limit"""


@click.command()
@click.argument("places", nargs=-1, required=True, type=_PATH, metavar="TRACE...")
@click.option("-o", "--output", "target", type=_PATH, required=True, metavar="DATASET", help="The data set to add to.")
def collect(places: tuple[Path, ...], target: Path) -> None:
    """Put the calls of many traces into one Parquet data set, by host, program and day.

    TRACE is a trace, or a directory with traces somewhere below. One collected before replaces what there was of it.
    """
    added = collect_traces(find_traces(places), target, lambda text: click.echo(f"callscope: {text}", err=True))
    calls = sum(entry["calls"] for entry in added)
    click.echo(f"callscope: {target}: {len(added)} traces, {calls:,} calls added", err=True)
    click.echo(f"callscope: next: callscope query {target} functions", err=True)


@click.command(epilog=f"\b\nReports:\n{LISTED}")
@click.argument("dataset", type=_PATH)
@click.argument("report", type=click.Choice(tuple(REPORTS)), default="functions")
@click.option("--engine", type=click.Choice(tuple(ENGINES)), default="duckdb", show_default=True, help="What answers.")
@click.option(
    "-n", "--limit", type=CountType(0), default=20, show_default=True, metavar="N", help="At most N rows; 0 for all."
)
@click.option("--host", help="Only this host.")
@click.option("--program", help="Only processes of this program.")
@click.option("--sql", is_flag=True, help="Show the question in SQL instead of the answer.")
@output_options
def query(
    dataset: Path, report: str, engine: str, limit: int, host: str | None, program: str | None, sql: bool,
    output: Output,
) -> None:  # fmt: skip
    """Ask a data set that `callscope collect` made."""
    text = text_of(REPORTS[report], limit or MOST_ROWS, host, program)
    if sql:
        output.write_lines(text.strip().splitlines())
        return
    rows = ask(dataset, text, engine)
    if output.json:
        output.write_json_array(rows)
    else:
        output.write_lines(_table(rows, output.style))


def _table(rows: list[dict[str, Any]], style: Style) -> Iterator[str]:
    if not rows:
        yield style.comment("nothing")
        return
    cells = [[_cell(name, value, style) for name, value in row.items()] for row in rows]
    columns = [
        Column(
            name, name.removesuffix("_ns"), widest([row[at] for row in cells]), isinstance(rows[0][name], str | None)
        )
        for at, name in enumerate(rows[0])
    ]
    columns = fit(columns, style)
    yield header(columns, style)
    for row in cells:
        yield line(columns, row)


def _cell(name: str, value: Any, style: Style) -> str:
    if value is None:
        return "-"
    if name.endswith("_utc_ns"):
        return str(value)
    if name.endswith("_ns"):
        return duration(value)
    return style.count(value) if isinstance(value, int) and name in ("calls", "functions") else printable(str(value))
