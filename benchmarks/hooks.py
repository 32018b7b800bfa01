"""The cost of one call of an instrumented build (-finstrument-functions), enter and exit; traced, and not."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.calls import DEPTH, FLOOR, MEMORY, cost, uftrace
from benchmarks.harness import Case, Table, build, measure, record, run
from callscope.native import DROPIN_NAME, library_path

INCLUDE = Path(__file__).resolve().parent.parent / "native/include"
INSTRUMENTED = "-finstrument-functions"


def hooks(directory: Path, rounds: int) -> Table:
    """Nanoseconds a call."""
    instrumented = build("fib.c", directory / "fib-instrumented", INSTRUMENTED)
    floor = build("fib.c", directory / "fib-rdtsc", "-DTWO_RDTSC")
    hooked = build("fib.c", directory / "fib-hooked-rdtsc", "-DTWO_RDTSC", INSTRUMENTED)
    stopped = build("fib.c", directory / "fib-stopped", INSTRUMENTED, "-DSTOPPED", f"-I{INCLUDE}")
    inlined = build("fib.c", directory / "fib-inlined", INSTRUMENTED, "-DINLINED")
    memory = Path(tempfile.mkdtemp(dir=MEMORY)) if MEMORY.is_dir() else directory
    off = os.environ | {"LD_PRELOAD": str(library_path(DROPIN_NAME)), "CALLTRACE_ENABLED": "0"}

    def ours(program: Path, where: Path = directory, **options: object) -> float:
        warm_up = [str(DEPTH)] if "keep_last" in options else []
        return cost(record([program, str(DEPTH), *warm_up], where / "trace", **options)[0])

    cases = [
        Case("untraced", lambda: cost(run([instrumented, str(DEPTH)])[0])),
        Case(FLOOR, lambda: cost(run([floor, str(DEPTH)])[0])),
        Case("two rdtsc, in an instrumented build", lambda: cost(run([hooked, str(DEPTH)])[0])),
        Case("callscope --keep-last 4M", lambda: ours(instrumented, keep_last=4 << 20)),
        Case("callscope, trace in memory", lambda: ours(instrumented, memory)),
        Case("callscope --clock coarse --keep-last 4M", lambda: ours(instrumented, keep_last=4 << 20, clock="coarse")),
        Case("the same, an inlined call in each", lambda: ours(inlined, keep_last=4 << 20)),
        Case("stopped: callscope_stop()", lambda: ours(stopped)),
        Case("disabled: CALLTRACE_ENABLED=0", lambda: cost(run([instrumented, str(DEPTH)], env=off)[0])),
        Case("uftrace", lambda: uftrace(instrumented, directory / "uftrace-i")),
    ]
    try:
        rows = measure(cases, rounds)
    finally:
        if memory != directory:
            shutil.rmtree(memory)
    return Table("Cost of a call of an instrumented build, enter and exit", "ns", rows, FLOOR)
