"""A flight recorder while threads come and go: how many a second, and whether memory and disk stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.harness import Case, Table, build, measure, record, run

SECONDS = 10
"""of one case and round: --rounds 20 is minutes of the highest rate of churn"""
KEPT = 64 << 20
UNTRACED = "one after the other, untraced"


def churn(directory: Path, rounds: int) -> Table:
    """Threads a second; megabytes of the program after a tenth of the time and at the end, and of the trace."""
    program = build("thread_churn.c", directory / "churn", "-pthread")
    figures: dict[str, dict[str, float | str]] = {}

    def case(name: str, together: int, traced: bool) -> Case:
        def once() -> float:
            words = [program, SECONDS, together]
            trace = directory / "trace"
            output = record(words, trace, keep_last=KEPT)[0] if traced else run(words)[0]
            found = re.search(r"per_second (\d+) threads (\d+) early_kb (\d+) end_kb (\d+)", output)
            assert found, output
            mine = figures.setdefault(name, {"threads": 0})
            mine["threads"] = float(mine["threads"]) + int(found[2])
            mine["MB after a tenth"], mine["MB at the end"] = int(found[3]) / 1024, int(found[4]) / 1024
            if traced:
                mine["MB of trace"] = disk(trace) / (1 << 20)
            return float(found[1])

        return Case(name, once)

    cases = [
        case(UNTRACED, 1, traced=False),
        case("one after the other, --keep-last 64M", 1, traced=True),
        case("200 at once, untraced", 200, traced=False),
        case("200 at once, --keep-last 64M", 200, traced=True),
    ]
    rows = measure(cases, rounds, warm_up=False)
    for row in rows:
        row.figures.update(figures.get(row.name, {}))
    return Table("Threads that come and go in a flight recorder", "a second", rows, UNTRACED)


def disk(trace: Path) -> int:
    """Bytes of disk of a trace."""
    return sum(path.stat().st_blocks * 512 for path in trace.rglob("*") if path.is_file())
