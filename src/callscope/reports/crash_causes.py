"""What signals and exceptions mean."""

from __future__ import annotations

import signal
from typing import Any, Final, NamedTuple

from callscope import format as records

# include/uapi/asm-generic/siginfo.h: the codes of faults, by signal.
_FAULTS: Final[dict[int, dict[int, tuple[str, str]]]] = {
    signal.SIGSEGV: {
        1: ("SEGV_MAPERR", "no memory at this address"),
        2: ("SEGV_ACCERR", "this memory may not be used so"),
        4: ("SEGV_PKUERR", "a protection key forbids it"),
        0x80: ("SI_KERNEL", "an address that is not canonical, or a privileged instruction"),
    },
    signal.SIGBUS: {
        1: ("BUS_ADRALN", "an address that is not aligned"),
        2: ("BUS_ADRERR", "no such memory, as behind the end of a mapped file"),
        3: ("BUS_OBJERR", "a hardware error"),
        0x80: ("SI_KERNEL", "the stack segment"),
    },
    signal.SIGFPE: {
        1: ("FPE_INTDIV", "an integer divided by zero, or a quotient too large"),
        2: ("FPE_INTOVF", "integer overflow"),
        3: ("FPE_FLTDIV", "a floating-point number divided by zero"),
        4: ("FPE_FLTOVF", "floating-point overflow"),
        5: ("FPE_FLTUND", "floating-point underflow"),
        6: ("FPE_FLTRES", "an inexact floating-point result"),
        7: ("FPE_FLTINV", "an invalid floating-point operation"),
    },
    signal.SIGILL: {
        1: ("ILL_ILLOPC", "an illegal instruction"),
        2: ("ILL_ILLOPN", "an illegal operand"),
    },
    signal.SIGTRAP: {
        1: ("TRAP_BRKPT", "a breakpoint"),
        2: ("TRAP_TRACE", "a single step"),
        0x80: ("SI_KERNEL", "a breakpoint instruction"),
    },
    signal.SIGSYS: {1: ("SYS_SECCOMP", "a system call that a filter forbids")},
}  # fmt: skip
_SENT: Final = {
    0: ("SI_USER", "sent with kill"),
    -1: ("SI_QUEUE", "sent with sigqueue"),
    -6: ("SI_TKILL", "sent by the thread itself, as abort and raise do, or with tgkill"),
}
ABORTED: Final = 0x40000015
"""STATUS_FATAL_APP_EXIT, with CRASH_AT_EXIT: abort ended a Windows program"""
# ntstatus.h
_EXCEPTIONS: Final = {
    0xC0000005: ("EXCEPTION_ACCESS_VIOLATION", "no access to the memory at this address"),
    0xC0000006: ("EXCEPTION_IN_PAGE_ERROR", "a page could not be read"),
    0xC000001D: ("EXCEPTION_ILLEGAL_INSTRUCTION", "an illegal instruction"),
    0xC0000025: ("EXCEPTION_NONCONTINUABLE_EXCEPTION", "a handler went on where it may not"),
    0xC000008C: ("EXCEPTION_ARRAY_BOUNDS_EXCEEDED", "an index out of range"),
    0xC000008E: ("EXCEPTION_FLT_DIVIDE_BY_ZERO", "a floating-point number divided by zero"),
    0xC0000090: ("EXCEPTION_FLT_INVALID_OPERATION", "an invalid floating-point operation"),
    0xC0000094: ("EXCEPTION_INT_DIVIDE_BY_ZERO", "an integer divided by zero"),
    0xC0000095: ("EXCEPTION_INT_OVERFLOW", "integer overflow"),
    0xC0000096: ("EXCEPTION_PRIV_INSTRUCTION", "a privileged instruction"),
    0xC00000FD: ("EXCEPTION_STACK_OVERFLOW", "stack overflow"),
    0xC0000374: ("STATUS_HEAP_CORRUPTION", "the heap found that it was damaged"),
    0xC0000417: ("STATUS_INVALID_CRUNTIME_PARAMETER", "a wrong argument of a function of the C runtime"),
    0xC0000409: (
        "STATUS_STACK_BUFFER_OVERRUN",
        "__fastfail: the program ended itself at once, as checks of the runtime do",
    ),
    ABORTED: ("abort", "the program ended itself: abort, std::terminate or a failed assertion"),
    0x80000001: ("EXCEPTION_GUARD_PAGE", "a guard page"),
    0x80000003: ("EXCEPTION_BREAKPOINT", "a breakpoint"),
    0x80000004: ("EXCEPTION_SINGLE_STEP", "a single step"),
    0xE06D7363: ("C++ exception", "thrown and not caught"),
    0x20474343: ("C++ exception", "thrown and not caught"),
}


class Fault(NamedTuple):
    """A signal or exception: its number, si_code or flags (32 bits), and the address it is about."""

    code: int
    detail: int
    address: int


def describe(system: int, fault: Fault, overflow: bool) -> dict[str, Any]:
    """signal: number of the signal or exception. signal_name: its name and what people call it. code_name, meaning:
    the kind of fault. fault_address: None where the fault has none.
    """
    code, detail, fault_address = fault
    if system == records.CRASH_WINDOWS:
        title, meaning = _EXCEPTIONS.get(code, (f"exception {code:#x}", ""))
        has_address = code in (0xC0000005, 0xC0000006)
        return {
            "signal": code,
            "signal_name": title,
            "code": detail,
            "code_name": None,
            "meaning": "stack overflow" if overflow and has_address else meaning,
            "fault_address": hex(fault_address) if has_address else None,
        }
    signed = detail - (1 << 32) if detail >> 31 else detail
    kind = _FAULTS.get(code, {}).get(signed) or _SENT.get(signed)
    overflow = overflow and code in (signal.SIGSEGV, signal.SIGBUS) and signed > 0
    try:
        title = f"{signal.Signals(code).name} ({signal.strsignal(code)})"
    except ValueError:
        title = f"signal {code}"
    return {
        "signal": code,
        "signal_name": title,
        "code": signed,
        "code_name": kind[0] if kind else None,
        "meaning": "stack overflow" if overflow else kind[1] if kind else "",
        "fault_address": hex(fault_address) if signed > 0 and signed != 0x80 and code != signal.SIGSYS else None,
    }
