"""The cost of one call, enter and exit, on a recursive Fibonacci function: Callscope, its floor, and its peers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Case, Row, Table, build, measure, need, record, run

FLOOR = "two rdtsc"
DEPTH = 32
SLOW_DEPTH = 26


def _cost(output: str) -> float:
    found = re.search(r"ns_per_call ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def _uftrace(program: Path, directory: Path, *options: str) -> float:
    need("uftrace")
    shutil.rmtree(directory, ignore_errors=True)
    command = ["uftrace", "record", "--no-libcall", "--no-event", "-d", directory, *options, program, str(DEPTH)]
    output, _ = run(command)
    return _cost(output)


def _callgrind(program: Path, directory: Path) -> float:
    need("valgrind")
    command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={directory}/callgrind"]
    return _cost(run([*command, program, str(SLOW_DEPTH)])[0])


def calls(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call."""
    plain = build("fib.c", directory / "fib")
    floor = build("fib.c", directory / "fib-rdtsc", "-DTWO_RDTSC")
    instrumented = build("fib.c", directory / "fib-instrumented", "-finstrument-functions")
    trace = directory / "trace"
    sizes: dict[str, int] = {}

    def ours(name: str, **options: object) -> Callable[[], float]:
        def once() -> float:
            output, _ = record([plain, str(DEPTH)], trace, **options)
            sizes[name] = sum(path.stat().st_blocks * 512 for path in trace.rglob("*"))
            return _cost(output)

        return once

    def mcount() -> float:
        return _uftrace(build("fib.c", directory / "fib-pg", "-pg"), directory / "uftrace-pg")

    cases = [
        Case("untraced", lambda: _cost(run([plain, str(DEPTH)])[0])),
        Case(FLOOR, lambda: _cost(run([floor, str(DEPTH)])[0])),
        Case("callscope --keep-last 16M", ours("last", keep_last=16 << 20)),
        Case("callscope", ours("kept")),
        Case("callscope --clock none", ours("no clock", clock="none")),
        Case("both options", ours("both", clock="none", keep_last=16 << 20)),
        Case("uftrace -P. (plain build)", lambda: _uftrace(plain, directory / "uftrace", "-P", ".")),
        Case("uftrace (-pg)", mcount),
        Case("uftrace (-finstrument-functions)", lambda: _uftrace(instrumented, directory / "uftrace-i")),
        Case("valgrind --tool=callgrind", lambda: _callgrind(plain, directory)),
    ]
    rows: list[Row] = measure(cases, rounds)
    return Table("Cost of a call, enter and exit", "ns", rows, FLOOR)
