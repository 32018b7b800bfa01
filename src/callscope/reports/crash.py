"""What happened when a program crashed: `callscope crash`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from callscope import format as records
from callscope.binary.open import open_image
from callscope.binary.stack_effects import pushed_first
from callscope.errors import CallscopeError, TraceError
from callscope.native import AGENT_NAME, WINDOWS_AGENT_NAME, library_path
from callscope.reports import crash_ending
from callscope.reports.crash_calls import innermost_since, last_calls, open_calls
from callscope.reports.crash_causes import Fault, describe
from callscope.reports.crash_exception import exception_of
from callscope.reports.crash_memory import Memory, Registers, SignalFrame, registers_of, vector_registers
from callscope.reports.crash_trampoline import Region, read_region, undo, without_volatile
from callscope.reports.crash_unwind import Unwinder
from callscope.reports.database import Database
from callscope.reports.frames import Frame
from callscope.trace.journal import Crash
from callscope.trace.open import Trace, open_trace
from callscope.trace.processes import Module

SIGNALLED: Final = 128
"""An exit status above it is 128 + the signal that ended the program."""
_BREAKPOINT: Final = (signal.SIGTRAP, 0x80)
"""Signal and code of a breakpoint instruction: rip is already behind it."""
_TERMINATE: Final = (
    "std::terminate", "gnu_cxx::__verbose_terminate_handler", "cxxabiv1::__terminate", "std::__terminate",
    "clang_call_terminate", "cxa_call_terminate", "gxx_personality_v0", "cxxabiv1::failed_throw",
)  # fmt: skip
_THROWING: Final = (
    "cxa_throw", "cxa_rethrow", "Unwind_RaiseException", "Unwind_Resume_or_Rethrow", "clang_call_terminate",
)  # fmt: skip
_ABORTS: Final = ("abort", "assert", "wassert")
"""what ends a Windows program so that its agent sees the end only; the last byte of the status is 3 then"""
_ABORT_STATUS: Final = 3
_ROUTINES: Final = ("cs_entry", "cs_exit", "cs_tail", "cs_landing", "cs_call_")


def chosen_crash(trace: Trace, process: int | None = None) -> Crash | None:
    """The crash that a report is about: that of the program itself, else the last. process: look at this pid only.

    A record does not count when its process outlived it: the program handled the fault.
    """
    found = [crash for crash in trace.history.crashes if process in (None, crash.pid) and _counts(trace, crash)]
    found.sort(key=lambda crash: (crash.pid == trace.session.get("main_pid"), crash.tsc))
    return found[-1] if found else None


def count_crashes(path: Path) -> int:
    """How many processes of a trace crashed; none when only its calls table can be read."""
    with suppress(TraceError):
        return crash_count(open_trace(path))
    return 0


def crash_count(trace: Trace) -> int:
    """How many processes crashed."""
    recorded = len({crash.pid for crash in trace.history.crashes if _counts(trace, crash)})
    return recorded or int(crash_ending.ending_status(trace) is not None)


def facts(trace: Trace, database: Database, last: int, process: int | None = None) -> dict[str, Any] | None:
    """The report about what ended the program, as `report` has it; None when it did not crash."""
    chosen = chosen_crash(trace, process)
    if chosen is not None:
        return report(trace, database, chosen, last)
    status = crash_ending.ending_status(trace, process)
    return None if status is None else crash_ending.report(trace, database, status, last)


def _counts(trace: Trace, crash: Crash) -> bool:
    flags = crash.fields["crash_flags"]
    if flags & records.CRASH_AT_EXIT:
        return True
    if flags & records.CRASH_RAISED and not crash.ended(trace.session):
        return False
    process = trace.history.processes.get(crash.process)
    if process is not None and process.end_tsc is not None and process.end_tsc > crash.tsc:
        return False
    if flags & records.CRASH_HANDLED:  # the kernel ended the program in its handler, or the handler went on
        status = trace.session.get("exit_status")
        own = crash.pid == trace.session.get("main_pid")
        return own and isinstance(status, int) and status - SIGNALLED == crash.fields["code"]
    return True


@dataclass(frozen=True)
class _Scene:
    """A crash with what interprets it. registers: as the program would have had them.

    raw_rip: where the thread stopped in fact, if that was in a trampoline or in the agent. handled: the record of the
    fault at the very same place that a handler of the program had before.
    """

    crash: Crash
    registers: Registers
    frames: list[Frame]
    problem: str | None
    raw_rip: int | None
    handled: Crash | None


def report(trace: Trace, database: Database, crash: Crash, last: int) -> dict[str, Any]:
    """The crash as JSON has it. Times in nanoseconds since the session's start; addresses as numbers and as text.

    signal, signal_name, thread_id, register_context, backtrace, crash_time and crash_timestamp are what CallTrace's
    `crash` object has; a register that is not known is None.
    """
    warnings: list[str] = []
    scene = _scene(trace, crash, warnings)
    cause, registers, frames = _cause(scene)
    when = trace.clock.when(crash.tsc)
    fields = crash.fields
    own = cause is None
    fault = Fault(fields["code"], fields["detail"], fields["fault_address"])
    if cause is not None:
        fault = Fault(cause.signal, cause.detail & 0xFFFFFFFF, cause.fault_address)
    at = trace.clock.ns(crash.tsc)
    thread = trace.history.threads.get(crash.thread)
    # Windows has process ids of its own.
    main = (
        crash.process == 1 if fields["system"] == records.CRASH_WINDOWS else trace.session.get("main_pid") == crash.pid
    )
    return {
        **describe(fields["system"], fault, _overflowed(crash, registers, fault.address)),
        "thread_id": crash.tid,
        "thread_name": fields["name"] or (thread.name if thread else ""),
        "process_id": crash.pid,
        "register_context": {name: value for name, value in registers.items() if value is not None or own},
        "vector_registers": {name: hex(value) for name, value in _vectors(crash).items()} if own else {},
        "in_trampoline": scene.raw_rip is not None,
        "backtrace": [_frame_json(frame) for frame in frames],
        "backtrace_ends": scene.problem,
        "uncaught_exception": any(_plain(frame) in _TERMINATE for frame in frames),
        "exception": exception_of(crash) if _may_be_thrown(crash, frames) else None,
        "handled_by_program": bool(fields["crash_flags"] & records.CRASH_HANDLED)
        or scene.handled is not None
        or not own,
        "earlier_faults": _earlier(frames),
        "second_fault": innermost_since(database, crash, at) if main and _faulted_again(trace, crash) else None,
        "ended_by": _ending(trace, crash, scene, own) if main else None,
        "exit_status": trace.session.get("exit_status") if main else None,
        "open_calls": open_calls(database, crash, at),
        "last_calls": last_calls(database, crash, at, last),
        "crash_time": when.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if when else None,
        "crash_timestamp": when.timestamp() if when else None,
        "crash_ns": at if trace.has_clock else None,
        "processes_crashed": crash_count(trace),
        "warnings": warnings,
    }


def _plain(frame: Frame) -> str:
    """A function's name without parameters, which a PDB gives C functions too, and leading underscores."""
    return (frame.function or "").partition("(")[0].lstrip("_")


