"""Arguments and options that the reading commands share."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from callscope.cli.progress import progress_bar
from callscope.errors import UsageError

if TYPE_CHECKING:
    from callscope.reports.database import Database

_NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


class DurationType(click.ParamType[int]):
    """A time with a unit, in nanoseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds. Raises UsageError."""
        return value if isinstance(value, int) else parse_duration(str(value))


class CountType(click.ParamType[int]):
    """A whole number of things."""

    name = "count"

    def __init__(self, least: int = 1) -> None:
        """`least`: the smallest that makes sense."""
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"\d{1,18}", str(value)) or int(value) < self.least:
            self.fail(f"{value!r} is not a whole number from {self.least} on", param, ctx)
        return int(value)


def parse_duration(text: str) -> int:
    """Nanoseconds from '10us', '1.5 ms', '2s' or '700ns'. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*(ns|us|µs|ms|s)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a time: write a number and ns, us, ms or s, such as 10us")
    return round(float(match[1]) * _NANOSECONDS[match[2].replace("µ", "u")])


def trace_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument TRACE, passed on as `trace`: the newest *.trace of the current directory when it is left out."""

    @click.argument("trace", required=False, type=click.Path(path_type=Path))
    @functools.wraps(command)
    def wrapped(*args: Any, trace: Path | None, **options: Any) -> Any:
        return command(*args, trace=trace or newest_trace(Path()), **options)

    return wrapped


def newest_trace(directory: Path) -> Path:
    """The trace recorded last in a directory. Raises UsageError when there is none."""
    recorded = [(session.stat().st_mtime_ns, session.parent) for session in directory.glob("*.trace/session.json")]
    if not recorded:
        raise UsageError("no trace given, and there is no *.trace here: make one with callscope record PROGRAM")
    trace = max(recorded)[1]
    if len(recorded) > 1 and sys.stderr.isatty():
        click.echo(f"callscope: reading {trace}, the newest of {len(recorded)} traces here", err=True)
    return trace


def selection_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that choose calls, by name; each goes to the parameter of callscope.reports.selection.Selection."""
    known: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
        "function": click.option(
            "-f", "--function", "functions", multiple=True, metavar="GLOB",
            help="Only functions that match NAME or MODULE!NAME, such as 'git!cmd_*'; may be repeated.",
        ),
        "subtree": click.option(
            "-f", "--function", "functions", multiple=True, metavar="GLOB",
            help="Only calls of functions that match NAME or MODULE!NAME, and all they call; may be repeated.",
        ),
        "thread": click.option("-t", "--thread", type=int, metavar="TID", help="Only this thread."),
        "process": click.option("-p", "--process", type=int, metavar="PID", help="Only this process."),
        "min-duration": click.option(
            "--min-duration", "min_duration_ns", type=DurationType(), default=0, metavar="TIME",
            help="Leave out calls shorter than TIME, such as 10us.",
        ),
        "last": click.option(
            "--last", type=CountType(), default=0, metavar="N", help="Only the N calls that started last."
        ),
    }  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = known[name](command)
        return command

    return decorate


def limit_option(what: str, default: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--limit N, 0 for no limit."""
    shown = f" [default: {default}]" if default else ""
    return click.option(
        "-n", "--limit", type=CountType(0), default=default, metavar="N", help=f"At most N {what}; 0 for all.{shown}"
    )


def open_trace_database(trace: Path) -> Database:
    """The calls table of a trace, built with progress shown when it is missing or stale. Raises TraceError."""
    from callscope.reports import database

    with progress_bar(f"reading {trace.name}") as progress:
        return database.open_database(trace, progress)
