"""Keeps what tracing costs a program within a budget: the functions that are called most are muted while it runs.

Every so often the calls recorded since the last look, times what a call costs, are compared with the processor time of
the session's processes. When that is too much, the most frequent functions are muted: their entries first, and a moment
later, when most calls that were open have ended, all of them, with their own code written back.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.clock import counter_ns
from callscope.recording.control import Control
from callscope.recording.directory import JOURNAL_NAME
from callscope.recording.sample import MOST_CHUNKS, Sample, claimed_numbers, sample_chunks
from callscope.recording.session import Session

PERIOD: Final = 0.1
"""seconds between looks"""
GRACE: Final = 0.25
"""seconds from muting a function's entries to giving it its own code back"""
TARGET: Final = 0.4
"""of the budget is aimed at: costs are estimated, and what is not recorded costs something, too"""
LEAST_BASE: Final = 0.05
"""of the processor time is the program's own at least"""
CALL_NS: Final = 12.0
"""of a call beside reading the clock twice"""
FRESH_NS: Final = 25.0
"""of the memory of a call's events, where it is not used again"""
SCRIPT_NS: Final = 150.0
"""of a call of an interpreter's function"""


@dataclass(frozen=True)
class Costs:
    """Nanoseconds that a native call costs, and one of an interpreter."""

    call: float
    script: float

    @staticmethod
    def of(features: int) -> Costs:
        """As far as can be told on this machine."""
        timeless = features & (records.FEATURE_NO_CLOCK | records.FEATURE_COARSE_CLOCK)
        clock = 0.0 if timeless else 2 * counter_ns()
        fresh = 0.0 if features & records.FEATURE_KEEP_LAST else FRESH_NS
        return Costs(CALL_NS + clock + fresh, SCRIPT_NS + clock + fresh)


def too_many(sample: Sample, calls: float, used_ns: float, costs: Costs, budget: float) -> list[int]:
    """The functions to mute after `calls` calls, distributed as the sample is, in `used_ns` of processor time.

    All functions of interpreters are one: SCRIPT_FIRST stands for them.
    """
    is_script = sample.functions >= records.SCRIPT_FIRST
    each = sample.shares * calls * np.where(is_script, costs.script, costs.call)
    total = float(each.sum())
    base = max(used_ns - total, LEAST_BASE * used_ns)
    if total <= budget * base:
        return []
    rest, chosen = total, []
    scripts = float(each[is_script].sum())
    native = [(float(cost), int(function)) for cost, function in zip(each, sample.functions, strict=True)]
    candidates = [entry for entry in native if entry[1] < records.SCRIPT_FIRST]
    if scripts:
        candidates.append((scripts, records.SCRIPT_FIRST))
    for cost, function in sorted(candidates, reverse=True):
        if rest <= TARGET * budget * base:
            break
        rest -= cost
        chosen.append(function)
    return chosen


class Budget:
    """Watches a session in a thread while in its context; without a budget it does nothing."""

    def __init__(self, session: Session, budget: float) -> None:
        """`budget`: what tracing may cost, as a fraction of the time that the program takes without."""
        self._session, self._budget = session, budget
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="budget")
        self._muted: set[int] = set()
        self._waiting: list[tuple[float, list[int]]] = []
        self._claims = 1
        self._used: Mapping[int, int] = {}

    def __enter__(self) -> Budget:
        if self._budget:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        if self._budget:
            self._thread.join()

    def _run(self) -> None:
        costs = Costs.of(int(self._session.state["features"]))
        with (
            suppress(OSError, ValueError),
            self._session.events.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        ):
            header = np.frombuffer(memory, records.EVENTS_HEADER, 1)
            control = Control(self._session.events)
            try:
                while not self._done.wait(PERIOD):
                    self._restore(control)
                    self._look(memory, header, control, costs)
            finally:
                control.close()
                del header  # the mapping cannot be closed while it is looked at

    def _restore(self, control: Control) -> None:
        """Give back the code of functions that were muted long enough ago."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            control.mute([records.MUTE_RESTORE | function for function in self._waiting.pop(0)[1]])

    def _look(self, memory: mmap.mmap, header: NDArray[np.void], control: Control, costs: Costs) -> None:
        used = used_ns(self._session.directory / JOURNAL_NAME)
        spent = sum(now - self._used.get(pid, 0) for pid, now in used.items())
        claims = int(header["next_chunk"][0])
        fresh = range(max(self._claims, claims - int(header["chunk_limit"][0]) + 2), claims)
        if not fresh or spent <= 0:
            return
        wanted = fresh[:: -(-len(fresh) // MOST_CHUNKS)]
        numbers = claimed_numbers(wanted, int(header["chunk_limit"][0]))
        sample = sample_chunks(memory, numbers, int(header["chunk_bytes"][0]))
        calls = sample.calls / len(wanted) * len(fresh)
        self._claims, self._used = claims, used
        chosen = [f for f in too_many(sample, calls, spent, costs, self._budget) if f not in self._muted]
        chosen = control.mute(chosen)
        self._muted.update(chosen)
        native = [function for function in chosen if function < records.SCRIPT_FIRST]
        if native:
            self._waiting.append((time.monotonic() + GRACE, native))


def used_ns(journal: Path) -> dict[int, int]:
    """Processor time of each process of a session that runs, by process id."""
    size = records.JOURNAL_HEADER_BYTES - records.JOURNAL_PIDS
    with journal.open("rb") as file:
        file.seek(records.JOURNAL_PIDS)
        table = np.frombuffer(file.read(size), records.JOURNAL_PID)
    found = {}
    for pid in map(int, table["pid"][table["pid"] != 0]):
        with suppress(OSError):
            found[pid] = time.clock_gettime_ns(~pid << 3 | 2)  # clock_getcpuclockid(3): of a whole process
    return found
