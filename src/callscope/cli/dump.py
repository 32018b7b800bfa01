"""`callscope dump`: write what a program that is being recorded has left so far."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from callscope.recording.dump import dump as write_dump
from callscope.recording.summary import counted, shorten, size_text


@click.command()
@click.argument("which", metavar="PID|NAME")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="TRACE",
              help="The new trace. [default: PROGRAM-dump1.trace, or the next number]")  # fmt: skip
def dump(which: str, output: Path | None) -> None:
    """Copy what is recorded of a running program into a trace of its own.

    The program goes on and is not stopped. Of a flight recorder (record --keep-last) these are its last events.
    """
    done = write_dump(which, output)
    left = f"; {counted(done.overtaken, 'chunk')} used again meanwhile" if done.overtaken else ""
    click.echo(f"callscope: {shorten(done.trace)}: {size_text(done.bytes)} of events{left}", err=True)
    trace = shlex.quote(shorten(done.trace))
    click.echo(f"callscope: next: callscope report {trace}    or: callscope tree {trace}", err=True)
