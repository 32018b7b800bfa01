"""Threads of another process, stopped and changed by ptrace(2): what the system offers, with errors as OSError.

All calls about a thread must come from the thread of ours that seized it. Layouts: <sys/user.h>, <linux/ptrace.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from contextlib import suppress
from enum import IntEnum, auto
from functools import cache

from callscope.recording.process import status_field

_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _SETSIGMASK, _GETSIGMASK = 0x4204, 0x4205, 0x4206, 0x4207, 0x420B, 0x420A
_VECTOR_STATE = 0x202
"""NT_X86_XSTATE: all that XSAVE stores, x87 and vector registers"""
_WALL = 0x40000000
_EVENT_STOP = 128
_VECTOR_BYTES = 1 << 14
_POLL, _SPINS = 0.0002, 20
"""seconds between looks at a thread that runs, after so many without a pause"""
_RELEASE = 60.0
"""seconds that a thread may take to be released"""
_RESTARTS = {-512, -513, -514, -516}
"""ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK (include/linux/errno.h)"""

_INTERRUPTED = {0, 1, 19, 20, 43, 44, 45, 46, 47, 65, 69, 70, 128, 208, 220, 232, 281, 288, 299, 307, 333, 441}
"""System calls that may give EINTR when a thread is stopped, and can begin again: read, write, readv, writev, accept
and their like on sockets with time limits; semop, msgsnd, msgrcv, rt_sigtimedwait, io_getevents, semtimedop, epoll_wait
and their later forms"""
_SYSCALL_BYTES = 2
_NO_CALL = (1 << 64) - 1


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
        return self.system_call is not None and ctypes.c_int64(self.rax).value in _RESTARTS


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class Stop(IntEnum):
    """Why a thread stands still."""

    ASKED = auto()
    SIGNAL = auto()
    GONE = auto()


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
    """A seized thread. It goes on as if nothing had been when `release` is called, or when this process ends."""

    def __init__(self, tid: int) -> None:
        """Seize it; it runs on. Raises PermissionError, or ProcessLookupError when it has ended."""
        self.tid = tid
        self.signal = 0
        """A signal that it has been given, and will have when it goes on."""
        self.stopped = False
        self.gone = False
        _ptrace(_SEIZE, tid)

    def interrupt(self) -> None:
        """Have it stop soon, also within a system call."""
        self._try(_INTERRUPT)

    def wait(self, seconds: float) -> Stop | None:
        """Wait until it stops; None when it does not."""
        deadline = time.monotonic() + seconds
        looks = 0
        while True:
            try:
                pid, status = os.waitpid(self.tid, _WALL | os.WNOHANG)
            except ChildProcessError:
                self.gone = True
                return Stop.GONE
            if pid:
                return self._read(status)
            if time.monotonic() >= deadline:
                return None
            looks += 1
            if looks > _SPINS:
                time.sleep(_POLL)

    def _read(self, status: int) -> Stop:
        if not os.WIFSTOPPED(status):
            self.gone = True
            return Stop.GONE
        self.stopped = True
        if status >> 16 == _EVENT_STOP:
            self.signal = 0
            with suppress(ProcessLookupError):
                self._begin_wait_again()
            return Stop.ASKED
        self.signal = os.WSTOPSIG(status)
        return Stop.SIGNAL

    def _begin_wait_again(self) -> None:
        """Lead the thread back to a wait that its stop cut short.

        Most waits begin again of themselves; those that give EINTR instead (signal(7)) do here, unless a signal is on
        its way, too.
        """
        registers = self.registers()
        cut_short = ctypes.c_int64(registers.rax).value == -errno.EINTR
        if registers.system_call not in _INTERRUPTED or not cut_short:
            return
        pending, shared, held = (
            int(status_field(self.tid, name) or "0", 16) for name in ("SigPnd", "ShdPnd", "SigBlk")
        )
        if not (pending | shared) & ~held:
            registers.rax, registers.orig_rax = registers.orig_rax, _NO_CALL
            registers.rip -= _SYSCALL_BYTES
            self.set_registers(registers)

    def stop(self, seconds: float = 1.0) -> bool:
        """Interrupt it and wait; whether it stands still."""
        self.interrupt()
        return self.wait(seconds) not in (None, Stop.GONE)

    def registers(self) -> Registers:
        """Of the stopped thread. Raises ProcessLookupError when it was killed."""
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

    def step(self) -> bool:
        """Execute one instruction; whether it did."""
        self._go(_SINGLESTEP)
        done = self.wait(1.0) == Stop.SIGNAL and self.signal == signal.SIGTRAP
        if done:
            self.signal = 0
        return done

    def run(self) -> None:
        """Let it go on, seized."""
        self._go(_CONT)

    def release(self) -> None:
        """Let it go on for good. One that does not stop yet, as it waits for a child of vfork, is waited for."""
        if not self.stopped and not self.gone:
            self.stop(_RELEASE)
        self._go(_DETACH)
        self.gone = True

    def _go(self, request: int) -> None:
        self.stopped = False
        number, self.signal = self.signal, 0
        self._try(request, number)

    def _try(self, request: int, data: int = 0) -> None:
        if self.gone:
            return
        try:
            _ptrace(request, self.tid, 0, data)
        except ProcessLookupError:
            with suppress(ChildProcessError):
                os.waitpid(self.tid, _WALL | os.WNOHANG)


def is_permission(error: OSError) -> bool:
    """Whether the system refuses on account of rights."""
    return error.errno in (errno.EPERM, errno.EACCES)
