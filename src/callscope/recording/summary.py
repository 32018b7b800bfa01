"""What `callscope record` says when the program has ended."""

from __future__ import annotations

import math
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from callscope import format as records
from callscope.patching.report import Coverage, PlanReport
from callscope.recording.plans import PlannedImage, is_untraceable
from callscope.recording.record import RecordResult

MOST_LISTED = 8
"""Lines of one sort; the rest is counted."""
FIRST_ERROR = 0xC0000000
"""Of Windows' exit statuses: those from here on are errors (ntstatus.h), with which the system ends programs."""
INTERRUPTED = 0xC000013A
"""STATUS_CONTROL_C_EXIT"""
FEW_FUNCTIONS = 64
"""A program with fewer is a door to its libraries, as python3 is where libpython is shared."""


def summary_lines(result: RecordResult, reported: bool = False) -> list[str]:
    """The summary, a line each: the trace and its figures, coverage, what is missing, what to do next.

    `reported`: the report comes next anyway.
    """
    lines = [
        f"{shorten(result.trace)}: {figures(result)}",
        *standstill(result),
        *ending(result),
        *faults(result),
        *coverage(result),
        *losses(result),
        *limited([f"dumped: {shorten(trace)}" for trace in result.dumps] + result.failures),
        *(f"{rule} matched nothing" for rule in result.unmatched),
        *limited((f"not traced: {path}: {reason}" for path, reason in result.rejected)),
        *survivors(result),
        *hints(result),
    ]
    trace = shlex.quote(shorten(result.trace))
    report = "" if reported else f"callscope report {trace}    or: "
    lines.append(f"next: {report}callscope tree {trace}")
    return lines


def figures(result: RecordResult) -> str:
    """Calls, events, threads, processes, duration and size in a line."""
    counts, processes = result.counts, result.journal.processes
    threads = max(
        counts.threads - result.journal.execs, processes
    )  # a program started by exec numbers its threads anew
    about = "" if counts.exact else "about "
    sites = f" and {counts.sites:,} at call sites" if result.options.calls else ""
    return (
        f"{about}{counted(counts.calls, 'call')}{sites} ({counts.events:,} events) of {counted(threads, 'thread')} in "
        f"{counted(processes, 'process', 'processes')}, {result.seconds:.2f} s, {size_text(result.size)}"
    )


def standstill(result: RecordResult) -> Iterator[str]:
    """For how long a program that was attached to stood still."""
    if result.still_ms:
        times = " and ".join(f"{value:.1f} ms" for value in result.still_ms)
        yield f"the program stood still for {times} to be attached to" + " and detached" * (len(result.still_ms) > 1)


def ending(result: RecordResult) -> Iterator[str]:
    """The signal that ended the program, if one did, and where to read about it."""
    # What the program's handler was called for ended it all the same, if that is its status.
    recorded = result.journal.crashes or result.exit_status - 128 in result.journal.handled
    known = f"callscope crash {shlex.quote(shorten(result.trace))}" if recorded else None
    with suppress(ValueError):
        if result.exit_status > 128 and not result.journal.faults:  # those of Windows programs are no signals
            name = signal.Signals(result.exit_status - 128).name
            yield f"the program was ended by {name}" + (f": {known}" if known else "")
            return
    if known:
        yield f"a process crashed: {known}"


def faults(result: RecordResult) -> Iterator[str]:
    """The exceptions that ended Windows programs."""
    journal = result.journal
    status = result.windows_status
    mask, ended = (0xFF, result.exit_status) if status is None else (0xFFFFFFFF, status)
    own = {process for process in journal.raised if journal.faults.get(process, 0) & mask != ended}
    codes = [code for process, code in journal.faults.items() if process not in own]
    if status == INTERRUPTED and not codes:
        yield "the program was ended by an interrupt"
    elif status is not None and status >= FIRST_ERROR and status not in codes:
        codes.append(status)  # the system ended it without telling anybody
    for code in dict.fromkeys(codes):
        trace = shlex.quote(shorten(result.trace))
        yield f"the program was ended by exception {code:#x}: callscope crash {trace}"


def coverage(result: RecordResult) -> list[str]:
    """How much of each traced image can be recorded."""

    def functions(image: PlannedImage) -> str:
        chosen = result.chosen.get(image.id_base)
        every = counted(image.report.functions, "function")
        return every if chosen is None else f"{chosen:,} of {every} chosen"

    def shares(report: PlanReport) -> list[str]:
        parts = []
        if result.options.calls != "once":
            parts += [
                f"{share(report.entries)} of entries",
                f"{share(report.exits)} of returns",
                f"{share(report.tail_jumps)} of tail jumps",
            ]
        if result.options.calls:
            parts.append(f"{share(report.calls)} of {report.calls.found:,} call sites")
        return parts

    return limited(
        f"traced {Path(image.path).name}: {', '.join([functions(image), *shares(image.report)])}"
        for image in result.images
    )


def share(coverage: Coverage) -> str:
    """A percentage, rounded down: 100 means all."""
    return f"{math.floor(coverage.percent * 10) / 10:.1f} %"


def losses(result: RecordResult) -> Iterator[str]:
    """What should have been recorded and was not."""
    if result.journal.processes == 0:
        yield (
            "nothing was recorded: the program ended before its libraries were initialised, or its loader did not "
            "preload the agent"
        )
    if result.counts.wrapped:
        yield "the flight recorder was full: the oldest events made room"
    reason, _ = result.counts.stopped
    if reason == records.STOP_SIZE:
        yield f"recording stopped after {result.stopped_seconds:.1f} s: --max-size was reached; the program went on"
    elif reason:
        yield f"recording stopped after {result.stopped_seconds:.1f} s: the disk was full; the program went on"
    elif result.counts.lost:
        yield f"lost: {counted(result.counts.lost, 'event')} found no room; use --keep-last or a larger disk"
    for path, number in sorted(result.journal.refused.items()):
        yield f"{path}: {counted(number, 'patch', 'patches')} left out, the code in memory was not the file's"
    yield from limited(result.journal.notes)


def hints(result: RecordResult) -> Iterator[str]:
    """What a user may have wanted instead."""
    if result.hottest is not None and not result.options.max_overhead:
        name, share = result.hottest.name, result.hottest.share
        yield f"{name} made {share:.0%} of the calls: leave it out with -x, or give --max-overhead 20%"
    functions = sum(image.report.functions for image in result.images)
    libraries = [Path(path).name for path in result.journal.untraced if not is_untraceable(path)]
    if 0 < functions < FEW_FUNCTIONS and libraries and not result.options.modules:
        shown = ", ".join(libraries[:3]) + (", ..." if len(libraries) > 3 else "")
        yield f"the program has only {counted(functions, 'function')} of its own: trace its libraries ({shown}) with -m"


def survivors(result: RecordResult) -> list[str]:
    """The processes that still run."""
    return limited(f"still running: {s.name} (process {s.pid})" for s in result.survivors)


def limited(lines: Iterator[str] | list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    every = list(lines)
    rest = len(every) - MOST_LISTED
    return every if rest <= 0 else [*every[:MOST_LISTED], f"and {rest} more"]


def shorten(path: Path) -> str:
    """The path as a user would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def counted(number: int, one: str, many: str | None = None) -> str:
    """'1 call', '1,234 calls'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size_text(size: int) -> str:
    """Bytes as people read them, in powers of 1024."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
