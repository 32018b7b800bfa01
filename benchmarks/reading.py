"""From a raw trace to calls and reports: events a second, bytes a call, memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Row, Table, build, record, run

DEPTH = 36
_BUILD = """
import json, resource, sys, time
from callscope.calls.build import build_calls
from callscope.trace.open import open_trace
begin = time.perf_counter()
table = build_calls(open_trace(sys.argv[1]))
seconds = time.perf_counter() - begin
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "memory": memory, "calls": table.meta["calls"]}))
"""
_KERNEL = """
import json, sys, time
from dataclasses import replace
from callscope.calls.build import thread_inputs
from callscope.calls.kernel import rebuild_pass
from callscope.trace.open import open_trace
trace = open_trace(sys.argv[1])
begin = time.perf_counter()
with trace.events.open() as reader:
    for thread in thread_inputs(trace):
        for _ in rebuild_pass(reader, thread.chunks, replace(thread.given, learning=False), []):
            pass
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds}))
"""
_REPORT = """
import resource, sys
from callscope.cli.main import main
sys.argv[1:1] = ["report"]
status = main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(status)
"""


def disk(path: Path) -> int:
    """Bytes of disk a file or directory takes."""
    return sum(file.stat().st_blocks * 512 for file in ([path] if path.is_file() else path.rglob("*")))


def reading(directory: Path, rounds: int) -> Table:
    """Figures of one trace of some 97 million events, each the best of the rounds."""
    program = build("fib.c", directory / "fib")
    trace = directory / "reading"
    record([program, str(DEPTH)], trace)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}

    def script(text: str) -> dict[str, float]:
        answer: dict[str, float] = json.loads(run([sys.executable, "-c", text, trace], env=environment)[0])
        return answer

    builds, kernels, reports = [], [], []
    for _ in range(rounds):
        shutil.rmtree(trace / "calls", ignore_errors=True)
        builds.append(script(_BUILD))
        kernels.append(script(_KERNEL)["seconds"])
        reports.append(run([sys.executable, "-c", _REPORT, trace], env=environment))
    calls = builds[0]["calls"]
    rows = [
        Row("calls", calls),
        Row("events a second, rebuilt", 2 * calls / min(kernels)),
        Row("events a second, to Parquet", 2 * calls / min(build["seconds"] for build in builds)),
        Row("memory while building, MB", max(build["memory"] for build in builds)),
        Row("report once built, s", min(seconds for _, seconds in reports)),
        Row("memory of the report, MB", max(float(text.rsplit(None, 1)[-1]) for text, _ in reports)),
        Row("raw bytes a call", disk(trace / "events") / calls),
        Row("Parquet bytes a call", disk(trace / "calls") / calls),
    ]
    return Table(f"Reading a trace of {2 * calls / 1e6:.0f} M events", "", rows)
