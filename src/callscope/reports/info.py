"""What was recorded, and how completely: `callscope info`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

from callscope import format as records
from callscope.errors import TraceError
from callscope.reports import muted
from callscope.reports.database import ENDINGS, Database
from callscope.reports.markers import markers
from callscope.reports.selection import command_line, label, origin
from callscope.reports.session import checked
from callscope.reports.table import Column, fit, header, line, taken, widest
from callscope.reports.text import BOLD, YELLOW, Style, cut, duration, plural, printable, seconds, size
from callscope.trace.journal import Crash, read_journal

ENOUGH_CALLS = 100_000
"""From this many calls on, bytes a call say something: space is taken by the megabyte."""
_KINDS: Final = {"entries": "Entries", "exits": "Returns", "tails": "Tail jumps"}
_OPTIONS: Final = {
    "modules": "--module",
    "functions": "--function",
    "excludes": "--exclude",
    "exclude_files": "--exclude-from",
    "max_depth": "--max-depth",
    "keep_last": "--keep-last",
    "max_size": "--max-size",
    "dump_on": "--dump-on",
}

WIDEST_PROCESS = 120
"""Columns of a process's line in a pipe: command lines may be long, and JSON has them whole."""
MOST_AT_WORK = 5
"""Functions named of those that were at work at the end."""
SIGNALLED = 128
"""An exit status above it is 128 + the signal that ended the program."""
MOST_LISTED = 20
"""Modules and processes shown as text; JSON has all."""


def info(database: Database, crashes: int = 0) -> dict[str, Any]:
    """Everything about a session that is no call. Times in nanoseconds; sizes in bytes of disk.

    fault: the exception that ended a Windows program, if one did. last_at_work: of a program that a signal or it ended,
    see `last_at_work`. processes: one that replaced its program by exec is there once for each program. modules: each
    traced image once, with its coverage (places patched of those found, by kind), functions called and calls. crashes:
    as given, how many processes crashed. rejected: images that should have been traced and could not, with reasons.
    """
    session, meta, fault = checked(database.session), database.meta, last_fault(database)
    counts = database.rows(
        "SELECT count(DISTINCT (pid, tid)) AS threads, coalesce(sum(events), 0)::BIGINT AS events,"
        " (SELECT count(DISTINCT pid) FROM processes) AS processes FROM threads"
    )[0]
    return {
        "trace": str(database.trace),
        "status": session["status"],
        "callscope": session["callscope"],
        "command": session["command"],
        "cwd": session["cwd"],
        "host": session["host"],
        "started": session["started"],
        "duration_ns": meta.get("duration_ns"),
        "exit_status": session["exit_status"],
        "main_pid": session["main_pid"],
        "crashes": crashes,
        "fault": None if fault is None else {"code": fault.fields["code"], "tid": fault.tid},
        "last_at_work": last_at_work(database, fault) if fault or (session["exit_status"] or 0) > SIGNALLED else None,
        "muted": muted.as_json(database),
        "clock": clock_name(database, session),
        "resolution_ns": session["resolution_ns"],
        "clock_hz": session["clock_hz"] if database.has_clock else None,
        "options": session["options"],
        "process_count": counts["processes"],
        "thread_count": counts["threads"],
        "calls": database.call_count,
        "events": counts["events"],
        "lost_events": meta.get("lost_events") or 0,
        "size": {
            "events": disk_size(database.trace / "events") + disk_size(database.trace / "packed"),
            "calls": disk_size(database.calls),
            "total": disk_size(database.trace),
        },
        "processes": _processes(database),
        "modules": _modules(database, session["images"]),
        "rejected": session["rejected"],
        "markers": markers(database),
        "warnings": meta.get("warnings") or [],
    }


