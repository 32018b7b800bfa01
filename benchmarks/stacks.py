"""The cost of capturing a stack of 20 frames, and of sampling a program of Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Case, MissingError, Table, build, measure, record, run

POINTERS = "walk along frame pointers, nothing recorded"
CAPTURES = 2_000_000
UNTRACED = "python3 untraced"
SCRIPT = """
import time
begin = time.thread_time()
for _ in range(150):
    sorted((i * 7919 % 30011 for i in range(20000)), key=lambda x: -x)
print("ns_per_call", (time.thread_time() - begin) * 1e9 / 150)
"""


def _cost(output: str) -> float:
    found = re.search(r"ns_per_call ([0-9.]+)", output)
    assert found, output
    return float(found[1])


def stacks(directory: Path, rounds: int) -> Table:
    """Nanoseconds of processor time a capture: runs of other lengths are preempted as often as the machine is busy."""
    framed = build("stack.c", directory / "framed", "-g", "-fno-omit-frame-pointer")
    frameless = build("stack.c", directory / "frameless", "-g", "-fomit-frame-pointer")

    def plain(program: Path, method: str) -> Callable[[], float]:
        return lambda: _cost(run([program, method, CAPTURES // 20])[0])

    def capture(program: Path, method: str) -> float:
        options = {"modules": ["none"], "keep_last": 4 << 20}
        return _cost(record([program, method, CAPTURES], directory / "trace", **options)[0])

    def ours(program: Path) -> Callable[[], float]:
        return lambda: capture(program, "capture")

    def varied(program: Path) -> Callable[[], float]:
        return lambda: capture(program, "varied") - plain(program, "calls")()

    def libunwind() -> float:
        try:  # its library has a backtrace() of its own, so that it gets a program of its own
            program = build(
                "stack.c", directory / "libunwind", "-g", "-DHAVE_LIBUNWIND", "-Wl,--no-as-needed", "-lunwind"
            )
        except MissingError:
            raise MissingError("libunwind is not installed") from None
        return _cost(run([program, "libunwind", CAPTURES // 20])[0])

    cases = [
        Case(POINTERS, plain(framed, "pointers")),
        Case("callscope_capture", ours(framed)),
        Case("callscope_capture, no frame pointers", ours(frameless)),
        Case("callscope_capture, ten frames others each time", varied(framed)),
        Case("the same, no frame pointers", varied(frameless)),
        Case("libunwind unw_backtrace, no frame pointers", libunwind),
        Case("glibc backtrace, no frame pointers", plain(frameless, "backtrace")),
    ]
    return Table("Cost of capturing a stack of 20 frames and main's callers", "ns", measure(cases, rounds), POINTERS)


def sampling(directory: Path, rounds: int) -> Table:
    """Milliseconds of processor time of the same work, in the thread that does it."""
    script = directory / "work.py"
    script.write_text(SCRIPT)

    def sampled(every_ns: int) -> Callable[[], float]:
        options = {"modules": ["none"], "python": "off", "stacks_every_ns": every_ns}
        return lambda: _cost(record(["/usr/bin/python3", script], directory / "trace", **options)[0]) / 1e6

    cases = [
        Case(UNTRACED, lambda: _cost(run(["/usr/bin/python3", script])[0]) / 1e6),
        Case("recorded, no stacks", sampled(0)),
        Case("--stacks-every 10ms", sampled(10_000_000)),
        Case("--stacks-every 1ms", sampled(1_000_000)),
    ]
    return Table("Cost of sampling python3", "ms", measure(cases, rounds), UNTRACED)
