"""`%%callscope` in IPython and Jupyter: the calls of a cell.

%load_ext callscope
%%callscope -o load.trace --limit 20
load()
"""

from __future__ import annotations

import argparse
import ast
import shlex
from types import CodeType
from typing import Any

from callscope.errors import RecordError, UsageError
from callscope.recording.inside import trace
from callscope.reports.database import open_database
from callscope.reports.functions import function_times, text
from callscope.reports.selection import Selection
from callscope.reports.text import Style

DEFAULT_LIMIT = 15


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"%%callscope: {message}")


def _parser() -> _Parser:
    parser = _Parser(prog="%%callscope", add_help=False)
    parser.add_argument("-o", "--output", default="cell.trace")
    parser.add_argument("-n", "--limit", type=int, default=DEFAULT_LIMIT)
    parser.add_argument("--keep-last", default=0)
    return parser


def compiled(shell: Any, cell: str) -> tuple[CodeType, CodeType | None]:
    """A cell's statements, and its last expression if it ends in one. Raises SyntaxError."""
    tree = ast.parse(shell.transform_cell(cell))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = compile(ast.Expression(last.value), "<cell>", "eval") if isinstance(last, ast.Expr) else None
    return compile(tree, "<cell>", "exec"), value


def record_cell(shell: Any, line: str, cell: str) -> Any:
    """Run a cell, record its calls, and print what took the time; the value of its last expression, or None.

    `line`: the options. Raises UsageError, RecordError, and what the cell raises.
    """
    statements, value = compiled(shell, cell)
    options = _parser().parse_args(shlex.split(line))
    recording = trace(options.output, keep_last=options.keep_last)
    with recording:
        exec(statements, shell.user_ns)
        result = eval(value, shell.user_ns) if value is not None else None
    if recording.path is None:
        print("callscope: this process is recorded already; the cell is part of that")
    else:
        with open_database(recording.path) as database:
            times = function_times(database, Selection(), "total")
            print("\n".join(text(database, times, Style(), options.limit)))
        print(f"callscope: {recording.path}")
    return result


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext callscope` calls."""

    def callscope(line: str, cell: str) -> Any:
        """Record the calls of a cell: %%callscope [-o DIR] [-n LIMIT] [--keep-last SIZE]."""
        try:
            return record_cell(shell, line, cell)
        except (UsageError, RecordError) as error:
            print(f"callscope: error: {error}")
            return None

    shell.register_magic_function(callscope, "cell")