def _may_be_thrown(crash: Crash, frames: Sequence[Frame]) -> bool:
    """Whether the exception in a record is what the thread was at: on Windows it is the one thrown last, which may be
    over unless its throwing led here.
    """
    return crash.fields["system"] == records.CRASH_LINUX or any(_plain(frame) in _THROWING for frame in frames)


def _vectors(crash: Crash) -> dict[str, int]:
    return vector_registers(crash.fields, crash.vector)


def _scene(trace: Trace, crash: Crash, warnings: list[str]) -> _Scene:
    """Undo what the agent did, and walk the stack."""
    # Copies of the same thread made before may hold the stack that a handler on another one interrupted.
    others = [other for other in trace.history.crashes if other.tid == crash.tid and other.pid == crash.pid]
    copies = [crash, *sorted((o for o in others if o is not crash and o.tsc < crash.tsc), key=lambda o: -o.tsc)]
    pieces = [(copy.fields["stack_address"], copy.stack) for copy in copies]
    memory = Memory([*pieces, (crash.fields["code_address"], crash.code)])
    modules = _modules_at(trace, crash)
    agent = _agent(crash, warnings)
    unwinder = Unwinder([*modules, *([agent] if agent else [])], memory, warnings)
    registers = registers_of(crash)
    raw = registers["rip"]
    assert raw is not None
    found = _as_program(trace, unwinder, modules, agent, registers, memory)
    fields = crash.fields
    behind = fields["system"] == records.CRASH_LINUX and (fields["code"], fields["detail"]) == _BREAKPOINT
    frames = list(unwinder.walk(found or registers, exact=not behind))
    if fields["system"] == records.CRASH_WINDOWS and fields["crash_flags"] & records.CRASH_AT_EXIT:
        return _at_abort(crash, registers, frames, unwinder)
    same = ("code", "rip", "registers")
    handled = next((c for c in copies[1:] if all(c.fields[name] == crash.fields[name] for name in same)), None)
    return _Scene(crash, found or registers, frames, unwinder.problem, raw if found else None, handled)


