"""A thread of a running program, borrowed to call functions there: its registers, vector state and blocked signals come
back whole, and a system call that it waits in begins again.

The calls run on memory of their own, while the program's other threads may run. So that no lock is waited for that the
borrowed thread itself holds, it is taken at a moment when it is in neither the loader nor the allocator, as far as its
registers and its stack tell.
"""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from callscope.errors import RecordError
from callscope.recording.process import Process, status_field
from callscope.recording.ptrace import TRAP_FLAG, Registers, Stop, Thread

RED_ZONE = 128
"""bytes below the stack pointer that are in use (System V ABI, 3.2.2)"""
STACK_BYTES = 1 << 20
"""of the memory that calls run on"""
_WAITS = {0, 7, 23, 35, 43, 44, 45, 46, 47, 61, 128, 130, 202, 230, 232, 247, 270, 271, 281, 288, 299}
"""System calls that wait for somebody else, with no lock of the C library's held: read, poll, select, nanosleep,
accept, sendto, recvfrom, sendmsg, recvmsg, wait4, rt_sigtimedwait, rt_sigsuspend, futex, clock_nanosleep, epoll_wait,
waitid, pselect6, ppoll, epoll_pwait, accept4, recvmmsg (asm/unistd_64.h)"""
_FUTEX = 202
_LOADER_DEPTH, _ALLOCATOR_DEPTH = 8192, 2048
"""bytes of the stack within which a return address shows that the thread is in the loader, or in the allocator"""
_ALLOCATOR = ("malloc", "free", "calloc", "realloc", "memalign", "malloc_trim", "malloc_usable_size")
_ALLOCATOR_MARGIN = 0x3000
"""bytes before and behind those functions in which the allocator's inner functions lie"""
_ALL_SIGNALS = (1 << 64) - 1
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
PATIENCE = 5.0
"""seconds within which a thread fit to be borrowed has to turn up"""
_STEPS = 200
_DIRECTION_FLAG = 0x400
_PAUSE = 0.003
"""seconds between tries"""


@dataclass
class Places:
    """Ranges of addresses (start, end) in which a thread must not be borrowed: rip, and return addresses near the top
    of its stack. loader: and the unwinder, with its lock. allocator: of the C library. agent: its code; rip only.
    trampolines: those that a thread better leaves before, so that they can go.
    """

    loader: Sequence[tuple[int, int]]
    allocator: Sequence[tuple[int, int]]
    agent: Sequence[tuple[int, int]]
    trampolines: Sequence[tuple[int, int]]


def places_of(
    process: Process,
    libc: dict[str, int],
    agent: Sequence[tuple[int, int]],
    trampolines: Sequence[tuple[int, int]],
) -> Places:
    """Those of a process with the symbols of its C library."""
    loader = [
        (found.start, found.end)
        for found in process.maps
        if "x" in found.protection and found.name.startswith(("ld-linux", "ld-2.", "ld.so", "libgcc_s."))
    ]
    allocator = [libc[name] for name in _ALLOCATOR if name in libc]
    around = [(min(allocator) - _ALLOCATOR_MARGIN, max(allocator) + _ALLOCATOR_MARGIN)] if allocator else []
    return Places(loader, around, agent, trampolines)


