"""uftrace's data directory, for `uftrace report`, `replay`, `graph`, `tui`, `dump` and its scripts (-d DIR).

Source: https://github.com/namhyung/uftrace, version 4 of the format: uftrace.h (header, record), utils/data-file.c
(task.txt), utils/symbol.c (*.sym), utils/dwarf.c (*.dbg), utils/session.c (*.map).

Each module has a place of its own, the same in all processes, so that libraries which lay at one address one after the
other stay apart. uftrace knows 1024 levels: deeper calls are left out. Arguments and markers are, too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from callscope.exporters.steps import step_batches
from callscope.exporters.walk import threads
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, command_line
from callscope.reports.text import printable

MOST_LEVELS: Final = 1024
_HEADER = struct.Struct("<8sIHBBQQHHI")
_VERSION, _LITTLE_ENDIAN, _ELF64 = 4, 1, 2
_TASK_SESSION, _SYMBOLS_RELATIVE, _HAS_MAX_STACK, _HAS_LINES = 1 << 1, 1 << 5, 1 << 6, 1 << 10
_INFO_PROGRAM, _INFO_COMMAND, _INFO_TASKS = 1 << 0, 1 << 3, 1 << 7
_MAGIC = 5 << 3
_EXIT = 1
_SPAN = 1 << 32
_STACK = "7fff00000000-7fffffff0000 rw-p 00000000 00:00 0                          [stack]"
"""The last line of a map: uftrace takes what lies behind the stack for the kernel's."""
_PAGE = 0x1000
_SPACING = 16


def write(database: Database, selection: Selection, directory: Path) -> None:
    """Write the files into an empty directory. Of `selection` thread and process are regarded. Raises TraceError."""
    check_calls(database)
    begin = int(((database.session.get("clock") or {}).get("start") or {}).get("monotonic_ns") or 0)
    processes = database.rows("SELECT * FROM processes ORDER BY process")
    modules = _Modules(directory)
    addresses = modules.write_symbols(database)
    known = np.array(sorted(addresses), np.int64)
    places = np.array([addresses[number] for number in known.tolist()], np.uint64)
    who = threads(database)
    written: dict[int, None] = {}
    for batch in step_batches(database, selection):
        steps = batch.steps[batch.steps["depth"] < MOST_LEVELS]
        written[batch.thread] = None
        records = np.empty((len(steps), 2), np.uint64)
        records[:, 0] = steps["time"] + begin
        at = np.minimum(np.searchsorted(known, steps["function"]), max(len(known) - 1, 0))
        kind = np.where(steps["is_entry"] != 0, _MAGIC, _MAGIC | _EXIT).astype(np.uint64)
        records[:, 1] = kind | steps["depth"].astype(np.uint64) << np.uint64(6) | places[at] << np.uint64(16)
        with _file(directory / f"{who[batch.thread][1]}.dat", append=True) as file:
            file.write(records.tobytes())
    _write_tasks(database, list(written), processes, begin, modules, directory)


