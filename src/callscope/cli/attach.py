"""`callscope attach` and `callscope detach`: record a program that runs already."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import click

from callscope.cli.options import DurationType
from callscope.cli.record import choice_options, options_of, show_summary
from callscope.recording.attach import Attachment
from callscope.recording.attach import attach as attach_program
from callscope.recording.attach import detach as detach_program


@click.command()
@click.argument("which", metavar="PID|NAME")
@choice_options
@click.option("--duration", type=DurationType(), metavar="TIME", help="Detach after TIME, such as 10s.")
@click.option("--leave", is_flag=True, help="Return at once: the program goes on writing, until callscope detach.")
def attach(which: str, duration: int | None, leave: bool, quiet: bool, **options: Any) -> None:
    """Record a program that runs already, for Linux or under Wine, until it ends or Ctrl-C.

    PID is a process id of Linux or of Wine; NAME the name of a program. The program goes on untraced afterwards.
    """
    interrupted: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        seconds = None if duration is None else duration / 1e9
        how = Attachment(seconds, leave, lambda: bool(interrupted))
        result = attach_program(options_of(command=(which,), no_follow=True, **options), how)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not quiet:
        show_summary(result)


@click.command()
@click.argument("which", metavar="PID|NAME")
def detach(which: str) -> None:
    """Stop recording a program that was left with `callscope attach --leave`; it goes on untraced."""
    detach_program(which)
