"""The cost of what is recorded besides entries and exits: arguments and results, and call sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.calls import cost
from benchmarks.harness import Case, Table, build, measure, record, run

DEPTH = "30"
RING = 64 << 20
WITHOUT = "callscope --keep-last 64M"
UNTRACED = "untraced"


def arguments(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call of a function of two integers with an integer result."""
    program = build("fib_two.c", directory / "fib_two", "-g")

    def ours(**options: object) -> Callable[[], float]:
        return lambda: cost(record([program, DEPTH, DEPTH], directory / "trace", keep_last=RING, **options)[0])

    cases = [
        Case(UNTRACED, lambda: cost(run([program, DEPTH])[0])),
        Case(WITHOUT, ours()),
        Case("callscope --keep-last 64M --args-of fib", ours(args_of=("fib",))),
    ]
    return Table("Cost of a call with two arguments and a result", "ns", measure(cases, rounds), WITHOUT)


def sites(directory: Path, rounds: int) -> Table:
    """Nanoseconds a virtual call whose callee is not traced."""
    program = build("virtual_calls.cpp", directory / "virtual_calls")

    def ours(**options: object) -> Callable[[], float]:
        return lambda: cost(record([program], directory / "trace", **options)[0])

    cases = [
        Case(UNTRACED, lambda: cost(run([program])[0])),
        Case("callscope --calls=once", ours(calls="once")),
        Case("callscope --keep-last 64M --calls -f 'loop*'", ours(calls="on", functions=("loop*",), keep_last=RING)),
    ]
    return Table("Cost of a virtual call at a recorded call site", "ns", measure(cases, rounds), UNTRACED)
