"""The cost of one call, enter and exit, on a recursive Fibonacci function: Callscope, its floor, and its peers."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import TARGETS, Case, Row, Table, build, measure, need, record, run

FLOOR = "two rdtsc"
DEPTH = 32
MINGW = "x86_64-w64-mingw32-gcc"
WINE = "wine"
QUIET = {"WINEDEBUG": "-all"}
MEMORY = Path("/dev/shm")
"""A file system in memory: on a disk the figure depends on what else is written to it at that moment."""
SLOW_DEPTH = 26


def cost(output: str) -> float:
    """The figure that a target prints."""
    found = re.search(r"ns_per_call ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def uftrace(program: Path, directory: Path, *options: str) -> float:
    """Nanoseconds a call under uftrace."""
    need("uftrace")
    shutil.rmtree(directory, ignore_errors=True)
    command = ["uftrace", "record", "--no-libcall", "--no-event", "-d", directory, *options, program, str(DEPTH)]
    output, _ = run(command)
    return cost(output)


def _callgrind(program: Path, directory: Path) -> float:
    need("valgrind")
    command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={directory}/callgrind"]
    return cost(run([*command, program, str(SLOW_DEPTH)])[0])


def calls(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call."""
    plain = build("fib.c", directory / "fib")
    floor = build("fib.c", directory / "fib-rdtsc", "-DTWO_RDTSC")
    instrumented = build("fib.c", directory / "fib-instrumented", "-finstrument-functions")
    memory = Path(tempfile.mkdtemp(dir=MEMORY)) if MEMORY.is_dir() else directory

    def ours(where: Path = directory, **options: object) -> Callable[[], float]:
        # A flight recorder is for days: measured when its ring has been filled once.
        warm_up = [str(DEPTH)] if "keep_last" in options else []
        return lambda: cost(record([plain, str(DEPTH), *warm_up], where / "trace", **options)[0])

    def mcount() -> float:
        return uftrace(build("fib.c", directory / "fib-pg", "-pg"), directory / "uftrace-pg")

    cases = [
        Case("untraced", lambda: cost(run([plain, str(DEPTH)])[0])),
        Case(FLOOR, lambda: cost(run([floor, str(DEPTH)])[0])),
        Case("callscope --keep-last 4M", ours(keep_last=4 << 20)),
        Case("callscope --keep-last 64M", ours(keep_last=64 << 20)),
        Case("callscope, trace in memory", ours(memory)),
        Case("callscope, trace on this disk", ours()),
        Case("callscope --clock coarse --keep-last 4M", ours(clock="coarse", keep_last=4 << 20)),
        Case("callscope --clock coarse, trace in memory", ours(memory, clock="coarse")),
        Case("callscope, recording off", ours(start_off=True)),
        Case("callscope --clock none --keep-last 4M", ours(clock="none", keep_last=4 << 20)),
        Case("callscope --clock none, trace in memory", ours(memory, clock="none")),
        Case("uftrace -P. (plain build)", lambda: uftrace(plain, directory / "uftrace", "-P", ".")),
        Case("uftrace (-pg)", mcount),
        Case("uftrace (-finstrument-functions)", lambda: uftrace(instrumented, directory / "uftrace-i")),
        Case("valgrind --tool=callgrind", lambda: _callgrind(plain, directory)),
    ]
    try:
        rows: list[Row] = measure(cases, rounds)
    finally:
        if memory != directory:
            shutil.rmtree(memory)
    return Table("Cost of a call, enter and exit", "ns", rows, FLOOR)


def windows(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call of a Windows program under Wine."""

    def made(name: str, *flags: str) -> Path:
        need(MINGW, WINE)
        run([MINGW, "-O2", "-static", *flags, "-o", directory / name, TARGETS / "fib.c"])
        return directory / name

    def plain(name: str, *flags: str) -> float:
        return cost(run([WINE, made(name, *flags), str(DEPTH)], env=os.environ | QUIET)[0])

    def ours(**options: object) -> float:
        warm_up = [str(DEPTH)] if "keep_last" in options else []
        return cost(record([made("fib.exe"), str(DEPTH), *warm_up], directory / "trace", **options)[0])

    cases = [
        Case("untraced", lambda: plain("fib.exe")),
        Case(FLOOR, lambda: plain("fib-rdtsc.exe", "-DTWO_RDTSC")),
        Case("callscope --keep-last 4M", lambda: ours(keep_last=4 << 20)),
        Case("callscope", ours),
        Case("callscope --clock none --keep-last 4M", lambda: ours(keep_last=4 << 20, clock="none")),
    ]
    return Table("Cost of a call of a Windows program", "ns", measure(cases, rounds), FLOOR)
