"""`callscope on` and `callscope off`: switch the recording of a running program."""

from __future__ import annotations

import click

from callscope.recording.control import switch


@click.command()
@click.argument("pid", type=click.IntRange(1))
def on(pid: int) -> None:
    """Go on recording a program that runs under `callscope record --switchable` or `--start-off`.

    PID is the id of any process of the session; all of them are switched.
    """
    if not switch(pid, True):
        click.echo("callscope: it is on already", err=True)


@click.command()
@click.argument("pid", type=click.IntRange(1))
def off(pid: int) -> None:
    """Record nothing of a running program until `callscope on`; it then costs next to nothing."""
    if not switch(pid, False):
        click.echo("callscope: it is off already", err=True)