def _at_abort(crash: Crash, registers: Registers, frames: list[Frame], unwinder: Unwinder) -> _Scene:
    """The agent saw the end of a process: what ended it is further out."""
    problem = unwinder.problem
    index = next((i for i, frame in enumerate(frames) if _plain(frame) in _ABORTS), 0)
    current: Registers | None = registers
    for i in range(index):
        current = unwinder.caller(current, exact=i == 0) if current is not None else None
    return _Scene(crash, without_volatile(current or {}) if index else registers, frames[index:], problem, None, None)


def _modules_at(trace: Trace, crash: Crash) -> list[Module]:
    process = trace.history.processes.get(crash.process)
    modules = process.modules if process is not None else []
    return [m for m in modules if m.load_tsc <= crash.tsc and (m.unload_tsc is None or m.unload_tsc > crash.tsc)]


def _agent(crash: Crash, warnings: list[str]) -> Module | None:
    """The agent as a module, when the crash is in it or may lead through it, and it is the one installed here."""
    name = WINDOWS_AGENT_NAME if crash.fields["system"] == records.CRASH_WINDOWS else AGENT_NAME
    base = crash.fields["agent_base"]
    with suppress(CallscopeError):
        path = library_path(name)
        image = open_image(path)
        if base:
            return Module(crash.process, base, image.span, str(path), image.build_id, 0, 0, 0, 0, 0, 0)
    warnings.append("the agent's own code is not known here: a crash in it cannot be undone")
    return None


def _as_program(
    trace: Trace, unwinder: Unwinder, modules: Sequence[Module], agent: Module | None, registers: Registers,
    memory: Memory,
) -> Registers | None:  # fmt: skip
    """The registers as they would be without us; None when the thread stopped in the program's own code."""
    current: Registers | None = registers
    exact = True
    while current is not None and agent is not None and unwinder.module_at(current["rip"] or 0) is agent:
        current = _leave_routine(unwinder, agent, current, exact)
        exact = False
    if current is None or current["rip"] is None:
        return None
    rip = current["rip"]
    module = next((m for m in modules if 0 <= rip - m.region < m.region_bytes), None)
    if module is None:
        return None
    region = _region(trace, module)
    found = undo(region, rip - module.region, current, memory) if region is not None else None
    if found is None:
        return None
    rva, out = found
    out["rip"] = module.base + rva
    return out


def _leave_routine(unwinder: Unwinder, agent: Module, registers: Registers, exact: bool) -> Registers | None:
    """The registers behind a call of the agent's: those that it pushed first are as they were."""
    rip = registers["rip"]
    assert rip is not None
    frame = unwinder.frame(registers, exact)
    caller = unwinder.caller(registers, exact)
    if frame is None or caller is None or frame.start is None:
        return None
    if not (frame.function or "").startswith(_ROUTINES):
        return without_volatile(caller)
    start = frame.start - agent.base
    executed = min(rip - frame.start, 64)
    code = bytes(open_image(agent.path).view(start, executed)) if executed else b""
    top = caller["rsp"]
    out = {name: caller[name] if caller.get(name) is not None else registers.get(name) for name in registers}
    for index, name in enumerate(pushed_first(code)):
        out[name] = unwinder.word(top - 16 - 8 * index) if top is not None else None
    return out


def _region(trace: Trace, module: Module) -> Region | None:
    for image in trace.file.images:
        if image.id_base == module.id_base:
            return read_region((trace.path / image.functions).with_suffix(".plan"))
    return None