def among(words: NDArray[np.uint64], ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether one of the addresses lies in one of the ranges."""
    return any(bool(((words >= start) & (words < end)).any()) for start, end in ranges)


def stack_words(process: Process, sp: int, size: int) -> NDArray[np.uint64]:
    """The 8-byte words of a stack from `sp` on, `size` bytes or up to its end."""
    start = sp & ~7
    mapping = process.mapping(start)
    end = min(start + size, mapping.end) if mapping else start
    with suppress(OSError):
        return np.frombuffer(process.read(start, (end - start) & ~7), np.uint64)
    return np.empty(0, np.uint64)


def is_fit(process: Process, registers: Registers, places: Places, strict: bool) -> bool:
    """Whether a stopped thread holds no lock that a call could wait for. strict: only if it waits in a system call.

    The loader makes its system calls itself, and the allocator none of those, so in such a wait rip tells enough.
    """
    top = np.array([registers.rip], np.uint64)
    if among(top, [*places.loader, *places.agent, *places.allocator]):
        return False
    if registers.system_call in _WAITS and registers.system_call != _FUTEX:
        return True
    near = stack_words(process, registers.rsp, _ALLOCATOR_DEPTH)
    far = stack_words(process, registers.rsp, _LOADER_DEPTH)
    return not strict and not among(far, places.loader) and not among(near, places.allocator)


@dataclass
class Borrowed:
    """A stopped thread with what it had. `call` runs a function on it."""

    process: Process
    thread: Thread
    registers: Registers
    vectors: bytes
    blocked: int
    stack: int = 0
    _trap: int = field(default=0)

    def call(self, function: int, *arguments: int, seconds: float = 30.0) -> int:
        """Call a function with up to six integer arguments; what it returns.

        Raises RecordError when it faults, does not return, or the program ends.
        """
        registers = Registers.from_buffer_copy(self.registers)
        top = self.stack + STACK_BYTES if self.stack else registers.rsp - RED_ZONE
        registers.rsp = (top & ~63) - 8
        self.process.write(registers.rsp, self._trap.to_bytes(8, "little"))
        for name, value in zip(("rdi", "rsi", "rdx", "rcx", "r8", "r9"), arguments, strict=False):
            setattr(registers, name, value)
        registers.rip, registers.rax = function, 0
        registers.orig_rax = _ALL_SIGNALS  # in no system call: nothing begins again
        registers.eflags &= ~(_DIRECTION_FLAG | TRAP_FLAG)
        self.thread.set_registers(registers)
        self.thread.run()
        return self._returned(time.monotonic() + seconds)

    def _returned(self, deadline: float) -> int:
        while True:
            stop = self.thread.wait(deadline - time.monotonic())
            if stop == Stop.RUNS:
                self.thread.stop()
                raise RecordError("a call within the program does not return: it was given up; try again")
            if stop == Stop.GONE:
                raise RecordError("the program ended while it was attached to")
            if stop == Stop.SIGNAL and self.thread.record.signal in _FAULTS:
                after = self.thread.registers()
                number, self.thread.record.signal = self.thread.record.signal, 0
                if after.rip == self._trap:
                    return int(after.rax)
                name = signal.Signals(number).name
                raise RecordError(f"a call within the program ended with {name} at {after.rip:#x}; it goes on unharmed")
            self.thread.run()

    def give_back(self) -> None:
        """Let it be as it was, but for its stop."""
        with suppress(ProcessLookupError):
            self.thread.set_vectors(self.vectors)
            self.thread.set_registers(self.registers)
            self.thread.block(self.blocked)


@contextmanager
def borrowed(process: Process, places: Places, seconds: float = PATIENCE) -> Iterator[Borrowed]:
    """A thread of the process, stopped, for the block. Raises RecordError when none can be had in time."""
    thread, registers = find_thread(process, places, seconds)
    try:
        loan = Borrowed(process, thread, registers, thread.vectors(), thread.blocked())
        if int(status_field(process.pid, "SigIgn") or "0", 16) >> (signal.SIGSEGV - 1) & 1:
            raise RecordError(
                "the program ignores SIGSEGV, by which the end of a call is seen: record it from its start"
            )
        thread.block(_ALL_SIGNALS & ~sum(1 << (number - 1) for number in _FAULTS))
        try:
            yield loan
        finally:
            loan.give_back()
    finally:
        thread.release()


def find_thread(process: Process, places: Places, seconds: float) -> tuple[Thread, Registers]:
    """Stop threads, one after the other, until one is fit: one that waits in a system call; any when none waits."""
    begin = time.monotonic()
    strict = True
    while (waited := time.monotonic() - begin) < seconds:
        waiting = False
        for tid in process.threads():
            try:
                thread = Thread.seize(tid)
            except ProcessLookupError:
                continue
            with suppress(ProcessLookupError):
                if thread.stop() and not thread.record.signal:
                    registers = thread.registers()
                    waiting |= registers.system_call in _WAITS
                    registers = leave(process, thread, registers, [*places.agent, *places.trampolines])
                    if is_fit(process, registers, places, strict):
                        return thread, registers
            thread.release()
        strict = waiting and waited < seconds / 10
        if not strict:
            time.sleep(_PAUSE)
        process.refresh()
    raise RecordError(
        f"no thread of the program could be used for {seconds:.0f} s: they are busy in its loader; try again"
    )


def leave(process: Process, thread: Thread, registers: Registers, code: Sequence[tuple[int, int]]) -> Registers:
    """Have a thread step out of some code, if it soon comes to an end there; its registers then."""
    for _ in range(_STEPS):
        if registers.system_call is not None or not any(start <= registers.rip < end for start, end in code):
            break
        if not thread.step(process):
            thread.stop()
            return thread.registers()
        registers = thread.registers()
    return registers


def libc_errno(loan: Borrowed, location: int) -> tuple[int, bytes]:
    """Where the thread's errno lies, and its bytes."""
    address = loan.call(location)
    return address, loan.process.read(address, ctypes.sizeof(ctypes.c_int))
