"""Puts the agent into a Linux program that runs, and takes it out again: ptrace(2), a borrowed thread, and the
functions of `native/agent/linux/attach.c`.

Loading the agent, asking for plans and mapping trampolines happen while the program's other threads run; they stand
still only while patches are written. Nothing is left behind by a detachment but the agent's library, which no code
leads to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callscope.binary.open import read_build_id
from callscope.errors import RecordError
from callscope.native import AGENT_NAME, PYTHON_NAME, library_path
from callscope.recording import attach_python
from callscope.recording.borrow import STACK_BYTES, Borrowed, Places, borrowed, libc_errno, places_of
from callscope.recording.halt import Halt, find_restorers, halted, is_inside
from callscope.recording.handing import Channel, is_foreign, reachable
from callscope.recording.process import PROC, Process
from callscope.recording.ptrace import is_permission
from callscope.recording.running import check_process, executable, refusal
from callscope.recording.server import Server

_DONE, _ALREADY, _BUSY, _NO_SESSION, _CHANGED = range(5)
"""enum outcome of native/agent/linux/attach.c"""
_NOW_GLOBAL = 0x102
"""RTLD_NOW | RTLD_GLOBAL (<dlfcn.h>): the recorder of Python calls looks the agent's functions up by name"""
_READ_WRITE, _PRIVATE_ANONYMOUS, _NO_FILE = 3, 0x22, (1 << 64) - 1
_MAP_FAILED = (1 << 64) - 4096
_TRIES, _PAUSE = 200, 0.005
"""tries, and seconds between them, until all threads can stand still where nothing is overwritten"""
_MOST_REGIONS = 4096
_LONGEST_PATH = 4095


@dataclass(frozen=True)
class Injection:
    """What became of it. seconds: for which threads stood still. python: calls of Python functions are recorded."""

    seconds: float
    python: bool


def inject(pid: int, session: Path, server: Server, python_rules: str | None = None) -> Injection:
    """Begin a session in a process.

    session: the trace directory. server: answers its questions. python_rules: which Python functions; None for no
    calls of such. Raises RecordError.
    """
    with opened(pid) as process:
        libc = _libc(process)
        restorers = find_restorers(process)
        attach_python.has_ended(process, attach_python.recorder_symbols(process))
        with borrowed(process, places_of(process, libc, _agent_code(process), _trampolines(process))) as loan:
            with _scratch(loan, libc):
                channel = Channel(loan, libc) if is_foreign(pid) else None
                agent = _agent(process) or _load(loan, libc, channel, AGENT_NAME, _agent)
                python: dict[str, int] = {}
                if python_rules is not None:
                    known = attach_python.recorder_symbols
                    python = known(process) or _load(loan, libc, channel, PYTHON_NAME, known)
                handed = _hand(channel, process, session, server) if channel else {}
            with _memory(loan, agent), _given(loan, agent, handed):
                _begin(loan, agent, session, server.path)
                try:
                    seconds = _patch(loan, agent, restorers)
                except RecordError:
                    loan.call(agent["callscope_attach_abort"])
                    raise
                loan.call(agent["callscope_attach_settle"])
                if python:
                    attach_python.begin(loan, python, python_rules or "")
        return Injection(seconds, bool(python) and attach_python.is_recording(process, python))


def withdraw(pid: int) -> float:
    """End the session of a process and give it its own code back; the seconds for which its threads stood still.

    Raises RecordError, also when the process is not recorded.
    """
    with opened(pid) as process:
        agent = _agent(process)
        if not agent:
            raise RecordError(f"process {pid} is not being recorded: see callscope attach")
        restorers = find_restorers(process)
        places = places_of(process, _libc(process), _agent_code(process), _trampolines(process))
        _end_python(process, places)
        with borrowed(process, places) as loan, _memory(loan, agent):
            if loan.call(agent["callscope_detach_begin"]) != _DONE:
                raise RecordError(f"process {pid} is not being recorded from outside: it ends its recording itself")
            return _restore(loan, agent, restorers)


def _end_python(process: Process, places: Places) -> None:
    python = attach_python.recorder_symbols(process)
    if python and attach_python.is_recording(process, python):
        with borrowed(process, places) as loan:
            attach_python.end(loan, python)
        attach_python.has_ended(process, python)