def last_fault(database: Database) -> Crash | None:
    """The fault that ended a Windows program, as far as one can tell: the process did not end in good order."""
    try:
        journal = read_journal(database.trace, [])
    except TraceError:
        return None
    ended = {record.process for record in journal if record.kind == records.JOURNAL_PROCESS_END}
    faults = [r for r in journal if isinstance(r, Crash) and r.fields["system"] == records.CRASH_WINDOWS]
    faults = [f for f in faults if f.process not in ended or f.fields["crash_flags"] & records.CRASH_AT_EXIT]
    faults = [f for f in faults if not f.fields["crash_flags"] & records.CRASH_RAISED or f.ended(database.session)]
    return faults[-1] if faults else None


def last_at_work(database: Database, fault: Crash | None = None) -> dict[str, Any] | None:
    """The thread of the program that did something last, or had the fault, by its tid, and the functions that were at
    work there, the outermost first, each with its module. None when nothing tells.

    A crash report it is not: the fault may be in code that was not traced, called from the last of these functions.
    """
    threads = database.rows("SELECT thread, pid, tid, end_ns FROM threads WHERE calls > 0 ORDER BY end_ns, thread")
    own = [row for row in threads if row["pid"] == database.session.get("main_pid")]
    threads = [row for row in threads if fault and row["thread"] == fault.thread] or own or threads
    if not threads or (len(threads) > 1 and not database.has_clock):
        return None
    running = database.rows(
        "SELECT f.name AS function, f.module FROM call_rows c JOIN functions f ON f.function_id = c.function_id"
        f" WHERE c.thread = {threads[-1]['thread']} AND c.ended_by = {ENDINGS.index('running')} ORDER BY c.call_id"
    )
    return {"tid": threads[-1]["tid"], "functions": running} if running else None


def text(facts: Mapping[str, Any], style: Style) -> Iterator[str]:
    """`info` as lines."""
    lost = facts["lost_events"]
    host = facts["host"]
    machine = ", ".join(
        str(part) for part in (host.get("hostname"), host.get("kernel"), host.get("machine")) if part
    ) + (f", {plural(host['cpus'], 'CPU')}" if host.get("cpus") else "")
    calls = facts["calls"]
    bytes_a_call = f", {facts['size']['events'] / calls:.1f} bytes a call" if calls >= ENOUGH_CALLS else ""
    values = {
        "Trace": f"{facts['trace']}{'' if facts['status'] == 'complete' else ' (not complete)'}",
        "Command": shlex.join(facts["command"]),
        "Directory": facts["cwd"],
        "Host": machine,
        "Started": facts["started"],
        "Duration": duration(facts["duration_ns"]).strip() if facts["duration_ns"] else None,
        "Ended": _ending(facts),
        "Crash": f"callscope crash {shlex.quote(facts['trace'])} says where and why" if facts["crashes"] else None,
        "At work": _at_work(facts["last_at_work"], facts["modules"]),
        "Clock": _clock(facts),
        "Options": _options(facts["options"]),
        "Recorded": f"{plural(calls, 'call')} in {plural(facts['thread_count'], 'thread')} of "
        f"{plural(facts['process_count'], 'process')}, {plural(facts['events'], 'event')}",
        "Lost": plural(lost, "event") if lost else "nothing",
        "Size": f"{size(facts['size']['events'])} of events{bytes_a_call}; {size(facts['size']['calls'])} calls table",
    }
    for name, value in values.items():
        if value:
            shown = style.paint(printable(str(value)), *((YELLOW,) if name == "Lost" and lost else ()))
            yield f"{style.paint(f'{name:<10}', BOLD)} {shown}"
    if len(facts["processes"]) > 1:
        yield ""
        yield from _process_lines(facts["processes"], style)
    yield ""
    yield from _module_lines(facts["modules"], style)
    for title, lines in (
        ("Muted while it ran", [f"  {_muted(entry)}" for entry in facts["muted"]]),
        ("Not traced", [f"  {entry.get('path')}: {entry.get('reason')}" for entry in facts["rejected"]]),
        (
            "Markers",
            [f"  {_marker_time(marker)}{marker['tid']}  {printable(marker['text'])}" for marker in facts["markers"]],
        ),
        ("Remarks", [f"  {warning}" for warning in facts["warnings"]]),
    ):
        if lines:
            yield ""
            yield style.paint(title, BOLD)
            yield from _limited(lines)


