"""Calls as a stream of entries and exits, thread by thread: what formats of events are written from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from callscope.exporters.steps import COLUMNS, Steps
from callscope.reports.database import CAPTURED_JOINS, CAPTURED_TEXTS, ENDINGS, Database
from callscope.reports.selection import Selection, check_calls, condition, label


class Call(NamedTuple):
    """A row of `call_rows`. Times in nanoseconds since the session's start; zero in a trace without clock. arguments,
    result: as text, where they were recorded.
    """

    call_id: int
    up: int
    thread: int
    function_id: int
    site: int
    start_ns: int
    duration_ns: int
    descendants: int
    node: int
    ended_by: int
    arguments: str | None = None
    result: str | None = None


class Step(NamedTuple):
    """An entry or exit of a call. time: nanoseconds, or without a clock the number of the step, from 0 on.

    is_switch: the call goes on, or waits, with the stack it is on (a coroutine's, a greenlet's).
    """

    is_entry: bool
    time: int
    call: Call
    is_switch: bool


TAIL_CALL: Final = ENDINGS.index("tail_call")
_BATCH = 4096
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

    A function that ended in a tail jump is left before the function it jumped to is entered. Calls on a stack that
    waits (a coroutine's, a greenlet's) are left, and entered again when it goes on. Memory grows with the calls that
    are open only. Of `selection` thread and process are regarded. Raises TraceError.
    """
    open_calls: list[Call] = []
    waiting: dict[int, Call] = {}

    def paired(made: Iterator[NDArray[np.void]], entered: Iterator[Call]) -> Iterator[Step]:
        for array in made:
            for is_entry, time, is_switch, call_id in array[["is_entry", "time", "is_switch", "call"]].tolist():
                if is_entry:
                    open_calls.append(waiting.pop(call_id) if is_switch else next(entered))
                    yield Step(True, time, open_calls[-1], bool(is_switch))
                    continue
                call = open_calls.pop()
                if is_switch:
                    waiting[call_id] = call
                yield Step(False, time, call, bool(is_switch))

    with Steps(database.has_clock) as kernel:
        for _, of_thread in groupby(calls(database, selection), key=lambda call: call.thread):
            while found := list(islice(of_thread, _BATCH)):
                columns = {name: [getattr(call, name) for call in found] for name in COLUMNS}
                yield from paired(kernel.feed(columns), iter(found))
            yield from paired(kernel.finish(), iter(()))


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
