"""What `callscope record` says when the program has ended."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from callscope.recording.plans import PlannedImage
from callscope.recording.record import RecordResult

MOST_LISTED = 8
"""Lines of one sort; the rest is counted."""
_FEW_CALLS = 1000


def summary_lines(result: RecordResult) -> list[str]:
    """The summary, a line each: the trace and its figures, coverage, what is missing, what to do next."""
    lines = [
        f"{shorten(result.trace)}: {figures(result)}",
        *coverage(result.images),
        *losses(result),
        *(f"{rule} matched nothing" for rule in result.unmatched),
        *limited((f"not traced: {path}: {reason}" for path, reason in result.rejected)),
        *survivors(result),
    ]
    trace = shlex.quote(shorten(result.trace))
    lines.append(f"next: callscope report {trace}    or: callscope tree {trace}")
    return lines


def figures(result: RecordResult) -> str:
    """Calls, events, threads, processes, duration and size in a line."""
    counts = result.counts
    about = "" if counts.exact else "about "
    return (
        f"{about}{counted(counts.calls, 'call')} ({counts.events:,} events) of "
        f"{counted(counts.threads, 'thread')} in {counted(result.journal.processes, 'process', 'processes')}, "
        f"{result.seconds:.2f} s, {size_text(result.size)}"
    )


def coverage(images: list[PlannedImage]) -> list[str]:
    """How much of each traced image can be recorded."""
    return limited(
        f"traced {Path(image.path).name}: {counted(image.report.functions, 'function')}, "
        f"{image.report.entries.percent:.1f} % of entries, {image.report.exits.percent:.1f} % of returns, "
        f"{image.report.tail_jumps.percent:.1f} % of tail jumps"
        for image in images
    )


def losses(result: RecordResult) -> Iterator[str]:
    """What should have been recorded and was not."""
    if result.journal.processes == 0:
        yield (
            "nothing was recorded: the program ended before its libraries were initialised, or its loader did not "
            "preload the agent"
        )
    if result.counts.wrapped:
        yield "the flight recorder was full: the oldest events made room"
    if result.counts.lost:
        yield f"lost: {counted(result.counts.lost, 'event')} found no room; use --keep-last or a larger disk"
    for path, number in sorted(result.journal.refused.items()):
        yield f"{path}: {counted(number, 'patch', 'patches')} left out, the code in memory was not the file's"
    yield from limited(result.journal.notes)


def survivors(result: RecordResult) -> list[str]:
    """The processes that still run."""
    return limited(f"still running and recorded: {s.name} (process {s.pid})" for s in result.survivors)


def limited(lines: Iterator[str] | list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    every = list(lines)
    rest = len(every) - MOST_LISTED
    return every if rest <= 0 else [*every[:MOST_LISTED], f"and {rest} more like the last"]


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
