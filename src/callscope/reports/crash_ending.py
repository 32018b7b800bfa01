"""What is known of a Windows program that the system ended without a word to anybody in it: `callscope crash`.

Neither __fastfail nor TerminateProcess passes through a handler: all there is are the exit status, which the launcher
sees, and the calls up to the end.
"""

from __future__ import annotations

from typing import Any, Final

from callscope import format as records
from callscope.reports.crash_calls import last_calls, open_calls
from callscope.reports.crash_causes import Fault, describe
from callscope.reports.database import Database
from callscope.trace.journal import Record
from callscope.trace.open import Trace

FIRST_ERROR: Final = 0xC0000000
"""Exit statuses from here on are errors (ntstatus.h), with which the system ends programs."""
INTERRUPTED: Final = 0xC000013A
"""STATUS_CONTROL_C_EXIT: somebody's wish, no crash"""


def ending_status(trace: Trace, process: int | None = None) -> int | None:
    """The status with which the system ended the program; None when that was not so, or for another process than it."""
    status = trace.session.get("windows_status")
    first = trace.history.processes.get(1)
    if process is not None and (first is None or first.pid != process):
        return None
    is_error = isinstance(status, int) and FIRST_ERROR <= status < 1 << 32 and status != INTERRUPTED
    return status if is_error else None


def report(trace: Trace, database: Database, status: int, last: int) -> dict[str, Any]:
    """As `crash.report` has it. The thread is the one at work last: nobody knows which one ended the program."""
    rows = database.rows(
        "SELECT thread, process, pid, tid, name, end_ns FROM threads WHERE calls > 0"
        " ORDER BY process <> 1, end_ns DESC, thread DESC LIMIT 1"
    )
    row: dict[str, Any] = rows[0] if rows else {"thread": 0, "process": 1, "pid": 0, "tid": 0, "name": "", "end_ns": 0}
    thread = Record(records.JOURNAL_THREAD_END, 0, row["process"], row["pid"], row["tid"], row["thread"])
    warning = "the thread named is the one that was at work last: the system does not tell which one ended the program"
    return {
        **describe(records.CRASH_WINDOWS, Fault(status, 0, 0), False),
        "thread_id": row["tid"],
        "thread_name": row["name"] or "",
        "process_id": row["pid"],
        "register_context": {},
        "vector_registers": {},
        "in_trampoline": False,
        "backtrace": [],
        "backtrace_ends": None,
        "uncaught_exception": False,
        "exception": None,
        "handled_by_program": False,
        "earlier_faults": [],
        "second_fault": None,
        "ended_by": "the system ended the program without telling it: registers and stack are not known",
        "exit_status": trace.session.get("exit_status"),
        "open_calls": open_calls(database, thread, row["end_ns"]),
        "last_calls": last_calls(database, thread, row["end_ns"], last),
        "crash_time": None,
        "crash_timestamp": None,
        "crash_ns": row["end_ns"] if trace.has_clock else None,
        "processes_crashed": 1,
        "warnings": [warning],
    }
