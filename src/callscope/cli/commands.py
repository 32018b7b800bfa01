"""The commands: where each is, and a line about it. Nothing here imports a command."""

from __future__ import annotations

from typing import Final, NamedTuple


class Command(NamedTuple):
    """One command: the object `name` in the module `callscope.cli.<module>`, and its line of help."""

    name: str
    module: str
    summary: str


SECTIONS: Final[dict[str, tuple[Command, ...]]] = {
    "Record": (
        Command("record", "record", "Run a program and record its calls."),
        Command("run", "run", "Record a program, then show its report."),
        Command("bytecode", "bytecode", "Run a Python program and write every bytecode instruction it executes."),
        Command("attach", "attach", "Record a program that runs already."),
        Command("detach", "attach", "Stop recording what attach --leave left."),
        Command("dump", "dump", "Copy what is recorded of a running program so far into a trace."),
        Command("on", "switch", "Go on recording a program recorded with --switchable or --start-off."),
        Command("off", "switch", "Record nothing of it until callscope on."),
    ),
    "Look at a trace": (
        Command("view", "view", "A trace in a browser: timeline, flame graph, functions, source."),
        Command("report", "report", "Functions by total time, own time, calls."),
        Command("tree", "tree", "Who called whom, nested, with times."),
        Command("calls", "calls", "Every call, one a line."),
        Command("info", "info", "What was recorded, and how completely."),
        Command("crash", "crash", "What happened when the program crashed."),
        Command("stacks", "stacks", "Call stacks that were captured, resolved and grouped."),
        Command("bundle", "bundle", "Copy the binaries that a trace speaks of into it."),
        Command("compact", "compact", "Compress the events of a finished trace."),
        Command("modules", "modules", "Programs and libraries as they were loaded and unloaded."),
        Command("graph", "graph", "Callers and callees of functions, added up; to draw, too."),
        Command("diff", "diff", "What one trace has otherwise than another, and where they part."),
        Command("export", "export", "A trace in the form that another tool reads."),
    ),
    "Many traces": (
        Command("collect", "collect", "Put the calls of many traces into one Parquet data set."),
        Command("query", "collect", "Ask such a data set: functions, callers, processes, the longest calls."),
    ),
    "Build with it": (
        Command("lib-path", "paths", "Where libcalltrace.so is, for LD_PRELOAD."),
        Command("include-path", "paths", "Where callscope.h is, for compilers."),
        Command("cmake-path", "paths", "Where find_package(callscope) looks."),
    ),
    "Look at a program": (
        Command("map", "map", "Every call site of a binary, and what traces saw there."),
        Command("check", "check", "How a binary was built, and what flags would show more."),
        Command("plan", "plan", "Functions of a binary, what of them can be traced, what not and why."),
    ),
}  # fmt: skip

COMMANDS: Final = {command.name: command for section in SECTIONS.values() for command in section}
