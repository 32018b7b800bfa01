"""Which calls a report is about: options that several commands share, as conditions of SQL."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callscope.errors import TraceError
from callscope.globs import NameGlob, without_parameters
from callscope.reports.database import Database
from callscope.reports.session import checked
from callscope.reports.text import printable

MOST_LISTED = 12


@dataclass(frozen=True)
class Selection:
    """Calls to look at.

    functions: globs, none for all. thread, process: the system's ids. min_duration_ns: shorter calls are left out.
    last: only the calls that started last, so many; 0 for all.
    """

    functions: tuple[str, ...] = ()
    thread: int | None = None
    process: int | None = None
    min_duration_ns: int = 0
    last: int = 0


def check_calls(database: Database) -> None:
    """Raise TraceError, which says why, when the trace holds no call at all."""
    if database.call_count:
        return
    session = checked(database.session)
    options = session["options"]
    if session["rejected"]:
        listed = "; ".join(f"{entry['path']}: {entry['reason']}" for entry in session["rejected"][:3])
        reason = f"modules that could not be traced: {listed}"
    elif any(options.get(name) for name in ("functions", "excludes", "exclude_files")):
        reason = "perhaps no function that was called matched --function and --exclude"
    elif session["status"] == "recording":
        reason = "the recording did not end, or goes on"
    else:
        reason = "no function of the modules traced was called"
    raise TraceError(f"no calls in {database.trace}: {printable(reason)}; see callscope info {database.trace}")


def functions_matching(database: Database, globs: Sequence[str]) -> list[int]:
    """Ids of the called functions that any glob matches. Raises TraceError when a glob matches none."""
    rows = database.rows("SELECT function_id, name, module, path FROM functions WHERE traced ORDER BY function_id")
    found: set[int] = set()
    for text in globs:
        glob = NameGlob(text)
        modules = {path: glob.matches_module(path) for path in {row["path"] or row["module"] for row in rows}}
        matches = {
            row["function_id"]
            for row in rows
            if modules[row["path"] or row["module"]] and glob.matches_name(row["name"])
        }
        if not matches:
            raise TraceError(f"no function called matches {text!r}{_similar(glob.name, [row['name'] for row in rows])}")
        found |= matches
    return sorted(found)


def threads_matching(database: Database, selection: Selection) -> list[int] | None:
    """The numbers of the threads chosen, in order; None for all. Raises TraceError when there are none."""
    if selection.thread is None and selection.process is None:
        return None
    rows = database.rows("SELECT thread, pid, tid FROM threads ORDER BY thread")
    if selection.process is not None:
        _check_known("process", selection.process, [row["pid"] for row in rows])
        rows = [row for row in rows if row["pid"] == selection.process]
    if selection.thread is not None:
        _check_known("thread", selection.thread, [row["tid"] for row in rows])
        rows = [row for row in rows if row["tid"] == selection.thread]
    return [row["thread"] for row in rows]


def check_clock(database: Database) -> None:
    """Raise TraceError when calls cannot be chosen by their times."""
    if not database.has_clock:
        raise TraceError(f"{database.trace} was recorded without a clock: leave --min-duration out")


def condition(database: Database, selection: Selection) -> str:
    """What `call_rows` must meet, `last` apart, as SQL."""
    terms = []
    threads = threads_matching(database, selection)
    if threads is not None:
        terms.append(f"thread IN ({', '.join(map(str, threads))})" if threads else "false")
    if selection.min_duration_ns:
        check_clock(database)
        terms.append(f"duration_ns >= {int(selection.min_duration_ns)}")
    if selection.functions:
        chosen = functions_matching(database, selection.functions)
        database.create_table("chosen_functions", "function_id INTEGER", [(number,) for number in chosen])
        terms.append("function_id IN (SELECT function_id FROM chosen_functions)")
    return " AND ".join(terms) or "true"


def main_module(path: str | None) -> str:
    """The name of a process's own module, whose functions are shown without a module."""
    return Path(path or "").name


def command_line(process: Mapping[str, Any]) -> str:
    """What a process runs; `process` is a row of `processes`."""
    return shlex.join(process.get("command") or [process.get("path") or "?"])


def origin(process: Mapping[str, Any]) -> str:
    """Where a process came from: 'fork of 77', 'exec', or '' for the first."""
    cause = process.get("cause") or ""
    return f"fork of {process.get('ppid')}" if cause == "fork" else "" if cause in ("launch", "unknown") else cause


def label(name: str, module: str | None, own: str | None = None) -> str:
    """`module!name`, as globs have it, unless the module is `own` or already part of the name."""
    return name if not module or module == own or name.startswith(f"{module}+0x") else f"{module}!{name}"


def _check_known(kind: str, number: int, known: list[int]) -> None:
    if number not in known:
        numbers = sorted(set(known))
        listed = ", ".join(map(str, numbers[:MOST_LISTED])) + (", ..." if len(numbers) > MOST_LISTED else "")
        raise TraceError(f"there is no {kind} {number} in the trace: choose from {listed or 'none'}")


def _similar(glob: str, names: list[str]) -> str:
    """Advice for a glob that matched nothing."""
    plain = glob.strip("*").lower()
    bases = sorted({without_parameters(name) for name in names})
    close = [name for name in bases if plain and plain in name.lower()] or difflib.get_close_matches(glob, bases, 3)
    if not close:
        return ": callscope report lists the functions called"
    return f": did you mean {' or '.join(repr(printable(name)) for name in close[:3])}?"
