"""What `record --max-overhead 20%` leaves of the cost of tracing, once two seconds have passed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT, TARGETS, Case, MissingError, Row, Table, build, measure, need

BUDGET = "20%"
SETTLED = 2.0
"""seconds after which the program should be within its budget"""


@dataclass(frozen=True)
class Pace:
    """Lines of output that a program had written, and the processor time it had used by then, in nanoseconds."""

    lines: int
    used_ns: int


def pace(command: list[str], traced: bool, directory: Path, options: tuple[str, ...], cwd: Path) -> list[Pace]:
    """Run a command; its pace at every line it wrote."""
    trace = directory / "budget.trace"
    shutil.rmtree(trace, ignore_errors=True)
    tool = [sys.executable, "-m", "callscope", "record", "-q", "-o", str(trace), *options, "--"] if traced else []
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}"}
    paces: list[Pace] = []
    with subprocess.Popen([*tool, *command], stdout=subprocess.PIPE, env=environment, cwd=cwd) as process:
        assert process.stdout is not None
        pid = 0 if traced else process.pid
        lines = 0
        while block := os.read(process.stdout.fileno(), 1 << 16):
            lines += block.count(b"\n")
            pid = pid or child_of(process.pid)
            try:
                paces.append(Pace(lines, time.clock_gettime_ns(~pid << 3 | 2)))  # clock_getcpuclockid(3)
            except OSError:
                break
        process.stdout.read()
    shutil.rmtree(trace, ignore_errors=True)
    return paces


def child_of(pid: int) -> int:
    """The program that a recorder runs."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def between(paces: list[Pace], first: int, last: int) -> int:
    """Processor time from the line `first` to the line `last`, in nanoseconds."""
    start = next(entry for entry in paces if entry.lines >= first)
    end = next(entry for entry in paces if entry.lines >= last)
    return end.used_ns - start.used_ns


def slow_down(command: list[str], directory: Path, options: tuple[str, ...], cwd: Path = TARGETS) -> float:
    """Per cent of processor time that tracing adds, from two seconds of it on."""
    traced = pace(command, True, directory, options, cwd)
    plain = pace(command, False, directory, options, cwd)
    settled = next((entry.lines for entry in traced if entry.used_ns > SETTLED * 1e9), None)
    last = min(traced[-1].lines, plain[-1].lines)
    if settled is None or last <= settled:
        raise MissingError("it took less than two seconds")
    return 100 * (between(traced, settled, last) / between(plain, settled, last) - 1)


def budget(directory: Path, rounds: int) -> Table:
    """Per cent."""
    tiny = build("tiny.cpp", directory / "tiny")
    programs: dict[str, tuple[list[str], Path, tuple[str, ...]]] = {
        "C++, tiny functions": ([str(tiny)], TARGETS, ()),
        "node": (["node", "budget.js"], TARGETS, ("-m", "main")),
        "python3": (["python3", "budget.py"], TARGETS, ()),
        "python3, its interpreter": (["python3", "budget.py"], TARGETS, ("--no-python", "-m", "all")),
        "git log -p --find-copies-harder": (
            ["git", "log", "-p", "--no-color", "--find-copies-harder", "--", "."],
            ROOT,
            (),
        ),
    }

    def one(name: str) -> float:
        command, cwd, options = programs[name]
        need(command[0])
        return slow_down(command, directory, ("--max-overhead", BUDGET, *options), cwd)

    cases = [Case(name, lambda name=name: one(name)) for name in programs]  # type: ignore[misc]
    rows: list[Row] = measure(cases, rounds, warm_up=False)
    return Table(f"Slow-down after {SETTLED:.0f} s with --max-overhead {BUDGET}", "%", rows)
