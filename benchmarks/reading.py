"""From a raw trace to calls and reports: events a second, bytes a call, memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Row, Table, build, record, run

DEPTH = 33
_SCRIPT = """
import json, resource, sys, time
from callscope.calls.build import build_calls
from callscope.trace.open import open_trace
begin = time.perf_counter()
table = build_calls(open_trace(sys.argv[1]))
seconds = time.perf_counter() - begin
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "memory": memory, "calls": table.meta["calls"]}))
"""
_REPORT = "import sys; from callscope.cli.main import main; sys.exit(main())"


def disk(path: Path) -> int:
    """Bytes of disk a file or directory takes."""
    return sum(file.stat().st_blocks * 512 for file in ([path] if path.is_file() else path.rglob("*")))


def reading(directory: Path, rounds: int) -> Table:
    """Figures of one trace of some 23 million events, each the best of the rounds."""
    program = build("fib.c", directory / "fib")
    trace = directory / "reading"
    record([program, str(DEPTH)], trace)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    seconds, memory, calls = [], 0.0, 0
    reports = []
    for _ in range(rounds):
        shutil.rmtree(trace / "calls", ignore_errors=True)
        answer = json.loads(run([sys.executable, "-c", _SCRIPT, trace], env=environment)[0])
        seconds.append(answer["seconds"])
        memory, calls = max(memory, answer["memory"]), answer["calls"]
        reports.append(run([sys.executable, "-c", _REPORT, "report", trace], env=environment)[1])
    rows = [
        Row("calls", calls),
        Row("events a second, to Parquet", 2 * calls / min(seconds), [2 * calls / s for s in seconds]),
        Row("memory while building, MB", memory),
        Row("report once built, s", min(reports), reports),
        Row("raw bytes a call", disk(trace / "events") / calls),
        Row("Parquet bytes a call", disk(trace / "calls") / calls),
    ]
    return Table(f"Reading a trace of {2 * calls / 1e6:.0f} M events", "", rows)
