"""`callscope bytecode`: every instruction that a Python program executes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from callscope.bytecode.as_trace import TraceWriter
from callscope.bytecode.codes import read_codes
from callscope.bytecode.decode import Decoder
from callscope.bytecode.executed import Edge, Executed
from callscope.bytecode.run import Choice, Program, choose_interpreter, run
from callscope.bytecode.select import Selection, parse_lines, parse_mark
from callscope.bytecode.text import json_lines, text_lines
from callscope.cli.options import CountType
from callscope.cli.output import Output
from callscope.errors import UsageError
from callscope.recording.directory import check_replaceable
from callscope.recording.options import RecordOptions
from callscope.recording.session import Session


class _Value(click.ParamType[str]):
    """A value that may follow an equals sign: `-t=only`."""

    name = "value"

    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).removeprefix("=")
        if self._choices and text not in self._choices:
            self.fail(f"{text!r} is not one of {', '.join(self._choices)}", param, ctx)
        return text


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-t", "--trace", "which", type=_Value("all", "only"), default="all", metavar="all|only",
              help="All code objects, or only those that -n names.  [default: all]")  # fmt: skip
@click.option("-n", "--name", "names", type=_Value(), multiple=True, metavar="NAME",
              help="With -t only: co_name of the code objects to trace, or a glob; may be repeated.")  # fmt: skip
@click.option("-r", "--resolve", is_flag=True, help="Show what operands mean: constants, names, jump targets.")
@click.option("--values", is_flag=True, help="Show the values on the stack before each instruction, the top last.")
@click.option("--infer/--no-infer", default=None,
              help="Record branches alone and infer what lies between, or every instruction.  "
              "[default: infer, in CPython 3.12 and 3.13]")  # fmt: skip
@click.option("-m", "--module", "is_module", is_flag=True, help="FILE is the name of a module, as for python -m.")
@click.option("--file", "files", multiple=True, metavar="GLOB",
              help="Code of files that match, instead of FILE's own; '*' for all; may be repeated.")  # fmt: skip
@click.option("--lines", metavar="FIRST-LAST", help="Only instructions of these lines of source.")
@click.option("--from", "begin", metavar="MARK", help="Only from MARK on: a line of source, or the name of a function.")
@click.option("--to", "end", metavar="MARK", help="Only up to MARK, and on again where --from is met again.")
@click.option("--limit", type=CountType(0), default=0, metavar="N", help="Only the first N instructions; 0 for all.")
@click.option("--python", metavar="PYTHON", help="The interpreter for source files: a path, or a version such as 3.9.")
@click.option("--format", "output_format", type=click.Choice(["text", "json", "trace"]), default="text",
              help="Text, a JSON object a line, or a trace for callscope tree.  [default: text]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace TRACEFILE if it exists.")
@click.argument("file")
@click.argument("tracefile", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bytecode(
    file: str, tracefile: Path, arguments: tuple[str, ...], which: str, names: tuple[str, ...], resolve: bool,
    values: bool, infer: bool | None, is_module: bool, files: tuple[str, ...], lines: str | None, begin: str | None,
    end: str | None, limit: int, python: str | None, output_format: str, force: bool,
) -> None:  # fmt: skip
    """Run a Python program and write every bytecode instruction that it executes to TRACEFILE.

    FILE is Python source, or a .pyc of CPython 2.7 or 3.6 to 3.14, which is run by an interpreter of its version.
    ARGUMENTS are the program's. Its output and exit status are passed on.
    """
    if (which == "only") != bool(names):
        raise UsageError("-t only and -n NAME belong together: give both, or neither")
    as_trace = output_format == "trace"
    if as_trace and (lines or begin or end or limit or values or str(tracefile) == "-"):
        raise UsageError("--format trace writes a directory, of all that is recorded: leave filters and --values out")
    if as_trace and tracefile.exists():
        check_replaceable(tracefile)
    output = Output(output_format, None if as_trace or str(tracefile) == "-" else tracefile, force)
    selection = Selection(
        parse_lines(lines) if lines is not None else None,
        parse_mark(begin) if begin is not None else None,
        parse_mark(end) if end is not None else None,
        limit,
    )
    choice = Choice(names, files, 0 if selection.partial else limit, values, infer)
    program = Program(file, arguments, is_module, python)
    interpreter, header = choose_interpreter(program)
    with tempfile.TemporaryDirectory(prefix="callscope-bytecode-") as name:
        directory = Path(name)
        status = run(program, interpreter, header, choice, directory)
        decoder = Decoder(read_codes(directory, interpreter))
        if as_trace:
            _write_trace(tracefile, (interpreter.path, file, *arguments), decoder.read(directory), resolve, status)
        else:
            executed = (one for one in decoder.read(directory) if isinstance(one, Executed))
            output.write_lines((json_lines if output.json else text_lines)(selection.of(executed), resolve))
    if decoder.full:
        click.echo("callscope: warning: the disk was full: the end is missing", err=True)
    if decoder.unknown:
        click.echo(
            f"callscope: warning: {decoder.unknown} instructions lie in code that cannot be written down", err=True
        )
    sys.exit(status)


def _write_trace(
    path: Path, command: tuple[str, ...], executed: Iterator[Executed | Edge], resolve: bool, status: int
) -> None:
    """A trace directory; an earlier one becomes PATH.old."""
    session = Session(path.absolute(), RecordOptions(command=command, output=path, clock="none"))
    try:
        TraceWriter(session.directory, command, resolve).write(executed)
        session.finish(status, trim=True)
    finally:
        session.release()
