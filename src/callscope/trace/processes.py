"""Processes, threads, and which module lay where and when: what journal and chunks say, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.trace.journal import (
    Crash,
    ModuleLoad,
    ModuleUnload,
    Mute,
    ProcessStart,
    Record,
    ScriptFunction,
    Switch,
    Text,
    ThreadCreated,
)

CAUSES = {records.CAUSE_LAUNCH: "launch", records.CAUSE_EXEC: "exec", records.CAUSE_FORK: "fork"}
_OF_THREADS = (records.JOURNAL_THREAD_START, records.JOURNAL_THREAD_END, records.JOURNAL_THREAD_CREATED)
FOREVER = (1 << 64) - 1
"""the end of what has not ended"""
MOST_MODULES = 1 << 16
"""modules of one process that are followed"""


@dataclass(frozen=True)
class Module:
    """An image at an address for some time.

    base: absolute address of its first byte. span: bytes. id_base: function id of its first function, 0 when it is not
    traced. load_tsc, unload_tsc: ticks; unload_tsc None: to the process's end. A module that a fork inherited has the
    parent's load_tsc. region, region_bytes: where its trampolines lie.
    """

    process: int
    base: int
    span: int
    path: str
    build_id: bytes
    id_base: int
    function_count: int
    patch_count: int
    patch_refused: int
    flags: int
    load_tsc: int
    unload_tsc: int | None = None
    region: int = 0
    region_bytes: int = 0

    @property
    def is_traced(self) -> bool:
        """Whether calls of its functions were recorded."""
        return bool(self.flags & records.MODULE_TRACED and self.id_base)


@dataclass
class Process:
    """One program image in one process: an exec begins a new one.

    number: in the session, from 1. parent: number of the process it came from, 0 when unknown. cause: launch, exec,
    fork or unknown. start_tsc, end_tsc: ticks; None when not recorded.
    """

    number: int
    pid: int
    parent: int = 0
    ppid: int = 0
    cause: str = "unknown"
    path: str = ""
    command: tuple[str, ...] = ()
    start_tsc: int | None = None
    end_tsc: int | None = None
    modules: list[Module] = field(default_factory=list)


@dataclass
class Thread:
    """A thread; number: in the session, from 1. start_tsc, end_tsc: ticks; None when not recorded.

    created: who made it, and from which call; None when not recorded.
    """

    number: int
    process: int
    pid: int
    tid: int
    name: str = ""
    start_tsc: int | None = None
    end_tsc: int | None = None
    created: ThreadCreated | None = None


@dataclass(frozen=True)
class Note:
    """A marker or a note of the agent. tsc: ticks."""

    kind: int
    tsc: int
    process: int
    thread: int
    tid: int
    code: int
    text: str


@dataclass(frozen=True)
class History:
    """What happened beside calls. processes, threads: by number. crashes: in order of time. scripts: functions of
    interpreters, in order of time. offs: by process, when recording was off, (from, until) in ticks. mutes: functions
    that were muted while the program ran, in order of time.
    """

    processes: dict[int, Process]
    threads: dict[int, Thread]
    notes: list[Note]
    crashes: list[Crash] = field(default_factory=list)
    scripts: list[ScriptFunction] = field(default_factory=list)
    offs: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    mutes: list[Mute] = field(default_factory=list)

    def muted(self) -> dict[int, int]:
        """When each muted function was muted first, in ticks, by id."""
        found: dict[int, int] = {}
        for record in self.mutes:
            found.setdefault(record.function, record.tsc)
        return found

    def switched(self, record: Switch) -> None:
        """Note that recording went off or on; what was first turned on was off until then."""
        spans = self.offs.setdefault(record.process, [])
        if not record.is_on:
            if not spans or spans[-1][1] != FOREVER:
                spans.append((record.tsc, FOREVER))
        elif not spans:
            spans.append((0, record.tsc))
        elif spans[-1][1] == FOREVER:
            spans[-1] = (spans[-1][0], max(record.tsc, spans[-1][0]))


def read_history(journal: Sequence[Record], chunks: NDArray[np.void], warnings: list[str]) -> History:
    """Put journal and chunk headers together. What only a chunk knows of is there too, with less said of it."""
    history = History({}, {}, [])
    by_pid: dict[int, int] = {}
    crowded: set[int] = set()
    # Records of different threads may be written in another order than they happened.
    for record in sorted(journal, key=lambda item: item.tsc):
        number = record.process or by_pid.get(record.pid, 0)
        if isinstance(record, ProcessStart):
            if number:
                _start_process(history, record, number)
                by_pid[record.pid] = number
            continue
        process = _process(history, number, record.pid) if number else None
        if isinstance(record, ModuleLoad) and process:
            _load(process, record, crowded)
        elif isinstance(record, ModuleUnload) and process:
            _unload(process, record)
        elif record.kind == records.JOURNAL_PROCESS_END and process:
            process.end_tsc = record.tsc
        elif isinstance(record, ScriptFunction):
            history.scripts.append(record)
        elif isinstance(record, Switch):
            history.switched(record)
        elif isinstance(record, Mute):
            history.mutes.append(record)
        elif isinstance(record, Crash):
            history.crashes.append(record)
        elif record.kind in _OF_THREADS and record.thread and process:
            _note_thread(history, process, record)
        elif isinstance(record, Text):
            history.notes.append(
                Note(record.kind, record.tsc, number, record.thread, record.tid, record.code, record.text)
            )
    warnings += [
        f"process {number} loaded more than {MOST_MODULES} modules: the rest is not followed"
        for number in sorted(crowded)
    ]
    _add_chunks(history, chunks)
    return history


def _note_thread(history: History, process: Process, record: Record) -> None:
    """A thread began, was named, or ended."""
    thread = history.threads.setdefault(record.thread, Thread(record.thread, process.number, record.pid, record.tid))
    if isinstance(record, Text):
        thread.name = record.text or thread.name
    if isinstance(record, ThreadCreated):
        thread.created = record
    elif record.kind == records.JOURNAL_THREAD_START:
        thread.start_tsc = record.tsc if thread.start_tsc is None else thread.start_tsc
    else:
        thread.end_tsc = record.tsc


def _process(history: History, number: int, pid: int) -> Process:
    return history.processes.setdefault(number, Process(number, pid))


def _start_process(history: History, record: ProcessStart, number: int) -> None:
    process = _process(history, number, record.pid)
    if process.start_tsc is not None:
        return
    process.parent, process.ppid = record.parent_process, record.ppid
    process.cause = CAUSES.get(record.cause, "unknown")
    process.path, process.command, process.start_tsc = record.path, record.command, record.tsc
    parent = history.processes.get(record.parent_process)
    if parent is None or parent is process:
        return
    if record.cause == records.CAUSE_FORK:
        inherited = [replace(module, process=number) for module in parent.modules if module.unload_tsc is None]
        process.modules[:0] = inherited
        process.path = process.path or parent.path
        process.command = process.command or parent.command
    elif record.cause == records.CAUSE_EXEC and parent.end_tsc is None:
        parent.end_tsc = record.tsc


def _load(process: Process, record: ModuleLoad, crowded: set[int]) -> None:
    if record.span <= 0 or record.base + record.span > 1 << 64:
        return
    end = record.base + record.span
    for index, other in enumerate(process.modules):
        if other.unload_tsc is None and other.base < end and record.base < other.base + other.span:
            process.modules[index] = replace(other, unload_tsc=record.tsc)
    if len(process.modules) >= MOST_MODULES:
        crowded.add(process.number)
        return
    process.modules.append(
        Module(
            process=process.number,
            base=record.base,
            span=record.span,
            path=record.path,
            build_id=record.build_id,
            id_base=record.id_base,
            function_count=record.function_count,
            patch_count=record.patch_count,
            patch_refused=record.patch_refused,
            flags=record.module_flags,
            load_tsc=record.tsc,
            region=record.region,
            region_bytes=record.region_bytes,
        )
    )


def _unload(process: Process, record: ModuleUnload) -> None:
    for index in range(len(process.modules) - 1, -1, -1):
        module = process.modules[index]
        if module.base == record.base and module.unload_tsc is None:
            process.modules[index] = replace(module, unload_tsc=record.tsc)
            return


def _add_chunks(history: History, chunks: NDArray[np.void]) -> None:
    _, first = np.unique(chunks["thread"], return_index=True)
    for chunk in chunks[first]:
        number, process, pid = int(chunk["thread"]), int(chunk["process"]), int(chunk["pid"])
        thread = history.threads.setdefault(number, Thread(number, process, pid, int(chunk["tid"])))
        thread.process = process
        _process(history, process, pid)


def ends(history: History, trace_end: int) -> dict[int, int]:
    """For every thread the time, in ticks, when it ended: by its own record, its process's, or the trace's end."""
    return {
        thread.number: thread.end_tsc or history.processes[thread.process].end_tsc or trace_end
        for thread in history.threads.values()
    }


def all_modules(processes: Iterable[Process]) -> list[Module]:
    """The modules of all processes, in order of process and load."""
    return [module for process in processes for module in process.modules]