class _Modules:
    """Where modules lie, and their files of symbols and of lines, named after them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bases: dict[str, int] = {}
        self._shown: dict[str, str] = {}
        self._names: set[str] = set()

    def base(self, path: str) -> int:
        """Where a module lies."""
        if path not in self._bases:
            self._bases[path] = (len(self._bases) + 1) * _SPAN
            shown = "/" + "_".join(printable(path).split()).lstrip("/")
            while shown.rpartition("/")[2] in self._names or shown.endswith("/"):
                shown += f"~{len(self._bases)}"
            self._names.add(shown.rpartition("/")[2])
            self._shown[path] = shown
        return self._bases[path]

    def shown(self, path: str) -> str:
        """A module's path as uftrace is told: without spaces, its last part different from all others'."""
        self.base(path)
        return self._shown[path]

    def lines(self) -> Iterator[str]:
        """The map of a process."""
        for path, base in self._bases.items():
            yield f"{base:x}-{base + _SPAN:x} r-xp 00000000 00:00 0                          {self._shown[path]}"
        yield _STACK

    def write_symbols(self, database: Database) -> dict[int, int]:
        """Write the files of all modules; where functions lie, by number."""
        rows = database.rows("SELECT function_id, path, name, address, file, line FROM functions ORDER BY function_id")
        of_path: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            of_path.setdefault(row["path"] or row["file"] or "?", []).append(row)
        found: dict[int, int] = {}
        for path, functions in of_path.items():
            _place(functions)
            base = self.base(path)
            found |= {row["function_id"]: base + row["address"] for row in functions}
            file = self._directory / self.shown(path).rpartition("/")[2]
            _lines(file.with_name(f"{file.name}.sym"), _symbols(self.shown(path), functions))
            _lines(file.with_name(f"{file.name}.dbg"), _places(self.shown(path), functions))
        return found


def _place(functions: list[dict[str, Any]]) -> None:
    """Sort by address; where addresses are missing or not different (scripts), make some up."""
    addresses = {row["address"] for row in functions}
    if (
        None in addresses
        or len(addresses) < len(functions)
        or not all(0 < place < _SPAN - _PAGE for place in addresses)
    ):
        for number, row in enumerate(functions):
            row["address"] = _PAGE + _SPACING * number
    functions.sort(key=lambda row: row["address"])


def _symbols(path: str, functions: list[dict[str, Any]]) -> Iterator[str]:
    yield from (f"# symbols: {len(functions) + 1}", f"# path name: {path}")
    yield from (f"{row['address']:016x} T {printable(row['name'] or '?')}" for row in functions)
    yield f"{functions[-1]['address'] + _SPACING:016x} ? __sym_end"


def _places(path: str, functions: list[dict[str, Any]]) -> Iterator[str]:
    yield f"# path name: {path}"
    for row in functions:
        if row["file"]:
            yield f"F: {row['address']:x} {printable(row['name'] or '?')}"
            yield f"L: {row['line'] or 0} {printable(row['file'])}"


def _write_tasks(
    database: Database,
    written: list[int],
    processes: list[dict[str, Any]],
    begin: int,
    modules: _Modules,
    directory: Path,
) -> None:
    """Who ran when: task.txt, the processes' maps, and `info`."""

    def stamp(row: dict[str, Any]) -> str:
        time = begin + (row["start_ns"] or 0)
        return f"timestamp={time // 1_000_000_000}.{time % 1_000_000_000:09d}"

    tasks = []
    for row in processes:
        modules.base(row["path"] or "?")
        session = f"{row['process']:016x}"
        name = modules.shown(row["path"] or "?")
        tasks.append((row["start_ns"] or 0, f'SESS {stamp(row)} pid={row["pid"]} sid={session} exename="{name}"'))
    for row in processes:
        _lines(directory / f"sid-{row['process']:016x}.map", modules.lines())
    rows = [row for row in database.rows("SELECT * FROM threads ORDER BY thread") if row["thread"] in written]
    tasks += [(row["start_ns"] or 0, f"TASK {stamp(row)} tid={row['tid']} pid={row['pid']}") for row in rows]
    _lines(directory / "task.txt", [line for _, line in sorted(tasks, key=lambda task: task[0])])
    tids = list(dict.fromkeys(str(row["tid"]) for row in rows))
    told = [
        f"exename:{modules.shown(processes[0]['path'] or '?') if processes else '?'}",
        f"cmdline:{printable(command_line(database.session))}",
        "taskinfo:lines=2",
        f"taskinfo:nr_tid={len(tids)}",
        f"taskinfo:tids={','.join(tids)}",
    ]
    features = _TASK_SESSION | _SYMBOLS_RELATIVE | _HAS_MAX_STACK | _HAS_LINES
    header = _HEADER.pack(
        b"Ftrace!", _VERSION, _HEADER.size, _LITTLE_ENDIAN, _ELF64, features,
        _INFO_PROGRAM | _INFO_COMMAND | _INFO_TASKS, MOST_LEVELS, 0, 0,
    )  # fmt: skip
    with _file(directory / "info") as file:
        file.write(header)
        file.writelines(f"{line}\n".encode("utf-8", "replace") for line in told)
    _lines(directory / "default.opts", [])


def _file(path: Path, append: bool = False) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_EXCL)
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _lines(path: Path, lines: Iterable[str]) -> None:
    with _file(path) as file:
        file.writelines(f"{line}\n".encode("utf-8", "replace") for line in lines)