def _muted(entry: Mapping[str, Any]) -> str:
    calls, at = plural(entry["calls"], "call"), duration(entry["at_ns"]).strip()
    return f"{printable(entry['function'])}: {calls} until it was muted at {at}; it ran on, unrecorded"


def _marker_time(marker: Mapping[str, Any]) -> str:
    return "" if marker["time_ns"] is None else f"{seconds(marker['time_ns'])}  "


def disk_size(path: Path) -> int:
    """Bytes on disk of a file or of all below a directory; 0 when it is not there. Sparse files count what they use."""
    try:
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        return sum(file.lstat().st_blocks * 512 for file in files)
    except OSError:
        return 0


def _processes(database: Database) -> list[dict[str, Any]]:
    return database.rows(
        "SELECT p.process, p.parent, p.pid, p.ppid, p.cause, p.path, p.command, p.start_ns, p.end_ns,"
        " coalesce(t.threads, 0) AS threads, coalesce(t.calls, 0)::BIGINT AS calls FROM processes p LEFT JOIN"
        " (SELECT process, count(*) AS threads, sum(calls) AS calls FROM threads GROUP BY process) t"
        " ON t.process = p.process ORDER BY p.process"
    )


def _modules(database: Database, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images of the session, and what became of them in the processes."""
    loads = {
        row["path"]: row
        for row in database.rows(
            "SELECT path, count(*) AS loads, coalesce(sum(refused), 0)::BIGINT AS refused FROM modules WHERE traced"
            " GROUP BY path"
        )
    }
    called = {
        row["path"]: row
        for row in database.rows(
            "SELECT f.path, count(*) AS functions_called, sum(n.calls)::BIGINT AS calls FROM functions f JOIN"
            " (SELECT function_id, sum(calls) AS calls FROM nodes GROUP BY function_id) n"
            " ON n.function_id = f.function_id GROUP BY f.path"
        )
    }
    known = {image["path"] for image in images}
    unknown: dict[str, Any] = {"build_id": None, "function_count": None, "coverage": {}}
    others = [{"path": path, **unknown} for path in sorted((loads.keys() | called.keys()) - known) if path]
    return [
        {
            "path": image["path"],
            "build_id": image["build_id"],
            "functions": image["function_count"],
            "functions_called": called.get(image["path"], {}).get("functions_called", 0),
            "calls": called.get(image["path"], {}).get("calls", 0),
            "loads": loads.get(image["path"], {}).get("loads", 0),
            "patches_refused": loads.get(image["path"], {}).get("refused", 0),
            "coverage": image["coverage"],
        }
        for image in [*images, *others]
    ]


def _ending(facts: Mapping[str, Any]) -> str:
    status = facts["exit_status"]
    if facts["fault"]:
        return f"exit status {status}, after exception {facts['fault']['code']:#x} in thread {facts['fault']['tid']}"
    if status is None and facts["status"] == "complete":
        return "the recording was stopped; the program went on"
    if status is None:
        return "unknown: the recording was cut off, or goes on"
    return f"exit status {status}" + (f" (signal {status - 128})" if 128 < status <= 128 + 64 else "")


def _at_work(last: Mapping[str, Any] | None, modules: Sequence[Mapping[str, Any]]) -> str | None:
    """The innermost of the functions that were at work, and their thread."""
    if last is None:
        return None
    own = PurePath(modules[0]["path"]).name if len(modules) == 1 else None
    names = [label(row["function"] or "?", row["module"], own) for row in last["functions"]]
    shown = [*(["..."] if len(names) > MOST_AT_WORK else []), *names[-MOST_AT_WORK:]]
    return f"{' > '.join(shown)} (thread {last['tid']})"


def clock_name(database: Database, session: Mapping[str, Any]) -> str:
    """As `record --clock` calls it."""
    if not database.has_clock:
        return "none"
    return "tsc" if session["resolution_ns"] is None else "coarse"


def _clock(facts: Mapping[str, Any]) -> str:
    if facts["clock"] == "none":
        return "none: the order of calls, no times"
    hertz = facts["clock_hz"]
    if facts["clock"] == "coarse":
        every = facts["resolution_ns"]
        return "coarse: exact order, times in steps" + (
            f" of {duration(every).strip()} on the average" if every else ""
        )
    return "time-stamp counter" + (f", {hertz / 1e9:.3f} GHz" if hertz else "")


def _options(options: Mapping[str, Any]) -> str:
    """The options that were given, as they are typed."""
    words = []
    for name, option in _OPTIONS.items():
        values = options.get(name)
        for value in values if isinstance(values, list) else [values] if values else []:
            words += [option, str(value)]
    if isinstance(kept := options.get("keep_last_ns"), int) and kept:
        words += ["--keep-last", f"{kept / 1e9:g}s"]
    return shlex.join([*words, *(["--no-follow"] if options.get("follow") is False else [])])


def _process_lines(processes: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    """A table of the processes, in the order they began."""
    origins = [origin(process) or "-" for process in processes]
    columns = [
        Column("pid", "PID", widest(str(process["pid"]) for process in processes)),
        Column("threads", "Threads", rank=1),
        Column("calls", "Calls", widest(style.count(process["calls"]) for process in processes)),
        Column("origin", "Origin", widest(origins), left=True, rank=2),
        Column("command", "Command"),
    ]
    columns = fit(columns, style)
    yield header(columns, style)
    room = (style.width or WIDEST_PROCESS) - taken(columns)
    lines = []
    for process, whence in zip(processes, origins, strict=True):
        command = cut(printable(command_line(process)), room)
        cells = {
            "pid": process["pid"],
            "threads": process["threads"],
            "calls": style.count(process["calls"]),
            "origin": whence,
            "command": command,
        }
        lines.append(line(columns, [str(cells[column.key]) for column in columns]))
    yield from _limited(lines)


def _module_lines(modules: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    """A table of the traced modules, those with most calls first."""
    columns = [
        Column("functions", "Functions", rank=8),
        Column("functions_called", "Called", 7),
        Column("calls", "Calls", widest(style.count(module["calls"]) for module in modules)),
        *(Column(kind, title, 7, rank=rank) for rank, (kind, title) in zip((7, 6, 5), _KINDS.items(), strict=True)),
        Column("loads", "Loads", rank=3),
        Column("path", "Module traced"),
    ]
    if any(module["patches_refused"] for module in modules):
        columns.insert(-1, Column("patches_refused", "Refused", rank=4))
    columns = fit(columns, style)
    yield header(columns, style)
    most_first = sorted(modules, key=lambda module: -module["calls"])
    yield from _limited(
        [line(columns, [_module_cell(module, column.key, style) for column in columns]) for module in most_first]
    )
    if any(module["patches_refused"] for module in modules):
        yield "Refused: patches left out, since the code in memory was not the one that was planned"


def _module_cell(module: Mapping[str, Any], key: str, style: Style) -> str:
    if key in _KINDS:
        share = module["coverage"].get(key) or {"found": 0}
        if not share["found"]:
            return "-"
        tenths = 1000 * share["patched"] // share["found"]  # rounded down: 100 % is all
        return f"{tenths / 10:.1f} %"
    value = module[key]
    return "-" if value is None else style.count(value) if isinstance(value, int) else str(value)


def _limited(lines: list[str]) -> Iterator[str]:
    yield from map(printable, lines[:MOST_LISTED])
    if len(lines) > MOST_LISTED:
        yield f"  and {len(lines) - MOST_LISTED:,} more (--format json has all)"
