"""All threads of a process at a standstill, and where each goes on: in `rip`, and in the signal frames on its stack.

What has to be done for each thread meanwhile is done by the kernel library (native/kernel/halt.c).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callscope.recording.borrow import Borrowed, among
from callscope.recording.process import PROC, Process
from callscope.recording.ptrace import RESTARTS, Halted, Stop, Thread, halting

_STILL = 0.03
"""seconds within which all threads have to stand still: one that waits for a child of vfork does not"""
_RESTORER = bytes.fromhex("48c7c00f0000000f05")
"""mov rax, 15; syscall: what signal handlers return to, by which gdb and libgcc know their frames, too"""
_MOST_FRAMES = 1 << 14
_STEPS = 32
_THREAD = np.dtype(Halted)
_FRAME = np.dtype([("thread", "<u8"), ("address", "<u8"), ("rip", "<u8")])
_MOVES = 2
"""state of a row that the agent answers: it has to move on by itself"""


@dataclass
class Places:
    """Where everything goes on. rows: (rip, thread pointer, whether it restarts a system call, the agent's answer), of
    the threads, of the borrowed one, and of signal frames; `before` without the agent's answer. frames: addresses of
    the latter's rip.
    """

    before: NDArray[np.uint64]
    rows: NDArray[np.uint64]
    frames: NDArray[np.uint64]

    @property
    def threads(self) -> NDArray[np.uint64]:
        """The rows of threads, the borrowed one last."""
        return self.rows[: len(self.rows) - len(self.frames)]


class Halt:
    """The standstill: `threads` without the borrowed one."""

    def __init__(self, loan: Borrowed, restorers: Sequence[int]) -> None:
        self.loan = loan
        self.threads = np.zeros(0, _THREAD)
        self.began = 0.0
        """when the first thread was asked to stop, of time.monotonic()"""
        self.seconds = 0.0
        """from then until all went on"""
        self._restorers = np.array(restorers, np.uint64)
        maps = loan.process.maps
        self._mappings = np.array([(mapping.start, mapping.end) for mapping in maps], np.uint64).reshape(-1, 2)

    def stop(self) -> bool:
        """Stop all threads but the borrowed one; those begun meanwhile are found by looking again. False when one does
        not stand still in time.
        """
        fresh = self._seize()  # which stops none
        self.began = time.monotonic()
        while len(fresh):
            left = self.began + _STILL - time.monotonic()
            running = halting().cs_halt_stop(fresh.ctypes.data, len(fresh), int(left * 1e9))
            self.threads = np.concatenate([self.threads, fresh])
            if running:
                return False
            fresh = self._seize()
        return True

    def _seize(self) -> NDArray[np.void]:
        """Seize the threads that are not known yet."""
        known = {self.loan.thread.tid, *self.threads["tid"].tolist()}
        tids = [int(name) for name in os.listdir(PROC / str(self.loan.process.pid) / "task")]  # noqa: PTH208  # in haste
        fresh = np.zeros(len(tids), _THREAD)
        fresh["tid"] = tids
        fresh = fresh[[tid not in known for tid in tids]]
        halting().cs_halt_seize(fresh.ctypes.data, len(fresh))
        return fresh

    def release(self) -> None:
        """Let all threads go on."""
        halting().cs_halt_release(self.threads.ctypes.data, len(self.threads))
        for index in np.flatnonzero(self.threads["state"] == Stop.RUNS).tolist():
            self._thread(index).release()
        self.seconds = time.monotonic() - self.began

    def ask(self, function: int) -> tuple[int, Places] | None:
        """Have the agent's `function` say where everything is to go on: what it returns, and the places.

        None when something cannot be led away, not even by steps of a thread's own.
        """
        for _ in range(_STEPS):
            places, owners = self._places()
            process, address = self.loan.process, self.loan.stack
            process.write(address, places.rows.tobytes())
            outcome = self.loan.call(function, address, len(places.rows))
            places.rows = np.frombuffer(process.read(address, places.rows.nbytes), np.uint64).reshape(-1, 4)
            stuck = np.flatnonzero(places.rows[:, 3] == _MOVES).tolist()
            if not stuck:
                return outcome, places
            if any(row >= len(owners) for row in stuck) or not all(self._step(owners[row]) for row in stuck):
                return None
        return None

    def _places(self) -> tuple[Places, NDArray[np.intp]]:
        """Where all go on, and which of `threads` the first rows are of."""
        owners = np.flatnonzero(self.threads["state"] != Stop.GONE)
        own = np.frombuffer(bytes(Halted(self.loan.thread.tid, Stop.ASKED, 0, 0, self.loan.registers)), _THREAD)
        every = np.append(self.threads[owners], own)
        registers = every["registers"]
        frames = self._frames(every)
        rows = np.zeros((len(every) + len(frames), 4), np.uint64)
        rows[: len(every), 0], rows[len(every) :, 0] = registers["rip"], frames["rip"]
        rows[: len(every), 1] = registers["fs_base"]
        in_call = registers["orig_rax"].astype(np.int64) >= 0
        rows[: len(every), 2] = in_call & np.isin(registers["rax"].astype(np.int64), RESTARTS)
        return Places(rows.copy(), rows, frames["address"]), owners

    def _frames(self, threads: NDArray[np.void]) -> NDArray[np.void]:
        """The signal frames on their stacks."""
        found = np.zeros(_MOST_FRAMES, _FRAME)
        count = halting().cs_halt_frames(
            threads.ctypes.data, len(threads), self.loan.process.memory, self._mappings.ctypes.data,
            len(self._mappings), self._restorers.ctypes.data, len(self._restorers), found.ctypes.data, len(found),
        )  # fmt: skip
        return found[:count]

    def _thread(self, index: int) -> Thread:
        """One of `threads`, to be changed there."""
        return Thread(Halted.from_buffer(self.threads.data, index * _THREAD.itemsize))

    def _step(self, index: int) -> bool:
        """Have one of `threads` execute an instruction; whether it did."""
        with suppress(ProcessLookupError):
            return self._thread(index).step(self.loan.process)
        return False

    def apply(self, places: Places) -> None:
        """Let everything go on where `places` say."""
        changed = np.flatnonzero(places.before[:, 0] != places.rows[:, 0])
        alive = np.flatnonzero(self.threads["state"] != Stop.GONE)
        for row in changed.tolist():
            rip = int(places.rows[row, 0])
            if row >= len(places.threads):
                frame = int(places.frames[row - len(places.threads)])
                self.loan.process.write(frame, rip.to_bytes(8, "little"))
            elif row == len(alive):
                self.loan.registers.rip = rip
            else:
                thread = self._thread(int(alive[row]))
                thread.record.registers.rip = rip
                with suppress(ProcessLookupError):
                    thread.set_registers(thread.record.registers)


@contextmanager
def _urgent() -> Iterator[None]:
    """This thread goes before others for the block, if it may: while it waits for a processor, the program stands
    still (sched(7)).
    """
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameters)


@contextmanager
def halted(loan: Borrowed, restorers: Sequence[int]) -> Iterator[Halt | None]:
    """All threads of the process at a standstill for the block; None when one of them does not stand still in time."""
    loan.process.refresh()
    halt = Halt(loan, restorers)
    with _urgent():
        try:
            yield halt if halt.stop() else None
        finally:
            halt.release()


def find_restorers(process: Process) -> list[int]:
    """Where signal handlers of the process may return to."""
    found = []
    for mapping in process.maps:
        if "x" not in mapping.protection or mapping.path.startswith("["):
            continue
        with suppress(OSError):
            data = process.read(mapping.start, mapping.end - mapping.start)
            at = data.find(_RESTORER)
            while at >= 0:
                found.append(mapping.start + at)
                at = data.find(_RESTORER, at + 1)
    return found


def is_inside(rows: NDArray[np.uint64], ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether a row of `Places` goes on in one of the ranges."""
    return among(rows[:, 0], ranges)