def _cause(scene: _Scene) -> tuple[SignalFrame | None, Registers, list[Frame]]:
    """The fault behind a signal that its handler sent on: what the kernel called the handler for, the registers and the
    frames there. None, and the crash's own, when there is no such thing.
    """
    fields = scene.crash.fields
    sent = fields["detail"] == 0 or fields["detail"] >> 31
    if fields["system"] == records.CRASH_LINUX and sent:
        before = scene.handled
        if before is not None and before.fields["detail"] >> 31 == 0 and before.fields["detail"]:
            known = before.fields
            fault = SignalFrame(known["code"], known["detail"], known["fault_address"], scene.registers)
            return fault, scene.registers, scene.frames
        for index, frame in enumerate(scene.frames):
            cause = frame.signal
            if cause is not None and 0 < cause.detail < 1 << 31:
                rest = [replace(frame, signal=None), *scene.frames[index + 1 :]]
                return cause, cause.registers, rest
    return None, scene.registers, scene.frames


def _overflowed(crash: Crash, registers: Registers, fault: int) -> bool:
    """Whether the stack had no room: the fault is beside the stack pointer, where nothing could be copied."""
    sp = registers["rsp"]
    missing = crash.fields["stack_address"] > fault or not crash.stack
    return sp is not None and missing and sp - 0x100000 <= fault < sp + 0x1000


def _earlier(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """The faults that led to this one: it happened in their handlers. The latest first."""
    return [
        {
            "signal_name": signal_name(frame.signal.signal),
            "fault_address": hex(frame.signal.fault_address),
            "frame": _frame_json(frame),
        }
        for frame in frames
        if frame.signal is not None and 0 < frame.signal.detail < 1 << 31
    ]


def _faulted_again(trace: Trace, crash: Crash) -> bool:
    """Whether the system ended the program because the handler of this fault faulted, too."""
    fields = crash.fields
    if fields["crash_flags"] & (records.CRASH_HANDLED | records.CRASH_AT_EXIT) != records.CRASH_HANDLED:
        return False
    return trace.session.get("exit_status") == SIGNALLED + int(fields["code"]) and fields["code"] != signal.SIGABRT


def _ending(trace: Trace, crash: Crash, scene: _Scene, own: bool) -> str | None:
    """How the program ended after the fault, in words; None when the signal itself ended it."""
    status = trace.session.get("exit_status")
    if not isinstance(status, int):
        return None
    flags = crash.fields["crash_flags"]
    if crash.fields["system"] == records.CRASH_WINDOWS and flags & records.CRASH_AT_EXIT:
        return f"a handler of SIGABRT ended the program with status {status}" if status != _ABORT_STATUS else None
    if flags & records.CRASH_AT_EXIT:
        return f"its handler ended the program with status {status}"
    if flags & records.CRASH_HANDLED and crash.fields["code"] == signal.SIGABRT:
        return "its handler ran, and abort ended the program all the same"
    if flags & records.CRASH_HANDLED:
        return "its handler was running when the system ended the program: it faulted, too"
    return f"its handler ended the program with {signal_name(crash.fields['code'])}" if not own else None


def _frame_json(frame: Frame) -> dict[str, Any]:
    start = frame.start if frame.start is not None else frame.address
    return {
        "address": f"0x{frame.address:016x}",
        "function_name": frame.function,
        "library_name": frame.module,
        "offset": hex(frame.address - start),
        "module_offset": None if frame.rva is None else hex(frame.rva),
        "file": frame.file,
        "line": frame.line,
        "inlines": [{"function_name": name, "file": file, "line": line} for name, file, line in frame.inlines],
        "signal": None
        if frame.signal is None
        else signal_name(frame.signal.signal)
        if frame.signal.signal
        else "signal",
    }


def signal_name(number: int) -> str:
    """'SIGSEGV'."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def no_crash(trace: Trace) -> TraceError:
    """Why there is no report."""
    status = trace.session.get("exit_status")
    if isinstance(status, int) and status > SIGNALLED:
        name = signal_name(status - SIGNALLED)
        return TraceError(
            f"{trace.path} has no record of a crash: {name} ended the program without passing through it; "
            "callscope info shows what was at work"
        )
    how = f"it ended with status {status}" if isinstance(status, int) else "its end was not recorded"
    return TraceError(f"{trace.path} has no crash: {how}; callscope tree shows its calls")
