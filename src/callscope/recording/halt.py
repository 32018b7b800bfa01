"""All threads of a process at a standstill, and where each goes on: in `rip`, and in the signal frames on its stack."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from callscope.recording.borrow import Borrowed, among, stack_words
from callscope.recording.process import Process
from callscope.recording.ptrace import Registers, Thread

_STILL = 0.03
"""seconds within which all threads have to stand still: one that waits for a child of vfork does not"""
_MOST_STACK = 1 << 20
_RESTORER = bytes.fromhex("48c7c00f0000000f05")
"""mov rax, 15; syscall: what signal handlers return to, by which gdb and libgcc know their frames, too"""
_SAVED_SP, _SAVED_RIP = 21, 22
"""8-byte words from the return address of a handler to rsp and rip in its ucontext_t (<sys/ucontext.h>)"""
_MOST_FRAMES = 16
_STEPS = 32


@dataclass
class Place:
    """An address at which a thread goes on: its rip, or what the signal frame at `frame` returns to."""

    thread: Thread | None
    registers: Registers
    rip: int
    frame: int = 0

    @property
    def restarts(self) -> bool:
        """Whether it goes on at the system call instruction before `rip`."""
        return not self.frame and bool(self.registers.restarts)


class Halt:
    """The standstill: `others` without the borrowed thread."""

    def __init__(self, loan: Borrowed, restorers: Sequence[int]) -> None:
        self.loan = loan
        self.others: list[Thread] = []
        self.began = 0.0
        """when the first thread was asked to stop, of time.monotonic()"""
        self.seconds = 0.0
        """from then until all went on"""
        self._restorers = np.array(restorers, np.uint64)

    def places(self) -> list[Place]:
        """Where all threads go on."""
        found = []
        threads = [(thread, thread.registers()) for thread in self.others if not thread.gone]
        for thread, registers in [*threads, (None, self.loan.registers)]:
            found.append(Place(thread, registers, registers.rip))
            found += self._frames(thread, registers)
        return found

    def _frames(self, thread: Thread | None, registers: Registers) -> Iterator[Place]:
        """The signal frames on a thread's stack, the innermost first."""
        process, sp = self.loan.process, registers.rsp
        for _ in range(_MOST_FRAMES):
            words = stack_words(process, sp, _MOST_STACK)
            hits = np.flatnonzero(np.isin(words, self._restorers))
            if not len(hits) or hits[0] + _SAVED_RIP >= len(words):
                return
            at = int(hits[0])
            frame = (sp & ~7) + 8 * (at + _SAVED_RIP)
            yield Place(thread, registers, int(words[at + _SAVED_RIP]), frame)
            outer = int(words[at + _SAVED_SP])
            sp = outer if not sp <= outer <= frame else frame

    def apply(self, places: Sequence[Place]) -> None:
        """Let threads go on where `places` say."""
        for place in places:
            if place.frame:
                self.loan.process.write(place.frame, place.rip.to_bytes(8, "little"))
            elif place.rip != place.registers.rip:
                place.registers.rip = place.rip
                if place.thread is not None:
                    with suppress(ProcessLookupError):
                        place.thread.set_registers(place.registers)

    def lead(self, function: int) -> list[Place] | None:
        """Ask the agent's `function` where threads are to go on; None when one of them cannot be led away, not even by
        steps of its own.
        """
        for _ in range(_STEPS):
            places = self.places()
            states = self._ask(function, places)
            stuck = [place for place, state in zip(places, states, strict=True) if state == 2]
            if not stuck:
                return places
            if not all(place.thread and not place.frame and place.thread.step() for place in stuck):
                return None
        return None

    def _ask(self, function: int, places: Sequence[Place]) -> list[int]:
        table = np.zeros((len(places), 4), np.uint64)
        table[:, 0] = [place.rip for place in places]
        table[:, 1] = [place.registers.fs_base for place in places]
        table[:, 2] = [place.restarts for place in places]
        process, address = self.loan.process, self.loan.stack
        process.write(address, table.tobytes())
        self.loan.call(function, address, len(places))
        answered = np.frombuffer(process.read(address, table.nbytes), np.uint64).reshape(-1, 4)
        for place, rip in zip(places, answered[:, 0].tolist(), strict=True):
            place.rip = rip
        return [int(state) for state in answered[:, 3]]


@contextmanager
def halted(loan: Borrowed, restorers: Sequence[int]) -> Iterator[Halt | None]:
    """All threads of the process at a standstill for the block; None when one of them does not stand still in time."""
    halt = Halt(loan, restorers)
    try:
        yield halt if _stop_all(halt) else None
    finally:
        for thread in sorted(halt.others, key=lambda thread: not thread.stopped):
            thread.release()
        halt.seconds = time.monotonic() - halt.began


def _stop_all(halt: Halt) -> bool:
    """Stop all threads but the borrowed one; those begun meanwhile are found by looking again."""
    process = halt.loan.process
    process.refresh()
    _ = process.maps  # read before, as it takes its time
    known = {halt.loan.thread.tid}
    fresh = _seize(process, known)  # which stops none
    halt.began = time.monotonic()
    while fresh:
        halt.others += fresh
        for thread in fresh:
            thread.interrupt()
        for thread in fresh:
            if thread.wait(max(halt.began + _STILL - time.monotonic(), 0)) is None:
                return False
        fresh = _seize(process, known)
    return True


def _seize(process: Process, known: set[int]) -> list[Thread]:
    """Seize the threads that are not known yet."""
    seized = []
    for tid in [tid for tid in process.threads() if tid not in known]:
        known.add(tid)
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            seized.append(Thread(tid))
    return seized


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


def is_inside(places: Sequence[Place], ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether a thread goes on in one of the ranges."""
    return among(np.array([place.rip for place in places], np.uint64), ranges)
