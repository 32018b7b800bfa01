"""A crash report as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from callscope.reports.crash_memory import GENERAL
from callscope.reports.text import BOLD, DIM, RED, Style, duration, printable, seconds

MOST_SHOWN: Final = 40
"""Frames and open calls listed at each end of a long list; JSON has all."""
_A_LINE: Final = 4
"""registers"""


def text(facts: Mapping[str, Any], style: Style) -> Iterator[str]:
    """The report as lines."""
    meaning = ": " + facts["meaning"] if facts["meaning"] else ""
    kind = f", {facts['code_name']}" if facts["code_name"] else ""
    yield style.paint(f"{facts['signal_name']}{kind}{meaning}", BOLD, RED)
    place = facts["backtrace"][0] if facts["backtrace"] else None
    rows = {
        "At": _place(place) if place else None,
        "Address": facts["fault_address"],
        "Thread": f"{facts['thread_id']} {facts['thread_name']}".rstrip() + f" of process {facts['process_id']}",
        "Time": _time(facts),
        "Before": _earlier(facts["earlier_faults"]),
        "Ended": _ending(facts),
        "C++": _exception(facts),
    }
    for name, value in rows.items():
        if value:
            yield f"{style.paint(f'{name:<8}', BOLD)} {printable(str(value))}"
    if facts["register_context"]:
        yield from _state(facts, style)
    for thread in facts["open_calls"]:
        yield ""
        name = f" {thread['thread_name']}" if thread["thread_name"] else ""
        yield style.paint(printable(f"Open calls of thread {thread['thread_id']}{name}"), BOLD)
        names = [f"{'  '}{call['function']}" for call in thread["calls"]]
        yield from _shortened([printable(line) for line in names], style)
    if facts["last_calls"]:
        yield ""
        yield style.paint("Last calls of the thread", BOLD)
        yield from (_call(call) for call in facts["last_calls"])
    if facts["processes_crashed"] > 1:
        yield ""
        yield style.comment(f"{facts['processes_crashed']} processes crashed: --process PID chooses one")
    for warning in facts["warnings"]:
        yield style.comment(printable(warning))


def _state(facts: Mapping[str, Any], style: Style) -> Iterator[str]:
    """Registers and back-trace."""
    yield ""
    yield style.paint("Registers", BOLD)
    yield from _registers(facts["register_context"])
    yield ""
    yield style.paint("Back-trace", BOLD)
    yield from _shortened([line for i, frame in enumerate(facts["backtrace"]) for line in _frame(i, frame)], style)
    if facts["backtrace_ends"]:
        yield style.comment(f"it ends here: {facts['backtrace_ends']}")


def _earlier(faults: Sequence[Mapping[str, Any]]) -> str | None:
    """The first of the faults in whose handlers it happened."""
    if not faults:
        return None
    first = faults[-1]
    more = f", and {len(faults) - 1} more in its handlers" if len(faults) > 1 else ""
    return f"{first['signal_name']} at {_place(first['frame'])}, address {first['fault_address']}{more}"


def _ending(facts: Mapping[str, Any]) -> str | None:
    where = facts["second_fault"]
    return f"{facts['ended_by']}, in {where['function']}" if where is not None else facts["ended_by"]


def _exception(facts: Mapping[str, Any]) -> str | None:
    """What std::terminate, or a handler that failed, was at work on."""
    exception = facts["exception"]
    if exception is None:
        return "std::terminate was called" if facts["uncaught_exception"] else None
    what = "" if exception["what"] is None else f": {exception['what']}"
    name = exception["type"] or "an exception of unknown type"
    how = "was not caught" if facts["uncaught_exception"] else "was being handled, or not caught"
    return f"{name} {how}{what}"


def _time(facts: Mapping[str, Any]) -> str | None:
    parts = [facts["crash_time"]]
    if facts["crash_ns"] is not None:
        parts.append(f"{seconds(facts['crash_ns'])} s after the start")
    return ", ".join(part for part in parts if part) or None


def _place(frame: Mapping[str, Any]) -> str:
    """'function (file.c:12) in program'."""
    inlines = frame["inlines"]
    name = inlines[0]["function_name"] if inlines else frame["function_name"] or frame["address"]
    file, line = (inlines[0]["file"], inlines[0]["line"]) if inlines else (frame["file"], frame["line"])
    source = f" ({file}:{line})" if file else ""
    return f"{name}{source}" + (f" in {frame['library_name']}" if frame["library_name"] else "")


def _registers(context: Mapping[str, int | None]) -> Iterator[str]:
    names = [*GENERAL, "rip", "rflags"]
    cells = [f"{name:>6} {_number(context.get(name))}" for name in names if name in context]
    for start in range(0, len(cells), _A_LINE):
        yield " ".join(cells[start : start + _A_LINE])


def _number(value: int | None) -> str:
    return f"{'?':>16}" if value is None else f"{value:016x}"


def _frame(index: int, frame: Mapping[str, Any]) -> Iterator[str]:
    """A line for the frame, and one before it for each call inlined there."""
    if frame["signal"]:
        yield f"      -- {frame['signal']} --"
    for call in frame["inlines"]:
        yield printable(f"      {'':18} {call['function_name']} ({call['file']}:{call['line']}), inlined in")
    name = frame["function_name"] or "?"
    source = f" ({frame['file']}:{frame['line']})" if frame["file"] else ""
    module = f" in {frame['library_name']}" if frame["library_name"] else ""
    yield printable(f"  #{index:<3} {frame['address']} {name}+{frame['offset']}{source}{module}")


def _call(call: Mapping[str, Any]) -> str:
    left = "" if call["ended_by"] == "return" else f"  ({call['ended_by'].replace('_', ' ')})"
    return printable(f"  {duration(call['duration_ns'])}  {'  ' * min(call['depth'], 30)}{call['function']}{left}")


def _shortened(lines: Sequence[str], style: Style) -> Iterator[str]:
    rest = len(lines) - 2 * MOST_SHOWN
    if rest <= 0:
        yield from lines
        return
    yield from lines[:MOST_SHOWN]
    yield style.paint(f"  ... {rest:,} more (--format json has all)", DIM)
    yield from lines[-MOST_SHOWN:]
