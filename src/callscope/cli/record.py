"""`callscope record`: run a program and record its calls."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from callscope.cli.options import DurationType
from callscope.cli.progress import progress_bar
from callscope.recording.bisect import bisect as bisect_program
from callscope.recording.options import RecordOptions, parse_keep, parse_percentage, parse_sample, parse_size
from callscope.recording.record import RecordResult
from callscope.recording.record import record as record_program
from callscope.recording.summary import summary_lines

PASS_ON = {"allow_interspersed_args": False}
"""What follows the program's name is the program's, even if it looks like an option."""


class OptionalValue(click.Option):
    """An option whose value may be left out, and else follows an equals sign: what comes after a space is no value."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """As click does, but an option without an equals sign gets `flag_value`."""
        super().add_to_parser(parser, ctx)
        match = parser._match_long_opt

        def match_with_default(name: str, value: str | None, state: Any) -> None:
            match(name, self.flag_value if value is None and name in self.opts else value, state)

        parser._match_long_opt = match_with_default


def as_bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """A size with a unit, in bytes; 0 for none. Raises UsageError."""
    return parse_size(value) if value else 0


def as_sample(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """N of 1/N; 1 for none. Raises UsageError."""
    return parse_sample(value) if value else 1


def as_share(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    """A percentage as a fraction; 0 for none. Raises UsageError."""
    return parse_percentage(value) if value else 0.0


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that records: where to, what, and how."""
    path = click.Path(path_type=Path)
    options = [
        click.option("-o", "--output", type=path, metavar="DIR", help="The trace directory. [default: PROGRAM.trace]"),
        click.option("-m", "--module", "modules", multiple=True, metavar="GLOB",
                     help="Trace these modules: a file name or path, 'main' (the program, the default) or 'all'."),
        click.option("-f", "--function", "functions", multiple=True, metavar="GLOB",
                     help="Trace only these functions: NAME, MODULE!NAME or an address."),
        click.option("-x", "--exclude", "excludes", multiple=True, metavar="GLOB",
                     help="Leave these functions out: NAME, MODULE!NAME or an address."),
        click.option("--exclude-from", "exclude_files", multiple=True, type=path, metavar="FILE",
                     help="Leave out what FILE lists, one glob a line."),
        click.option("--trigger", "triggers", multiple=True, metavar="GLOB",
                     help="Record only calls of functions that match, with all that these call."),
        click.option("--under", multiple=True, metavar="GLOB", help="Record only what functions that match call."),
        click.option("--caller", "callers", multiple=True, metavar="GLOB",
                     help="Record only calls of functions that match, and what leads to them."),
        click.option("--sample", callback=as_sample, metavar="1/N", help="Record one of N subtrees of calls."),
        click.option("--max-depth", type=click.IntRange(min=0), default=0, metavar="N",
                     help="Record calls nested at most N deep."),
        click.option("--clock", type=click.Choice(["tsc", "coarse", "none"]), default="tsc", show_default=True,
                     help="'coarse' gives times to about 0.1 ms, at a third of the cost; 'none' only the order of "
                          "calls."),
        click.option("--keep-last", default="0", metavar="SIZE|TIME",
                     help="Flight recorder: keep the last SIZE bytes of events, such as 64M, or those of the last "
                          "TIME, such as 30s."),
        click.option("--max-size", callback=as_bytes, metavar="SIZE",
                     help="Stop recording when the events take SIZE bytes of disk; the program goes on."),
        click.option("--no-compress", is_flag=True,
                     help="Leave the events of long recordings as they are while the program runs."),
        click.option("--calls", cls=OptionalValue, is_flag=False, flag_value="on", default="", metavar="[=once]",
                     help="Record calls of untraced functions where they are made: of libraries, of functions left "
                          "out, through pointers. =once records nothing else, and each call site once."),
        click.option("--args", is_flag=True,
                     help="Record arguments and results, as far as debug information or --prototypes tell of them."),
        click.option("--args-of", multiple=True, metavar="GLOB", help="Record those of the functions that match."),
        click.option("--raw-args", is_flag=True,
                     help="Record the registers of integer arguments where nothing tells of them."),
        click.option("--prototypes", type=path, metavar="FILE", help="C declarations of functions, for --args."),
        click.option("--stacks-at", multiple=True, metavar="GLOB",
                     help="Capture the call stack at each entry of the functions that match."),
        click.option("--stacks-every", "stacks_every_ns", type=DurationType(), default=0, metavar="TIME",
                     help="Capture each thread's call stack every TIME of its processor time, such as 10ms."),
        click.option("--stacks-on", default="", metavar="SIGNAL",
                     help="Capture the call stacks of all threads when SIGNAL arrives, such as USR2."),
        click.option("--no-python", "python", flag_value="off", help="Leave calls of Python functions out."),
        click.option("--python-only", "python", flag_value="only",
                     help="Record calls of Python functions, and of what they call by name, and nothing else."),
        click.option("--interpreter-frames", is_flag=True,
                     help="Trace Python's interpreter as other programs: its functions stand between Python's."),
        click.option("-q", "--quiet", is_flag=True, help="No summary when the program has ended."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def record_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments of `record`, which `run` has too."""
    command = click.option(
        "--dump-on", default="", metavar="SIGNAL",
        help="Write what a flight recorder holds to another trace when SIGNAL arrives, such as USR2.",
    )(command)  # fmt: skip
    command = click.option(
        "--no-follow", is_flag=True, help="Leave child processes and programs started by exec alone."
    )(command)
    switches = [
        click.option(
            "--max-overhead",
            callback=as_share,
            metavar="PERCENT",
            help="Mute the functions that are called most while PROGRAM runs, so that tracing costs it at most "
            "PERCENT more time, such as 20%.",
        ),
        click.option("--start-off", is_flag=True, help="Record nothing until callscope on PID."),
        click.option("--switchable", is_flag=True, help="Let callscope on and off switch the recording."),
    ]
    for switch in reversed(switches):
        command = switch(command)
    command = choice_options(command)
    return click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] PROGRAM [ARGS]...")(
        command
    )


@click.command(context_settings=PASS_ON)
@record_options
@click.option("--bisect", is_flag=True, help="Find the functions whose tracing changes what PROGRAM does.")
def record(quiet: bool, bisect: bool, **options: Any) -> None:
    """Run PROGRAM and record its calls.

    The program's input, output and exit status pass through (128 + N when signal N ended it); what callscope has to say
    goes to standard error when the program has ended.

    With --bisect PROGRAM is run many times, traced in ever smaller parts, and what must be left out is written to
    PROGRAM.exclude, for --exclude-from.
    """
    if bisect:
        sys.exit(find_culprits(options_of(**options)))
    result = record_program(options_of(**options), progress_bar)
    if not quiet:
        show_summary(result)
    sys.exit(result.exit_status)


def find_culprits(options: RecordOptions) -> int:
    """Bisect, tell what goes on and what came of it on standard error; the exit status."""
    file = Path(Path(options.command[0]).name + ".exclude")

    def tell(text: str) -> None:
        click.echo(f"callscope: {text}", err=True)

    result = bisect_program(options, tell, file)
    if result.file is None:
        tell("the program does the same traced as untraced: nothing has to be left out")
        return 0
    command = shlex.join(["callscope", "record", "--exclude-from", str(result.file), "--", *options.command])
    count = len(result.culprits)
    tell(f"{count} function{'s' * (count != 1)} to leave out, found in {result.runs} runs, now in {result.file}")
    tell(f"next: {command}")
    return 0


def show_summary(result: RecordResult, reported: bool = False) -> None:
    """Say what came of a recording, on standard error. `reported`: its report follows."""
    for line in summary_lines(result, reported):
        click.echo(f"callscope: {line}", err=True)


def options_of(command: tuple[str, ...], no_follow: bool, no_compress: bool, **options: Any) -> RecordOptions:
    """What click parsed, as RecordOptions. Raises UsageError."""
    options["python"] = options.get("python") or "on"
    options["keep_last"], options["keep_last_ns"] = parse_keep(options["keep_last"])
    return RecordOptions(command=command, follow=not no_follow, compress=not no_compress, **options)
