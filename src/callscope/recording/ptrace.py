"""Threads of another process, stopped and changed by ptrace(2): what the system offers, with errors as OSError.

All calls about a thread must come from the thread of ours that seized it. Layouts: <sys/user.h>, <linux/ptrace.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from contextlib import suppress
from enum import IntEnum
from functools import cache

from callscope.native import kernel
from callscope.recording.process import Process

_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _SETSIGMASK, _GETSIGMASK = 0x4204, 0x4205, 0x4206, 0x4207, 0x420B, 0x420A
_VECTOR_STATE = 0x202
"""NT_X86_XSTATE: all that XSAVE stores, x87 and vector registers"""
_WALL = 0x40000000
_PUSHF, _PREFIXES, _LONGEST_PUSHF = b"\x9c", bytes([0x66, *range(0x40, 0x50)]), 3
TRAP_FLAG = 0x100
"""of eflags (Intel SDM volume 1, 3.4.3.3)"""
_VECTOR_BYTES = 1 << 14
_RELEASE = 60.0
"""seconds that a thread may take to be released"""
RESTARTS = (-512, -513, -514, -516)
"""ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (include/linux/errno.h)"""


class Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [(name, ctypes.c_uint64) for name in (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs")]  # fmt: skip

    @property
    def system_call(self) -> int | None:
        """Number of the system call that the thread is in; None when it is in none."""
        number = ctypes.c_int64(self.orig_rax).value
        return number if number >= 0 else None

    @property
    def restarts(self) -> bool:
        """Whether the system call begins again, at the instruction before rip, as soon as the thread goes on."""
        return self.system_call is not None and ctypes.c_int64(self.rax).value in RESTARTS


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class Stop(IntEnum):
    """How a thread is, or why it stands still: enum state of native/kernel/halt.c."""

    RUNS, ASKED, SIGNAL, GONE = range(4)


class Halted(ctypes.Structure):
    """struct cs_halted of native/kernel/halt.c: a thread, the signal it has been given, and its registers since it
    stopped.
    """

    _fields_ = [
        ("tid", ctypes.c_int32),
        ("state", ctypes.c_int32),
        ("signal", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("registers", Registers),
    ]


@cache
def halting() -> ctypes.CDLL:
    """The functions of native/kernel/halt.c."""
    library = kernel()
    pointer, count = ctypes.c_void_p, ctypes.c_uint64
    for function in (library.cs_halt_stop, library.cs_halt_wait):
        function.argtypes, function.restype = [pointer, count, ctypes.c_int64], count
    for function in (library.cs_halt_seize, library.cs_halt_release):
        function.argtypes, function.restype = [pointer, count], None
    library.cs_halt_frames.argtypes = [pointer, count, ctypes.c_int, pointer, count, pointer, count, pointer, count]
    library.cs_halt_frames.restype = count
    return library


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


def _ptrace(request: int, tid: int, address: int = 0, data: object = None) -> None:
    if _libc().ptrace(request, tid, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Thread:
    """A seized thread. It goes on as if nothing had been when `release` is called, or when this process ends.

    It may have been given a signal (`record.signal`), and will have it when it goes on.
    """

    def __init__(self, record: Halted) -> None:
        """One that is seized already."""
        self.record = record

    @staticmethod
    def seize(tid: int) -> Thread:
        """Seize it; it runs on. Raises PermissionError, or ProcessLookupError when it has ended."""
        _ptrace(_SEIZE, tid)
        return Thread(Halted(tid, Stop.RUNS))

    @property
    def tid(self) -> int:
        """Its number."""
        return int(self.record.tid)

    @property
    def stopped(self) -> bool:
        """Whether it stands still."""
        return self.record.state in (Stop.ASKED, Stop.SIGNAL)

    def interrupt(self) -> None:
        """Have it stop soon, also within a system call."""
        self._try(_INTERRUPT)

    def wait(self, seconds: float) -> Stop:
        """Wait until it stops; RUNS when it does not."""
        halting().cs_halt_wait(ctypes.addressof(self.record), 1, int(seconds * 1e9))
        return Stop(self.record.state)

    def stop(self, seconds: float = 1.0) -> bool:
        """Interrupt it and wait; whether it stands still."""
        self.interrupt()
        self.wait(seconds)
        return self.stopped

    def registers(self) -> Registers:
        """Of the stopped thread; a copy. Raises ProcessLookupError when it was killed."""
        registers = Registers()
        _ptrace(_GETREGS, self.tid, 0, ctypes.addressof(registers))
        return registers

    def set_registers(self, registers: Registers) -> None:
        """Change them."""
        _ptrace(_SETREGS, self.tid, 0, ctypes.addressof(registers))

    def vectors(self) -> bytes:
        """The x87 and vector registers, as XSAVE stores them."""
        buffer = ctypes.create_string_buffer(_VECTOR_BYTES)
        vector = _Vector(ctypes.addressof(buffer), len(buffer))
        _ptrace(_GETREGSET, self.tid, _VECTOR_STATE, ctypes.addressof(vector))
        return buffer.raw[: vector.bytes]

    def set_vectors(self, state: bytes) -> None:
        """Change them."""
        buffer = ctypes.create_string_buffer(state, len(state))
        vector = _Vector(ctypes.addressof(buffer), len(state))
        _ptrace(_SETREGSET, self.tid, _VECTOR_STATE, ctypes.addressof(vector))

    def blocked(self) -> int:
        """Bit map of the signals that it holds back."""
        mask = ctypes.c_uint64()
        _ptrace(_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.value

    def block(self, signals: int) -> None:
        """Change it."""
        mask = ctypes.c_uint64(signals)
        _ptrace(_SETSIGMASK, self.tid, 8, ctypes.addressof(mask))

    def step(self, process: Process) -> bool:
        """Execute one instruction; whether it did. process: that the thread is of."""
        before = self.registers()
        code = process.read(before.rip, _LONGEST_PUSHF)
        self._go(_SINGLESTEP)
        done = self.wait(1.0) == Stop.SIGNAL and self.record.signal == signal.SIGTRAP
        if done:
            self.record.signal = 0
        if done and not before.eflags & TRAP_FLAG:
            self._forget_trap_flag(process, code.lstrip(_PREFIXES)[:1] == _PUSHF)
        return done

    def _forget_trap_flag(self, process: Process, is_pushed: bool) -> None:
        """Clear the flag by which a step was made, which would trap the thread when it has long been let go: in flags
        that it pushed, and in its own, where the kernel takes it for the program's after a popf
        (enable_single_step in arch/x86/kernel/step.c).
        """
        registers = self.record.registers
        if is_pushed:
            flags = int.from_bytes(process.read(registers.rsp, 2), "little") & ~TRAP_FLAG
            process.write(registers.rsp, flags.to_bytes(2, "little"))
        if registers.eflags & TRAP_FLAG:
            registers.eflags &= ~TRAP_FLAG
            self.set_registers(registers)

    def run(self) -> None:
        """Let it go on, seized."""
        self._go(_CONT)

    def release(self) -> None:
        """Let it go on for good. One that does not stop yet, as it waits for a child of vfork, is waited for."""
        if self.record.state == Stop.RUNS:
            self.stop(_RELEASE)
        self._go(_DETACH)
        self.record.state = Stop.GONE

    def _go(self, request: int) -> None:
        number, self.record.signal = self.record.signal, 0
        if self.stopped:
            self.record.state = Stop.RUNS
        self._try(request, number)

    def _try(self, request: int, data: int = 0) -> None:
        if self.record.state == Stop.GONE:
            return
        try:
            _ptrace(request, self.tid, 0, data)
        except ProcessLookupError:
            with suppress(ChildProcessError):
                os.waitpid(self.tid, _WALL | os.WNOHANG)


def is_permission(error: OSError) -> bool:
    """Whether the system refuses on account of rights."""
    return error.errno in (errno.EPERM, errno.EACCES)