@contextmanager
def opened(pid: int) -> Iterator[Process]:
    """A process that can be attached to. Raises RecordError with what is in the way."""
    check_process(pid)
    try:
        with closing(Process(pid)) as process:
            yield process
    except (FileNotFoundError, ProcessLookupError):
        raise RecordError(f"process {pid} ended while it was attached to") from None
    except OSError as error:
        if is_permission(error):
            raise RecordError(refusal(pid)) from None
        raise RecordError(f"process {pid} cannot be changed: {error.strerror or error}; try again") from None


def _libc(process: Process) -> dict[str, int]:
    """Symbols of the C library, and of the library that dlopen is in before glibc 2.34."""
    found: dict[str, int] = {}
    for path, base in process.libraries().items():
        if Path(path).name.startswith(("libc.so", "libc-2.", "libdl.so", "libdl-2.")):
            found = process.symbols(base) | found
    if not found.keys() & {"dlopen", "__libc_dlopen_mode"} or "mmap" not in found:
        raise RecordError(f"process {process.pid} has no C library that can load the agent: record it from its start")
    return found


def _agent(process: Process) -> dict[str, int]:
    """Symbols of the agent, empty when it is not loaded. Raises RecordError for that of another version."""
    for path, base in process.libraries().items():
        if Path(path.removesuffix(" (deleted)")).name == AGENT_NAME:
            if process.build_id(base) != read_build_id(library_path(AGENT_NAME)):
                raise RecordError(f"process {process.pid} has an agent of another callscope: start it again")
            return process.symbols(base)
    return {}


def _agent_code(process: Process) -> list[tuple[int, int]]:
    """Code of the agent's, and of the library that writes events of Python calls."""
    own = (AGENT_NAME, PYTHON_NAME)
    return [(found.start, found.end) for found in process.maps if "x" in found.protection and found.name in own]


def _trampolines(process: Process) -> list[tuple[int, int]]:
    """Code that was mapped from plans."""
    return [
        (found.start, found.end) for found in process.maps if "x" in found.protection and found.name.endswith(".plan")
    ]


@contextmanager
def _scratch(loan: Borrowed, libc: dict[str, int]) -> Iterator[None]:
    """Memory for calls of the C library to run on, whose errno is the program's again after the block."""
    memory = loan.call(libc["mmap"], 0, STACK_BYTES, _READ_WRITE, _PRIVATE_ANONYMOUS, _NO_FILE, 0)
    if memory >= _MAP_FAILED:
        raise RecordError("the program has no room for the agent: its address space is limited")
    loan.stack = memory
    errno = libc_errno(loan, libc["__errno_location"])
    try:
        yield
    finally:
        loan.process.write(*errno)
        loan.stack = 0
        loan.call(libc["munmap"], memory, STACK_BYTES)


def _load(
    loan: Borrowed,
    libc: dict[str, int],
    channel: Channel | None,
    name: str,
    find: Callable[[Process], dict[str, int]],
) -> dict[str, int]:
    """Have the program's loader load a library of ours, with a channel from a file that is handed over; its symbols, as
    `find` finds them then.
    """
    path, process = library_path(name), loan.process
    if channel is None:
        _open_library(loan, libc, str(path))
    else:
        with reachable(channel, process.pid, path) as there:
            _open_library(loan, libc, there)
    process.refresh()
    found = find(process)
    if not found:
        raise RecordError(f"{name} was loaded, and is not there: the program's loader is unknown")
    return found


def _open_library(loan: Borrowed, libc: dict[str, int], path: str) -> None:
    loan.process.write(loan.stack, os.fsencode(path) + b"\0")
    if loan.call(libc.get("dlopen") or libc["__libc_dlopen_mode"], loan.stack, _NOW_GLOBAL):
        return
    reason = ""
    if "dlerror" in libc and (text := loan.call(libc["dlerror"])):
        reason = loan.process.read(text, 256).split(b"\0")[0].decode(errors="replace")
    raise RecordError(f"the program's loader refuses the agent: {reason or 'for no given reason'}")


def _hand(channel: Channel, process: Process, session: Path, server: Server) -> dict[str, int]:
    """Hand over what the agent is going to open: path -> descriptor of the program's."""
    own = PROC / str(process.pid)
    wanted = {str(session / name): (session / name, os.O_RDWR) for name in ("events", "journal")}
    wanted |= {f"/proc/self/{name}": (own / name, os.O_RDONLY) for name in ("auxv", "stat", "cmdline")}
    files = [os.open(path, how) for path, how in wanted.values()]
    try:
        numbers = channel.hand(files)
    finally:
        for file in files:
            os.close(file)
    server.serve(channel.end)
    return dict(zip(wanted, numbers, strict=True)) | {str(server.path): channel.descriptor}


