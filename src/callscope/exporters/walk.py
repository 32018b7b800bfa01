"""Calls as a stream of entries and exits, thread by thread: what formats of events are written from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from callscope.reports.database import CAPTURED_JOINS, CAPTURED_TEXTS, ENDINGS, Database
from callscope.reports.selection import Selection, check_calls, condition, label


class Call(NamedTuple):
    """A row of `call_rows`. Times in nanoseconds since the session's start; zero in a trace without clock. arguments,
    result: as text, where they were recorded.
    """

    call_id: int
    thread: int
    function_id: int
    site: int
    start_ns: int
    duration_ns: int
    descendants: int
    ended_by: int
    arguments: str | None = None
    result: str | None = None


class Step(NamedTuple):
    """An entry or exit of a call. time: nanoseconds, or without a clock the number of the step, from 0 on."""

    is_entry: bool
    time: int
    call: Call


TAIL_CALL: Final = ENDINGS.index("tail_call")
_COLUMNS: Final = ", ".join(f"c.{name}" for name in Call._fields[:-2])


def calls(database: Database, selection: Selection, captured: str = CAPTURED_TEXTS) -> Iterator[Call]:
    """The calls of the threads chosen, those of a thread together, callers before what they call.

    captured: the columns for what was captured of them. Of `selection` only thread and process are regarded: a tree
    with holes would say things that were not so. Raises TraceError.
    """
    check_calls(database)
    chosen = condition(database, Selection(thread=selection.thread, process=selection.process))
    texts, joins = (captured, CAPTURED_JOINS) if database.has_captures else ("", "")
    rows = database.stream_calls(
        lambda source, end: f"SELECT {_COLUMNS}{texts} FROM {source} c {joins} WHERE {chosen} ORDER BY c.call_id"
    )
    return (Call(*row) for row in rows)


def steps(database: Database, selection: Selection) -> Iterator[Step]:
    """All steps of the threads chosen, those of a thread together, properly nested, times never going back.

    A function that ended in a tail jump is left before the function it jumped to is entered. Memory grows with the
    depth of calls only. Of `selection` thread and process are regarded. Raises TraceError.
    """
    has_clock = database.has_clock
    number = last = 0
    thread = -1
    open_calls: list[Call] = []

    def time(wanted: int) -> int:
        nonlocal last, number
        last = max(last, wanted) if has_clock else number
        number += 1
        return last

    def leave(until: int) -> Iterator[Step]:
        while open_calls and open_calls[-1].call_id + open_calls[-1].descendants < until:
            call = open_calls.pop()
            yield Step(False, time(call.start_ns + call.duration_ns), call)

    for call in calls(database, selection):
        if call.thread != thread:
            yield from leave(1 << 62)
            thread, last, number = call.thread, 0, 0
        yield from leave(call.call_id)
        if open_calls and _jumped(open_calls[-1], call, has_clock):
            jumper = open_calls.pop()
            yield Step(False, time(jumper.start_ns + jumper.duration_ns), jumper)
        yield Step(True, time(call.start_ns), call)
        open_calls.append(call)
    yield from leave(1 << 62)


def _jumped(caller: Call, callee: Call, has_clock: bool) -> bool:
    """Whether the caller ended in a tail jump to this callee: its last one, which began when it ended."""
    is_last = callee.call_id + callee.descendants == caller.call_id + caller.descendants
    in_order = not has_clock or callee.start_ns >= caller.start_ns + caller.duration_ns
    return caller.ended_by == TAIL_CALL and is_last and in_order


def names(database: Database) -> dict[int, str]:
    """Function id -> `module!name`."""
    rows = database.rows("SELECT function_id, name, module FROM functions")
    return {row["function_id"]: full_name(row["name"], row["module"]) for row in rows}


def full_name(name: str | None, module: str | None) -> str:
    """`module!name`, or what is known of it."""
    return label(name or "?", module)


def threads(database: Database) -> dict[int, tuple[int, int, str]]:
    """Thread number -> (pid, tid, name)."""
    rows = database.rows("SELECT thread, pid, tid, name FROM threads")
    return {row["thread"]: (row["pid"], row["tid"], row["name"] or "") for row in rows}