@contextmanager
def _given(loan: Borrowed, agent: dict[str, int], handed: dict[str, int]) -> Iterator[None]:
    """Let the agent have what was handed over, within the block."""
    for path, descriptor in handed.items():
        loan.process.write(loan.stack, os.fsencode(path) + b"\0")
        loan.call(agent["callscope_attach_give"], loan.stack, descriptor)
    try:
        yield
    finally:
        loan.call(agent["callscope_attach_give_up"])


@contextmanager
def _memory(loan: Borrowed, agent: dict[str, int]) -> Iterator[None]:
    """Memory for calls to run on, within the block."""
    memory = loan.call(agent["callscope_attach_map"], STACK_BYTES)
    if not memory:
        raise RecordError("the program has no room for the agent: its address space is limited")
    loan.stack = memory
    try:
        yield
    finally:
        loan.stack = 0
        loan.call(agent["callscope_attach_unmap"], memory, STACK_BYTES)


def _begin(loan: Borrowed, agent: dict[str, int], session: Path, recorder: Path) -> None:
    paths = [os.fsencode(path) + b"\0" for path in (session, recorder, executable(loan.process.pid))]
    if max(map(len, paths)) > _LONGEST_PATH:
        raise RecordError(f"the path {session} is too long: choose a shorter one with -o")
    loan.process.write(loan.stack, b"".join(paths))
    places = [loan.stack + sum(map(len, paths[:number])) for number in range(len(paths))]
    for _ in range(_TRIES):
        outcome = loan.call(agent["callscope_attach_begin"], *places)
        if outcome != _BUSY:
            break
        time.sleep(_PAUSE)
    if outcome == _ALREADY:
        raise RecordError(f"process {loan.process.pid} is recorded already: end that first, with callscope detach")
    if outcome == _BUSY:
        raise RecordError("the program loads libraries all the time: try again")
    if outcome != _DONE:
        raise RecordError(
            f"the program cannot map the trace {session}: its user must be able to write there; choose with -o"
        )


def _patch(loan: Borrowed, agent: dict[str, int], restorers: list[int]) -> float:
    """Write what was prepared, with all threads at a standstill; for how many seconds."""
    for _ in range(_TRIES):
        outcome = -1
        with halted(loan, restorers) as halt:
            if halt and (answer := halt.ask(agent["callscope_attach_commit"])):
                outcome, places = answer
                if outcome == _DONE:
                    halt.apply(places)
        if halt and outcome == _DONE:
            return halt.seconds
        if outcome == _CHANGED:
            loan.call(agent["callscope_attach_look"])
        time.sleep(_PAUSE)
    raise RecordError("the program's threads cannot be stopped outside of what is to be patched: try again")


def _restore(loan: Borrowed, agent: dict[str, int], restorers: list[int]) -> float:
    """Write back the program's own code, with all threads at a standstill; for how many seconds."""
    process = loan.process
    count = loan.call(agent["callscope_attach_regions"], loan.stack, _MOST_REGIONS)
    table = np.frombuffer(process.read(loan.stack, 16 * count), np.uint64).reshape(-1, 2)
    regions = [(int(start), int(end)) for start, end in table]
    for left in reversed(range(_TRIES)):
        with halted(loan, restorers) as halt:
            clear = _take_back(halt, agent, regions, left < _TRIES // 2) if halt else None
        if halt and clear is not None:
            loan.call(agent["callscope_detach_settle"], clear)
            return halt.seconds
        time.sleep(_PAUSE)
    raise RecordError("the program's threads cannot be stopped outside of what was patched: try again")


def _take_back(halt: Halt, agent: dict[str, int], regions: list[tuple[int, int]], hurried: bool) -> int | None:
    """Write the program's own code; 1 when no thread is in a trampoline or the agent, so these can go, else 0.

    None when it is not done. hurried: do it also while a thread waits in a trampoline, or below a signal handler.
    """
    loan = halt.loan
    own = _agent_code(loan.process)
    answer = halt.ask(agent["callscope_detach_places"])
    if answer is None:
        return None
    _, places = answer
    clear = not is_inside(places.rows, [*regions, *own])
    working = is_inside(places.threads, own)
    if working or not (clear or hurried):
        return None
    loan.process.write(loan.stack, places.threads.tobytes())
    loan.call(agent["callscope_detach_commit"], loan.stack, len(places.threads), int(clear))
    halt.apply(places)
    return int(clear)
